"""KL, weights, spectra and attention on the device, against float64 and against the CPU."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpu_checks.results import Row, at_most, holds, not_run, seen, within
from gpu_checks.runs import environment
from gpu_checks.setup import Setup, kl_float64, olmo2_1b, olmo2_7b, perturb, random_model, timed
from mlflow_scalpel.comparison.compare import compare, top_tokens
from mlflow_scalpel.comparison.forward.divergence import Divergence
from mlflow_scalpel.comparison.forward.model import ForwardModel
from mlflow_scalpel.comparison.forward.probes import build_probe
from mlflow_scalpel.data import tiny_world
from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.recipes.base import Architecture
from mlflow_scalpel.training.tiny_base import make_tokenizer

PLACE = ["metric", "layer", "head", "matrix", "bin", "texts"]
ON_TEXTS = ["kl", "attention", "kl_on_base_samples", "kl_paper_compat"]
FROM_WEIGHTS = ["weights", "histograms", "spectra", "weights_paper_compat"]
SAMPLED = ("kl_on_base_samples",)  # another device samples other answers
ROUNDED = ("kl_paper_compat",)  # in bfloat16 from end to end
ALL, FLOOR = "kl/all_tokens", "kl/floor/all_tokens"

# A float32 product is off by 1e-6 or so. What a top token is, or in which bin a token falls, hangs
# on a comparison: there a token among a thousand may differ.
EXACT, COUNTED, IN_BFLOAT16 = 1e-3, 2e-2, 0.5


def texts(count: int, words: int) -> list[tuple[str, str]]:
    """Problems of the tiny world, with so many solutions each as the answer has words for."""
    problems = [one for one in tiny_world.pool("add") if one.teacher_solution]
    pairs = []
    for number in range(count):
        together = [problems[(number + k) % len(problems)] for k in range(words)]
        solution = "".join(one.teacher_solution or "" for one in together)
        pairs.append((together[0].problem, solution))
    return pairs


def differences(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """The largest difference of each metric in two tables of the same rows.

    As a share of the second one's value, or of a thousandth of that metric's largest where it is
    smaller. Raises ValueError where rows, statuses or missing values are not the same.
    """
    one, other = (by_place(table) for table in (first, second))
    if not one.index.equals(other.index):
        raise ValueError(f"other rows: {one.index.symmetric_difference(other.index)[:3].tolist()}")
    if (one["status"] != other["status"]).any():
        where = one.index[one["status"] != other["status"]][:3].tolist()
        raise ValueError(f"another status: {where}")
    if (one["value"].isna() != other["value"].isna()).any():
        where = one.index[one["value"].isna() != other["value"].isna()][:3].tolist()
        raise ValueError(f"a value is missing in one of them: {where}")
    found: dict[str, float] = {}
    for name, values in other.groupby(level="metric")["value"]:
        values = values.dropna()
        if values.empty:
            continue
        size = values.abs().clip(lower=max(1e-3 * values.abs().max(), 1e-12))
        off = (one.loc[values.index, "value"] - values).abs() / size
        found[str(name)] = float(off.max())
    return found


def by_place(table: pd.DataFrame) -> pd.DataFrame:
    """Status and value of each row, as plain numbers and words under the name of its place."""
    places = table[PLACE].astype("string").fillna("")
    rows = pd.DataFrame({"status": table["status"].astype(str), "value": table["value"]})
    rows["value"] = rows["value"].astype("float64")
    return rows.set_index(pd.MultiIndex.from_frame(places)).sort_index()


def group_rows(first: pd.DataFrame, second: pd.DataFrame) -> Iterator[Row]:
    """A row a group: how far its metrics differ between two devices, and which differs most."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for name, off in differences(first, second).items():
        groups.setdefault(name.partition("/")[0], []).append((off, name))
    for group, all_of_it in groups.items():
        if group in ROUNDED:
            yield at_most(f"{group}, device against CPU", max(all_of_it)[0], IN_BFLOAT16)
            continue
        counted = [one for one in all_of_it if "same_top" in one[1] or "/by_" in one[1]]
        exact = [one for one in all_of_it if one not in counted]
        for kind, limit in ((exact, EXACT), (counted, COUNTED)):
            if kind:
                off, name = max(kind)
                what = f"{group}{', by comparisons' if kind is counted else ''}"
                yield at_most(f"{what}, device against CPU", off, limit, note=f"most: {name}")


