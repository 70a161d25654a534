"""PEFT adapters (such as LoRA): their base, and the model that the two make together."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints import cache
from mlflow_scalpel.checkpoints.layout import MLMODEL, checkpoint_files
from mlflow_scalpel.checkpoints.manifest import content_digest, make_manifest
from mlflow_scalpel.checkpoints.resolve import model_id_of, resolve
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TensorFiles
from mlflow_scalpel.tensors.headers import read_headers

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.model",
    "*.tiktoken",
)


def merged_with_base(adapter: Path, model: LoggedModel | None = None) -> Path:
    """A directory with the adapter merged into its base, for reading only.

    The base is the param `base` of the adapter's LoggedModel (`model`, or the one that the MLmodel
    beside the adapter names), else `base_model_name_or_path` of its configuration. Raises
    ScalpelError where neither can be had, or does not fit.
    """
    model = model or _logged_model(adapter)
    base, base_digest = _base(adapter, model)
    adapter_digest = model.params.get("digest") if model is not None else None
    return merged(adapter, base, adapter_digest=adapter_digest, base_digest=base_digest)


def merged(
    adapter_dir: Path,
    base_dir: Path,
    *,
    adapter_digest: str | None = None,
    base_digest: str | None = None,
) -> Path:
    """A directory in the cache with the adapter merged into the base, made once, for reading only.

    The weights have the base's dtype; the tokenizer is the adapter's, or the base's where the
    adapter has none. The digests are taken from the files where they are not given.

    Raises ScalpelError where the adapter's weights are no safetensors, or belong to another base.
    """
    if not (adapter_dir / ADAPTER_WEIGHTS).is_file():
        raise ScalpelError(
            f"{adapter_dir}: holds no {ADAPTER_WEIGHTS}, and nothing else is opened; save the "
            "adapter with save_pretrained(..., safe_serialization=True)"
        )
    pair = (
        f"{adapter_digest or content_digest(adapter_dir)} {base_digest or content_digest(base_dir)}"
    )
    key = f"merged-{hashlib.sha256(pair.encode()).hexdigest()}"
    needed = sum(file.stat().st_size for file in checkpoint_files(base_dir))
    needed += sum(file.stat().st_size for file in checkpoint_files(adapter_dir))

    def fill(target: Path) -> None:
        cache.check_space(target, needed, f"{adapter_dir} merged into {base_dir}")
        for left in target.iterdir():  # by a merge that was cut off
            left.unlink()
        _merge(adapter_dir, base_dir, target)
        _copy_tokenizer(adapter_dir, base_dir, target)
        make_manifest(checkpoint_files(target)).write(target)
        cache.protect(target)

    return cache.keep(key, needed, fill)


def _merge(adapter: Path, base: Path, target: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about what is checked below
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=_dtype(base), use_safetensors=True, local_files_only=True
        )
        tied = _changes_tied(model, adapter)
        if tied:
            _untie(model, adapter)
        try:
            together: Any = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
            # Once more, since only this tells which tensors found no place.
            loaded = together.load_adapter(adapter, together.active_adapter, torch_device="cpu")
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _of_another_base(adapter, base, str(error)) from error
        if not hasattr(together, "merge_and_unload"):
            kind = together.active_peft_config.peft_type.value
            raise ScalpelError(
                f"{adapter}: an adapter of type {kind} cannot be merged into a model; train LoRA, "
                "or open it with PEFT itself"
            )
        for names, what in ((loaded.unexpected_keys, "has no"), (loaded.missing_keys, "wants a")):
            if names:
                raise _of_another_base(adapter, base, f"this base {what} {sorted(names)[0]}")
        expected = _logits(together) if tied else None
        together.merge_and_unload().save_pretrained(target)
        if expected is None:
            return
        found = _logits(AutoModelForCausalLM.from_pretrained(target, dtype="auto"))
        # A few percent are what rounding to bfloat16 makes; what PEFT merges wrongly is off by 1.
        if (found - expected).norm() > 0.1 * expected.norm():
            raise ScalpelError(
                f"{adapter}: changes the embeddings, which are tied in {base}, so that PEFT cannot "
                "merge it: the merged model gives other answers; open it with PEFT itself, or "
                "train it without ensure_weight_tying"
            )


def _changes_tied(model: Any, adapter: Path) -> bool:
    """Whether the adapter changes embeddings that the input and the output of the base share."""
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if module in embeddings]
    tensors = read_headers(adapter / ADAPTER_WEIGHTS)
    return bool(model.config.tie_word_embeddings) and any(
        f".{name}." in tensor for name in names for tensor in tensors
    )


def _untie(model: Any, adapter: Path) -> None:
    """Give the output embeddings weights of their own, unless PEFT ties what it adds to both.

    Otherwise PEFT's model changes just the one that it targets, and what is merged both.
    """
    config = _config(adapter)
    if config.get("ensure_weight_tying") or config.get("trainable_token_indices"):
        return
    head = model.get_output_embeddings()
    head.weight = type(head.weight)(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _logits(model: Any) -> Any:
    """What a model says of a text of 16 tokens, float32."""
    import torch

    ids = torch.arange(16).reshape(1, 16) % model.config.vocab_size
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits.float()  # (1, 16, vocabulary)


def _of_another_base(adapter: Path, base: Path, reason: str) -> ScalpelError:
    return ScalpelError(
        f"{adapter}: does not fit the base {base}: {' '.join(reason.split())[:500]}; "
        "it was trained on another base, which `base` of the logged model, or "
        f"base_model_name_or_path in {ADAPTER_CONFIG}, must name"
    )


def _dtype(base: Path) -> str:
    """The dtype of the base's stored weights; `auto` (Transformers') where they have several."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    stored = {names.get(header.dtype) for header in TensorFiles(base).headers.values()}
    return stored.pop() or "auto" if len(stored) == 1 else "auto"


