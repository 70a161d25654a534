"""How many rows of the data are left, and why the others are not, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

ASKED = ("where", "rows", "limit")  # reasons that a user gave to have fewer rows

NOTE = "note"


@dataclass
class Account:
    """Counts of rows, from what was read to what a run draws from."""

    rows: int
    """Rows that were read."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that each reason left out, in the order in which it was looked at."""
    reasons: list[tuple[str, str]] = field(default_factory=list)
    """A reason that left out rows, and a few words about it."""

    def drop(self, reason: str, count: int, words: str) -> None:
        """Count rows that a reason left out; `words` goes after their number."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        if count:
            self.reasons.append((reason, f"{count} {words}"))

    def note(self, words: str) -> None:
        """A note on the rows that are left."""
        self.reasons.append((NOTE, words))

    @property
    def kept(self) -> int:
        """Rows that are left."""
        return self.rows - sum(self.dropped.values())

    @property
    def chosen(self) -> int:
        """Rows that the user asked for."""
        return self.rows - sum(self.dropped.get(reason, 0) for reason in ASKED)

    def line(self) -> str | None:
        """One line for the console; None where there is nothing to report."""
        if not self.reasons:
            return None
        return f"data: {self.kept} of {self.rows} rows kept; {_joined(self.reasons)}"

    def warning(self) -> str | None:
        """A warning where half or more of the rows that were asked for are lost."""
        lost = self.chosen - self.kept
        if not lost or 2 * lost < self.chosen:
            return None
        why = _joined([one for one in self.reasons if one[0] not in (*ASKED, NOTE)])
        return (
            f"only {self.kept} of the {self.chosen} rows that the data should give are used: {why}"
        )


def _joined(reasons: list[tuple[str, str]]) -> str:
    return "; ".join(words for _, words in reasons)
