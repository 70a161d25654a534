"""Verdicts of card and findings: no figure or sentence says the opposite of its data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from mlflow_scalpel import views
from mlflow_scalpel.comparison.capabilities import capability_table
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.metrics.capabilities.overall import (
    overall_gained_p,
    overall_lost_p,
    overall_mcnemar_p,
)
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.summary.points import Balance, balance, undecided
from tests.metrics.test_capabilities import benchmark

BASE = MeasuredModel(None, "m-base", "sha256:base", 0)  # type: ignore[arg-type]


def rows_of(model: str, right: np.ndarray, domain: str = "in", label: str = "add") -> list[dict]:
    """An evaluation's rows of right samples (P, k)."""
    return [
        {
            "model_id": model, "domain": domain, "label": label, "kind": "sampled",
            "problem_id": f"{label}{i}", "sample": j, "problem": f"{i}?", "gold": "1",
            "completion": "", "score": float(one),
        }
        for i, line in enumerate(right)
        for j, one in enumerate(line)
    ]  # fmt: skip


def evaluated(make, parts: dict[str, tuple[np.ndarray, np.ndarray]], step: int = 60):
    """The table of one run: scores of base and checkpoint, and the group `capabilities`."""
    samples, scores = [], []
    for domain, (before, after) in parts.items():
        label = {"in": "add", "out": "facts"}[domain]
        for model, at, right in (("m-base", 0, before), ("m-last", step, after)):
            samples += rows_of(model, right, domain, label)
            means = right.mean(axis=1)
            scores.append(
                make.row(run_id="aaaa1111", algorithm="grpo", step=at, model_id=model,
                         metric=f"eval/{domain}/{label}/sampled", value=means.mean(),
                         stderr=means.std(ddof=1) / len(means) ** 0.5, n=len(means))
            )  # fmt: skip
    last = MeasuredModel(None, "m-last", "sha256:last", step, "aaaa1111", "grpo")  # type: ignore[arg-type]
    table = capability_table(pd.DataFrame(samples), BASE, [last], dtype="float32")
    return pd.concat([make.frame(scores), table], ignore_index=True)


def balance_of(table: pd.DataFrame):
    data = Measurements.of(table)
    (run_id,) = data.styles
    return balance(data, run_id)


def test_a_great_loss_is_a_loss_although_what_was_gained_is_chance(make):
    rng = np.random.default_rng(0)
    base = rng.random((210, 3)) < 0.6
    after = rng.random((210, 3)) < 0.25
    found = balance_of(evaluated(make, {"out": (base, after)}))
    assert found.open == ""
    assert found.lost_p < 1e-6
    assert "lost of 210" in found.text()
    assert "more than by chance" in found.text()
    assert "more lost than gained, p = " in found.text()
    assert "not corrected for the 3 tests shown" in found.text()


def test_one_sample_judges_gained_against_lost_alone(make):
    base = np.array([[0]] * 39 + [[1]] * 9 + [[0]] * 60 + [[1]] * 102)
    after = np.array([[1]] * 39 + [[0]] * 9 + [[0]] * 60 + [[1]] * 102)
    found = balance_of(evaluated(make, {"in": (base, after)}))
    assert found.open == ""
    assert found.balance_p == pytest.approx(1.5e-5, rel=0.05)  # SciPy's binomtest(39, 48)
    assert "more gained than lost" in found.text()
    assert "what chance gives is not known" in found.text()
    even = balance_of(evaluated(make, {"in": (base[30:48], after[30:48])}))
    assert even.open == "gained and lost are not told apart from each other, and chance is unknown"


def test_an_unchanged_model_decides_nothing_in_card_and_findings(make):
    rng = np.random.default_rng(2)
    decided = []
    for _ in range(40):
        rates = rng.beta(1, 1, 30)[:, None]
        table = evaluated(make, {"in": (rng.random((30, 2)) < rates, rng.random((30, 2)) < rates)})
        (text,) = views.findings(table)
        card = views.card(table)
        (gain,) = [t for t in card.data if t.meta["panel"] == "In-domain gain" and t.customdata]
        is_open = gain.marker.symbol == "circle-open"
        assert is_open == ("which includes 0" in text)  # one verdict
        decided.append(not is_open)
    assert np.mean(decided) <= 0.15


