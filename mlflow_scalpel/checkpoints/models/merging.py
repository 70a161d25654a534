"""PEFT adapters (such as LoRA) merged into their base: the model that the two make together."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.checkpoints.files import checkpoint_files, name_in
from mlflow_scalpel.checkpoints.manifest import content_digest, make_manifest
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.extras import require_extra
from mlflow_scalpel.remote_code import refused
from mlflow_scalpel.tensors.adapters import (
    NotInFactors,
    check_adapter,
    read_adapter_config,
    read_changes,
)
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TORCH_NAMES, TensorFiles
from mlflow_scalpel.tensors.quantised import FloatTensors
from mlflow_scalpel.tensors.updates import Added, as_matrix, row_slices

if TYPE_CHECKING:
    from torch import Tensor


MERGED_DTYPES = ("float64", "float32", "float16", "bfloat16")
_LAYOUT = 2  # goes up when a merged model is made in another way than before
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
    "*.model",
    "*.tiktoken",
)


def merge_adapter(
    adapter_dir: Path,
    base_dir: Path,
    *,
    dtype: str | None = None,
    adapter_digest: str | None = None,
    base_digest: str | None = None,
) -> Path:
    """A directory in the cache with the adapter merged into the base, made once, for reading only.

    They are added in float32 (in float64 where `dtype` is), and rounded once, to `dtype`: one of
    `MERGED_DTYPES`, or the dtype of each of the base's weights. The tokenizer is the adapter's, or
    the base's where the adapter has none. The digests are taken from the files where they are not
    given.

    Raises ScalpelError where the adapter's weights are not safetensors, belong to another base, are
    not complete, or were trained from a start that cannot be found again; MissingPackage where the
    extra `measure` is not installed.
    """
    require_extra("measure", f"{adapter_dir}: merging an adapter into its base")
    if not (adapter_dir / ADAPTER_WEIGHTS).is_file():
        raise ScalpelError(
            f"{adapter_dir}: holds no {ADAPTER_WEIGHTS}, and nothing else is opened; save the "
            "adapter with save_pretrained(..., safe_serialization=True)"
        )
    check_adapter(adapter_dir)
    parts = (
        adapter_digest or content_digest(adapter_dir),
        base_digest or content_digest(base_dir),
        dtype or "base",
        str(_LAYOUT),
    )
    key = f"merged-{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"
    needed = sum(file.stat().st_size for file in checkpoint_files(base_dir))
    if dtype is not None:
        stored = TensorFiles(base_dir).headers.values()
        width = {"float64": 8, "float32": 4}.get(dtype, 2)
        needed = max(needed, width * sum(header.elements for header in stored))
    needed += sum(file.stat().st_size for file in checkpoint_files(adapter_dir))

    def fill(target: Path) -> None:
        cache.check_space(target, needed, f"{adapter_dir} merged into {base_dir}")
        for left in target.iterdir():  # by a merge that was cut off
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        _merge(adapter_dir, base_dir, target, dtype)
        _copy_tokenizer(adapter_dir, base_dir, target)
        make_manifest(checkpoint_files(target), target).write(target)
        cache.protect(target)

    return cache.keep(key, needed, fill)


def _merge(adapter: Path, base: Path, target: Path, dtype: str | None) -> None:
    import torch
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about what is checked below
        model = _open(base, adapter)
        _grow(model, adapter)
        stored = {name: one.dtype for name, one in model.named_parameters()}
        tied = _changes_tied(model, adapter)
        if tied:
            _untie(model, adapter)
        try:
            together: Any = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
            # Once more, since only this tells which tensors found no place.
            loaded = together.load_adapter(adapter, together.active_adapter, torch_device="cpu")
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _of_another_base(adapter, base, str(error)) from error
        if not hasattr(together, "merge_and_unload"):
            kind = together.active_peft_config.peft_type.value
            raise ScalpelError(
                f"{adapter}: an adapter of type {kind} cannot be merged into a model; train LoRA, "
                "or open it with PEFT itself"
            )
        for names, what in ((loaded.unexpected_keys, "has no"), (loaded.missing_keys, "wants a")):
            odd = sorted(name for name in names if not _is_copy(name))
            if odd:
                raise _of_another_base(adapter, base, f"this base {what} {odd[0]}")
        # What the start took out of the base's weights was taken in their own dtype; what is added
        # to them is added in a wide one.
        wide = (
            torch.float64 if torch.float64 in {*stored.values(), _torch(dtype)} else torch.float32
        )
        together.to(wide)
        expected = _logits(together) if tied else None
        try:
            merged = together.merge_and_unload()
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ScalpelError(
                f"{adapter}: cannot be merged into {base}: {' '.join(str(error).split())[:500]}; "
                "open it with PEFT itself"
            ) from error
        for name, parameter in merged.named_parameters():
            parameter.data = parameter.data.to(_torch(dtype) or stored.get(name, parameter.dtype))
        merged.save_pretrained(target)
        if expected is not None:
            _check_tied(adapter, base, target, expected)


def _open(base: Path, adapter: Path) -> Any:
    """The base as Transformers opens it, in the dtype of its stored weights."""
    from transformers import AutoModelForCausalLM

    try:
        with refused(base):
            return AutoModelForCausalLM.from_pretrained(
                base,
                dtype=_dtype(base),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ScalpelError(
            f"{adapter}: its base {base} cannot be opened here, so that the two cannot be merged "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); install what it "
            "wants, or name a base that is not quantised as base_model_name_or_path in "
            f"{ADAPTER_CONFIG}"
        ) from error


def _grow(model: Any, adapter: Path) -> None:
    """Give the embeddings as many rows as the adapter's files have, as the training did.

    New rows are whatever: the files hold those that count.
    """
    rows = max(
        (
            header.shape[0]
            for name, header in TensorFiles(adapter).headers.items()
            if len(header.shape) == 2 and "lora_" not in name and "tokens_delta" not in name
            if name.endswith(".weight") and ("embed" in name or "wte" in name or "lm_head" in name)
        ),
        default=0,
    )
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _is_copy(name: str) -> bool:
    """Whether PEFT saved a tensor once more under this name, which it does not read."""
    return ".modules_to_save." in name or ".original_module." in name


def _check_tied(adapter: Path, base: Path, target: Path, expected: Any) -> None:
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(target, dtype="auto", trust_remote_code=False)
    found = _logits(merged)
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
    return bool(model.config.tie_word_embeddings) and any(
        f".{name}." in f".{tensor}" for name in names for tensor in TensorFiles(adapter).headers
    )


def _untie(model: Any, adapter: Path) -> None:
    """Give the output embeddings weights of their own, unless PEFT ties what it adds to both.

    Otherwise PEFT's model changes just the one that it targets, and what is merged both.
    """
    config = read_adapter_config(adapter)
    if config.get("ensure_weight_tying") or config.get("trainable_token_indices"):
        return
    head = model.get_output_embeddings()
    head.weight = type(head.weight)(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _logits(model: Any) -> Any:
    """A model's logits for a text of 16 tokens, float32."""
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


