"""Figures of the tidy table, and the static report.

Each figure is a function of the table (and, optionally, of the runs' names and parameters) that
returns a Plotly figure, so that it works in a notebook, in a report and in a server alike.
"""

from mlflow_scalpel.views.amplified import amplified
from mlflow_scalpel.views.attention import attention_heatmaps
from mlflow_scalpel.views.before_after import scores_before_after
from mlflow_scalpel.views.card import card, card_table
from mlflow_scalpel.views.confounding import confounder_table, confounders
from mlflow_scalpel.views.costs import cost
from mlflow_scalpel.views.findings import findings
from mlflow_scalpel.views.heatmaps import weight_heatmap, weight_heatmaps
from mlflow_scalpel.views.histograms import change_by_magnitude, change_histogram
from mlflow_scalpel.views.in_out import in_versus_out
from mlflow_scalpel.views.kl import kl_concentration, kl_on_base_samples, kl_over_training
from mlflow_scalpel.views.kl_bins import kl_by_entropy, kl_by_position
from mlflow_scalpel.views.kl_statistics import kl_statistics
from mlflow_scalpel.views.ledger import ledger
from mlflow_scalpel.views.norms import norms_over_training, weight_trajectory, weights_over_training
from mlflow_scalpel.views.numbers import numbers
from mlflow_scalpel.views.over_training import scores_over_training
from mlflow_scalpel.views.pairs import pair_cosines, pair_overlap
from mlflow_scalpel.views.paper import paper_compat
from mlflow_scalpel.views.parts import norms_by_part
from mlflow_scalpel.views.pass_at_k import pass_at_k
from mlflow_scalpel.views.png import to_image, to_png
from mlflow_scalpel.views.problems import problem_table
from mlflow_scalpel.views.report import write_figures, write_report
from mlflow_scalpel.views.spectra import spectra_by_layer, spectra_over_training
from mlflow_scalpel.views.tokens import token_ranking, token_reader
from mlflow_scalpel.views.variants import ablation_bars, frozen_table

__all__ = [
    "ablation_bars",
    "amplified",
    "attention_heatmaps",
    "card",
    "card_table",
    "change_by_magnitude",
    "change_histogram",
    "confounder_table",
    "confounders",
    "cost",
    "findings",
    "frozen_table",
    "in_versus_out",
    "kl_by_entropy",
    "kl_by_position",
    "kl_concentration",
    "kl_on_base_samples",
    "kl_over_training",
    "kl_statistics",
    "ledger",
    "norms_by_part",
    "norms_over_training",
    "numbers",
    "pair_cosines",
    "pair_overlap",
    "paper_compat",
    "pass_at_k",
    "problem_table",
    "scores_before_after",
    "scores_over_training",
    "spectra_by_layer",
    "spectra_over_training",
    "to_image",
    "to_png",
    "token_ranking",
    "token_reader",
    "weight_heatmap",
    "weight_heatmaps",
    "weight_trajectory",
    "weights_over_training",
    "write_figures",
    "write_report",
]