def test_the_ledger_of_an_unchanged_model_decides_nothing_in_19_cases_of_20():
    rng = np.random.default_rng(5)
    decided, single = [], []
    for _ in range(600):
        base, after = rng.random((2, 60, 3)) < rng.beta(1, 1, (60, 1))
        one = benchmark(base, after)
        p = {
            "lost_p": overall_lost_p([one])[0].value,
            "gained_p": overall_gained_p([one])[0].value,
            "balance_p": overall_mcnemar_p([one])[0].value,
        }
        made = Balance(lost=1, gained=1, chance=1, n=60, **p)
        decided.append(undecided(made) == "")
        single.append(min(p.values()) <= 0.05)
    assert np.mean(single) > 0.08  # each test by itself: more than one in twenty
    assert np.mean(decided) <= binom.ppf(0.999, 600, 0.05) / 600


@pytest.mark.parametrize(
    ("p", "sure"),
    [
        # Holm (1979), by hand: p times 3, 2 and 1 in their order, up to the first above 0.05.
        ((0.01, 0.02, 0.04), {"lost_p", "gained_p", "balance_p"}),
        ((0.01, 0.03, 0.02), {"lost_p", "gained_p", "balance_p"}),
        ((0.01, 0.03, 0.03), {"lost_p"}),
        ((0.017, 0.001, 0.9), {"gained_p", "lost_p"}),
        ((0.02, 0.02, 0.02), set()),
        ((math.nan, math.nan, 0.04), {"balance_p"}),  # one test alone
    ],
)
def test_the_three_tests_of_the_ledger_are_corrected_for_each_other(p, sure):
    lost, gained, both = p
    made = Balance(60, 40, 20, lost_p=lost, gained_p=gained, balance_p=both, n=100)
    assert made.sure == sure
    assert (undecided(made) == "") == bool(sure)
    perhaps = sum(not math.isnan(one) and one <= 0.05 for one in p) - len(sure)
    assert made.text().count("perhaps more") == perhaps


def test_findings_card_and_the_figure_have_one_interval(make):
    rng = np.random.default_rng(3)
    base = rng.random((50, 4)) < 0.5
    table = evaluated(
        make,
        {"in": (base, base | (rng.random((50, 4)) < 0.5)), "out": (base, base)},
    )
    low, high = (
        float(table.loc[table["metric"] == f"capabilities/in_domain_gain_{end}", "value"].iloc[0])
        for end in ("low", "high")
    )
    (text,) = views.findings(table)
    assert f"95 % interval +{low:.3f} to +{high:.3f}; paired over 50 problems, k = 4 sampl" in text
    assert "50 problems, k = 4 samples a problem, paired, at step 60" in views.card_table(table)
    card = views.card(table)
    (gain,) = [t for t in card.data if t.meta["panel"] == "In-domain gain" and t.customdata]
    figure = views.in_versus_out(table)
    (line,) = [t for t in figure.data if len(t.x) == 2]
    for bars, value in ((gain.error_x, gain.x[-1]), (line.error_x, line.x[-1])):
        ends = value - bars.arrayminus[-1], value + bars.array[-1]
        assert ends == pytest.approx((low, high))
    assert "\u22120.000" not in text  # nothing changed out-of-domain


