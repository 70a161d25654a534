"""`mlflow_scalpel.compare`: any models against any base, as one tidy table; `top_tokens`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_scalpel.chat import (
    DEFAULT_DATE,
    context_of,
    load_tokenizer,
    stored_template,
    template_of,
)
from mlflow_scalpel.checkpoints.models.opening import one_line_errors, read_config
from mlflow_scalpel.checkpoints.reading.addresses import expand
from mlflow_scalpel.comparison.capabilities import evaluated_capabilities
from mlflow_scalpel.comparison.engine import STANDARD, TEXT_GROUPS, Comparison
from mlflow_scalpel.comparison.forward.divergence_variants import Sampling
from mlflow_scalpel.comparison.forward.probes import Probe, build_probe, failed_probe, read_texts
from mlflow_scalpel.comparison.measured_models import MeasuredModel, model_from, readable_model
from mlflow_scalpel.comparison.runner import MERGE_DTYPE
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import choose_metrics


def compare(
    base: str,
    checkpoints: Sequence[str] | str,
    *,
    metrics: Iterable[str] = STANDARD,
    texts: str | Path | Sequence[tuple[str, str]] | None = None,
    samples: pd.DataFrame | str | Path | None = None,
    system_prompt: str | None = None,
    template_date: date = DEFAULT_DATE,
    dtype: str = "float32",
    device: str = "cpu",
    sample_seed: int = 0,
    max_new_tokens: int = 256,
    cache: bool = True,
    progress: bool = False,
    on_tokens: Callable[[list[pd.DataFrame]], object] | None = None,
) -> pd.DataFrame:
    """Measure checkpoints against their base; one row a value, with the columns of the tidy table.

    Args:
        base: local directory, hub name, or any URI that one checkpoint has.
        checkpoints: one or more of the same; `runs:/RUN` means all checkpoints of a run.
        metrics: names of metrics or groups, as `mlflow-scalpel metrics` lists them.
        texts: JSONL file with the fields problem and solution, or such pairs; what `kl` and
            `attention` are measured on. Without texts they are left out.
        samples: rows of one evaluation, or their Parquet file, for `capabilities`; without them
            the newest evaluation of each checkpoint's run is taken.
        system_prompt: put before every text; "" switches off what the template says by itself.
        template_date: what a chat template writes that asks for the current date.
        dtype: of the forward passes.
        device: Torch device of the forward passes.
        sample_seed: of the answers that the base samples for `kl_on_base_samples`.
        max_new_tokens: of each of those answers.
        cache: keep results on this machine by content, and take what is kept.
        progress: show bars on a terminal.
        on_tokens: called with the tables of single tokens, one for each checkpoint whose KL was
            measured (`top_tokens` says what they hold).

    Raises:
        ScalpelError: a model, a metric, the texts or an evaluation cannot be had; metrics that need
            texts were named without any. What cannot be measured of a checkpoint is a row with its
            reason.
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    chosen = choose_metrics(names)
    needing = [one.name for one in chosen if one.group in TEXT_GROUPS]
    if texts is None and needing and names != list(STANDARD):
        raise ScalpelError(
            f"metrics = {needing[0]}: is measured on texts; give a JSONL file with the fields "
            "problem and solution (texts=..., --texts FILE)"
        )
    capabilities = any(one.group == "capabilities" for one in chosen)
    if samples is not None and not capabilities:
        raise ScalpelError(
            "samples: only the group capabilities reads them; name it (metrics=['capabilities'], "
            "--metrics capabilities)"
        )
    sources = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    expanded = [one for source in sources for one in expand(source)]
    # What was evaluated is in MLflow; all else reads the models' files.
    files = texts is not None or any(one.group != "capabilities" for one in chosen)
    start = model_from(base, files=files)
    models = [readable_model(one, files=files, base=start) for one in expanded]
    problems = [one.problem for one in models if one.problem is not None]
    if problems and len(problems) == len(models):
        raise ScalpelError(problems[0])  # there is nothing to measure
    probes = []
    if texts is not None:
        name, pairs = _named(texts)
        try:
            with one_line_errors():
                probe = probe_of(
                    name,
                    pairs,
                    start,
                    models,
                    system_prompt=system_prompt,
                    template_date=template_date,
                )
        except ScalpelError as error:  # what tokenizer and template cannot render
            probe = failed_probe(name, pairs, f"{start.directory}: {error}")
        probes = [probe]
    comparison = Comparison(
        start,
        probes,
        names,
        dtype=dtype,
        device=device,
        cache=cache,
        progress=progress,
        sampling=Sampling(sample_seed, max_new_tokens),
        token_tables=on_tokens is not None,
    )
    table = comparison.measure(*models)
    if on_tokens is not None:
        on_tokens(list(comparison.tokens.values()))
    if not capabilities:
        return table
    evaluated = evaluated_capabilities(start, models, names, samples)
    return pd.concat([table, evaluated], ignore_index=True)


def top_tokens(
    base: str,
    checkpoint: str,
    *,
    texts: str | Path | Sequence[tuple[str, str]],
    **settings: Any,
) -> pd.DataFrame:
    """The tokens at which a checkpoint differs most from its base, with the top 5 of both models.

    A row a token: all of the first 8 texts, and the 200 of the largest KL(base || checkpoint) over
    all texts (`rank`), with the text before them (`context`). Columns: model_id, step, texts,
    problem, position, token, token_id, answer, kl, reverse, base_entropy, rank, context, base_top,
    checkpoint_top, base_top_p, checkpoint_top_p, right_p_base, right_p_checkpoint.

    Takes the arguments of `compare`, but `metrics`. Raises ScalpelError also for a checkpoint whose
    KL cannot be measured.
    """
    found: list[pd.DataFrame] = []
    table = compare(
        base, checkpoint, metrics=["kl/all_tokens"], texts=texts, on_tokens=found.extend, **settings
    )
    if not found:
        raise ScalpelError(f"{checkpoint}: has no KL: {table['reason'].iloc[0]}")
    return pd.concat(found, ignore_index=True)


def _named(
    texts: str | Path | Sequence[tuple[str, str]],
) -> tuple[str, list[tuple[str, str]]]:
    """Name of the texts, and problem and solution of each."""
    if isinstance(texts, str | Path):
        return Path(texts).stem, read_texts(Path(texts))
    return "texts", [(problem, solution) for problem, solution in texts]


def probe_of(
    name: str,
    pairs: Sequence[tuple[str, str]],
    base: MeasuredModel,
    checkpoints: Sequence[MeasuredModel],
    *,
    system_prompt: str | None = None,
    template_date: date = DEFAULT_DATE,
) -> Probe:
    """(problem, solution) pairs, rendered with the template that the checkpoints were trained with.

    That is the one that all of them have, where they have one; else the base's. Prints what may be
    wrong with them. Raises ScalpelError as `build_probe` does.
    """
    complete = base.complete(MERGE_DTYPE)
    tokenizer = load_tokenizer(complete, template_date, local_files_only=True)
    template = template_of(tokenizer)
    found = {stored_template(one.directory) for one in checkpoints} - {None}
    if len(found) == 1:
        tokenizer.chat_template = found.pop()
    elif found - {template}:
        print(
            f"WARNING: the checkpoints have {len(found)} chat templates, so that the texts of "
            f"{name} are rendered with {'that of the base' if template else 'none of them'}",
            flush=True,
        )
    context = context_of(read_config(complete))
    probe = build_probe(name, pairs, tokenizer, system_prompt=system_prompt, context=context)
    for message in probe.warnings.values():
        print(f"WARNING: {message}", flush=True)
    return probe
