"""Recipe of the `base` stage: pre-training of the embedded small model."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mlflow_scalpel.recipes.fields import Fraction, Recipe, Strict


class Architecture(Strict):
    """Sizes of the `Olmo2ForCausalLM`."""

    hidden_size: PositiveInt = 96
    num_hidden_layers: PositiveInt = 6
    num_attention_heads: PositiveInt = 4
    intermediate_size: PositiveInt = 256
    max_position_embeddings: PositiveInt = 128
    vocabulary: PositiveInt = 900
    """Upper bound; the tokenizer stops earlier when the text holds no more merges."""
    embedding_std: PositiveFloat = 1.0
    """Standard deviation of the initial embeddings: with the library's 0.02 nothing was learned."""
    post_norm_weight: PositiveFloat = 0.5
    """Initial weight of the two norms after attention and MLP."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} does not divide "
                f"hidden_size = {self.hidden_size}"
            )
        return self


class Text(Strict):
    """The generated pre-training text."""

    sequences: PositiveInt = 20_000
    """Distinct draws of text, for the clean and for the noisy part each."""
    skills: dict[str, NonNegativeFloat]
    """Share of each skill of the generator."""
    teacher_documents: Fraction = 0.1
    """Share of sequences that are plain text in the teacher's words."""
    clean: Fraction = 0.65
    """Share of the steps in which every answer is right."""
    wrong: Fraction = 0.4
    """After that, the share of in-domain answers that are off by one: greedy decoding is then still
    right and sampling only partly, which leaves post-training something to amplify."""
    seed: NonNegativeInt = 0


class Pretraining(Strict):
    """Muon on the layers' matrices, AdamW on everything else, both decaying linearly."""

    steps: PositiveInt = 280
    batch_size: PositiveInt = 96
    micro_batches: PositiveInt = 2
    muon_learning_rate: PositiveFloat = 0.02
    adamw_learning_rate: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    warmup_steps: PositiveInt = 30
    final_fraction: Fraction = 0.05
    """Share of the learning rate that the decay ends with."""
    seed: NonNegativeInt = 0
    logging_steps: PositiveInt = 10


class BaseRecipe(Recipe):
    """A recipe of `mlflow run . -e base`."""

    stage: Literal["base"]
    generator: Literal["tiny_world"] = "tiny_world"
    registered_model: str = "{recipe}-base"
    architecture: Architecture = Architecture()
    text: Text
    train: Pretraining = Pretraining()
