"""The registry: names, groups, and what users ask for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics import GROUPS, all_metrics, choose_metrics, metric


def test_every_metric_says_what_it_is():
    known = all_metrics()
    assert len({one.name for one in known}) == len(known)
    for one in known:
        assert one.group in GROUPS
        assert one.unit
        assert one.title
        assert one.axis
        assert one.function.__doc__, one.name


LIGHT = """
import sys
for name in ("torch", "scipy", "mlflow", "transformers", "pandas"):
    sys.modules[name] = None  # importing it fails
from mlflow_scalpel.metrics import all_metrics
print(*(one.name for one in all_metrics()))
"""


def test_metrics_are_named_without_what_measuring_them_takes():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [one.name for one in all_metrics()]


def test_no_two_metrics_describe_themselves_alike():
    known = all_metrics()
    for said in ("description", "summary", "title"):
        texts = [getattr(one, said) for one in known]
        twice = {one.name for one in known if texts.count(getattr(one, said)) > 1}
        assert not twice, twice


@pytest.mark.parametrize("group", ["kl", "kl_on_base_samples", "kl_paper_compat", "attention"])
def test_what_is_measured_on_texts_says_on_which_positions_and_how(group):
    for one in choose_metrics([group]):
        for word in ("Positions: ", "Template: ", "System prompt: ", "Dtype: ", "logits", "rows"):
            if word in ("logits", "rows") and (word == "rows") != (group == "attention"):
                continue
            assert word in one.description, (one.name, word)
        answers = "assistant's content" in one.description or "base sampled" in one.description
        assert answers == one.name.endswith("answer_tokens"), one.name
        assert ("whatever --dtype says" in one.description) == (group == "kl_paper_compat")


def test_metrics_are_chosen_by_name_and_by_group():
    weights = choose_metrics(["weights"])
    assert {one.group for one in weights} == {"weights"}
    assert choose_metrics(["weights", "weights/update_rms"]) == weights
    (one,) = choose_metrics(["kl/all_tokens"])
    assert one.name == "kl/all_tokens"
    with pytest.raises(ScalpelError, match="did you mean weights/update_rms"):
        choose_metrics(["weights/update_rsm"])


def test_a_second_metric_of_a_name_or_of_no_group_is_refused():
    with pytest.raises(ValueError, match="registered twice"):
        metric(all_metrics()[0].name, title="x", unit="x")(lambda: 0.0)
    with pytest.raises(ValueError, match="its group is none of"):
        metric("feelings/joy", title="x", unit="x")(lambda: 0.0)
