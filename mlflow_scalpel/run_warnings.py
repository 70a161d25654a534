"""Warnings about the results of a run, shown wherever somebody looks.

A warning is printed once, kept as a tag of the run (`scalpel.warning.<code>`), and shown by the
report and the pages of every run that has it. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlflow_scalpel.credentials import without_credentials

WARNING_PREFIX = "scalpel.warning."
ALARM_PREFIX = "scalpel.alarm."
FAILURE_TAG = "scalpel.failure"  # why a run or a model is FAILED
TAG_LIMIT = 5000  # characters; MLflow's stores refuse tags above 8000

_printed: set[tuple[str, str, str]] = set()


def warning_tag(code: str, message: str) -> dict[str, str]:
    """The tag that keeps a warning on its run."""
    return {_key(code): without_credentials(message)[:TAG_LIMIT]}


def failure_text(reason: str) -> str:
    """A reason as the tag of a FAILED run or model says it."""
    return without_credentials(reason)[:TAG_LIMIT]


def print_warning(code: str, message: str, run_id: str = "") -> None:
    """Print a warning, once in this process for each run."""
    if (run_id, code, message) not in _printed:
        _printed.add((run_id, code, message))
        print(f"WARNING: {without_credentials(message)}", flush=True)


def warn(code: str, message: str, *run_ids: str) -> None:
    """Print a warning and set it as a tag of the runs that it is about.

    The first ID is empty in processes other than the main one, which alone speaks to MLflow: there
    nothing is done. `code` is a few words in snake_case that say what kind of warning it is; a
    later warning of the same code replaces the tag.
    """
    if not run_ids[0]:
        return
    from mlflow import MlflowClient

    print_warning(code, message, run_ids[0])
    for run_id in run_ids:
        for key, value in warning_tag(code, message).items():
            MlflowClient().set_tag(run_id, key, value)


def withdraw(code: str, *run_ids: str) -> None:
    """Remove the warning of a code from the runs that have it: it is not true any more."""
    from mlflow import MlflowClient

    client, key = MlflowClient(), _key(code)
    for run_id in run_ids:
        if key in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, key)


def warnings_of(tags: Mapping[str, str]) -> list[str]:
    """The warnings and alarms among the tags of a run, in words; warnings first."""
    found = [tags[key] for key in sorted(tags) if key.startswith(WARNING_PREFIX)]
    alarms = [
        f"{key.removeprefix(ALARM_PREFIX).replace('_', ' ')} at {tags[key]}"
        for key in sorted(tags)
        if key.startswith(ALARM_PREFIX)
    ]
    return found + alarms


def _key(code: str) -> str:
    # A code may hold the name that a user gave to a probe; MLflow refuses other characters.
    return WARNING_PREFIX + re.sub(r"[^\w\-. :/]", "_", code)
