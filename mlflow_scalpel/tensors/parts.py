"""What a tensor is for: the parts of a model, which every weight row names."""

from __future__ import annotations

#: The matrices that most decoder layers have, in the order in which a layer applies them.
CLASSICAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: What does the work of the language model's layers. A mean over matrices is over these.
LAYER_PARTS = ("attention", "mlp", "experts", "router", "convolution", "state space")

#: What holds next to none of a model's parameters.
SMALL_PARTS = ("norm", "bias", "vector")

#: Every part, in the order in which it is shown.
PARTS = (
    *LAYER_PARTS,
    "embeddings",
    "head",
    *SMALL_PARTS,
    "vision",
    "other",
)
