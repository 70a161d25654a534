"""The figures of a page are those of the table, though a page hands them a part of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlflow_scalpel import views
from mlflow_scalpel.server.figures import LARGE, superfluous, without
from mlflow_scalpel.views.common.view import Placement
from mlflow_scalpel.views.pages import Page, all_figures
from mlflow_scalpel.views.sections import SECTIONS

FIGURES = [figure for section in SECTIONS for figure in section.figures.values()]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.stem)
def test_a_figure_of_a_page_is_that_of_the_complete_table(figure, whole, runs):
    part = without(whole, superfluous(figure))
    assert figure.draw(part, runs).to_plotly_json() == figure.draw(whole, runs).to_plotly_json()


def test_what_is_kept_of_a_group_that_is_left_out_is_of_no_metric(whole, runs):
    """A mean over the rows that stand for their run and step would be a wrong number."""
    part = without(whole, LARGE)
    assert not {metric.split("/")[0] for metric in part["metric"]} & LARGE
    assert set(map(tuple, part[["run_id", "step"]].to_numpy())) == set(
        map(tuple, whole[["run_id", "step"]].to_numpy())
    )
    figure = views.norms_over_training(part, runs)
    assert not figure.data


def test_a_view_names_what_it_reads_besides():
    one = Placement("kl", 99, "KL against norms", "kl/all_tokens", reads=("weights",))
    assert "weights" not in superfluous(one)
    assert {"kl", "weights"} <= one.groups


def test_a_page_may_show_only_some_figures_of_a_section():
    page = Page("spectra", "Spectra", "Ranks.", ("update",), only=("spectra_by_layer",))
    assert list(all_figures(page)) == ["spectra_by_layer"]
    assert "pair_cosines" in all_figures(replace(page, only=()))