def test_what_is_shown_before_and_after_has_the_difference_that_is_shown(make):
    rng = np.random.default_rng(6)
    # Easy problems with two samples each and hard ones with six, of which the hard are learned.
    base = [rng.random(k) < p for k, p in [(2, 0.9), (6, 0.3)] * 30]
    after = [rng.random(k) < p for k, p in [(2, 0.9), (6, 0.9)] * 30]
    samples = [*rows_of("m-base", base), *rows_of("m-last", after)]
    last = MeasuredModel(None, "m-last", "sha256:last", 60, "aaaa1111", "grpo")  # type: ignore[arg-type]
    table = capability_table(pd.DataFrame(samples), BASE, [last], dtype="float32")
    own: dict[str, Any] = {"run_id": "aaaa1111", "metric": "eval/in/add/sampled", "n": 60}
    scores = [
        make.row(**own, step=step, value=np.concatenate(right).mean(), stderr=0.05)
        for step, right in ((0, base), (60, after))
    ]
    (text,) = views.findings(pd.concat([make.frame(scores), table], ignore_index=True))
    change = np.mean([b.mean() - a.mean() for a, b in zip(base, after, strict=True)])
    assert f"accuracy (add) ({change:+.3f}, 95 % interval" in text
    assert "\u2192" not in text  # 0.448 -> 0.894 is +0.446, of samples and not of problems


def test_three_of_three_is_not_sure(make):
    right = np.ones((3, 2), dtype=bool)
    table = evaluated(make, {"in": (right, right)})
    for view in (views.scores_before_after, views.scores_over_training):
        figure = view(table)
        for trace in figure.data:
            if trace.meta["series"] != "base":
                assert trace.error_y.arrayminus[-1] == pytest.approx(1 - 0.025 ** (1 / 3))
        assert "\u00b1 0" not in figure.to_json()
    (text,) = views.findings(table)
    assert "1.000 \u2192 1.000 (0.000, 95 % interval" in text
    assert "which includes 0" in text


def test_the_last_checkpoint_is_the_last_evaluated_one(make, whole, runs):
    # At the last step nothing was gained; two steps before, something was.
    gone = whole["metric"].isin(["capabilities/amplified", "capabilities/new"])
    gone &= (whole["step"] == 300) & (whole["run_id"] == "bbbb2222")
    whole.loc[gone, "value"] = None
    whole.loc[gone, ["status", "reason"]] = ["not applicable", "no problem was gained"]
    figure = views.amplified(whole, runs)
    bars = [t for t in figure.data if t.type == "bar"]
    assert not any("sft" in t.y for t in bars)
    words = [text for t in figure.data if t.type == "scatter" for text in t.text]
    assert words.count("no problem was gained, step 300") == 3
    assert not views.numbers(figure).query("y == 'sft'").size


def test_the_label_of_amplified_names_the_samples_of_what_is_drawn(make):
    rng = np.random.default_rng(7)
    base, after = rng.random((2, 40, 3)) < 0.5
    # A benchmark with one sample has no share; its k stands in no label.
    table = evaluated(make, {"in": (base, after), "out": (base[:, :1], after[:, :1])})
    text = views.amplified(table).to_json()
    assert "at least once in k = 3" in text
    assert "k = 1 or 3" not in text


@pytest.mark.parametrize("missing", ["failed", "absent"])
def test_no_sentence_takes_an_older_step_for_the_last(missing, whole, runs):
    late = (whole["step"] == 300) & (whole["run_id"] == "aaaa1111")
    late &= ~whole["metric"].str.startswith("cost/")
    if missing == "failed":
        whole.loc[late, "value"] = None
        whole.loc[late, ["status", "reason"]] = ["failed", "could not load"]
    else:
        whole = whole[~late]
    (text,) = [one for one in views.findings(whole, runs) if one.startswith("grpo:")]
    card = views.card_table(whole, runs)
    if missing == "failed":
        assert "KL from the base has no value at step 300: could not load" in text
        assert "the mean relative norm has no value at step 300: could not load" in text
        assert text.count("could not load") >= 4
        assert "no value at step 300: could not load" in card
        assert "at step 200" not in text
    else:
        assert text.count("at step 200, and the run's last is 300") == 4  # 2 changes, KL, norm
        assert "at step 200, and the run&#39;s last is 300" in card or (
            "at step 200, and the run's last is 300" in card
        )


