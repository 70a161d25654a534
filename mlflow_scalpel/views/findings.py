"""What the table says, in sentences, whichever way it comes out.

Each sentence gives numbers with their intervals and no cause. Where a number is absent, the
sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mlflow_scalpel.views.confounding import ABSENT, FIRST, names_of, text_of
from mlflow_scalpel.views.kl import TOKEN_SETS
from mlflow_scalpel.views.scores import (
    DOMAINS,
    Change,
    after,
    before,
    change,
    scores,
    shared_skills,
)
from mlflow_scalpel.views.style import Run, styles, unturned
from mlflow_scalpel.views.tidy import Z, last_step, per_matrix, probe, read

NORM = "weights/relative_frobenius"
PER_RATE = "weights/relative_frobenius_per_lr"

#: Why a change has no interval.
WHY = ": standard errors are missing"

#: Mean over layers and matrices at the last checkpoint, its step, cells with a value, cells.
Norm = tuple[float, float, int, int]


def findings(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> list[str]:
    """A sentence for each run, then one for each pair's norms, as plain text (not escaped)."""
    clean = read(table)
    looks = list(styles(clean, runs).values())
    rows = scores(clean)
    scored = [run.run_id for run in looks if len(after(rows, run.run_id))]
    kinds = {domain: shared_skills(rows, scored, domain)[0] for domain in DOMAINS}
    norms, rates = mean_norms(clean, looks, NORM), mean_norms(clean, looks, PER_RATE)
    tokens = clean[clean["metric"].isin(TOKEN_SETS)]
    sentences = []
    for run in looks:
        parts = [
            *score_words(rows, run, kinds),
            kl_words(tokens, run),
            norm_words(norms[run.run_id], rates[run.run_id]),
        ]
        sentences.append(f"{run.name}: " + "; ".join(parts) + ".")
    sentences = once([*sentences, *norm_ratios(looks, norms, rates)], WHY)
    return [unturned(one) for one in sentences]


def once(sentences: Sequence[str], words: str) -> list[str]:
    """The sentences with these words where they stand first, and nowhere else."""
    first = next((i for i, one in enumerate(sentences) if words in one), len(sentences))
    told = [one.replace(words, "") for one in sentences]
    if first < len(sentences):
        start, _, end = sentences[first].partition(words)
        told[first] = start + words + end.replace(words, "")
    return told


def score_words(rows: pd.DataFrame, run: Run, kinds: dict[str, dict[str, str]]) -> list[str]:
    """The change in-domain and out-of-domain from the base to the last evaluated checkpoint."""
    start, end = before(rows, run.run_id), after(rows, run.run_id)
    if not len(end):
        return ["no checkpoint was evaluated"]
    if not len(start):
        return ["no scores of its base, hence no change"]
    words = []
    for domain, name in DOMAINS.items():
        found = change(start, end, domain, kinds[domain])
        words.append(change_words(found, name))
    return words


def signed(value: float) -> str:
    """A difference with its sign, a minus as wide as the plus."""
    return f"{value:+.3f}".replace("-", "\u2212")


def change_words(found: Change, name: str) -> str:
    """One change as words: `in-domain sampled accuracy 0.60 -> 0.80 (+0.20 +- 0.04)`."""
    if found.change is None:
        return f"{name}: {found.why}"
    kind = " and ".join(found.kinds)
    skills = f"mean over {len(found.skills)} skills" if len(found.skills) > 1 else found.skills[0]
    text = f"{name} {kind} accuracy ({skills}) {found.before:.3f} \u2192 {found.after:.3f}"
    if found.half is None:
        return f"{text} ({signed(found.change)}, no interval{WHY})"
    text += f" ({signed(found.change)} \u00b1 {found.half:.3f}"
    if abs(found.change) <= found.half:
        text += ", an interval that includes 0"
    return text + ")"


def kl_words(tokens: pd.DataFrame, run: Run) -> str:
    """The KL from the base at the last checkpoint: answer tokens where measured, else all.

    `tokens` are the rows of TOKEN_SETS.
    """
    rows = tokens[tokens["run_id"] == run.run_id]
    rows = rows[(rows["step"] > 0) & rows["value"].notna()]
    if not len(rows):
        return "KL from the base not measured"
    metric = "kl/answer_tokens"
    if not (rows["metric"] == metric).any():
        metric = "kl/all_tokens"
    rows = rows[rows["metric"] == metric]
    rows = rows[rows["step"] == last_step(rows)]
    said = []
    for row in rows.itertuples():
        within = "" if pd.isna(row.stderr) else f" \u00b1 {Z * row.stderr:.2g}"
        said.append(f"{row.value:.3g}{within} ({probe(str(row.texts))})")
    step = rows["step"].iloc[0]
    return f"KL, {TOKEN_SETS[metric]}, {', '.join(said)} nats/token at step {step:g}"


def mean_norms(clean: pd.DataFrame, looks: Sequence[Run], metric: str) -> dict[str, Norm | None]:
    """The mean of a metric at each run's last checkpoint, by run ID; None without a value."""
    rows = per_matrix(clean, metric)
    rows = rows[rows["step"] > 0]
    found: dict[str, Norm | None] = {}
    for run in looks:
        own = rows[rows["run_id"] == run.run_id]
        step = last_step(own)
        own = own[own["step"] == step]
        found[run.run_id] = None
        if step is not None and own["value"].notna().any():
            known = int(own["value"].notna().sum())
            found[run.run_id] = float(own["value"].mean()), step, known, len(own)
    return found


def norm_words(norm: Norm | None, rate: Norm | None) -> str:
    """The mean relative norm, and the same for each unit of learning rate spent."""
    if norm is None:
        return "weights not compared"
    value, step, known, cells = norm
    of = "" if known == cells else f", {known} of {cells} matrices"
    text = f"mean relative norm {value:.3g} at step {step:g}{of}"
    return text if rate is None else f"{text}, {rate[0]:.3g} per unit of summed learning rate"


def norm_ratios(
    looks: Sequence[Run], norms: Mapping[str, Norm | None], rates: Mapping[str, Norm | None]
) -> list[str]:
    """For each pair of runs, how many times as far one moved, before and after the rate is divided.

    Only where both were compared in full: a mean over fewer matrices is another mean.
    """
    sentences = []
    for i, one in enumerate(looks):
        for other in looks[i + 1 :]:
            a, b = norms[one.run_id], norms[other.run_id]
            if a is None or b is None or a[2:] != b[2:] or a[2] != a[3] or 0 in (a[0], b[0]):
                continue
            far, near = (one, other) if a[0] >= b[0] else (other, one)
            ratio = max(a[0], b[0]) / min(a[0], b[0])
            text = f"{far.name} has {ratio:.3g} times the mean relative norm of {near.name}"
            c, d = rates[far.run_id], rates[near.run_id]
            if c is not None and d is not None and d[0] > 0:
                text += f", and {c[0] / d[0]:.3g} times its norm per unit of summed learning rate"
            sentences.append(text + ".")
    return sentences


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
