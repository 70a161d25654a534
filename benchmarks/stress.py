"""Kills, lost answers, full disks: what is lost, doubled or damaged, counted; all must be 0.

    python benchmarks/stress.py --seconds 480            # or: make stress
    python benchmarks/stress.py --only kills --seed 3    # the same trials again

Each scenario is a function in a module of `benchmarks/stresses/` that plays one trial and yields
what went wrong in it; `SCENARIOS` lists the modules. A trial draws all that is random in it from
one number, which is printed where something is wrong: `--only NAME --seed N --trials 1` plays it
again (as far as a machine's speed lets it). Exits with 1 unless every count is 0.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from stresses.world import FAULTS, NotRun, World  # noqa: E402 - found by the line above

# Modules of `stresses/`, each with SCENARIOS: a dictionary of name -> function(world, random).
MODULES = ["kills", "answers", "disks", "processes", "clock", "stages"]


def main() -> int:
    scenarios = {
        name: scenario
        for module in MODULES
        for name, scenario in importlib.import_module(f"stresses.{module}").SCENARIOS.items()
    }
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=480, help="after which no trial begins")
    parser.add_argument("--seed", type=int, default=0, help="the first trial's; each adds one")
    parser.add_argument("--trials", type=int, help="of each scenario; as many as fit unless given")
    parser.add_argument("--only", nargs="*", choices=scenarios, default=list(scenarios))
    arguments = parser.parse_args()
    counts = {name: Counter[str]() for name in arguments.only}
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(prefix="stress-") as folder, World(Path(folder)) as world:
        number = 0
        while arguments.trials is None or number < arguments.trials:
            for name in arguments.only:
                if time.monotonic() > end:
                    break
                play(world, name, scenarios[name], arguments.seed + number, counts[name])
            number += 1
            if time.monotonic() > end:
                break
    print(table(counts))
    wrong = sum(count[fault] for count in counts.values() for fault in FAULTS)
    unplayed = [name for name, count in counts.items() if not count["trials"]]
    if unplayed:
        print(f"not played: {', '.join(unplayed)}")
    return 1 if wrong else 0


def play(world: World, name: str, scenario: object, seed: int, counts: Counter[str]) -> None:
    """One trial, counted."""
    began = time.monotonic()
    trial = world.trial(name, seed)
    try:
        scenario(trial, random.Random(f"{name} {seed}"))  # type: ignore[operator]
    except NotRun as error:
        print(f"{name}: not run: {error}", flush=True)
        return
    except Exception:  # noqa: BLE001 - a trial that ends otherwise than planned is one more count
        traceback.print_exc()
        trial.found["errors"] += 1
    counts.update(trial.found)
    counts.update(trials=1, kills=trial.kills)
    wrong = {fault: trial.found[fault] for fault in FAULTS if trial.found[fault]}
    print(
        f"{name} {trial.store} seed {seed}: {trial.kills} kills, {time.monotonic() - began:.0f} s"
        f"{f', WRONG: {wrong}, see {trial.keep()}' if wrong else ''}",
        flush=True,
    )
    trial.forget()


def table(counts: dict[str, Counter[str]]) -> str:
    columns = ["trials", "kills", *FAULTS]
    lines = ["scenario".ljust(16) + "".join(column.rjust(10) for column in columns)]
    total: Counter[str] = sum(counts.values(), Counter())
    for name, count in [*counts.items(), ("all", total)]:
        lines.append(name.ljust(16) + "".join(str(count[one]).rjust(10) for one in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