def test_a_change_says_at_which_step_it_is(make, runs):
    rng = np.random.default_rng(4)
    table = evaluated(make, {"in": (rng.random((40, 2)) < 0.3, rng.random((40, 2)) < 0.8)}, 24)
    runs["steps"] = "60"
    (text,) = views.findings(table, runs)
    assert "not corrected) at step 24, and the run's last is 60" in text
    runs.loc["aaaa1111", "steps"] = "24"
    (text,) = views.findings(table, runs)
    assert "not corrected) at step 24;" in text


def test_a_published_model_has_no_step_in_any_sentence(make, table, runs):
    runs["imported_from"] = [None, "somebody/model", None]
    runs.loc["bbbb2222", "steps"] = None
    table = table[(table["run_id"] != "bbbb2222") | table["step"].isin([0, 100])]
    table.loc[(table["run_id"] == "bbbb2222") & (table["step"] > 0), "step"] = 1
    (text,) = [one for one in views.findings(table, runs) if one.startswith("sft:")]
    assert "at step" not in text
    assert text.count("at its end (step not recorded)") == 4  # two changes, KL and norm


def kl_rows(make, value: float, floor: float | None, dtype: str = "bfloat16") -> pd.DataFrame:
    own: dict[str, Any] = {"run_id": "aaaa1111", "algorithm": "grpo", "step": 60, "dtype": dtype}
    own |= {"texts": "math sha256:01", "unit": "nats/token", "n": 64, "model_id": "m"}
    rows = [make.row(**own, metric="kl/answer_tokens", value=value, stderr=value / 20)]
    rows.append(make.row(**own, metric="kl/gini/answer_tokens", value=0.7, stderr=0.01))
    if floor is not None:
        rows.append(make.row(**own, metric="kl/floor/answer_tokens", value=floor, stderr=2e-5))
    return make.frame(rows)


@pytest.mark.parametrize(
    ("value", "floor", "dtype", "said", "decided"),
    [
        (1.4e-6, 2e-4, "bfloat16", "bfloat16, noise floor 0.0002 \u00b1 3.9e-05", False),
        (2.2e-4, 2e-4, "bfloat16", "not above the noise floor of bfloat16", False),
        (5e-2, 2e-4, "float16", "float16, noise floor 0.0002", True),
        (5e-2, None, "bfloat16", "bfloat16, floor not measured", False),
        (5e-2, None, "", "dtype not recorded", False),
        (1.4e-6, None, "float32", "(math)", True),
    ],
)
def test_kl_is_quoted_with_dtype_and_floor(value, floor, dtype, said, decided, make):
    table = kl_rows(make, value, floor, dtype)
    (text,) = views.findings(table)
    assert said in text
    assert ("decides nothing" in text) != decided
    card = views.card(table)
    (point,) = [t for t in card.data if t.meta["panel"] == "KL from the base" and t.customdata]
    assert point.marker.symbol == ("circle" if decided else "circle-open")
    words = views.card_table(table)
    if dtype and dtype != "float32":
        assert dtype in words.replace("<bdi>", "")
    # How concentrated a KL of rounding is, says nothing either.
    (gini,) = [t for t in card.data if t.meta["panel"] == "Concentration of KL" and t.customdata]
    assert gini.marker.symbol == point.marker.symbol


def test_a_kl_whose_interval_includes_0_says_so_in_findings_and_card(make):
    table = kl_rows(make, 2e-9, None, "float32")
    table.loc[table["metric"] == "kl/answer_tokens", "stderr"] = 2e-9
    (text,) = views.findings(table)
    assert "(math, which decides nothing: the interval includes 0)" in text
    assert "decides nothing: the interval includes 0" in views.card_table(table)


def test_ratios_of_norms_say_steps_and_rates(table, runs):
    runs["learning_rate"] = ["1e-06", None, "1e-06"]
    short = table[~((table["run_id"] == "cccc3333") & (table["step"] > 200))]
    text = " ".join(views.findings(short, runs))
    assert "sft (300 steps, learning rate not recorded) has" in text
    assert "runs of unknown learning rate, which the plain ratio measures as well" in text
    assert "(200 steps, learning rate 1e-06)" in text
    assert "unequal length" in text
