"""Pre-trains the embedded base: a small OLMo-2, with a tokenizer made on the spot.

What is unusual here was found by trying: at this size the library's default initialisation and
AdamW alone had learned next to nothing after 500 steps.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from mlflow_scalpel.data import tiny_world
from mlflow_scalpel.recipes.base import Architecture, BaseRecipe, Text

_SPECIAL = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
_END = _SPECIAL[0]

# Numbers and words are whole tokens: with characters as tokens no sums were learned.
_PIECES = r"</?[a-z]+>\n?|\\boxed\{|\p{N}{1,3}|[ ]?\p{L}+|[^\p{N}\p{L}]"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}<|system|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(architecture: Architecture, skills: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the world's own text, with a chat template."""
    rng = random.Random(1)
    corpus = [f"{number} " for number in range(100) for _ in range(30)]
    for skill in skills:
        for problem in (tiny_world.pool(skill) * 8)[:3000]:
            corpus += [problem.problem, tiny_world.in_base_style(problem, rng)]
            corpus += [problem.teacher_solution] if problem.teacher_solution else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=architecture.vocabulary,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_END,
        eos_token=_END,
        unk_token=_END,
        pad_token=_SPECIAL[1],
        additional_special_tokens=_SPECIAL[2:],
        model_max_length=architecture.max_position_embeddings,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> Olmo2ForCausalLM:
    """An OLMo-2 with untied embeddings, initialised so that it learns in a few hundred steps."""
    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=len(tokenizer),
            hidden_size=architecture.hidden_size,
            intermediate_size=architecture.intermediate_size,
            num_hidden_layers=architecture.num_hidden_layers,
            num_attention_heads=architecture.num_attention_heads,
            num_key_value_heads=architecture.num_attention_heads,
            max_position_embeddings=architecture.max_position_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, architecture.embedding_std)
        for name, weight in model.named_parameters():
            if "post_" in name:
                weight.fill_(architecture.post_norm_weight)
    return model


def make_text(text: Text, tokenizer: Any, *, wrong: float) -> list[list[int]]:
    """Token IDs of `text.sequences` draws, with a share `wrong` of in-domain answers off by one."""
    rng = random.Random(text.seed)
    skills, shares = list(text.skills), list(text.skills.values())
    drawn = []
    for _ in range(text.sequences):
        if rng.random() < text.teacher_documents:
            # Without the teacher's words as plain text, SFT would begin at a loss of 8.
            problem = rng.choice(tiny_world.pool(rng.choice(tiny_world.IN_DOMAIN)))
            drawn.append(f"{_END}{problem.teacher_solution}{_END}")
            continue
        problem = rng.choice(tiny_world.pool(rng.choices(skills, shares)[0]))
        if problem.skill in tiny_world.IN_DOMAIN and rng.random() < wrong:
            problem = tiny_world.off_by_one(problem, rng)
        messages = [
            {"role": "user", "content": problem.problem},
            {"role": "assistant", "content": tiny_world.in_base_style(problem, rng)},
        ]
        drawn.append(tokenizer.apply_chat_template(messages, tokenize=False))
    return list(tokenizer(drawn, add_special_tokens=False)["input_ids"])


def pretrain(
    model: Olmo2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: BaseRecipe,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `model` in place; `report` gets loss and learning rates every `logging_steps` steps.

    The first steps see right answers only, the rest noisy ones: noise from the start slows
    arithmetic down.
    """
    train = recipe.train
    clean = make_text(recipe.text, tokenizer, wrong=0.0)
    noisy = make_text(recipe.text, tokenizer, wrong=recipe.text.wrong)
    rng = random.Random(train.seed)
    optimizers = _optimizers(model, recipe)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assistant: Any = tokenizer.convert_tokens_to_ids("<|assistant|>")
    for step in range(1, train.steps + 1):
        pool = clean if step <= recipe.text.clean * train.steps else noisy
        batch = [pool[rng.randrange(len(pool))] for _ in range(train.batch_size)]
        decay = max(train.final_fraction, 1 - (step - 1) / train.steps)
        scale = min(1.0, step / train.warmup_steps) * decay
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * scale
        loss = _accumulate(model, batch, train.micro_batches, tokenizer.pad_token_id, assistant)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        if step % train.logging_steps == 0 or step == train.steps:
            report(step, {"loss": loss, "learning_rate": train.adamw_learning_rate * scale})


def _optimizers(model: Olmo2ForCausalLM, recipe: BaseRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head and norms."""
    train = recipe.train
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "layers." in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.AdamW(
            others,
            lr=train.adamw_learning_rate,
            betas=(0.9, 0.98),
            weight_decay=train.weight_decay,
            fused=True,
        ),
        torch.optim.Muon(
            matrices, lr=train.muon_learning_rate, weight_decay=train.weight_decay, momentum=0.95
        ),
    ]


def _accumulate(
    model: Olmo2ForCausalLM, batch: list[list[int]], parts: int, pad: int, assistant: int
) -> float:
    """Add the gradient of the mean loss over the batch's learned tokens, and return that loss.

    Micro-batches are cut by length, which saves padding; the loss is a sum over all of them divided
    once, so that short answers do not weigh more than long ones.
    """
    batch = sorted(batch, key=len)
    cuts = [len(batch) * part // parts for part in range(parts + 1)]
    pieces = [_tensors(batch[a:b], pad, assistant) for a, b in itertools.pairwise(cuts)]
    learned = sum(int((labels != -100).sum()) for _, labels in pieces)
    total = 0.0
    for ids, labels in pieces:
        logits = model(input_ids=ids).logits[:, :-1]  # (B, T - 1, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / learned).backward()
        total += loss.item() / learned
    return total


def _tensors(sequences: list[list[int]], pad: int, assistant: int) -> tuple[Tensor, Tensor]:
    """IDs and labels, both (B, T); a chat's prompt is not learned; of a plain text all is."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad)
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(_as_tensors(sequences)):
        ids[row, : len(sequence)] = sequence
        at = (sequence == assistant).nonzero()
        start = int(at[0]) + 1 if len(at) else 0
        labels[row, start : len(sequence)] = sequence[start:]
    return ids, labels


def _as_tensors(sequences: list[list[int]]) -> Iterator[Tensor]:
    return (torch.tensor(sequence) for sequence in sequences)