def _torch(dtype: str | None) -> Any:
    import torch

    return None if dtype is None else getattr(torch, dtype)


def _dtype(base: Path) -> str:
    """The dtype of the base's stored weights; `auto` (Transformers') where they have several."""
    stored = {TORCH_NAMES.get(header.dtype) for header in TensorFiles(base).headers.values()}
    return stored.pop() or "auto" if len(stored) == 1 else "auto"


def _copy_tokenizer(adapter: Path, base: Path, target: Path) -> None:
    """All tokenizer files of one of the two: a mixture would be a tokenizer that nobody trained."""
    of_adapter = list(_tokenizer_files(adapter))
    source = adapter if of_adapter else base
    for file in of_adapter or _tokenizer_files(base):
        copied = target / name_in(source, file)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)


def _tokenizer_files(directory: Path) -> Iterator[Path]:
    return (
        file
        for file in checkpoint_files(directory)
        if any(file.match(pattern) for pattern in _TOKENIZER)
    )


def rounding_report(adapter: Path, base: Path, merged: Path) -> str:
    """A line that sets the norms of what is stored against those of the updates themselves.

    Of each tensor that the adapter changes: ||W_t - W_0||_F of the model in `merged`, divided by
    ||D||_F of the update D, both summed in float64.
    """
    exact = _exact_norms(adapter, base)
    stored, before = FloatTensors(merged), FloatTensors(base)
    ratios, dtypes = [], set()
    for name, norm in exact.items():
        if norm and name in stored.headers and name in before.headers:
            after = stored.read(name)
            dtypes.add(str(after.dtype).removeprefix("torch."))
            ratios.append(_norm_of_difference(after, before.read(name)) / norm)
    if not ratios:
        return f"{merged}: the adapter changes no tensor of {base}"
    shares = f"{min(ratios):.4g} to {max(ratios):.4g}, median {statistics.median(ratios):.4g}"
    text = (
        f"merged in {'/'.join(sorted(dtypes))}: the norm of what is stored is {shares} of that of "
        f"the exact update, over {len(ratios)} tensors"
    )
    if max(abs(one - 1.0) for one in ratios) > 1e-3:
        text += "; rounding changed the updates, and --dtype float32 keeps them"
    return text


def _exact_norms(adapter: Path, base: Path) -> dict[str, float]:
    """||D||_F of each tensor that the adapter changes by an update, from its factors."""
    before = FloatTensors(base)
    try:
        changes = read_changes(adapter, before)
    except NotInFactors:
        exact = FloatTensors(merge_adapter(adapter, base, dtype="float64"))
        names = [name for name in exact.headers if name in before.headers]
        return {name: _norm_of_difference(exact.read(name), before.read(name)) for name in names}
    norms = {}
    for name, change in changes.changes.items():
        if name in changes.stored or name not in before.headers:
            continue  # what PEFT stores beside it stands for the base's
        w0 = before.read(name)
        squares = 0.0
        for _, update in Added(w0, change(), w0.dtype).blocks(w0):
            squares += float(update.square().sum())
        norms[name] = squares**0.5
    return norms


def _norm_of_difference(after: Tensor, before: Tensor) -> float:
    if after.shape != before.shape:
        return 0.0
    one, other, squares = as_matrix(after), as_matrix(before), 0.0
    for at in row_slices(one):
        squares += float((one[at].double() - other[at].double()).square().sum())
    return squares**0.5
