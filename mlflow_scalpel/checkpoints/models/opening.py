"""Opens a stored model by its own class, whatever else than a language model it holds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.remote_code import refused
from mlflow_scalpel.tensors import documents
from mlflow_scalpel.tensors.names import canonical
from mlflow_scalpel.tensors.places import ties_embeddings
from mlflow_scalpel.tensors.quantised import FloatTensors

# Settings of how a model is stored or run, without effect on what its weights compute.
_NOT_OF_THE_MODEL = frozenset(
    {
        "_name_or_path", "architectures", "attn_implementation", "bos_token_id", "dtype",
        "eos_token_id", "id2label", "label2id", "output_attentions", "output_hidden_states",
        "pad_token_id", "quantization_config", "return_dict", "torch_dtype",
        "transformers_version", "use_cache", "auto_map", "pretraining_tp", "initializer_range",
        "problem_type", "chunk_size_feed_forward", "_experts_implementation",
        "_attn_implementation", "unsloth_version", "unsloth_fixed", "model_name",
    }
)  # fmt: skip
# What trainers and older versions store beside a model, and what no forward pass of it reads:
# tables of positions and masks, heads that predict further tokens or a reward's value.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|\.(?:attn|attention|self_attn)\.(?:masked_)?bias$|position_ids$"
    r"|^(?:model\.)?mtp\.|(?:^|\.)(?:v_head|value_head|score|reward_head)\."
)


class CannotOpen(ScalpelError):
    """Transformers cannot open the model; the message says why, in one line."""


class Failed(ScalpelError):
    """An unforeseen failure: memory, or what a model's code raises."""


def one_line(error: BaseException) -> str:
    """Kind and text of an error, without line breaks and without end."""
    text = shortened(error, 400)
    name = type(error).__name__
    return f"{name}: {text}" if text else name


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn any exception within into a `Failed`, in one line; a ScalpelError passes unchanged."""
    try:
        yield
    except ScalpelError:
        raise
    except Exception as error:
        raise Failed(one_line(error)) from error


def read_config(directory: Path) -> Any:
    """The configuration of a stored model; no code of its own is run, and nobody is asked.

    Raises CannotOpen.
    """
    from transformers import AutoConfig

    try:
        with refused(directory):
            return AutoConfig.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            )
    except ScalpelError as error:
        raise CannotOpen(str(error)) from error
    except Exception as error:  # of any type, by what the file holds; named in the message
        raise CannotOpen(
            f"{directory}: Transformers cannot read its config.json ({one_line(error)})"
        ) from error


def same_model(first: Any, second: Any) -> bool:
    """Whether two configurations make the same of the same weights."""
    return not other_settings(first, second)


def other_settings(first: Any, second: Any) -> list[str]:
    """Names of the settings by which two configurations make something else of the same weights."""
    ours, theirs = _settings(first.to_dict()), _settings(second.to_dict())
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _settings(values: Any) -> Any:
    if isinstance(values, dict):
        return {
            key: _settings(value) for key, value in values.items() if key not in _NOT_OF_THE_MODEL
        }
    return values


def class_of(config: Any) -> Any:
    """The class of Transformers that computes the next token's logits of such a model.

    It is the one that the configuration names, or else the first of the mappings for language
    models, models of images and texts, and models of several kinds. Raises CannotOpen for a model
    that is not a decoder, or that Transformers does not know.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        raise CannotOpen(
            f"{type(config).__name__} is of an encoder with a decoder, whose tokens are not "
            "predicted from the text alone"
        )
    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    )
    known = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    flat = [one for entry in known for one in (entry if isinstance(entry, tuple) else (entry,))]
    named = config.architectures or []
    for name in named:
        own = getattr(transformers, name, None)
        if own in flat or (own is not None and name.endswith(("LM", "LMHeadModel", "Generation"))):
            return own
    if flat:
        return flat[0]
    raise CannotOpen(
        f"Transformers has no class that predicts tokens for {type(config).__name__} "
        f"({', '.join(named) or 'config.json names no architecture'})"
    )