def _copy_tokenizer(adapter: Path, base: Path, target: Path) -> None:
    """All tokenizer files of one of the two: a mixture would be a tokenizer that nobody trained."""
    of_adapter = list(_tokenizer_files(adapter))
    for file in of_adapter or _tokenizer_files(base):
        shutil.copyfile(file, target / file.name)


def _tokenizer_files(directory: Path) -> Iterator[Path]:
    return (
        file
        for file in checkpoint_files(directory)
        if any(file.match(pattern) for pattern in _TOKENIZER)
    )


def _base(adapter: Path, model: LoggedModel | None) -> tuple[Path, str | None]:
    """The adapter's base, and its digest where its LoggedModel says it."""
    logged = model.params.get("base") if model is not None else None
    expected = _params(logged).get("digest") if logged else None
    failures = []
    for source in dict.fromkeys(filter(None, (logged, _configured_base(adapter)))):
        try:
            if _is_same(source, adapter, model):
                raise ScalpelError("it is named as its own base")
            directory = resolve(source)
            if source != logged and expected and content_digest(directory) != expected:
                raise ScalpelError(f"{directory} holds another model than {logged}, its base")
        except ScalpelError as error:
            failures.append(f"{source}: {error}")
            continue
        return directory, _known_digest(source)
    raise ScalpelError(
        f"{adapter}: is an adapter, and its base cannot be had ("
        + ("; ".join(failures) or "neither its logged model nor its configuration names one")
        + f"); set base_model_name_or_path in {ADAPTER_CONFIG} to a directory, hub name or "
        "models:/ URI, or log the adapter with base=..."
    )


def _is_same(source: str, adapter: Path, model: LoggedModel | None) -> bool:
    if model is not None and source in (model.model_id, model.model_uri):
        return True
    return Path(source).is_dir() and Path(source).resolve() == adapter.resolve()


def _known_digest(source: str) -> str | None:
    """Digest of what `resolve(source)` holds, where it need not be computed."""
    model_id = model_id_of(source)
    params = _params(model_id) if model_id is not None else {}
    return params.get("digest") if params.get("kind") in ("model", "pointer") else None


def _params(source: str) -> dict[str, str]:
    """Params of a LoggedModel; none where `source` is no model that is known here."""
    try:
        model_id = model_id_of(source)
        if model_id is None:
            return {}
        return dict(MlflowClient().get_logged_model(model_id).params)
    except (MlflowException, ScalpelError):
        return {}


def _configured_base(adapter: Path) -> str | None:
    """What the adapter's own configuration calls its base."""
    config = _config(adapter)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name:
        return None
    if revision and not Path(name).is_dir() and ":" not in name:
        return f"{name}@{revision}"
    return str(name)


def _config(adapter: Path) -> dict[str, Any]:
    path = adapter / ADAPTER_CONFIG
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ScalpelError(
            f"{path}: is no configuration of an adapter ({error}); save the adapter again"
        ) from error


def _logged_model(directory: Path) -> LoggedModel | None:
    """The LoggedModel that the MLmodel in a directory names; None where it is not known here."""
    path = directory / MLMODEL
    if not path.is_file():
        return None
    try:
        model_id = (yaml.safe_load(path.read_bytes()) or {}).get("model_id")
        return MlflowClient().get_logged_model(model_id) if model_id else None
    except (MlflowException, yaml.YAMLError, AttributeError):
        return None