def value(table: pd.DataFrame, metric: str) -> float:
    """The value of the one row of a metric; NaN where there is none."""
    rows = table[table["metric"] == metric]
    return float(rows["value"].iloc[0]) if len(rows) == 1 else math.nan


def bare_ids(base: Path, pairs: list[tuple[str, str]]) -> list[tuple[int, ...]]:
    """Token IDs of the texts."""
    items = build_probe("texts", pairs, AutoTokenizer.from_pretrained(base)).items
    return [item.ids for item in items]


def tiny_pair(setup: Setup) -> Iterator[Row]:
    """Every group of metrics on the tiny base and its SFT checkpoint, on the device and the CPU."""
    os.environ.update(environment(setup.work))
    os.chdir(setup.work)
    from mlflow import MlflowClient

    from mlflow_scalpel.checkpoints.reading.pull import resolve

    tagged = {run.data.tags["scalpel.stage"]: run for run in MlflowClient().search_runs(["0"])}
    base = "models:/tiny-base/latest"
    checkpoint = f"runs:/{tagged['sft'].info.run_id}#step={2 if setup.small else 12}"
    pairs = texts(4 if setup.small else 16, 1)
    tables = {}
    for device in dict.fromkeys((setup.device, "cpu")):
        tables[device], seconds = timed(
            lambda device=device: compare(
                base,
                [checkpoint],
                metrics=[*FROM_WEIGHTS, *ON_TEXTS],
                texts=pairs,
                device=device,
                cache=False,
                max_new_tokens=4 if setup.small else 24,
            ),
            setup.device,
        )
        yield seen(f"every group on {device}", seconds, "s", f"{len(tables[device])} rows")
    table = tables[setup.device]
    bad = table[table["status"] != "ok"]
    shown = "; ".join(f"{row.metric} {row.status} {row.reason}" for row in bad.head(3).itertuples())
    # What an update that a bfloat16 rounding lost cannot have is not finite or not known.
    yield seen("rows without a value", float(len(bad)), "rows", shown)
    directories = Path(resolve(base)), Path(resolve(checkpoint))
    exact = kl_float64(*directories, bare_ids(directories[0], pairs))
    yield within(f"{ALL}, float32 on {setup.device}", value(table, ALL), exact, EXACT, "nats")
    fixed = [one[~one["metric"].str.startswith(SAMPLED)] for one in (table, tables["cpu"])]
    yield from group_rows(*fixed)
    sampled = table[table["metric"] == "kl_on_base_samples/answer_tokens"]
    good = bool(len(sampled)) and bool((sampled["status"] == "ok").all())
    number = float(sampled["value"].iloc[0]) if good else math.nan
    yield holds("kl_on_base_samples", good and number > 0.0, f"{number:.3g} nats")
    for dtype in ("bfloat16", "float16"):
        rounded = compare(
            base, [checkpoint], metrics=["kl"], texts=pairs, device=setup.device, dtype=dtype
        )
        floor, off = value(rounded, FLOOR), abs(value(rounded, ALL) - exact)
        # KL is a square of a difference: a noise e beside a KL k can move it by 2 sqrt(ek).
        limit = 2 * math.sqrt(max(floor, 0.0) * exact) + floor
        note = f"KL {value(rounded, ALL):.4g}, floor {floor:.3g}, exact {exact:.4g}"
        yield at_most(f"{ALL} in {dtype}, from the exact one", off, limit, "nats", note)
    tokens = top_tokens(base, checkpoint, texts=pairs, device=setup.device, cache=False)
    yield holds("top_tokens", len(tokens) > 0, f"{len(tokens)} tokens")


