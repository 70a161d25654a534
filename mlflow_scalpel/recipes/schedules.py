"""What a learning rate's schedule takes besides the rate and the warm-up."""

from __future__ import annotations

from collections.abc import Mapping

_TAKES = {
    "cosine": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
}


def check_schedule(kind: str, given: Mapping[str, float], learning_rate: float) -> None:
    """Raise ValueError where Transformers could not make the schedule, or it would end higher."""
    taken = _TAKES.get(kind, ())
    for name, value in given.items():
        if name not in taken:
            raise ValueError(
                f"lr_scheduler_kwargs = {given}: {kind} takes no {name}"
                f"{', but ' + ', '.join(taken) if taken else ''}; remove it"
            )
        if value < 0:
            raise ValueError(f"lr_scheduler_kwargs = {given}: {name} is below 0; raise it")
    if kind != "cosine_with_min_lr":
        return
    if ("min_lr" in given) == ("min_lr_rate" in given):
        raise ValueError(
            f"lr_scheduler_type = {kind} needs exactly one of min_lr and min_lr_rate; set for "
            "example lr_scheduler_kwargs: {min_lr_rate: 0.1}, a tenth of learning_rate"
        )
    if given.get("min_lr", 0.0) > learning_rate or given.get("min_lr_rate", 0.0) > 1:
        raise ValueError(
            f"lr_scheduler_kwargs = {given}: the schedule would end above learning_rate = "
            f"{learning_rate}; lower it (min_lr_rate is a share of learning_rate)"
        )
