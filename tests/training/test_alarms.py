"""Each of GRPO's failures is named at its step, and a run that goes well raises none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.recipes.alarms import Alarms
from mlflow_scalpel.training.alarms import AlarmMonitor

# What the trainer logged at each of the 60 steps of the demo's GRPO run, and KL at its checkpoints.
HEALTHY = json.loads((Path(__file__).parent / "healthy_grpo.json").read_text())
GRPO = Path(__file__).parents[2] / "projects" / "grpo" / "recipes"


def raised(logs: list[dict[str, float]], **settings) -> dict[str, int]:
    """Name of each alarm and the step at which it is raised."""
    watch = AlarmMonitor(Alarms(**settings))
    return {
        alarm.name: alarm.step
        for step, entry in enumerate(logs, start=1)
        for alarm in watch.see(step, entry)
    }


def changed(key: str, values: dict[int, float]) -> list[dict[str, float]]:
    """The healthy run, with other values of a key from given steps on."""
    logs = [dict(entry) for entry in HEALTHY]
    for step, value in sorted(values.items()):
        for entry in logs[step - 1 :]:
            if key in entry:
                entry[key] = value
    return logs


def test_a_healthy_run_raises_none():
    assert len(HEALTHY) == 60
    assert raised(HEALTHY) == {}
    watch = AlarmMonitor(Alarms())
    for step, entry in enumerate(HEALTHY, start=1):
        watch.see(step, entry)
        assert all(0 <= level < 1 for level in watch.levels.values()), (step, watch.levels)
    assert watch.levels.keys() == {
        "alarms/no_reward_variance",
        "alarms/reward_collapse",
        "alarms/entropy_collapse",
        "alarms/length_explosion",
        "alarms/truncation",
        "alarms/not_finite",
        "alarms/exploding_gradient",
        "alarms/kl_runaway",
    }


def last(key: str) -> float:
    return [entry[key] for entry in HEALTHY if key in entry][-1]


@pytest.mark.parametrize(
    ("name", "key", "values", "steps"),
    [
        ("no_reward_variance", "frac_reward_zero_std", {31: 1.0}, range(35, 41)),
        ("reward_collapse", "reward", {41: 0.0}, range(42, 50)),
        ("entropy_collapse", "entropy", {31: 0.0}, range(35, 41)),
        ("length_explosion", "completions/mean_length", {31: 1000.0}, range(31, 41)),
        ("truncation", "completions/clipped_ratio", {31: 1.0}, range(33, 38)),
        ("not_finite", "loss", {31: math.nan}, [31]),
        ("not_finite", "grad_norm", {31: math.inf}, [31]),
        ("exploding_gradient", "grad_norm", {31: 1e4, 32: 0.1}, [31]),
        ("kl_runaway", "kl/all_tokens/base_style", {31: 3.0}, range(31, 34)),
    ],
)
def test_each_failure_is_named_at_its_step(name, key, values, steps):
    found = raised(changed(key, values))
    assert found.keys() == {name}
    assert found[name] in steps
    assert raised(changed(key, values), **{name: None} if name != "not_finite" else {}) == (
        {} if name != "not_finite" else found
    )


def test_what_is_said_names_the_values_and_the_way_out():
    watch = AlarmMonitor(Alarms(window=2))
    alarms = [
        alarm
        for step in (1, 2)
        for alarm in watch.see(step, {"completions/clipped_ratio": 0.75, "kl": 2.5})
    ]
    tags = {key: value for alarm in alarms for key, value in alarm.tag.items()}
    assert tags["scalpel.alarm.truncation"].startswith("step 2: 75% of the completions")
    assert "max_completion_length" in tags["scalpel.alarm.truncation"]
    assert tags["scalpel.alarm.kl_runaway"].startswith("step 1: KL from the base is 2.5 nats")
    assert watch.levels["alarms/truncation"] == 1.5


def test_samples_of_another_model_stop_every_run_unless_told_otherwise():
    logs = [{"sampling/sampling_logp_difference/mean": value} for value in (0.02, 0.03, 4.0)]
    assert raised(logs) == {"generator_mismatch": 3}
    assert Alarms().stop == ["generator_mismatch"]


def test_an_alarm_is_raised_once_and_its_level_goes_on():
    watch = AlarmMonitor(Alarms(window=1))
    assert [len(watch.see(step, {"frac_reward_zero_std": 1.0})) for step in (1, 2)] == [1, 0]
    assert watch.levels["alarms/no_reward_variance"] == pytest.approx(1 / 0.9)


def test_steps_without_gradient_do_not_make_the_next_one_an_explosion():
    logs = [{"grad_norm": value} for value in [0.0] * 5 + [0.1, 0.0, 0.2, 0.1, 0.15]]
    assert raised(logs, window=2) == {}


def test_a_run_that_never_earns_a_reward_has_not_collapsed():
    assert raised([{"reward": 0.0}] * 20, window=2) == {}


def test_logs_of_other_things_are_passed_over():
    assert raised([{"train_runtime": 3.0}, {}], window=1) == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("alarms.truncation=2", "alarms.truncation = 2: .*less than or equal to 1"),
        ("alarms.stop=[trunkation]", "alarms.stop.0 = 'trunkation': .*'truncation'"),
        ("alarms.length_explosion=1", "alarms.length_explosion = 1: .*greater than 1"),
    ],
)
def test_a_mistake_in_the_recipe_is_told(settings, said):
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        load_recipe("tiny", GRPO, stage="grpo", settings=settings)


def test_completions_none_of_which_ends_are_said_once():
    """By the alarm where the run is long enough, and at its end where it is shorter than that."""
    cut = [{"completions/clipped_ratio": 1.0}] * 12
    for length, alarmed in ((4, False), (12, True)):
        watch = AlarmMonitor(Alarms(window=10))
        alarms = [one for step in range(length) for one in watch.see(step, cut[step])]
        assert [alarm.name for alarm in alarms] == ["truncation"] * alarmed
        said = alarms[0].message if alarmed else watch.unfinished()
        assert said is not None
        assert f"no completion of {'the last 10' if alarmed else '4'} logged steps ended" in said
        assert (watch.unfinished() is None) == alarmed
    watch = AlarmMonitor(Alarms(window=10))
    watch.see(1, {"completions/clipped_ratio": 0.9})
    watch.see(2, cut[0])
    assert watch.unfinished() is None
