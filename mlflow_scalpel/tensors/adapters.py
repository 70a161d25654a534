"""The updates that a PEFT adapter makes to the tensors of its base, without merging the two."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import read_config
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG, FLOATS, TORCH_NAMES, Header, TensorFiles
from mlflow_scalpel.tensors.names import counterparts, located
from mlflow_scalpel.tensors.places import places, tied_head
from mlflow_scalpel.tensors.quantised import FloatTensors
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


Parts = dict[str, str]
"""Names of a module's tensors in the adapter's file, by what they are: `lora_A`, ..."""
Shape = tuple[int, ...]


class NotInFactors(ScalpelError):
    """The adapter's updates cannot be read off its files; the message says why."""


@dataclass
class AdapterChanges:
    """An adapter's updates of the tensors of its base, by their names in the base's files."""

    changes: dict[str, Callable[[], Change]] = field(default_factory=dict)
    """Functions that read the update that is added to a tensor."""
    stored: dict[str, Header] = field(default_factory=dict)
    """Tensors that the adapter holds in full, by the base's names; and output embeddings that it
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


def read_changes(directory: Path, base: FloatTensors) -> AdapterChanges:
    """The updates of the base's tensors by the adapter in `directory`, in float64.

    LoRA on linear layers and embeddings (rslora, patterns of ranks and alphas, fan_in_fan_out,
    lora_bias), DoRA on linear layers, trained tokens, and modules that are saved in full.

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

    def __init__(self, directory: Path, config: dict[str, Any], base: FloatTensors) -> None:
        self._directory, self._config, self._base = directory, config, base
        self._files = TensorFiles(directory)
        self._names: dict[str, str] = {}
        self._ways: set[bool | None] = set()
        self._found = AdapterChanges()

    def read(self) -> AdapterChanges:
        modules: dict[str, Parts] = {}
        in_full: dict[str, Header] = {}
        for name, header in self._files.headers.items():
            if _COPIES.search(name):
                continue
            match = _PART.match(name)
            if match:
                module = _AROUND.sub("", f"{match['module']}.").removesuffix(".")
                part = match["part"].removeprefix("token_adapter.").removesuffix(".weight")
                modules.setdefault(module, {})[part] = name
                self._found.dtype = self._found.dtype or _torch_dtype(header)
            elif "lora_" in name:
                raise NotInFactors(f"{self._directory}: holds {name}, of an unknown kind")
            else:
                in_full[_AROUND.sub("", name)] = header
        own = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
        self._names = counterparts([*in_full, *own], self._base.headers)
        self._found.stored = {self._named(name) or name: one for name, one in in_full.items()}
        layers = [one for one in modules.items() if re.search(r"\.\d+\.", one[0])]
        self._ways = {self._way(module, parts) for module, parts in layers} - {None}
        for module, parts in modules.items():
            self._add(module, parts)
        self._check_complete()
        return self._found

    def _add(self, module: str, parts: Parts) -> None:
        name = self._named(f"{module}.weight") or self._tied(module)
        if name is None:
            raise NotInFactors(f"{self._directory}: changes {module}, which no tensor is named by")
        if "trainable_tokens_delta" in parts:
            if len(parts) > 1:
                raise NotInFactors(f"{self._directory}: adds to {module}, and replaces rows of it")
            values = parts["trainable_tokens_delta"]
            index = self._tokens(module, self._files.headers[values].shape, self._shape(name))
            self._found.changes[name] = lambda: Replaced(_index(index), self._read(values))
            return
        a, b, flipped = self._factors(module, parts)
        rank = self._setting("rank_pattern", "r", module)
        shapes = self._files.headers[a].shape, self._files.headers[b].shape
        if shapes[0][0] != rank or shapes[1][1] != rank:
            raise self._odd(
                f"the factors of {module} have the shapes {shapes[0]} and {shapes[1]}, and "
                f"{ADAPTER_CONFIG} says rank {rank:g}"
            )
        made = shapes[1][0], shapes[0][1]
        made = made[::-1] if flipped else made
        shape = made if self._is_coded(name) else self._shape(name)
        if made != shape:
            raise ScalpelError(
                f"{self._directory}: does not fit the base {self._base.directory}: its update of "
                f"{module} has the shape {made}, and the base's tensor {shape}; it was "
                "trained on another base, which `base` of the logged model, or "
                f"base_model_name_or_path in {ADAPTER_CONFIG}, must name"
            )
        scale = self._scale(module, rank)
        magnitude = parts.get("lora_magnitude_vector")
        outputs = 1 if flipped else 0
        if magnitude is not None and (
            "lora_embedding_A" in parts
            or self._files.headers[magnitude].elements != shape[outputs]
            or self._is_coded(name)
        ):
            raise NotInFactors(f"{self._directory}: DoRA of {module}, not a linear layer")

        def change() -> Change:
            left, right = scale * self._read(b), self._read(a)
            low = LowRank(right.T, left.T) if flipped else LowRank(left, right)
            if magnitude is None:
                return low
            return Dora(low, self._read(magnitude).reshape(-1), outputs)

        self._found.changes[name] = change
        if "lora_B.bias" in parts:
            self._add_bias(module, parts["lora_B.bias"], scale)

    def _factors(self, module: str, parts: Parts) -> tuple[str, str, bool]:
        """Names of A and B, and whether the tensor is that of the product the other way round."""
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        keys = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if not {*keys} <= parts.keys():
            raise self._odd(f"holds {' and '.join(sorted(parts))} of {module} alone")
        a, b = (parts[key] for key in keys)
        if any(len(self._files.headers[one].shape) != 2 for one in (a, b)):
            raise NotInFactors(f"{self._directory}: {module} is not a linear layer")
        way = True if embedding else self._way(module, parts)
        return a, b, self._usual_way if way is None else way

    @cached_property
    def _usual_way(self) -> bool:
        """Orientation of square layers, whose shapes do not tell: that of the model's other layers.

        Not just what the configuration says: PEFT saves one `fan_in_fan_out` for all, that of the
        layer that it came to last, which may be an `nn.Linear` beside GPT-2's `Conv1D`.
        """
        if len(self._ways) == 1:
            (way,) = self._ways
            return bool(way)
        pieces = places(self._base.headers, read_config(self._base.directory)).values()
        cuts = [piece.cut for piece in pieces if piece.cut is not None]
        if any(cut.transposed and cut.expert is None for cut in cuts):
            return True
        return bool(self._config.get("fan_in_fan_out"))

    def _way(self, module: str, parts: Parts) -> bool | None:
        """Whether a layer stores its weight as (in, out); None where its shape does not tell."""
        name = self._named(f"{module}.weight")
        if name is None or not {"lora_A", "lora_B"} <= parts.keys():
            return None
        a, b = (self._files.headers[parts[key]].shape for key in ("lora_A", "lora_B"))
        made, shape = (b[0], a[-1]), self._shape(name)
        if made == made[::-1] or shape not in (made, made[::-1]):
            return None
        return shape == made[::-1]

    def _add_bias(self, module: str, part: str, scale: float) -> None:
        import torch

        name = self._named(f"{module}.bias")
        shape = self._files.headers[part].shape
        if name is None:
            beside = self._named(f"{module}.weight") or f"{module}.weight"
            self._found.added[f"{beside.removesuffix('.weight')}.bias"] = scale * self._read(part)
        elif self._shape(name) != shape:
            raise self._odd(f"the bias of {module} has the shape {shape}, and the base's another")
        else:
            one = torch.ones(1, 1, dtype=torch.float64)
            self._found.changes[name] = lambda: LowRank(scale * self._read(part)[:, None], one)

    def _tokens(self, module: str, values: Shape, shape: Shape) -> list[int]:
        """The rows that trained tokens are."""
        indices = self._config.get("trainable_token_indices")
        if isinstance(indices, dict):
            fitting = [key for key in indices if module == key or module.endswith(f".{key}")]
            indices = indices[fitting[0]] if fitting else None
        if not isinstance(indices, list) or len(indices) != values[0]:
            raise self._odd(
                f"holds {values[0]} trained tokens of {module}, and {ADAPTER_CONFIG} names "
                f"{len(indices) if isinstance(indices, list) else 'none'}"
            )
        if len(shape) != 2 or values[1:] != shape[1:] or max(indices) >= shape[0]:
            raise self._odd(
                f"trained the token {max(indices)}, and {module} has the shape {shape}: save "
                "the adapter again with save_embedding_layers=True, so that its files say how "
                "many rows there are"
            )
        return [int(index) for index in indices]

    def _read(self, name: str) -> Tensor:
        return self._files.read(name).double()

    def _shape(self, name: str) -> Shape:
        return (self._found.stored.get(name) or self._base.headers[name]).shape

    def _is_coded(self, name: str) -> bool:
        """Whether the base's tensor holds the codes of a quantised one."""
        return (self._found.stored.get(name) or self._base.headers[name]).dtype not in FLOATS

    def _setting(self, pattern: str, default: str, module: str) -> float:
        """Value of `rank_pattern` or `alpha_pattern` for a module, by PEFT's rule, else for all."""
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


def _index(rows: list[int]) -> Tensor:
    import torch

    return torch.tensor(rows, dtype=torch.int64)


def _torch_dtype(header: Header) -> Any:
    import torch

    return getattr(torch, TORCH_NAMES.get(header.dtype, "float32"))
