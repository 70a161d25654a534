"""What the files of a PEFT adapter say of each tensor of its base, without merging the two."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.config import read_config
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG, TensorFiles
from mlflow_scalpel.tensors.headers import FLOATS, Header
from mlflow_scalpel.tensors.names import counterparts, located
from mlflow_scalpel.tensors.places import places
from mlflow_scalpel.tensors.tied import tied_head
from mlflow_scalpel.tensors.updates import Change, Dora, LowRank, Replaced

if TYPE_CHECKING:
    from torch import Tensor

_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector(?:\.weight)?"
    r"|(?:token_adapter\.)?trainable_tokens_delta)$"
)
# What PEFT puts around a module whose own tensors are saved beside the adapter's.
_AROUND = re.compile(r"\.(?:token_adapter\.base_layer|base_layer)(?=\.)")
# A resized embedding that is trained in full is stored three times by PEFT 0.21.
_COPIES = re.compile(r"\.(?:modules_to_save|original_module)\.")

# Starts that PEFT takes out of the base's weights, and finds again when it opens the adapter.
FOUND_AGAIN = ("pissa", "olora")
_CONVERT = (
    "save it again from the training script with save_pretrained(..., "
    "path_initial_model_for_weight_conversion=DIRECTORY_OF_THE_START), which makes it a plain LoRA"
)
_NOT_FOUND_AGAIN = {
    "pissa_niter_": "a randomised SVD, which comes out differently each time",
    "corda": "the covariances of data that the adapter does not name",
    "loftq": "a quantised base that the training made for itself",
    "lora_ga": "gradients of data that the adapter does not name",
}
# Fields of the configuration under which the update is something else than s B A.
_OTHER_KINDS = (
    "target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config", "layer_replication", "megatron_config",
)  # fmt: skip


class NotInFactors(ScalpelError):
    """The adapter's updates cannot be read off its files; the message says why."""


@dataclass
class AdapterChanges:
    """What an adapter does to the tensors of its base, by their names in the base's files."""

    changes: dict[str, Change] = field(default_factory=dict)
    """Updates that are added to a tensor."""
    stored: dict[str, Header] = field(default_factory=dict)
    """Tensors that the adapter holds whole, under the base's names; and output embeddings that it
    changes and that are the base's input embeddings, as those."""
    added: dict[str, Tensor] = field(default_factory=dict)
    """Biases of layers that have none in the base, (R,) float64: what they are."""
    dtype: Any = None
    """Of the factors."""


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """`adapter_config.json`; raises ScalpelError where it cannot be read."""
    path = directory / ADAPTER_CONFIG
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ScalpelError(
            f"{path}: is not the configuration of an adapter ({error}); save the adapter again"
        ) from error


def check_adapter(directory: Path) -> None:
    """Raise ScalpelError for an adapter of which no model can be made that is right.

    That is one whose tensors are empty (saved by one process of several), and one that was trained
    from a start that nobody can find again.
    """
    config = read_adapter_config(directory)
    start = str(config.get("init_lora_weights") or "").lower()
    for kind, why in _NOT_FOUND_AGAIN.items():
        if start.startswith(kind):
            raise ScalpelError(
                f"{directory}: was trained from init_lora_weights = {start}, which takes a part "
                f"out of the base's weights that is found by {why}; the adapter does not hold it, "
                f"so that the trained model cannot be made again from base and adapter: {_CONVERT}"
            )
    headers = TensorFiles(directory).headers
    empty = [name for name, header in headers.items() if not header.elements]
    if empty or not headers:
        what = f"{len(empty)} tensors without elements, such as {empty[0]}" if empty else "nothing"
        raise ScalpelError(
            f"{directory}: its weights hold {what}: it was saved before the parts that DeepSpeed "
            "ZeRO-3 or FSDP spreads over processes were gathered; gather them and save it again "
            "(ZeRO-3: stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py)"
        )


