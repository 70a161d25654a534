"""Mutates the files of a small checkpoint, and looks that nothing in them does harm.

Nothing that a file contains may raise anything but ScalpelError, and what is accepted must be what
the safetensors library opens, with every tensor finite and every name once. Prints counts, and the
first of each kind of failure; exits with 1 where there was one.

    python benchmarks/fuzz_files.py --seconds 60 --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mlflow_scalpel.checkpoints.differences import differences
from mlflow_scalpel.checkpoints.external.history import history_of, params_of, points, read_state
from mlflow_scalpel.checkpoints.external.layouts import find_steps, model_in
from mlflow_scalpel.checkpoints.files import check_complete, checkpoint_files, left_out, name_in
from mlflow_scalpel.checkpoints.manifest import Manifest, make_manifest, parse_manifest
from mlflow_scalpel.checkpoints.reading.formats import open_flavour
from mlflow_scalpel.errors import ScalpelError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
Rng = random.Random


@dataclass
class Result:
    """What came of the mutations."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """What went wrong, by kind: the first of each, with the file that was mutated."""
    counts: Counter[str] = field(default_factory=Counter)
    """Mutations by file."""


def checkpoint(directory: Path) -> Path:
    """A checkpoint in two shards, with all the files that are read as JSON."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = {
        "model.embed_tokens.weight": (6, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.norm.weight": (4,),
    }
    placed = {}
    for number, name in enumerate(names):
        placed[name] = SHARDS[number % 2]
    for shard in SHARDS:
        tensors = {
            name: rng.standard_normal(shape, np.float32)
            for name, shape in names.items()
            if placed[name] == shard
        }
        save_file(tensors, directory / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 336}, "weight_map": placed}
    (directory / INDEX).write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "hidden_size": 4,
        "auto_map": {"AutoModel": "modeling_mine.Mine", "AutoTokenizer": ["tok.Slow", None]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "modeling_mine.py").write_text("from .part import x\nfrom . import other\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 6)]
    state = {"global_step": 5, "max_steps": 9, "train_batch_size": 2, "log_history": history}
    (directory / "trainer_state.json").write_text(json.dumps(state))
    return directory


def fuzz(seconds: float, seed: int, most: int | None = None) -> Result:
    """Mutate for so long, or so many times."""
    result, end = Result(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="scalpel-fuzz-") as name:
        home = Path(name)
        good = checkpoint(home / "checkpoint-4")
        base = make_manifest(checkpoint_files(good), good)
        content = {file.name: file.read_bytes() for file in good.iterdir()}
        content["manifest.json"] = base.model_dump_json().encode()
        content["MLmodel"] = b"flavors:\n  transformers:\n    model_binary: model\n"
        mutated = home / "run" / "checkpoint-5"
        shutil.copytree(good, mutated)
        while time.monotonic() < end and (most is None or result.tried < most):
            rng = random.Random(f"{seed} {result.tried}")
            chosen = rng.choice([*SHARDS, *SHARDS, *content])
            (mutated / chosen).write_bytes(_mutation(chosen, content[chosen], rng))
            what = f"seed {seed}, number {result.tried}, {chosen}"
            result.tried += 1
            result.counts[chosen] += 1
            _judge(mutated, base, what, result)
            if (good / chosen).exists():
                (mutated / chosen).write_bytes(content[chosen])
            else:  # MLflow's own, and what a store holds beside a checkpoint
                (mutated / chosen).unlink()
    return result


def _judge(directory: Path, base: Manifest, what: str, result: Result) -> None:
    try:
        manifest = _take(directory, base)
    except ScalpelError:
        result.refused += 1
        return
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        result.failures.setdefault(f"{type(error).__name__}: {str(error)[:120]}", what)
        return
    result.accepted += 1
    problem = _unsound(directory, manifest)
    if problem is not None:
        result.failures.setdefault(problem, what)


def _take(directory: Path, base: Manifest) -> Manifest:
    """All that logging reads of a checkpoint's files."""
    (found,) = find_steps(directory.parent)
    model = model_in(open_flavour(found.place))
    check_complete(model)
    files = checkpoint_files(model)
    left_out(model)
    manifest = make_manifest(files, model)
    differences(base.tensors, manifest.tensors)
    params_of([model], found.step)
    list(points(history_of(read_state(model))))
    stored = directory / "manifest.json"
    if stored.is_file():
        parse_manifest(stored.read_bytes(), str(stored))
    return manifest


def _unsound(directory: Path, manifest: Manifest) -> str | None:
    """Why what was accepted should not have been, by another reading of it."""
    names: list[str] = []
    for name in manifest.files:
        if name_in(directory, directory / name) != name:
            return f"{name} leads out of the checkpoint"
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(directory / name, framework="np") as stream:
                names += stream.keys()
                tensors = [stream.get_tensor(key) for key in stream.keys()]  # noqa: SIM118
        except Exception as error:  # noqa: BLE001
            if isinstance(error, TypeError):  # a dtype that numpy has not
                continue
            return f"accepted, and safetensors refuses it: {str(error)[:100]}"
        if any(t.dtype.kind in "fc" and not np.isfinite(t).all() for t in tensors):
            return "accepted with NaN or infinity"
        raw = (directory / name).read_bytes()
        header = raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]
        keys = _keys(header)
        tensors_named = [key for key in keys if key in manifest.files[name].tensors]
        if len(tensors_named) != len(set(tensors_named)):
            return "accepted with a name twice in a header"
    return "accepted with one name in two files" if len(names) != len(set(names)) else None


