"""The base of a training run: its files, tokenizer and LoggedModel, and the probes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.exceptions import MlflowException

from mlflow_scalpel.chat import (
    check_system_prompt,
    context_of,
    end_tokens,
    load_tokenizer,
    with_chat,
)
from mlflow_scalpel.checkpoints.logging.log import log_base
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.comparison.engine import Comparison
from mlflow_scalpel.comparison.forward.probes import Probe, build_probe
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.data import load_rows
from mlflow_scalpel.data.conversations import EARLIER
from mlflow_scalpel.recipes.training import TrainingRecipe
from mlflow_scalpel.remote_code import refused
from mlflow_scalpel.run_warnings import warn
from mlflow_scalpel.runs.lifecycle import OpenStage

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

_FOLDER = "base"  # in the output directory: the base with the recipe's template and end token


@dataclass(frozen=True)
class OpenBase:
    """The base of a run: its files, tokenizer, and LoggedModel."""

    directory: Path
    tokenizer: Any
    model_id: str
    """Empty in processes other than the main one, which alone speaks to MLflow."""
    digest: str
    name: str = ""
    """What people call it: name and version of the registry, hub name, or the directory's."""
    ends: tuple[int, ...] = ()
    """Tokens that end a completion."""
    context: int | None = None
    """Longest text in tokens, where the configuration states it."""
    probes: tuple[Probe, ...] = ()
    """The recipe's probes; none in processes other than the main one."""

    what: str = "the chat template"
    """Whose chat template it is, for messages about it."""


def open_base(stage: OpenStage) -> OpenBase:
    """Find the recipe's base, and link it to the run as its input (once for each content).

    With the recipe's own template or end token, it is opened from the output directory, where
    these stand in place of the base's. Raises ScalpelError where the template does not take the
    recipe's system prompt, or the probes: no model is loaded before.
    """
    from transformers import AutoConfig

    recipe: TrainingRecipe = stage.recipe
    base = resolve(recipe.model)
    # Processes that share the directory must not write it at the same time.
    own = stage.output / (_FOLDER if stage.run_id else f"{_FOLDER}-{os.environ.get('RANK', '0')}")
    directory = with_chat(base, own, recipe.chat_template, recipe.eos_token)
    with refused(recipe.model):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    tokenizer = load_tokenizer(directory, recipe.template_date)
    opened = OpenBase(
        directory,
        tokenizer,
        model_id="",
        digest="",
        ends=tuple(end_tokens(directory, tokenizer)),
        context=context_of(config),
        what=f"the chat template of {'the recipe' if recipe.chat_template else recipe.model}",
    )
    check_system_prompt(tokenizer, recipe.system_prompt, what=opened.what)
    if not stage.run_id:
        return opened
    model = log_base(recipe.model)
    return replace(
        opened,
        model_id=model.model_id,
        digest=model.params["digest"],
        name=base_name(model, recipe.model),
        probes=tuple(open_probe(name, recipe, opened, stage.run_id) for name in recipe.probes),
    )


def base_name(model: LoggedModel, source: str) -> str:
    """What people call a base: NAME/VERSION where it is registered, else what `source` names.

    (`source` may be a models:/ URI of an ID, which says nothing; then it is the model's name.)
    """
    registered = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    if registered:
        return "{name}/{version}".format(**registered[0])
    if source.startswith(("models:/", "runs:/")):
        return str(model.name)
    return Path(source).resolve().name if Path(source).is_dir() else source


def open_comparison(recipe: TrainingRecipe, base: OpenBase) -> Comparison:
    """The base, ready to have checkpoints measured against it on the recipe's probes."""
    subject = MeasuredModel(base.directory, base.model_id, base.digest, step=0)
    metrics = [*recipe.metrics, *recipe.rare_metrics]
    return Comparison(subject, base.probes, metrics, token_tables=True)


def open_probe(name: str, recipe: TrainingRecipe, base: OpenBase, run_id: str = "") -> Probe:
    """The probe `name` of the recipe, rendered with its system prompt.

    Warns on the run of what may be wrong with it.
    """
    rows = load_rows(recipe.probes[name], needs=("problem", "solution"))
    probe = build_probe(
        name,
        [(row["problem"], row["solution"]) for row in rows],
        base.tokenizer,
        earlier=[row[EARLIER] for row in rows],
        system_prompt=recipe.system_prompt,
        context=base.context,
    )
    for code, message in probe.warnings.items():
        warn(f"probe_{name}_{code}", message, run_id)
    return probe


def log_probe(probe: Probe) -> None:
    """The texts of a probe as an input of the active run.

    MLflow looks for a dataset and then makes it, so that of two runs that begin at the same time
    one may be refused: by then the other has made it, and it is found.
    """
    texts = pd.DataFrame(probe.pairs, columns=["problem", "solution"])
    dataset = from_pandas(texts, name=probe.name, digest=probe.digest)
    for last in (False, False, True):
        try:
            mlflow.log_input(dataset, context="probe")
            return
        except MlflowException as error:
            made = any(word in str(error).lower() for word in ("unique", "duplicate"))
            if last or not made:
                raise
