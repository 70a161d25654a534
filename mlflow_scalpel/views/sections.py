"""What the report shows, in its order: headings, how to read them, and the figures under them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.views.amplified import amplified
from mlflow_scalpel.views.attention import attention_heatmaps
from mlflow_scalpel.views.before_after import scores_before_after
from mlflow_scalpel.views.card import card, card_table
from mlflow_scalpel.views.costs import cost
from mlflow_scalpel.views.findings import NORM, PER_RATE
from mlflow_scalpel.views.heatmaps import weight_heatmaps
from mlflow_scalpel.views.histograms import change_by_magnitude, change_histogram
from mlflow_scalpel.views.in_out import in_versus_out
from mlflow_scalpel.views.kl import kl_concentration, kl_on_base_samples, kl_over_training
from mlflow_scalpel.views.kl_bins import kl_by_entropy, kl_by_position
from mlflow_scalpel.views.kl_statistics import kl_statistics
from mlflow_scalpel.views.ledger import ledger
from mlflow_scalpel.views.norms import norms_over_training, weights_over_training
from mlflow_scalpel.views.over_training import scores_over_training
from mlflow_scalpel.views.pairs import pair_cosines, pair_overlap
from mlflow_scalpel.views.paper import paper_compat
from mlflow_scalpel.views.parts import norms_by_part
from mlflow_scalpel.views.pass_at_k import pass_at_k
from mlflow_scalpel.views.spectra import spectra_by_layer, spectra_over_training
from mlflow_scalpel.views.variants import ablation_bars, frozen_table

View = Callable[[pd.DataFrame, pd.DataFrame | None], go.Figure]
Table = Callable[[pd.DataFrame, pd.DataFrame | None], Markup]

X = "fraction"  # at which runs of different length meet
COMPARE = "mlflow run . -e compare (or mlflow-scalpel compare BASE runs:/RUN --log)"
TEXTS = "mlflow-scalpel compare BASE runs:/RUN --metrics kl --texts FILE --log"
DETAILS = "mlflow-scalpel compare BASE runs:/RUN --metrics histograms spectra --log"
PAIRS = "mlflow-scalpel compare BASE runs:/RUN runs:/OTHER --metrics pairs --log"
ATTENTION = "mlflow-scalpel compare BASE runs:/RUN --metrics attention --texts FILE --log"
SAMPLED = "mlflow-scalpel compare BASE runs:/RUN --metrics kl_on_base_samples --texts FILE --log"
PAPER = (
    "mlflow-scalpel compare BASE runs:/RUN --metrics weights_paper_compat kl_paper_compat "
    "--texts FILE --log"
)
EVALUATE = "mlflow run . -e evaluate"
SAMPLES = "mlflow run . -e evaluate, with a suite of several samples a problem"
FREEZE = "mlflow run . -e sft with train.freeze in the recipe, then evaluate"
STAGES = "mlflow run . -e sft (or -e grpo), which counts it"


@dataclass(frozen=True)
class Shown:
    """A figure: how it is made, what it is called where it is absent, and what to run then.

    `needs` is the start of the metrics without which it shows nothing.
    """

    view: View
    name: str
    needs: str | tuple[str, ...]
    remedy: str

    @property
    def starts(self) -> tuple[str, ...]:
        """`needs` as a tuple."""
        return (self.needs,) if isinstance(self.needs, str) else self.needs


@dataclass(frozen=True)
class Section:
    """A heading, how to read what stands under it, and the figures by file stem."""

    stem: str
    heading: str
    how: str
    figures: dict[str, Shown]
    table: Table | None = None


SECTIONS = (
    Section(
        "card",
        "Scalpel or hammer?",
        "Where each run lies on six axes, beside the other arms and what was imported. There is no "
        "sum and no threshold: a run may be fine on one axis and coarse on another. An open mark "
        "decides nothing by itself, since its interval includes 0 or is unknown, or a KL is not "
        "above the noise floor of its dtype; intervals and tests are "
        "over problems, and say nothing of other seeds. The table says what each point rests on.",
        {"card": Shown(card, "the card", "", f"{COMPARE}; {EVALUATE}")},
        card_table,
    ),
    Section(
        "weights",
        "How far the weights moved",
        "Each line is one kind of matrix: the size of its update relative to its size at the base, "
        "averaged over layers. AdamW moves every entry by about the learning rate at each step, so "
        "these norms mostly compare learning rates and steps. Divided by the sum of the learning "
        "rates so far (relative_frobenius_per_lr) they do so far less; what an algorithm "
        "does to norms shows best between runs of equal rate and steps. Means are over the "
        "matrices of the layers; the last figure has all parts, and what share of the parameters "
        "each of them is.",
        {
            "norms_over_training": Shown(
                partial(norms_over_training, metric=NORM, x=X),
                "norms of the updates",
                NORM,
                COMPARE,
            ),
            "norms_per_learning_rate": Shown(
                partial(norms_over_training, metric=PER_RATE, x=X),
                "norms for each unit of learning rate",
                PER_RATE,
                COMPARE + ", of checkpoints whose learning rates were logged",
            ),
            "norms_by_part": Shown(norms_by_part, "norms by part of the model", NORM, COMPARE),
        },
    ),
    Section(
        "where",
        "Where the weights moved",
        "A cell is one matrix of one layer. On one scale for all runs the brighter run moved "
        "further; on a scale for each run the pattern within it shows.",
        {
            "weight_heatmaps": Shown(
                partial(weight_heatmaps, shared_scale=True), "maps of the updates", NORM, COMPARE
            ),
            "weight_heatmaps_own_scale": Shown(
                partial(weight_heatmaps, shared_scale=False), "maps, own scales", NORM, COMPARE
            ),
        },
    ),
    Section(
        "update",
        "What the updates are like",
        "How far each layer moved, averaged over its matrices. By how many units in the last place "
        "elements moved, and which elements moved, by their size in the base: steps smaller than "
        "half a unit in the last place of a large weight are lost in rounding, and a change of "
        "sign is the largest move, since most numbers of the format lie near 0. Stable and "
        "effective rank say in how many directions an update goes; a random one has nearly full "
        "rank. The cosine says whether two runs from one base went the same way, and the overlap "
        "whether they changed the same elements more often than chance.",
        {
            "weights_by_layer": Shown(
                partial(weights_over_training, by="layer", x=X), "norms by layer", NORM, COMPARE
            ),
            "change_histogram": Shown(
                change_histogram, "histograms of the change", "histograms/ulp_change", DETAILS
            ),
            "change_by_magnitude": Shown(
                change_by_magnitude,
                "change by magnitude",
                "histograms/change_by_magnitude",
                DETAILS,
            ),
            "spectra_over_training": Shown(
                partial(spectra_over_training, x=X), "spectra of the updates", "spectra/", DETAILS
            ),
            "spectra_by_layer": Shown(
                spectra_by_layer, "spectra of the updates by layer", "spectra/", DETAILS
            ),
            "pair_cosines": Shown(
                pair_cosines, "cosines of two runs' updates", "pairs/update_cosine", PAIRS
            ),
            "pair_overlap": Shown(
                pair_overlap, "overlap of two runs' changes", "pairs/changed_overlap", PAIRS
            ),
        },
    ),
    Section(
        "attention",
        "Whether heads attend elsewhere",
        "Jensen-Shannon divergence between the attention of base and checkpoint, a cell a head. "
        "Norms of query and key weights cannot say this: some models normalise both. The other "
        "metrics are changes from the base: of the entropy of what a head looks at, of the weight "
        "on the first token, and of how many tokens back it looks.",
        {
            "attention_heatmaps": Shown(
                attention_heatmaps, "attention maps", "attention/js", ATTENTION
            )
        },
    ),
    Section(
        "kl",
        "How far the output distribution moved",
        "KL from the base to each checkpoint, over the full vocabulary, on texts fixed in advance. "
        "The same checkpoint has another KL on other texts, so compare runs within a panel.",
        {
            "kl_over_training": Shown(
                partial(kl_over_training, x=X), "KL over training", "kl/", TEXTS
            )
        },
    ),
    Section(
        "divergence",
        "Where the output distribution moved",
        "KL on what the base itself would say is the one that was found to go with forgetting "
        "(arXiv 2509.04259). The other figures take KL apart: its quantiles over tokens, by "
        "position in the text, by how sure the base was, and whether a few tokens carry it (Gini "
        "coefficient near 1) or all alike (near 0).",
        {
            "kl_on_base_samples": Shown(
                partial(kl_on_base_samples, x=X),
                "KL on the base's own samples",
                "kl_on_base_samples/",
                SAMPLED,
            ),
            "kl_statistics": Shown(kl_statistics, "statistics of KL", "kl/quantile", TEXTS),
            "kl_by_position": Shown(kl_by_position, "KL by position", "kl/by_position", TEXTS),
            "kl_by_entropy": Shown(kl_by_entropy, "KL by entropy", "kl/by_base_entropy", TEXTS),
            "kl_concentration": Shown(
                partial(kl_concentration, x=X), "concentration of KL", "kl/gini", TEXTS
            ),
        },
    ),
    Section(
        "paper",
        "As the paper computes it",
        "The same norm and KL computed in bfloat16, as arXiv 2507.10616 does, beside ours: how far "
        "they part is what rounding adds to the published numbers.",
        {
            "paper_compat": Shown(
                partial(paper_compat, x=X),
                "the paper's way beside ours",
                ("kl_paper_compat/", "weights_paper_compat/"),
                PAPER,
            )
        },
    ),
    Section(
        "scores",
        "What was gained and lost",
        "Accuracy by skill, at the base and at the last evaluated checkpoint, then over training. "
        "Skills count as in-domain or out-of-domain as their suite declares. Bars that overlap "
        "do not show that two runs are the same.",
        {
            "scores_before_after": Shown(scores_before_after, "scores", "eval/", EVALUATE),
            "scores_over_training": Shown(
                partial(scores_over_training, x=X), "scores over training", "eval/", EVALUATE
            ),
        },
    ),
    Section(
        "in_versus_out",
        "Gained in-domain against lost elsewhere",
        "Each line is a run's way from the base: right is better in-domain, down is worse "
        "out-of-domain. A last point whose bars reach a zero line shows no change in that "
        "direction beyond the noise of the problems sampled.",
        {"in_versus_out": Shown(in_versus_out, "gain against loss", "eval/", EVALUATE)},
    ),
    Section(
        "capabilities",
        "Which problems: kept, lost, gained, never solved",
        "By the first sample of base and checkpoint. One sample a problem changes by chance too: "
        "the short marks say how much of what was lost and gained the base would show against "
        "itself. With several samples, pass@k asks whether one of k is right: where the base is "
        "ahead at large k, training sharpened what was there. Of the gained problems, those that "
        "the base solved at least once in its k samples were there before; unsolved in k is not "
        "unsolvable.",
        {
            "ledger": Shown(
                partial(ledger, x=X), "the ledger of problems", "capabilities/kept", EVALUATE
            ),
            "pass_at_k": Shown(pass_at_k, "pass@k", "capabilities/pass_at_k", SAMPLES),
            "amplified": Shown(
                amplified, "what was gained, amplified or new", "capabilities/amplified", SAMPLES
            ),
        },
    ),
    Section(
        "ablations",
        "What freezing did",
        "Runs of one algorithm that trained only a part of the weights, beside those that trained "
        "all. Frozen means that not one bit differs from the base, at any checkpoint: the table "
        "says whether that was so.",
        {"ablation_bars": Shown(ablation_bars, "freezing variants", "", FREEZE)},
        frozen_table,
    ),
    Section(
        "cost",
        "What it cost",
        "Totals up to each run's last step. Equal steps are not equal cost.",
        {"cost": Shown(cost, "costs", "cost/", STAGES)},
    ),
)