def read_changes(directory: Path, base: TensorFiles) -> AdapterChanges:
    """What the adapter in `directory` does to the base's tensors, in float64.

    LoRA on linear layers and embeddings (rslora, patterns of ranks and alphas, fan_in_fan_out,
    lora_bias), DoRA on linear layers, trained tokens, and modules that are saved whole.

    Raises:
        NotInFactors: another kind of adapter, which PEFT may merge.
        ScalpelError: the adapter is not complete, is damaged, or does not fit the base.
    """
    check_adapter(directory)
    config = read_adapter_config(directory)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotInFactors(f"{directory}: is an adapter of type {kind}")
    start = str(config.get("init_lora_weights") or "").lower()
    if start in FOUND_AGAIN:
        raise NotInFactors(f"{directory}: its start ({start}) is a part of the base's weights")
    for name in _OTHER_KINDS:
        if config.get(name):
            raise NotInFactors(f"{directory}: is of the kind that {name} says")
    return _Reader(directory, config, base).read()


class _Reader:
    """Puts the tensors of one adapter to those of one base."""

    def __init__(self, directory: Path, config: dict[str, Any], base: TensorFiles) -> None:
        self._directory, self._config, self._base = directory, config, base
        self._files = TensorFiles(directory)
        self._names: dict[str, str] = {}
        self._found = AdapterChanges()

    def read(self) -> AdapterChanges:
        modules: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, Header] = {}
        for name, header in self._files.headers.items():
            if _COPIES.search(name):
                continue
            match = _PART.match(name)
            if match:
                module = _AROUND.sub("", f"{match['module']}.").removesuffix(".")
                part = match["part"].removeprefix("token_adapter.").removesuffix(".weight")
                tensor = self._files.read(name)
                self._found.dtype = self._found.dtype or tensor.dtype
                modules.setdefault(module, {})[part] = tensor.double()
            elif "lora_" in name:
                raise NotInFactors(f"{self._directory}: holds {name}, of an unknown kind")
            else:
                whole[_AROUND.sub("", name)] = header
        own = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
        self._names = counterparts([*whole, *own], self._base.headers)
        self._found.stored = {self._named(name) or name: one for name, one in whole.items()}
        for module, parts in modules.items():
            self._add(module, parts)
        self._check_complete()
        return self._found

    def _add(self, module: str, parts: dict[str, Tensor]) -> None:
        name = self._named(f"{module}.weight") or self._tied(module)
        if name is None:
            raise NotInFactors(f"{self._directory}: changes {module}, which no tensor is named by")
        shape = self._shape(name)
        if "trainable_tokens_delta" in parts:
            self._found.changes[name] = self._tokens(module, parts["trainable_tokens_delta"], shape)
            return
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        keys = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if not {*keys} <= parts.keys():
            raise self._odd(f"holds {' and '.join(sorted(parts))} of {module} alone")
        a, b = (parts[key] for key in keys)
        if a.ndim != 2 or b.ndim != 2:
            raise NotInFactors(f"{self._directory}: {module} is not a linear layer")
        rank = self._setting("rank_pattern", "r", module)
        if len(a) != rank or b.shape[1] != rank:
            raise self._odd(
                f"the factors of {module} have the shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"and {ADAPTER_CONFIG} says rank {rank:g}"
            )
        scale = self._scale(module, rank)
        flipped = embedding or bool(self._config.get("fan_in_fan_out"))
        low = LowRank(scale * a.T, b.T.contiguous()) if flipped else LowRank(scale * b, a)
        if self._is_coded(name):
            shape = low.shape
        if low.shape != shape:
            raise ScalpelError(
                f"{self._directory}: does not fit the base {self._base.directory}: its update of "
                f"{module} has the shape {low.shape}, and the base's tensor {shape}; it was "
                "trained on another base, which `base` of the logged model, or "
                f"base_model_name_or_path in {ADAPTER_CONFIG}, must name"
            )
        change: Change = low
        if "lora_magnitude_vector" in parts:
            magnitude = parts["lora_magnitude_vector"].reshape(-1)
            outputs = 1 if flipped else 0
            if embedding or len(magnitude) != shape[outputs] or self._is_coded(name):
                raise NotInFactors(f"{self._directory}: DoRA of {module}, not a linear layer")
            change = Dora(low, magnitude, outputs)
        self._found.changes[name] = change
        if "lora_B.bias" in parts:
            self._add_bias(module, scale * parts["lora_B.bias"])

    def _add_bias(self, module: str, bias: Tensor) -> None:
        import torch

        name = self._named(f"{module}.bias")
        if name is None:
            beside = self._named(f"{module}.weight") or f"{module}.weight"
            self._found.added[f"{beside.removesuffix('.weight')}.bias"] = bias
        elif self._shape(name) != tuple(bias.shape):
            raise self._odd(f"the bias of {module} has {len(bias)} elements, and the base's others")
        else:
            self._found.changes[name] = LowRank(
                bias[:, None], torch.ones(1, 1, dtype=torch.float64)
            )

    def _tokens(self, module: str, values: Tensor, shape: tuple[int, ...]) -> Replaced:
        import torch

        indices = self._config.get("trainable_token_indices")
        if isinstance(indices, dict):
            fitting = [key for key in indices if module == key or module.endswith(f".{key}")]
            indices = indices[fitting[0]] if fitting else None
        if not isinstance(indices, list) or len(indices) != len(values):
            raise self._odd(
                f"holds {len(values)} trained tokens of {module}, and {ADAPTER_CONFIG} names "
                f"{len(indices) if isinstance(indices, list) else 'none'}"
            )
        index = torch.tensor(indices, dtype=torch.int64)
        if len(shape) != 2 or values.shape[1] != shape[1] or int(index.max()) >= shape[0]:
            raise self._odd(
                f"trained the token {int(index.max())}, and {module} has the shape {shape}: save "
                "the adapter again with save_embedding_layers=True, so that its files say how "
                "many rows there are"
            )
        return Replaced(index, values)

    def _shape(self, name: str) -> tuple[int, ...]:
        return (self._found.stored.get(name) or self._base.headers[name]).shape

    def _is_coded(self, name: str) -> bool:
        """Whether the base's tensor holds the codes of a quantised one."""
        return (self._found.stored.get(name) or self._base.headers[name]).dtype not in FLOATS

    def _setting(self, pattern: str, default: str, module: str) -> float:
        """What `rank_pattern` or `alpha_pattern` says of a module, by PEFT's rule, else for all."""
        try:
            for key, value in (self._config.get(pattern) or {}).items():
                if re.match(rf"(.*\.)?({key})$", module):
                    return float(value)
            return float(self._config.get(default, 8))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise self._odd(f"{ADAPTER_CONFIG} has no usable {pattern} or {default}") from error

    def _scale(self, module: str, rank: float) -> float:
        alpha = self._setting("alpha_pattern", "lora_alpha", module)
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _named(self, name: str) -> str | None:
        """The tensor of the base's files that the adapter calls `name`; None where none is."""
        return name if name in self._base.headers else self._names.get(name)

    def _tied(self, module: str) -> str | None:
        """The name of output embeddings that are the base's input embeddings, which it stores."""
        config = read_config(self._base.directory)
        pieces = places(self._base.headers, config)
        found = tied_head(pieces, config, self._base.read)
        if found is None or found[0] != (None, module.rsplit(".", 1)[-1]):
            return None
        self._found.stored[f"{module}.weight"] = self._base.headers[pieces[found[1]].tensor]
        return f"{module}.weight"

    def _check_complete(self) -> None:
        """Raise ScalpelError where layers that the configuration targets are not in the file."""
        targets = self._config.get("target_modules")
        only = self._config.get("layers_to_transform") is not None
        if not isinstance(targets, list) or only or self._config.get("exclude_modules"):
            return
        there = located(self._base.headers)
        own = {there[name] for name in self._found.changes if name in there}
        paths = {where.path for where in own if where.layer is not None}
        for name, where in there.items():
            module = name.removesuffix(".weight")
            wanted = module != name and any(
                module == one or module.endswith(f".{one}") for one in targets
            )
            # Experts are one tensor in memory, whatever their files hold.
            if wanted and "expert" not in module and where.path in paths and where not in own:
                raise self._odd(
                    f"its configuration targets {module}, and its file has no factors for it "
                    f"({len(own)} others are there): it is not complete, or of another base"
                )

    def _odd(self, what: str) -> ScalpelError:
        return ScalpelError(f"{self._directory}: {what}; save the adapter again")
