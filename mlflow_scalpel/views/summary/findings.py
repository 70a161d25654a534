"""What the table says, in sentences, whichever way it comes out.

Each sentence gives numbers with their intervals and no cause. Where a number is absent, the
sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mlflow_scalpel.views.confounding import ABSENT, FIRST, names_of, text_of
from mlflow_scalpel.views.kl import TOKEN_SETS, reading
from mlflow_scalpel.views.norm_words import (
    NORM,
    PER_RATE,
    mean_norms,
    norm_ratios,
    norm_words,
    when,
)
from mlflow_scalpel.views.score_change import WHY, Change, last_change
from mlflow_scalpel.views.scores import DOMAINS, after, before, scores
from mlflow_scalpel.views.style import Run, styles, unturned
from mlflow_scalpel.views.tidy import Z, last_step, probe, read, reasons

#: How the sentences are to be read.
READING = (
    "Intervals of 95 % and tests are over problems, not over seeds. A paired change has the exact "
    "sign-flip test of the changes of single problems, and its interval includes 0 where and only "
    "where p is above 0.05; an unpaired one takes the two evaluations as independent. \u00b1 "
    "of a KL is 1.96 standard errors. P values are not corrected for their number."
)


def findings(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> list[str]:
    """A sentence for each run, then one for each pair's norms, as plain text (not escaped)."""
    clean = read(table)
    looks = list(styles(clean, runs).values())
    rows = scores(clean)
    norms, rates = mean_norms(clean, looks, NORM), mean_norms(clean, looks, PER_RATE)
    tokens = clean[clean["metric"].isin(TOKEN_SETS)]
    changes = {
        run.run_id: {domain: last_change(clean, rows, run.run_id, domain) for domain in DOMAINS}
        for run in looks
    }
    tests = sum(one.paired for own in changes.values() for one in own.values())
    sentences = []
    for run in looks:
        norm = norms[run.run_id]
        parts = [
            *score_words(clean, rows, run, changes[run.run_id], tests, runs),
            kl_words(clean, tokens, run, runs),
            norm_words(norm, rates[run.run_id], when(norm.step, run, clean, runs) if norm else ""),
        ]
        sentences.append(f"{run.name}: " + "; ".join(parts) + ".")
    sentences = once([*sentences, *norm_ratios(looks, norms, rates, runs)], WHY)
    return [unturned(one) for one in sentences]


def once(sentences: Sequence[str], words: str) -> list[str]:
    """The sentences with these words where they stand first, and nowhere else."""
    first = next((i for i, one in enumerate(sentences) if words in one), len(sentences))
    told = [one.replace(words, "") for one in sentences]
    if first < len(sentences):
        start, _, end = sentences[first].partition(words)
        told[first] = start + words + end.replace(words, "")
    return told


def score_words(
    clean: pd.DataFrame,
    rows: pd.DataFrame,
    run: Run,
    changes: Mapping[str, Change],
    tests: int,
    runs: pd.DataFrame | None,
) -> list[str]:
    """The change in-domain and out-of-domain from the base to the last evaluated checkpoint."""
    if not any(one.known for one in changes.values()):
        if not len(after(rows, run.run_id)):
            return ["no checkpoint was evaluated"]
        if not len(before(rows, run.run_id)):
            return ["no scores of its base, hence no change"]
    said = {
        domain: "" if one.step != one.step else when(one.step, run, clean, runs)
        for domain, one in changes.items()
    }
    return [
        change_words(changes[domain], name, said[domain], tests) for domain, name in DOMAINS.items()
    ]


