"""What rounding a merged model to its dtype did to the updates that an adapter makes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_scalpel.checkpoints.adapters import merged
from mlflow_scalpel.tensors.adapters import NotInFactors, read_changes
from mlflow_scalpel.tensors.quantised import FloatTensors
from mlflow_scalpel.tensors.updates import Added, as_matrix, row_slices

if TYPE_CHECKING:
    from torch import Tensor


def rounding(adapter: Path, base: Path, whole: Path) -> str:
    """A line that sets the norms of what is stored against those of the updates themselves.

    Of each tensor that the adapter changes: ||W_t - W_0||_F of the merged `whole`, divided by
    ||D||_F of the update D, both summed in float64.
    """
    exact = _exact_norms(adapter, base)
    stored, before = FloatTensors(whole), FloatTensors(base)
    ratios, dtypes = [], set()
    for name, norm in exact.items():
        if norm and name in stored.headers and name in before.headers:
            after = stored.read(name)
            dtypes.add(str(after.dtype).removeprefix("torch."))
            ratios.append(_norm_of_difference(after, before.read(name)) / norm)
    if not ratios:
        return f"{whole}: the adapter changes no tensor of {base}"
    shares = f"{min(ratios):.4g} to {max(ratios):.4g}, median {statistics.median(ratios):.4g}"
    said = (
        f"merged in {'/'.join(sorted(dtypes))}: the norm of what is stored is {shares} of that of "
        f"the exact update, over {len(ratios)} tensors"
    )
    if max(abs(one - 1.0) for one in ratios) > 1e-3:
        said += "; rounding changed the updates, and --dtype float32 keeps them"
    return said


def _exact_norms(adapter: Path, base: Path) -> dict[str, float]:
    """||D||_F of each tensor that the adapter changes by an update, from its factors."""
    before = FloatTensors(base)
    try:
        changes = read_changes(adapter, before)
    except NotInFactors:
        exact = FloatTensors(merged(adapter, base, dtype="float64"))
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
