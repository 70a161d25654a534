"""Comparisons of runs on their pages: whose they are, and for which runs they count."""

from __future__ import annotations

import json
import time

import pandas as pd

from mlflow_scalpel.comparison.run_queries import (
    TABLE,
)
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.server import data
from tests.server.conftest import (
    lines,
    log_compared,
    log_parquet,
    log_run,
    tokens_of,
)


def test_what_a_comparison_says_of_two_chosen_runs_stands_on_their_page(get, logged):
    client, experiment_id, first = logged
    second, other = (log_run(client, experiment_id, arm) for arm in ("bbbb2222", "cccc3333"))
    models = {first: "m-1", second: "m-2", other: "m-3"}
    rows = [
        {
            "run_id": run,
            "model_id": model,
            "step": 300,
            "metric": "weights/update_rms",
            "layer": 0,
            "matrix": "q_proj",
            "value": 1.0,
        }
        for run, model in models.items()
    ]
    rows += [{"run_id": first, "model_id": "m-1", "step": 300, "metric": "pairs/update_cosine",
              "layer": 0, "matrix": "q_proj", "value": value, "other": models[run]}
             for run, value in ((second, 0.25), (other, 0.75))]  # fmt: skip
    tags = {"scalpel.stage": "compare"}
    comparison = client.create_run(experiment_id, tags=tags, run_name="compare").info.run_id
    for number, run_id in enumerate(models):
        client.log_param(comparison, f"run_{number}", run_id)
    log_parquet(client, comparison, tidy(rows), TABLE)
    client.set_terminated(comparison)

    def cosines(*runs):
        address = f"data/figures?page=weights&figures=pair_cosines&runs={','.join(runs)}"
        (_, line) = lines(get(address))
        return (
            [trace["meta"]["panel"] for trace in line["figure"]["data"]] if "figure" in line else []
        )

    assert cosines(first) == cosines(second, other) == []
    assert len(cosines(first, second)) == 1
    assert len(cosines(first, second, other)) == 2


def test_what_was_measured_of_a_run_later_stands_on_its_pages(get, logged):
    run_id = logged[2]
    address = f"data/figures?page=weights&figures=change_histogram&runs={run_id}"
    assert "empty" in lines(get(address))[1]
    rows = [
        {
            "run_id": run,
            "model_id": f"m-of-{run}",
            "step": 300,
            "metric": "histograms/ulp_change",
            "layer": 0,
            "matrix": "q_proj",
            "bin": edge,
            "value": 0.5,
        }
        for run in (run_id, "f" * 32)
        for edge in (0, 1)
    ]
    log_compared(logged, rows)
    time.sleep(data._LISTING_SECONDS)
    (about, line) = lines(get(address))
    assert not about["about"]["notes"]
    assert len({trace["meta"]["panel"] for trace in line["figure"]["data"]}) == 1


def test_what_was_measured_against_another_base_stays_out(get, logged):
    client, experiment_id, _ = logged
    run_id = log_run(client, experiment_id, "bbbb2222", table=False)
    row = {"run_id": run_id, "model_id": "m", "step": 300, "metric": "spectra/stable_rank",
           "layer": 0, "matrix": "q_proj", "value": 1.0}  # fmt: skip
    own = {**row, "metric": "weights/update_rms", "base": "one", "base_digest": "1"}
    log_parquet(client, run_id, tidy([own]), TABLE)
    address = f"data/figures?page=weights&figures=spectra_over_training&runs={run_id}"
    other = {**row, "base": "two", "base_digest": "2"}
    log_compared((client, experiment_id, run_id), [other])
    assert "figure" not in lines(get(address))[1]
    log_compared((client, experiment_id, run_id), [{**row, "base": "one", "base_digest": "1"}])
    time.sleep(data._LISTING_SECONDS)
    assert "figure" in lines(get(address))[1]


def test_tokens_of_later_texts_stand_beside_the_runs_own(get, logged):
    client, _, run_id = logged
    made = client.get_run(run_id).outputs.model_outputs
    model = next(one.model_id for one in made if one.step == 300)
    later = tokens_of(300).assign(texts="later sha256:1 template:4", model_id=model)
    later.loc[later["problem"] == 1, "model_id"] = "a model of another run"
    log_compared(logged, [{"run_id": run_id, "metric": "kl/js"}], step_000300=later)
    answer = get(f"data/more?kind=tokens&runs={run_id}&texts=later sha256:1 template:4").json
    fields = {field["name"]: field for field in answer["fields"]}
    assert [label for _, label in fields["texts"]["choices"]] == ["base_style", "later"]
    assert fields["texts"]["value"].startswith("later")
    assert [label for _, label in fields["problem"]["choices"][1:]] == ["problem 0"]


def claiming(client, experiment_id: str, table: pd.DataFrame, *run_ids: str, user: str) -> str:
    """A finished run that says that it measured these runs."""
    tags = {"scalpel.stage": "compare", "mlflow.user": user}
    run_id = client.create_run(experiment_id, run_name="claims", tags=tags).info.run_id
    for number, one in enumerate(run_ids):
        client.log_param(run_id, f"run_{number}", one)
    log_parquet(client, run_id, table, TABLE)
    client.set_terminated(run_id)
    return run_id


def test_a_bad_comparison_is_one_line_on_the_pages_of_the_runs_it_names(get, logged):
    client, experiment_id, good = logged
    bad = pd.DataFrame({"run_id": [good], "step": [0.5], "metric": ["kl/all_tokens"], "value": [1]})
    claims = claiming(client, experiment_id, bad, good, user="mallory")
    response = get(f"data/figures?page=weights&runs={good}")
    assert response.status_code == 200
    about, *rest = lines(response)
    notes = [one for one in about["about"]["notes"] if claims in one]
    assert len(notes) == 2
    assert notes[0].startswith(f"run {claims}: {TABLE} cannot be read (its column step holds")
    assert "by mallory) measured" in notes[1]
    assert "figure" in next(line for line in rest if line["stem"] == "weight_heatmaps")


def test_a_comparison_counts_for_runs_whose_author_its_own_may_be(get, logged):
    client, _, good = logged
    elsewhere = client.create_experiment(f"of mallory {good}")
    other = log_run(client, elsewhere, "bbbb2222", name="of mallory")
    rows = [{"run_id": good, "step": 77, "metric": "kl/all_tokens", "value": 9.0, "texts": "t",
             "model_id": "m", "algorithm": "grpo"}]  # fmt: skip
    claims = claiming(client, elsewhere, tidy(rows), good, user="mallory")
    address = f"data/figures?page=divergence&runs={good},{other}"

    def shown() -> tuple[bool, list[str]]:
        time.sleep(2.1)  # for which lists of files are taken as known
        about, *rest = lines(get(address))
        notes = [one for one in about["about"]["notes"] if claims in one]
        return any("77" in json.dumps(one.get("figure", {}).get("data")) for one in rest), notes

    seen, notes = shown()
    assert not seen
    assert len(notes) == 1
    assert "by mallory) says that it measured" in notes[0]
    assert "is left out there" in notes[0]
    client.set_tag(good, f"scalpel.comparison.{claims}", "measured this run")
    seen, notes = shown()
    assert seen
    assert notes == []
