"""Disks that are full: the store's, and the one that the trainer writes to."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

from stresses.world import NotRun, Trial

_STEPS = (1, 2, 3)


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own of that size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        raise NotRun("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_store(trial: Trial, random: Random) -> None:
    """The store's disk is full for a while: what waits is sent when there is room."""
    trial.store = "sqlite"
    _sqlite(trial)
    with small_disk(trial.home / "disk", 2400) as disk:
        trial.artifacts = f"file://{disk}/artifacts"
        filler = disk / "filler"
        filler.write_bytes(bytes(random.randrange(1_000_000, 2_200_000)))
        run_id = trial.begin()
        base = trial.save(_STEPS, random)
        log = ["log", str(trial.out), "--run-id", run_id, "--base", str(base)]
        log += ["--register-as", trial.name, "--link", "copy"]
        trial.run(*log, codes=(2, 0), env={"SCALPEL_PATIENCE": "2"})
        filler.unlink()
        trial.run(*log)
        trial.count(run_id, _STEPS)


def full_spool(trial: Trial, random: Random) -> None:
    """No copy fits beside the checkpoints, and nothing can be linked: they are read in place."""
    with small_disk(trial.home / "spool", random.choice([64, 400, 700])) as disk:
        run_id = trial.begin()
        base = trial.save(_STEPS, random)
        log = ["log", str(trial.out), "--run-id", run_id, "--base", str(base)]
        trial.run(*log, "--register-as", trial.name, env={"SCALPEL_SPOOL": str(disk / "waiting")})
        trial.count(run_id, _STEPS)


def _sqlite(trial: Trial) -> None:
    import shutil

    shutil.copy(trial.world.folder / "empty.db", trial.home / "mlflow.db")
    trial.uri = f"sqlite:///{trial.home}/mlflow.db"


SCENARIOS = {"full-store": full_store, "full-spool": full_spool}
