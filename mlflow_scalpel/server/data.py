"""The tables of the runs that somebody chose, kept as long as they do not change."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
from mlflow.entities import Run

from mlflow_scalpel.comparison.run_queries import (
    ARGUMENTS,
    TABLE,
    NotReadable,
    Source,
    claims,
    comparisons_of,
    damage,
    description,
    evaluations_of,
    read_artifact,
    training_arguments,
    with_comparisons,
)
from mlflow_scalpel.comparison.table import read_table
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import warnings_of
from mlflow_scalpel.server.caching import Cache

MOST_RUNS = 24
"""Runs on one page; more make no figure that can be read."""
_LISTING_SECONDS = 2.0  # seconds for which a run's list of files is taken as known
_TABLE_BYTES = 512 << 20
_MOST_BYTES = 256 << 20  # of one file, packed as it is
_FOLDER = TABLE.rsplit("/", 1)[0]

Version = tuple[Hashable, ...]


@dataclass(frozen=True)
class Selection:
    """Runs that somebody chose and may read, with what was measured of them."""

    runs: tuple[Run, ...]
    version: Version
    """Changes where anything of it does."""
    table: pd.DataFrame
    """The tidy table of them all; empty where nothing was measured."""
    described: pd.DataFrame
    """As `describe_runs` makes it."""
    unmeasured: tuple[str, ...]
    """Names of the runs of which nothing was measured."""
    notes: tuple[str, ...]
    """Sentences about what could not be read of the runs, and whose comparisons are shown."""


class Tables:
    """Finds, joins and keeps the tables of runs, for all users and threads of one process.

    Whether a user may read a run is asked anew each time; only what is read is shared.
    """

    def __init__(self, limit: int = _TABLE_BYTES) -> None:
        self._stored: Cache[pd.DataFrame] = Cache(limit // 2, frame_bytes)
        self._joined: Cache[tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]] = Cache(
            limit // 2, lambda made: frame_bytes(made[0]) + frame_bytes(made[1])
        )
        self._files: dict[Hashable, tuple[float, tuple[Version, ...]]] = {}
        self._lock = threading.Lock()

    def select(self, source: Source, run_ids: Sequence[str]) -> Selection:
        """These runs, with everything that was measured of them.

        Raises ScalpelError for a text that is not a run ID and for too many runs, NotReadable for a
        run that the user may not read.
        """
        runs = self.readable(source, run_ids)
        versions = tuple(self._versions(source, run) for run in runs)
        comparisons = self._comparisons(source, runs)
        version = (versions, comparisons)
        table, described, notes = self._joined.get(
            version, lambda: self._join(source, runs, versions, comparisons)
        )
        known = set(table["run_id"])
        unmeasured = tuple(
            str(run.info.run_name)
            for run, files in zip(runs, versions, strict=True)
            if run.info.run_id not in known and not any(part[1] == TABLE for part in files)
        )
        return Selection(runs, version, table, described, unmeasured, notes)

    @staticmethod
    def readable(source: Source, run_ids: Sequence[str]) -> tuple[Run, ...]:
        """These runs; raises as `select` does."""
        ids = list(dict.fromkeys(run_ids))
        for run_id in ids:
            if not re.fullmatch(r"[0-9a-f]{32}", run_id):
                raise ScalpelError(
                    f"run {run_id[:80]!r}: is not a run ID, which has 32 hexadecimal digits; "
                    "choose runs on the start page"
                )
        if len(ids) > MOST_RUNS:
            raise ScalpelError(f"{len(ids)} runs: choose at most {MOST_RUNS} of them")
        if not ids:
            raise ScalpelError("no run is chosen; choose some on the start page")
        return tuple(source.run(run_id) for run_id in ids)

    def _versions(self, source: Source, run: Run) -> tuple[Version, ...]:
        """(run ID, path, what changes with the content) of each file that the run's table needs."""
        key = (source.user, run.info.run_id)
        if (known := self._known(key)) is not None:
            return known
        found: list[Version] = []
        for one in [run, *evaluations_of(source, run)]:
            run_id = one.info.run_id
            # A table is written anew as its run goes on; each time metrics are logged with it.
            logged = max((metric.timestamp for metric in one.data._metric_objs), default=0)
            changes = (one.info.status, one.info.end_time, logged)
            files = source.files(run_id, _FOLDER)
            if TABLE in files:
                found.append((run_id, TABLE, files[TABLE], *changes))
        top = source.files(run.info.run_id, "")
        if ARGUMENTS in top:
            found.append((run.info.run_id, ARGUMENTS, top[ARGUMENTS]))
        # What a run is called may change too, and is said in every figure.
        warned = tuple(warnings_of(run.data.tags))
        found.append((run.info.run_id, "", run.info.run_name, len(run.data.params), warned))
        return self._keep(key, found)

    def _comparisons(self, source: Source, runs: tuple[Run, ...]) -> tuple[Version, ...]:
        """As `_versions`, the tables of the runs that measured any of these."""
        ids = {run.info.run_id for run in runs}
        key = (source.user, "comparisons", *sorted(ids))
        found: list[Version] = []
        if (known := self._known(key)) is not None:
            return known
        for claim in claims(comparisons_of(source, runs), runs):
            one, counts_for = claim.run.info, tuple(sorted(claim.counts_for))
            files = source.files(one.run_id, _FOLDER) if counts_for else {}
            if TABLE in files:
                found.append(
                    (one.run_id, TABLE, files[TABLE], one.end_time, counts_for, claim.note)
                )
            elif not counts_for:
                found.append((one.run_id, "", claim.note))
        return self._keep(key, found)

    def _known(self, key: Hashable) -> tuple[Version, ...] | None:
        with self._lock:
            known = self._files.get(key)
        return (
            known[1]
            if known is not None and time.monotonic() - known[0] < _LISTING_SECONDS
            else None
        )

    def _keep(self, key: Hashable, found: list[Version]) -> tuple[Version, ...]:
        with self._lock:
            if len(self._files) > 10_000:
                self._files.clear()
            self._files[key] = time.monotonic(), tuple(found)
        return tuple(found)

    def _join(
        self,
        source: Source,
        runs: tuple[Run, ...],
        versions: tuple[tuple[Version, ...], ...],
        comparisons: tuple[Version, ...],
    ) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
        from mlflow_scalpel.views.common.table import clean_table

        wanted = [part for parts in versions for part in parts if part[1] == TABLE]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda part: self._table(source, part), wanted))
            parts = [part for part in comparisons if part[1] == TABLE]
            compared = list(pool.map(lambda part: self._table(source, part[:4]), parts))
        table = with_comparisons(
            [one for one in found if isinstance(one, pd.DataFrame)],
            [
                (one, part[4])  # type: ignore[misc]
                for one, part in zip(compared, parts, strict=True)
                if isinstance(one, pd.DataFrame)
            ],
            {run.info.run_id for run in runs},
        )
        damaged = [one for one in (*found, *compared) if isinstance(one, str)]
        damaged += [str(part[-1]) for part in comparisons if part[-1]]
        rows = {}
        for run, files in zip(runs, versions, strict=True):
            arguments = {}
            if any(part[1] == ARGUMENTS for part in files):
                try:
                    arguments = training_arguments(source, run.info.run_id)
                except ScalpelError as error:
                    damaged.append(str(error))
            rows[run.info.run_id] = description(run, arguments)
        clean = clean_table(table)
        for column in [name for name in table.columns if name not in clean.columns]:
            clean[column] = table[column].iloc[clean.index].set_axis(clean.index)
        return clean, pd.DataFrame.from_dict(rows, orient="index"), tuple(damaged)

    def _table(self, source: Source, version: Version) -> pd.DataFrame | str:
        """The table; what to say of it, where it cannot be read: the other ones are shown."""
        run_id, size = str(version[0]), version[2]
        if isinstance(size, int) and size > _MOST_BYTES:
            return damage(run_id, TABLE, ScalpelError(f"it has {size} bytes, too many to be read"))
        try:
            return self._stored.get(
                version, lambda: read_artifact(source, run_id, TABLE, read_table)
            )
        except NotReadable as error:
            return damage(run_id, TABLE, error)
        except ScalpelError as error:
            return str(error)


def frame_bytes(frame: pd.DataFrame) -> int:
    """About how many bytes a table takes."""
    # Not "deep": equal texts are one object, which that would count for each row.
    return int(frame.memory_usage().sum()) + 1
