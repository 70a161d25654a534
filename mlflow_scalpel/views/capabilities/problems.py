"""The problems behind the ledger, with both answers."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from mlflow_scalpel.views.capabilities.scores import STATUS_WORDS
from mlflow_scalpel.views.common.text import one_line
from mlflow_scalpel.views.common.view import public

REQUIRED = ("domain", "label", "kind", "problem_id", "k", "base_right", "right", "status",
            "problem", "gold", "base_completion", "completion")  # fmt: skip
LIKELIHOODS = {
    "gold_loglik": "its log-likelihood",
    "gold_loglik_after_opening": "after the base's opening",
}
#: Other people's text is cut there: a page must not hang on one answer.
LONGEST = 20_000
MOST = 200
#: The report holds less of them.
REPORTED, REPORTED_TEXT = 20, 4_000


@public
def problem_table(
    ledger: pd.DataFrame,
    *,
    status: str | None = None,
    benchmark: str | None = None,
    step: float | None = None,
    most: int = MOST,
    longest: int = LONGEST,
) -> Markup:
    """Problems of a ledger as an HTML table: problem, gold answer, and both models' first answers.

    `ledger` has a row per problem, checkpoint and benchmark (`scalpel/ledger.parquet`). `status` is
    kept, gained, lost or never; `benchmark` as in the column `texts` (`in/gsm8k/sampled`) or a
    label; `step` that of the checkpoint, the last one by default. At most `most` rows are shown,
    and the rest is counted. Answers open on a click. All text is escaped, and cut at `longest`
    characters. Where the ledger has the gold answer's log-likelihoods, they stand under it.

    Raises ValueError if columns are missing, or for another status.
    """
    missing = [column for column in REQUIRED if column not in ledger.columns]
    if missing:
        raise ValueError(
            f"the ledger is missing the columns {missing}; it has {list(ledger.columns)}"
        )
    if status is not None and status not in STATUS_WORDS:
        raise ValueError(f"status is {status!r}: pass one of {', '.join(STATUS_WORDS)}")
    keys = ledger["domain"].str.cat([ledger["label"], ledger["kind"]], sep="/")
    wanted = pd.Series(True, index=ledger.index)
    if benchmark is not None:
        wanted &= ((keys == benchmark) | (ledger["label"] == benchmark)).fillna(False)
    steps = ledger.loc[wanted, "step"].dropna() if "step" in ledger.columns else pd.Series()
    if step is None and len(steps):
        step = float(steps.max())
    if step is not None:
        wanted &= (ledger["step"] == step).fillna(False)
    if status is not None:
        wanted &= (ledger["status"] == status).fillna(False)
    rows, keys = ledger[wanted], keys[wanted]
    at = "" if step is None else f" at step {step:g}"
    what = f", {STATUS_WORDS[status]}" if status else ""
    caption = Markup("<caption>{} problem{}{}{}{}</caption>").format(
        len(rows), "" if len(rows) == 1 else "s", at, what,
        f"; the first {most} of them" if len(rows) > most else "",
    )  # fmt: skip
    body = Markup("").join(
        _row(row, key, status is None, longest)
        for (_, row), key in zip(rows.head(most).iterrows(), keys, strict=False)
    )
    return Markup(
        '<table class="problems">{}<thead><tr><th>benchmark</th><th>problem</th><th>gold</th>'
        "<th>right: base, checkpoint</th><th>base\u2019s answer</th>"
        "<th>checkpoint\u2019s answer</th></tr></thead><tbody>{}</tbody></table>"
    ).format(caption, body)


def lost_problems(ledgers: Mapping[str, pd.DataFrame], names: Mapping[str, str]) -> Markup:
    """The problems that each run lost at its last checkpoint, folded away, for the report.

    `ledgers` and `names` go by run ID. At most REPORTED problems per run, each text cut at
    REPORTED_TEXT characters, so that the report stays small. "" where no run has a ledger.
    """
    parts = Markup("")
    for run_id, ledger in ledgers.items():
        lost = ledger[(ledger["status"] == "lost").fillna(False)]
        if not len(ledger):
            continue
        table = problem_table(ledger, status="lost", most=REPORTED, longest=REPORTED_TEXT)
        parts += Markup("<details><summary>{}: {}</summary>{}</details>").format(
            one_line(names.get(run_id, run_id)),
            "problems it lost, with both answers" if len(lost) else "lost no problem",
            table if len(lost) else "",
        )
    return parts


def _row(row: pd.Series, key: str, named: bool, longest: int) -> Markup:
    name = Markup("<bdi>{}</bdi><br><span class='soft'>{}{}</span>").format(
        _text(key), _text(row["problem_id"]), f", {row['status']}" if named else ""
    )
    # of one evaluation, so that both have as many samples as the suite asks for
    counts = f"{_text(row['base_right'])}, {_text(row['right'])} of {_text(row['k'])}"
    gold = _folded(row["gold"], 80, longest) + _likelihoods(row)
    cells = (name, _folded(row["problem"], 240, longest), gold, counts)
    answers = (_answer(row["base_completion"], longest), _answer(row["completion"], longest))
    return Markup("<tr>{}</tr>").format(
        Markup("").join(Markup('<td dir="auto">{}</td>').format(one) for one in (*cells, *answers))
    )


def _likelihoods(row: pd.Series) -> Markup:
    """How likely the gold answer is to both models: whether it is gone, or only out of reach."""
    lines = Markup("")
    for name, words in LIKELIHOODS.items():
        before, after = row.get(f"{name}_base"), row.get(name)
        if pd.notna(before) and pd.notna(after):
            lines += Markup("<br><span class='soft'>{}: {} \u2192 {} nats</span>").format(
                words, f"{before:.3g}", f"{after:.3g}"
            )
    return lines


def _folded(text: object, limit: int, longest: int) -> Markup:
    """Text as it is where it is short, else behind its beginning."""
    full = _text(text)[:longest]
    if len(full) <= limit:
        return Markup("<bdi>{}</bdi>").format(full)
    return Markup("<details><summary><bdi>{}</bdi>\u2026</summary><pre>{}</pre></details>").format(
        " ".join(full[:limit].split()), full
    )


def _answer(text: object, longest: int) -> Markup:
    """An answer behind its end, where the result mostly stands."""
    full = _text(text)
    if not full:
        return Markup('<span class="soft">none</span>')
    cut = "" if len(full) <= longest else f"\n\u2026 cut: {len(full):,} characters in all"
    end = " ".join(full[-120:].split())
    lead = "\u2026" if len(full) > 120 else ""
    return Markup("<details><summary>{}{}</summary><pre>{}{}</pre></details>").format(
        lead, end, full[:longest], cut
    )


def _text(value: object) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value)
