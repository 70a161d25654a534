"""First contact with a GPU: what of the product a CPU cannot show, in some eight minutes.

    python benchmarks/gpu_check.py --out gpu-check

Needs no network. Each check is a process of its own, so that no failure hides another; one after
the other, so that none disturbs another's times. Writes `gpu_check.json`, `gpu_check.md` and a log
for each check to the directory of `--out`. Exits with 1 where a number is outside of its bound or a
check ended with an error. `--device cpu --small` tries the checks themselves without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from gpu_checks.results import GOOD, Row, append, read, table

CHECKS = {
    "machine": "machine_seen",
    "plan": "planning",
    "runs": "runs",
    "tiny_pair": "measuring",
    "pair": "measuring",
    "large": "large",
    "processes": "runs",
}
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="where results go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes of a test")
    parser.add_argument("--only", nargs="*", choices=CHECKS, help="some of the checks")
    parser.add_argument("--seconds", type=float, default=600, help="after which none goes on")
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_here(arguments)
        return
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    chosen = [one for one in CHECKS if one in (arguments.only or CHECKS)]
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        arguments.work = Path(work)
        for check in chosen:
            run_apart(check, arguments, arguments.seconds - (time.monotonic() - began))
    rows = [row for check in chosen for row in read(lines_of(arguments, check), check)]
    text = table(rows)
    (arguments.out / "gpu_check.md").write_text(text + "\n", encoding="utf-8")
    result = {"seconds": time.monotonic() - began, "rows": [asdict(row) for row in rows]}
    (arguments.out / "gpu_check.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    bad = [row for row in rows if row.status not in GOOD]
    print(
        f"{text}\n\n{len(rows)} rows, {len(bad)} not as they should be, {result['seconds']:.0f} s"
    )
    sys.exit(1 if bad else 0)


def lines_of(arguments: argparse.Namespace, check: str) -> Path:
    """Where a check's process writes its rows."""
    out: Path = arguments.out
    return out / f"{check}.jsonl"


def run_apart(check: str, arguments: argparse.Namespace, seconds: float) -> None:
    """Run a check in a process of its own; what ends it is a row."""
    lines, log = lines_of(arguments, check), arguments.out / f"{check}.log"
    lines.unlink(missing_ok=True)
    if seconds <= 0:
        append(lines, Row(check, "failed", note="no time was left"))
        return
    command = [sys.executable, __file__, "--one", check, "--device", arguments.device]
    command += ["--work", str(arguments.work), "--out", str(arguments.out)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as told:
        process = subprocess.Popen(
            command + (["--small"] if arguments.small else []),
            stdout=told,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            start_new_session=True,  # what it started ends with it
        )
        try:
            code = process.wait(seconds)
            why = f"exit status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, why = process.wait(), f"stopped after {seconds:.0f} s"
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        append(lines, Row(check, "failed", note=f"{why}: {said[-1] if said else ''}"))
    print(f"{check}: {time.monotonic() - began:.0f} s, {why}", flush=True)


def run_here(arguments: argparse.Namespace) -> None:
    """Run one check in this process; its rows are written one by one."""
    from gpu_checks.setup import Setup

    module = importlib.import_module(f"gpu_checks.{CHECKS[arguments.one]}")
    setup = Setup(arguments.device, arguments.small, arguments.work)
    for row in getattr(module, arguments.one)(setup):
        append(lines_of(arguments, arguments.one), row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