def _keys(header: bytes) -> list[str]:
    """Every key of a JSON text, as often as it is there."""
    keys: list[str] = []
    json.loads(header, object_pairs_hook=lambda pairs: keys.extend(key for key, _ in pairs))
    return keys


def _mutation(name: str, content: bytes, rng: Rng) -> bytes:
    if name.endswith(".safetensors"):
        length = struct.unpack("<Q", content[:8])[0]
        header, data = content[8 : 8 + length], content[8 + length :]
        way = rng.randrange(6)
        if way == 0:
            return _bytes(content, rng)
        if way == 1:  # values that are none
            return content[: 8 + length] + _poison(data, rng)
        if way == 2:
            lie = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])
            return struct.pack("<Q", lie) + content[8:]
        header = _json(header, rng)
        return struct.pack("<Q", len(header)) + header + data
    if name.endswith(".json") and rng.random() < 0.8:
        return _json(content, rng)
    return _bytes(content, rng)


def _poison(data: bytes, rng: Rng) -> bytes:
    at = 4 * rng.randrange(len(data) // 4)
    value = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff"])
    return data[:at] + value + data[at + 4 :]


def _bytes(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(changed) or 1)
        way = rng.randrange(5)
        if way == 0:
            del changed[at:]
        elif way == 1:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 2:
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif way == 3:
            del changed[at : at + rng.randrange(1, 20)]
        else:
            changed += rng.randbytes(rng.randrange(1, 9))
        if not changed:
            break
    return bytes(changed)


def _json(content: bytes, rng: Rng) -> bytes:
    """Another JSON text: a value replaced, a key dropped, doubled or renamed, or nested deeply."""
    tree = json.loads(content)
    places = list(_places(tree))
    holder, key = rng.choice(places)
    way = rng.randrange(8)
    if way == 0 and isinstance(holder, dict):
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice(_NAMES)] = holder.pop(key)
    elif way == 2:
        other, from_key = rng.choice(places)
        holder[key] = other[from_key]
        if _is_cyclic(tree):
            return b"{}"
    elif way == 3:
        text = json.dumps(tree)
        deep = rng.choice([10, 1000, 100_000])
        inner = json.dumps(holder[key])
        return text.replace(inner, "[" * deep + inner + "]" * deep, 1).encode()
    elif way == 4:  # a key twice
        text = json.dumps(tree)
        if isinstance(holder, dict):
            pair = f"{json.dumps(key)}: {json.dumps(holder[key])}"
            return text.replace(pair, f"{pair}, {pair}", 1).encode()
        return text.encode()
    elif way == 5:
        return rng.choice(_TEXTS)
    else:
        holder[key] = rng.choice(_VALUES)(rng)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found = []
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            found += [(tree, key), *_places(tree[key])]
    return found


def _is_cyclic(tree: Any) -> bool:
    try:
        json.dumps(tree)
    except ValueError:
        return True
    return False


_NAMES = (
    "", ".", "..", "/etc/passwd", "../x", "a\0b", "module.model.norm.weight", "\ud800", "x" * 5000,
    "model.layers.0.self_attn.q_proj.base_layer.weight", "__metadata__", "lm_head.weight", "é",
)  # fmt: skip
_TEXTS = (
    b"", b"[]", b"null", b"1", b'"x"', b"{}", b"{", b"nan", b"[" * 100_000, b'{"a":' * 50_000,
    b"\xff\xfe{}", b'{"weight_map": []}', b'{"weight_map": {"a": 5}}', b"1" * 5000,
)  # fmt: skip
_VALUES: tuple[Callable[[Rng], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 1, 7, 2**31, 2**63, 2**64, -(2**70), 10**400]),
    lambda rng: rng.choice([0.5, -1.5, 1e308, float("inf"), float("nan")]),
    lambda rng: rng.choice([*_NAMES, "F64", "BF16", "F8_E4M3", "F4", "U8", "BOOL", "XX"]),
    lambda rng: [],
    lambda rng: {},
    lambda rng: [rng.randrange(-2, 9) for _ in range(rng.randrange(4))],
    lambda rng: [0, 2**62, 2**62],
    lambda rng: {"a": [{}]},
    lambda rng: [None, "a.b", "org/x--a.B", "../../a.B", 5],
)


def main() -> int:
    """Fuzz, and print what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="mutations, if these are fewer")
    arguments = parser.parse_args()
    result = fuzz(arguments.seconds, arguments.seed, arguments.number)
    print(
        f"{result.tried} mutations: {result.refused} refused by name, {result.accepted} accepted, "
        f"{len(result.failures)} kinds of failure"
    )
    for failure, what in result.failures.items():
        print(f"  {what}: {failure}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
