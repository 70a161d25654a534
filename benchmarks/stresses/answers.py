"""Servers whose answers are lost, that fail, and that go away for a while."""

from __future__ import annotations

import threading
from random import Random

from stresses.world import Trial

_STEPS = (1, 2, 3)
_CHANGES = "^(POST (?!.*search)|PATCH|PUT|DELETE)"


def lost_answers(trial: Trial, random: Random) -> None:
    """The server does what it is asked for, and nobody hears of it; MLflow asks again by itself."""
    _through(trial, random, lambda proxy, skip: proxy.lose(_CHANGES, skip=skip))


def outage(trial: Trial, random: Random) -> None:
    """For a while every request is refused, or answered by a page of a proxy's."""

    def fail(proxy, skip):  # type: ignore[no-untyped-def]
        if random.random() < 0.5:
            proxy.answer(random.choice([404, 500, 502, 503]), times=random.randrange(1, 8))
        else:
            threading.Timer(random.uniform(0, 2), proxy.refuse).start()
            threading.Timer(4.0, proxy.clear).start()

    _through(trial, random, fail, rounds=1)


def _through(trial: Trial, random: Random, fault, rounds: int = 6) -> None:  # type: ignore[no-untyped-def]
    trial.store, trial.artifacts = "server", None
    proxy = trial.proxy()
    try:
        run_id = trial.begin(trial.world.server.uri)
        base = trial.save(_STEPS, random)
        trial.uri = proxy.uri
        for _ in range(rounds):
            fault(proxy, random.randrange(40 // rounds))
        command = ["log", str(trial.out), "--run-id", run_id, "--base", str(base)]
        # Seven, MLflow's default, take four minutes where all of them fail.
        retries = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": random.choice(["0", "1", "4"])}
        # A command that asks the server something first is told, and run again.
        for attempt in range(9):
            codes = (0,) if attempt == 8 else (0, 1, 2)
            child = trial.start(*command, "--register-as", trial.name, env=retries)
            trial.finish(child, codes=codes)
            if child.returncode == 0:
                break
    finally:
        proxy.close()
    trial.uri = trial.world.server.uri
    trial.count(run_id, _STEPS)


SCENARIOS = {"answers": lost_answers, "outage": outage}
