"""Two processes at once on one directory."""

from __future__ import annotations

from random import Random

from mlflow import MlflowClient

from stresses.world import Trial

_STEPS = (1, 2, 3)


def two_at_once(trial: Trial, random: Random) -> None:
    """`log` twice at the same moment, and `watch` beside it: one sends, the others say so."""
    trial.begin()
    base = trial.save(_STEPS, random)
    common = [str(trial.out), "--base", str(base), "--register-as", trial.name]
    watch = ["watch", *common, "--interval", "0.1", "--until-idle", "1"]
    children = [trial.start("log", *common), trial.start("log", *common), trial.start(*watch)]
    if random.random() < 0.5:
        trial.kill(children[0], random.uniform(0, 1))
    for child in children:
        if child.returncode is None:
            trial.finish(child, codes=(0, 2))
    trial.run("log", *common)
    client = MlflowClient()
    runs = client.search_runs([trial.experiment], "tags.`scalpel.directory` != ''")
    trial.found["doubled"] += len(runs) - 1
    trial.count(runs[0].info.run_id, _STEPS, ended=True)


SCENARIOS = {"two-at-once": two_at_once}
