"""The report store: where runs land as JSON documents and Parquet tables, and all that is durable of them.

    runs/<run>/plan.json                frozen first: pinned members, pairs, settings
    runs/<run>/units/<digest>-<n>.jsonl n finished units; they serve until the run is finished
    runs/<run>/run-<digest>.json        the run document: comparison, coverage, failures, analyses, settings
    runs/<run>/_SUCCESS.json            last: every part with its size and digest; readers trust only what it names
    measurements/<key>.parquet          merged partials of a member, a pair or a group; later runs take them from here
    tables/<table>/date=YYYY-MM-DD/<run>-<digest>.parquet

A name digests what is under it, so that no path ever has two contents, whoever writes it and however often: nothing
here rests on conditional writes. Only a plan and a marker have fixed names: the plan of a run decides its id, and
markers of one run name results that are equally valid.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from diffai_dist import storage
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.errors import DamagedStore, StoreError
from diffai_dist.records import Measurements, Sweep
from diffai_dist.rows import Rows
from diffai_dist.run import Settings
from diffai_dist.store import clean, details, measurements, query, status
from diffai_dist.store.document import run_document
from diffai_dist.store.finishing import marker_document, save_parts
from diffai_dist.store.parts import AGAIN, Folder, dump, parse, parse_marker
from diffai_dist.store.reading import load_document, load_sweep
from diffai_dist.store.status import RunDetail, RunState
from diffai_dist.store.tables import TABLES, all_tensors, tensor_table
from diffai_dist.store.units import Publisher, read_units

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

__all__ = ["TABLES", "Publisher", "ReportStore", "RunDetail", "RunState", "all_tensors", "run_document", "tensor_table"]


@dataclass(frozen=True, slots=True)
class ReportStore(Folder):
    """Runs below a URL; local or in a bucket."""

    def begin(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Freeze the plan of a run; the one that was there first is returned, and counts, unless it is damaged."""
        path = f"runs/{plan['run']}/plan.json"
        if self.fetch(path) is None:
            self.put_first(path, dump(plan))
        try:
            frozen = self.plan(plan["run"])
        except DamagedStore as error:
            log.warning("%s; it is written again", error)
            self.put(path, dump(plan))
            frozen = self.plan(plan["run"])
        asked = json.loads(json.dumps(plan))
        # What the id digests. The rest, such as when it started, may differ between attempts.
        for key in ("run", "comparison", "settings"):
            if frozen.get(key) != asked[key]:
                raise StoreError(f"{self.name(path)} has other {key} than this run, though their ids agree. {AGAIN}")
        return frozen

    def plan(self, run: str) -> dict[str, Any]:
        """The frozen plan of a run."""
        path = f"runs/{run}/plan.json"
        data = self.fetch(path)
        if data is None:
            raise StoreError(f"{self.name(path)} is missing. {AGAIN}")
        return parse(data, self.name(path))

    def marker(self, run: str) -> dict[str, Any] | None:
        """What a finished run consists of; None for a run that is not there or not finished."""
        path = f"runs/{run}/_SUCCESS.json"
        data = self.fetch(path)
        return None if data is None else parse_marker(data, self.name(path))

    def finished(self, run: str) -> Sweep | None:
        """The run if it is finished and could read all. One that is damaged is open again: its marker is removed."""
        try:
            marker = self.marker(run)
            return self.load(run) if marker and marker["complete"] else None
        except DamagedStore as error:
            log.warning("%s; the run is finished anew", error)
            self.remove(f"runs/{run}/_SUCCESS.json")
            return None

    def units(self, run: str) -> dict[str, Rows]:
        """What finished units measured, by their key: every record that verifies."""
        return read_units(self, run)

    def publisher(self, run: str) -> Publisher:
        """Takes the units of a run as they finish; a context manager."""
        return Publisher(self, run)

    def member_key(self, member: Checkpoint, settings: Settings) -> str:
        """The name of a member's measurements."""
        return measurements.measurement_key("member", [member], settings)

    def pair_key(self, baseline: Checkpoint, candidate: Checkpoint, settings: Settings) -> str:
        """The name of a pair's measurements."""
        return measurements.measurement_key("pair", [baseline, candidate], settings)

    def load_rows(self, key: str) -> measurements.Rows | None:
        """Measurements of that name, by tensor name; None where there are none that verify."""
        return measurements.load_rows(self, key)

    def details_key(self, role: str, members: Sequence[Checkpoint], settings: Settings, asked: Sequence[str]) -> str:
        """The name of what some analyses need of a `member` or `pair`, out of partials.DETAILS."""
        return measurements.measurement_key(details.role_of(role, asked), members, settings)

    def load_details(self, key: str, role: str) -> Mapping[str, details.Tables] | None:
        """Tables of that name, by tensor name; None where there are none that verify."""
        return measurements.load_details(self, key, role)

    def finish(
        self,
        plan: Mapping[str, Any],
        sweep: Sweep,
        measured: Measurements | None,
        settings: Settings,
        environment: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Keep a run: its parts, then the marker, which is returned. The environment goes into the marker alone, so
        that equal runs have equal parts. A marker that is there stays, unless this run could read more."""
        there = self._no_worse(plan["run"], sweep)
        if there is not None:
            return there
        parts = save_parts(self, plan, sweep, measured, settings)
        marker = marker_document(plan, sweep, parts, environment)
        there = self._no_worse(plan["run"], sweep)  # another process may have finished the run meanwhile
        if there is not None:
            return there
        self.put(f"runs/{plan['run']}/_SUCCESS.json", dump(marker))
        return marker

    def load(self, run: str) -> Sweep:
        """A finished run as it was, every part verified; the results of pairs are read when they are asked for."""
        return load_sweep(self, run, self._marker(run))

    def document(self, run: str) -> dict[str, Any]:
        """The run document of a finished run."""
        return load_document(self, run, self._marker(run))

    def resolve(self, run: str) -> str:
        """The id of a run given by id, by the beginning of one, or as `latest`. UsageError if that is no single run."""
        return status.resolve(self, run)

    def runs(self) -> list[RunState]:
        """All runs, the latest first."""
        return status.runs(self)

    def detail(self, run: str) -> RunDetail:
        """One run, named as for `resolve`, with what it compares and what went wrong."""
        return status.detail(self, self.resolve(run))

    def latest_before(self, plan: Mapping[str, Any]) -> str | None:
        """The finished run before this one: of the same name, or of a member that this one has, too."""
        return status.latest_before(self, plan)

    def clean(self, older_than: timedelta = clean.GUARD, *, dry_run: bool = False) -> list[tuple[str, int]]:
        """Remove what nothing needs and what is older than that; returns paths with sizes."""
        return clean.clean(self, older_than, dry_run)

    def query(self, sql: str) -> pyarrow.Table:
        """The answer to SQL over the tables of all finished runs."""
        return query.query(self, sql)

    def _marker(self, run: str) -> dict[str, Any]:
        """The marker of a run that is finished."""
        marker = self.marker(run)
        if marker is None:
            raise StoreError(f"run {run} is not finished: diffai-dist resume {run} --store {storage.redact(self.url)}")
        return marker

    def _no_worse(self, run: str, sweep: Sweep) -> dict[str, Any] | None:
        """The marker that is there, if its run could read all, or more than this one."""
        try:
            there = self.marker(run)
        except DamagedStore as error:
            log.warning("%s; it is written again", error)
            return None
        better = there is not None and (there["complete"] or there["failures"] < len(sweep.failures))
        return there if better else None