def change_words(found: Change, name: str, at: str, tests: int = 1) -> str:
    """One change as words: `in-domain sampled accuracy 0.600 -> 0.800 (+0.200, ...) at step 60`.

    `at` says of which checkpoint it is.
    """
    if not found.known:
        return f"{name} {at}: {found.why}" if at and found.skills else f"{name}: {found.why}"
    kind = " and ".join(found.kinds)
    skills = f"mean over {len(found.skills)} skills" if len(found.skills) > 1 else found.skills[0]
    text = f"{name} {kind} accuracy ({skills}) "
    if found.before == found.before:
        text += f"{found.before:.3f} \u2192 {found.after:.3f} "
    return f"{text}({found.words(tests)}) {at}"


def kl_words(clean: pd.DataFrame, tokens: pd.DataFrame, run: Run, runs: pd.DataFrame | None) -> str:
    """The KL from the base at the last measured checkpoint: answer tokens where known, else all.

    `tokens` are the rows of TOKEN_SETS.
    """
    rows = tokens[(tokens["run_id"] == run.run_id) & (tokens["step"] > 0)]
    rows = rows[rows["step"] == last_step(rows)]
    if not len(rows):
        return "KL from the base not measured"
    at = when(rows["step"].iloc[0], run, clean, runs)
    why = reasons(rows["reason"])
    rows = rows[rows["value"].notna()]
    if not len(rows):
        return f"KL from the base has no value {at}: {why}"
    metric = "kl/answer_tokens"
    if not (rows["metric"] == metric).any():
        metric = "kl/all_tokens"
    said = []
    for row in rows[rows["metric"] == metric].itertuples():
        within = "" if pd.isna(row.stderr) else f" \u00b1 {Z * row.stderr:.2g}"  # type: ignore[operator]
        beside = reading(clean, row)
        dtype = f", {beside.dtype}" if beside.dtype else ""
        why = beside.undecided
        if row.value <= Z * row.stderr:
            why = why or "the interval includes 0"
        nothing = f", which decides nothing: {why}" if why else ""
        said.append(f"{row.value:.3g}{within} ({probe(str(row.texts))}{dtype}{nothing})")
    return f"KL, {TOKEN_SETS[metric]}, {', '.join(said)} nats/token {at}"


def warning_words(runs: pd.DataFrame | None) -> list[str]:
    """What may be wrong with the runs: each warning of each run, the run's name before it."""
    if runs is None or "warnings" not in runs.columns:
        return []
    return [
        unturned(f"{name}: {line}")
        for name, text in zip(names_of(runs), runs["warnings"], strict=True)
        if isinstance(text, str)
        for line in text.splitlines()
        if line
    ]


def seed_words(runs: pd.DataFrame | None, names: Sequence[str]) -> str:
    """How many seeds stand behind each arm: runs that agree in all but their seed.

    `names` are the runs of the table, for when nothing is known of them.
    """
    spread = (
        "the intervals cover the problems sampled, not the spread between seeds, so a difference "
        "between runs may be one between seeds."
    )
    if runs is None or "seed" not in runs.columns or not len(runs):
        return f"Seeds were not recorded ({', '.join(names) or 'no runs'}): {spread}"
    arms: dict[tuple[str, ...], tuple[list[str], set[str]]] = {}
    keys = ["algorithm", *(column for column in FIRST if column != "seed")]
    for name, (_, row) in zip(names_of(runs), runs.iterrows(), strict=True):
        arm = tuple(text_of(row.get(key)) for key in keys)
        members, seeds = arms.setdefault(arm, ([], set()))
        members.append(name)
        seeds.add(text_of(row["seed"]))
    unknown = [", ".join(members) for members, seeds in arms.values() if seeds == {ABSENT}]
    single = [
        ", ".join(members)
        for members, seeds in arms.values()
        if len(seeds) == 1 and seeds != {ABSENT}
    ]
    text = ""
    if single:
        each = " each" if len(single) > 1 else ""
        text = f"One seed{each} ({'; '.join(single)}): {spread}"
    if unknown:
        text += f" Seed not recorded: {'; '.join(unknown)}."
    return unturned(text) or "Every arm has more than one seed; each is drawn as a run of its own."
