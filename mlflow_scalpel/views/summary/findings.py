"""The findings: a table in sentences, whichever way it comes out.

Each sentence gives numbers with their intervals and no cause. Where a number is absent, the
sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup

from mlflow_scalpel.views.capabilities.changes import WHY, Change, last_change
from mlflow_scalpel.views.capabilities.scores import DOMAINS, after, before, score_rows
from mlflow_scalpel.views.common.table import Measurements, last_step
from mlflow_scalpel.views.common.text import Z, one_line, probe, reasons
from mlflow_scalpel.views.common.view import section_table, view
from mlflow_scalpel.views.divergence.kl import TOKEN_SETS, reading
from mlflow_scalpel.views.summary.differences import ABSENT, FIRST, names_of, text_of
from mlflow_scalpel.views.summary.norms import mean_norms, norm_ratios, norm_text, when
from mlflow_scalpel.views.weights.norms import NORM, PER_RATE


@view()
def findings(data: Measurements) -> list[str]:
    """A sentence for each run, then one for each pair's norms, as plain text (not escaped)."""
    rows = score_rows(data)
    norms, rates = mean_norms(data, NORM), mean_norms(data, PER_RATE)
    changes = {
        run_id: {domain: last_change(data, rows, run_id, domain) for domain in DOMAINS}
        for run_id in data.styles
    }
    tests = sum(one.paired for own in changes.values() for one in own.values())
    sentences = []
    for run_id, run in data.styles.items():
        norm = norms.get(run_id)
        parts = [
            *score_texts(data, rows, run_id, changes[run_id], tests),
            kl_text(data, run_id),
            norm_text(norm, rates.get(run_id), when(data, run_id, norm.step) if norm else ""),
        ]
        sentences.append(f"{run.name}: " + "; ".join(parts) + ".")
    return [one_line(one) for one in once([*sentences, *norm_ratios(data, norms, rates)], WHY)]


@section_table("findings")
def findings_html(data: Measurements) -> Markup:
    """Warnings, seeds and findings, sentence by sentence, as HTML; all text is escaped."""
    names = [run.name for run in data.styles.values()]
    warnings = _list("card warning", warning_texts(data.runs))
    return warnings + _list("card", [seed_text(data.runs, names), *findings(data)])


def _list(style: str, sentences: Sequence[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>").format(one) for one in sentences if one)
    return Markup('<ul class="{}">{}</ul>').format(style, items) if items else Markup("")


def once(sentences: Sequence[str], words: str) -> list[str]:
    """The sentences with these words where they stand first, and nowhere else."""
    first = next((i for i, one in enumerate(sentences) if words in one), len(sentences))
    found = [one.replace(words, "") for one in sentences]
    if first < len(sentences):
        start, _, end = sentences[first].partition(words)
        found[first] = start + words + end.replace(words, "")
    return found


def score_texts(
    data: Measurements, rows: pd.DataFrame, run_id: str, changes: Mapping[str, Change], tests: int
) -> list[str]:
    """The change in-domain and out-of-domain from the base to the last evaluated checkpoint."""
    if not any(one.known for one in changes.values()):
        if not len(after(rows, run_id)):
            return ["no checkpoint was evaluated"]
        if not len(before(rows, run_id)):
            return ["no scores of its base, hence no change"]
    found = []
    for domain, name in DOMAINS.items():
        step = changes[domain].step
        at = "" if math.isnan(step) else when(data, run_id, step)
        found.append(change_text(changes[domain], name, at, tests))
    return found


def change_text(found: Change, name: str, at: str, tests: int = 1) -> str:
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
    return f"{text}({found.text(tests)}) {at}"


def kl_text(data: Measurements, run_id: str) -> str:
    """The KL from the base at the last measured checkpoint: answer tokens where known, else all."""
    rows = data.checkpoints(*TOKEN_SETS)
    rows = rows[rows["run_id"] == run_id]
    rows = rows[rows["step"] == last_step(rows)]
    if not len(rows):
        return "KL from the base not measured"
    at = when(data, run_id, rows["step"].iloc[0])
    why = reasons(rows["reason"])
    rows = rows[rows["value"].notna()]
    if not len(rows):
        return f"KL from the base has no value {at}: {why}"
    metric = "kl/answer_tokens"
    if not (rows["metric"] == metric).any():
        metric = "kl/all_tokens"
    texts = []
    for row in rows[rows["metric"] == metric].itertuples():
        within = "" if pd.isna(row.stderr) else f" \u00b1 {Z * row.stderr:.2g}"  # type: ignore[operator]
        beside = reading(data, row)
        dtype = f", {beside.dtype}" if beside.dtype else ""
        why = beside.undecided
        if row.value <= Z * row.stderr:
            why = why or "the interval includes 0"
        undecided = f", which decides nothing: {why}" if why else ""
        texts.append(f"{row.value:.3g}{within} ({probe(str(row.texts))}{dtype}{undecided})")
    return f"KL, {TOKEN_SETS[metric]}, {', '.join(texts)} nats/token {at}"


def warning_texts(runs: pd.DataFrame | None) -> list[str]:
    """Each warning of each run, the run's name before it."""
    if runs is None or "warnings" not in runs.columns:
        return []
    return [
        one_line(f"{name}: {line}")
        for name, text in zip(names_of(runs), runs["warnings"], strict=True)
        if isinstance(text, str)
        for line in text.splitlines()
        if line
    ]


def seed_text(runs: pd.DataFrame | None, names: Sequence[str]) -> str:
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
    return one_line(text) or "Every arm has more than one seed; each is drawn as a run of its own."
