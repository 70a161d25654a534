"""A problem's text with each token coloured by its KL: what the models would have said instead.

HTML rather than a figure, since it is there to be read. It needs no JavaScript: what both models
find most likely stands in the page and shows on hover and on keyboard focus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from mlflow_scalpel.views.common.text import DIRECTIONS, probe, short
from mlflow_scalpel.views.common.view import public
from mlflow_scalpel.views.common.wording import command_for
from mlflow_scalpel.views.divergence.tokens_html import RANKING, READER, STYLE

#: Nats from which a token takes the next colour. Fixed, so that texts and checkpoints compare.
LEVELS = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)
#: A token of more characters is cut: tokenizers make none, other files may.
LONGEST = 200
REQUIRED = ("problem", "position", "token", "kl", "texts")


@public
def token_reader(
    tokens: pd.DataFrame,
    *,
    problem: int,
    texts: str | None = None,
    model_id: str | None = None,
) -> Markup:
    """A problem's text, each token coloured by KL(base || checkpoint) where it was predicted.

    `tokens` is one step's table of single tokens (`scalpel/tokens/...`), a row per position with
    the token that follows there. On hover or focus a token shows its KL, the base's entropy, its
    probability and the five most likely tokens under both models. `problem` is its number in the
    probe set; `texts` and `model_id` choose where the table has several, the first by default. Of
    problems that the table holds in part, what is there stands with its context. Colours have fixed
    limits in nats. All text is escaped; the fragment carries its own style, for light and dark.

    Raises ValueError if columns are missing.
    """
    own, others = selected(tokens, texts, model_id)
    found = sorted({int(number) for number in own["problem"].dropna()})
    own = own[own["problem"] == problem].sort_values("position")
    last = -1
    pieces = []
    for row in own.to_dict("records"):
        position = int(row["position"])
        if position != last + 1:
            before = row.get("context")
            pieces.append({"gap": "" if absent(before) else str(before)})
        if not absent(row["token"]):
            pieces.append(piece_of(row))
        last = position
    return render(
        READER,
        pieces=pieces,
        problem=problem,
        head=own.iloc[0].to_dict() if len(own) else {},
        probe=probe(str(own["texts"].iloc[0])) if len(own) else "",
        found=", ".join(map(str, found)) or "none",
        others=others,
        limits=limits(),
        empty=not len(tokens),
        command=command_for("kl") + " --log",
    )


@public
def token_ranking(
    tokens: pd.DataFrame,
    *,
    count: int = 50,
    texts: str | None = None,
    model_id: str | None = None,
) -> Markup:
    """The tokens of the largest KL, each with what stands before it and both models' first choices.

    Reads the same table as `token_reader`, of which the rows with a `rank`. All text is escaped.

    Raises ValueError if columns are missing.
    """
    own, others = selected(tokens, texts, model_id)
    ranked = own[own["rank"].notna()] if "rank" in own.columns else own.iloc[:0]
    pieces = []
    for row in ranked.sort_values("rank").head(count).to_dict("records"):
        piece = piece_of(row)
        context = "" if absent(row.get("context")) else str(row["context"])
        pieces.append({**piece, "context": context, "problem": f"{row['problem']}"})
    return render(
        RANKING,
        pieces=pieces,
        head=own.iloc[0].to_dict() if len(own) else {},
        others=others,
        limits=limits(),
        command=command_for("kl") + " --log",
    )


def selected(
    tokens: pd.DataFrame, texts: str | None, model_id: str | None
) -> tuple[pd.DataFrame, str]:
    """The rows of one probe set and one model, and words for what else the table holds."""
    missing = [column for column in REQUIRED if column not in tokens.columns]
    if missing and len(tokens):
        raise ValueError(
            f"the table of tokens is missing the columns {missing}: pass one that a comparison "
            "stored under scalpel/tokens"
        )
    own = tokens.reindex(columns=[*tokens.columns, *missing])
    others = []
    for column, wanted, word in (("texts", texts, "texts"), ("model_id", model_id, "model")):
        if column not in own.columns or not len(own):
            continue
        named = own[column].fillna("").astype("str")
        values = list(dict.fromkeys(named))
        chosen = values[0] if wanted is None else wanted
        if wanted is None and len(values) > 1:
            rest = [probe(v) if column == "texts" else v for v in values[1:]]
            others.append(f"the table also holds the {word} {', '.join(rest)}")
        own = own[named == chosen]
    return own, "; ".join(others)


def absent(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def piece_of(row: dict[str, Any]) -> dict[str, Any]:
    """A token as the page shows it: its text, its colour's number, and the lines of its tip."""
    kl = row["kl"]
    known = not absent(kl)
    level = sum(float(kl) >= limit for limit in LEVELS) if known else 0
    facts = [("KL", f"{float(kl):.4g} nats" if known else "no value")]
    for column, name, unit in (
        ("reverse", "reverse KL", " nats"),
        ("base_entropy", "entropy of the base", " nats"),
    ):
        if not absent(row.get(column)):
            facts.append((name, f"{float(row[column]):.4g}{unit}"))
    if not absent(row.get("right_p_base")) and not absent(row.get("right_p_checkpoint")):
        change = f"{short(float(row['right_p_base']))} \u2192 "
        facts.append(
            ("probability of this token", change + short(float(row["right_p_checkpoint"])))
        )
    tops = [
        top_of(row.get(f"{side}_top"), row.get(f"{side}_top_p")) for side in ("base", "checkpoint")
    ]
    longest = max(map(len, tops))
    blank = ("", "")
    padded = [[*top, *[blank] * (longest - len(top))] for top in tops]
    text = shown(row["token"])
    return {
        "text": text,
        # Only these: the tokens of a text in Hebrew or Arabic are to be read as one line.
        "alone": any(sign in DIRECTIONS for sign in text),
        "level": level,
        "answer": bool(row.get("answer", True)),
        "facts": facts,
        "tops": list(zip(*padded, strict=True)),
    }


def top_of(names: Any, shares: Any) -> list[tuple[str, str]]:
    """A model's most likely tokens, with their probabilities."""
    if not isinstance(names, Iterable) or not isinstance(shares, Iterable):
        return []
    return [
        (visible(name), short(float(share))) for name, share in zip(names, shares, strict=False)
    ]


def shown(token: Any) -> str:
    """A token in the text: what breaks a line is marked where it stands."""
    text = "" if absent(token) else str(token)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "\u2026"
    return text.replace("\n", "\u21b5\n")


def visible(token: Any) -> str:
    """A token by itself: with marks for spaces and line breaks, which would not show."""
    return shown(token).replace("\n", "").replace("\t", "\u21e5").replace(" ", "\u00b7")


def limits() -> list[tuple[int, str]]:
    """The legend: number of each colour, and its range in nats."""
    edges = [f"{limit:g}" for limit in LEVELS]
    middle = [f"{low}\u2013{high}" for low, high in itertools.pairwise(edges)]
    return list(enumerate([f"below {edges[0]}", *middle, f"{edges[-1]} and more"]))


def render(page: str, **values: Any) -> Markup:
    """A fragment of HTML with its style; everything in `values` is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    body = environment.from_string(page).render(**values)
    return Markup(STYLE) + Markup(body)