def open_model(
    directory: Path, dtype: Any, *, config: Any = None, ignored: Collection[str] | None = None
) -> Any:
    """The model stored in `directory`, in a Torch dtype, on the CPU, as its own configuration says.

    Args:
        config: the directory's, where it was read before.
        ignored: names of tensors that Transformers may leave aside; None allows all.

    Raises:
        CannotOpen: Transformers or memory does not allow it, or weights are missing, of another
            shape, or of no use to it: then it would not be the stored model.
    """
    config = read_config(directory) if config is None else config
    try:
        owner = class_of(config)
    except CannotOpen as error:
        raise CannotOpen(f"{directory}: {error}") from error
    model, info = load(directory, owner, config, dtype)
    found = info["unexpected_keys"] if ignored is None else ignored
    check_loaded(directory, info, owner.__name__, found)
    return model.eval()


def load(directory: Path, owner: Any, config: Any, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a class of Transformers with the weights in `directory`, and what was loaded.

    Weights are read by `FloatTensors`: without wrappers' prefixes, and dequantised where they are
    quantised, since the packages that run quantised ones are many, and most want a GPU. No code of
    the model's own is run. Raises CannotOpen where anything fails.
    """
    try:
        files = FloatTensors(directory)
        files.check_complete()
        source: Path | None = directory
        state: Any = None
        if not files.as_stored:
            source, state = (
                None,
                {name: files.read(name) for name in (*files.headers, *files.integers)},
            )
        _without_quantisation(config)
        loaded: tuple[Any, dict[str, Any]] = owner.from_pretrained(
            source,
            config=config,
            state_dict=state,
            dtype=dtype,
            use_safetensors=True,  # the other formats are pickles
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked, and named, afterwards
        )
    except ScalpelError as error:
        raise CannotOpen(str(error)) from error
    except Exception as error:  # of any type, by what the files hold; named in the message
        raise CannotOpen(f"{directory}: Transformers cannot open it ({one_line(error)})") from error
    return loaded


def _without_quantisation(config: Any) -> None:
    """Remove the quantisation from a config: the weights are dequantised as they are read."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs or ())):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config


def check_loaded(
    directory: Path, info: dict[str, Any], model: str, ignored: Collection[str] = ()
) -> None:
    """Raise CannotOpen where what Transformers loaded is not what the files hold."""
    for name, shape, wanted in info["mismatched_keys"]:
        raise CannotOpen(misshapen(directory, name, shape, wanted))
    for name in sorted(set(info["unexpected_keys"]) - set(ignored)):
        if not unused(name):
            raise CannotOpen(unknown(directory, name, model))
    for name in sorted(info["missing_keys"]):
        raise CannotOpen(missing(directory, name))


def expected_shapes(directory: Path) -> dict[str, tuple[int, ...]] | None:
    """Shape of each tensor by its canonical name, of the model that `config.json` describes.

    None where Transformers cannot build it: a family that it does not know, whose code would have
    to be run, or that predicts no tokens.
    """
    try:
        with warnings.catch_warnings(), one_line_errors():
            import torch

            warnings.simplefilter("ignore")
            with torch.device("meta"):  # no weight is made
                config = read_config(directory)
                model: Any = class_of(config)._from_config(config)
                state = model.state_dict()
    except ScalpelError:
        return None
    return {canonical(name): tuple(one.shape) for name, one in state.items()}


def ties_head(directory: Path) -> bool:
    """Whether the output head is the embeddings (`tie_word_embeddings`); False if not known.

    Without Transformers, which knows what each family takes where its config.json is silent, that
    counts as tied.
    """
    if find_spec("transformers") is None:
        return ties_embeddings(documents.read_config(directory), silent=True)
    try:
        with one_line_errors():
            return bool(read_config(directory).get_text_config().tie_word_embeddings)
    except ScalpelError:
        return False


def unused(name: str) -> bool:
    """Whether a model that has no such tensor is the same without it."""
    return _UNUSED.search(name) is not None


def unknown(directory: Path, name: str, model: str) -> str:
    """A tensor that the model does not have."""
    return f"{directory}: tensor {name} is none of {model}'s; take a checkpoint of this model"


def misshapen(directory: Path, name: str, shape: Any, wanted: Any) -> str:
    """A tensor of another shape than the model's."""
    return (
        f"{directory}: tensor {name} has shape {tuple(shape)}, and the model's has "
        f"{tuple(wanted)}; take a checkpoint of this model"
    )


def missing(directory: Path, name: str) -> str:
    """A tensor that the model has, and the files do not."""
    return f"{directory}: is missing the tensor {name}, so that it is not complete"