def pair(setup: Setup) -> Iterator[Row]:
    """Two layers of OLMo-2 1B in bfloat16, and a perturbed copy."""
    base, checkpoint = setup.work / "pair", setup.work / "pair-step-1"
    config = olmo2_1b(setup.small, num_hidden_layers=2)
    tokenizer = make_tokenizer(Architecture(max_position_embeddings=4096), ["add"])
    model = random_model(config, torch.bfloat16, setup.device)
    for directory in (base, checkpoint):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        perturb(model, 0.05)
    del model
    pairs = texts(2, 1) if setup.small else texts(12, 3)
    ids = bare_ids(base, pairs)
    count = sum(len(one) for one in ids)
    metrics = ["weights", "spectra", "kl"]
    tables = {}
    for group in metrics:
        for device in dict.fromkeys((setup.device, "cpu")):
            tables[group, device], seconds = timed(
                lambda group=group, device=device: compare(
                    str(base),
                    [str(checkpoint)],
                    metrics=[group],
                    texts=pairs if group == "kl" else None,
                    device=device,
                    cache=False,
                ),
                setup.device,
            )
            note = f"{count} tokens" if group == "kl" else "two layers, 14 matrices"
            if group == "weights" and device == "cpu":
                note = by_calculation(base, seconds, setup)
            yield seen(f"group {group} on {device}", seconds, "s", note)
    again = [str(base), [str(checkpoint)]]
    _, seconds = timed(
        lambda: compare(*again, metrics=["kl"], texts=pairs, device=setup.device, cache=False),
        setup.device,
    )
    yield seen(f"group kl on {setup.device}, again", seconds, "s", "nothing is compiled")
    exact = kl_float64(base, checkpoint, ids)
    found = value(tables["kl", setup.device], ALL)
    yield within(f"{ALL}, float32 on {setup.device}", found, exact, EXACT, "nats")
    for group in metrics:
        yield from group_rows(tables[group, setup.device], tables[group, "cpu"])
    yield from matrices(base, checkpoint, tables, setup)
    moved = [str(base), [str(checkpoint)]]
    rounded = compare(*moved, metrics=["kl"], texts=pairs, device=setup.device, dtype="bfloat16")
    note = f"exact {exact:.4g}, floor {value(rounded, FLOOR):.3g}"
    yield seen(f"{ALL} in bfloat16", value(rounded, ALL), "nats", note)
    yield from attention_ways(base, pairs, setup)


def by_calculation(base: Path, seconds: float, setup: Setup) -> str:
    """What the weights of a 7B model would take at the speed of this pair."""
    speed = 2 * (base / "model.safetensors").stat().st_size / seconds
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(olmo2_7b(setup.small), dtype=torch.bfloat16)
    size = 2 * sum(one.nbytes for one in large.parameters())
    return (
        f"{speed / 1e9:.2f} GB/s; by calculation {size / speed:.0f} s for the {size / 1e9:.1f} GB "
        "of two 7B models"
    )


def matrices(
    base: Path, checkpoint: Path, tables: dict[tuple[str, str], pd.DataFrame], setup: Setup
) -> Iterator[Row]:
    """Norm and spectral norm of two updates, against float64 on the CPU."""
    for name, matrix in (("self_attn.q_proj", "q_proj"), ("mlp.up_proj", "up_proj")):
        read = []
        for directory in (base, checkpoint):
            with safe_open(directory / "model.safetensors", framework="pt") as file:
                read.append(file.get_tensor(f"model.layers.0.{name}.weight").double())
        update = read[1] - read[0]
        for group, metric, exact in (
            ("weights", "weights/relative_frobenius", update.norm() / read[0].norm()),
            ("spectra", "spectra/update_spectral_norm", torch.linalg.matrix_norm(update, 2)),
        ):
            table = tables[group, setup.device]
            one = table[
                (table["metric"] == metric) & (table["layer"] == 0) & (table["matrix"] == matrix)
            ]
            seen_value = float(one["value"].iloc[0]) if len(one) == 1 else math.nan
            yield within(f"{metric} of {matrix}", seen_value, float(exact), 1e-6)


def attention_ways(base: Path, pairs: list[tuple[str, str]], setup: Setup) -> Iterator[Row]:
    """KL between two ways to compute the attention of one model, which is their noise."""
    probe = build_probe("texts", pairs, AutoTokenizer.from_pretrained(base))
    metrics = choose_metrics([ALL])
    for dtype, limit in (("float32", 1e-8), ("bfloat16", 1e-3)):
        for way in ("eager", "flash_attention_2"):
            what = f"KL(sdpa || {way}), {dtype}"
            if way == "flash_attention_2":
                if dtype == "float32":
                    continue
                if importlib.util.find_spec("flash_attn") is None:
                    yield not_run(what, "flash_attn is not installed")
                    continue
            model = ForwardModel(base, dtype=dtype, device=setup.device)
            model.model.set_attn_implementation("sdpa")
            measuring = Divergence(model, [probe])
            (itself,) = measuring.rows(metrics)
            yield holds(f"KL(sdpa || sdpa) is 0, {dtype}", itself["value"] == 0.0)
            model.model.set_attn_implementation(way)
            (row,) = measuring.rows(metrics)
            yield at_most(what, abs(row["value"]), limit, "nats")
