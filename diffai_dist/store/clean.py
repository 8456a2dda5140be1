"""Removing what nothing needs: never anything that a marker names, and nothing that is young.

Removed are, once they are older than the guard: unit records of complete runs; plans and unit records of runs in which
nothing was written for so long; tables, run documents and measurements that no marker names; temporary files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta

from diffai_dist.opening import side_by_side
from diffai_dist.store.parts import AT_ONCE, Folder, Listing, parse_marker, parts_of
from diffai_dist.store.units import UNITS

GUARD = timedelta(days=7)

_MARKER = re.compile(r"runs/([^/]+)/_SUCCESS\.json")
_PLAN = re.compile(r"runs/([^/]+)/plan\.json")
_PART = re.compile(
    r"runs/[^/]+/run-[0-9a-f]+\.json|measurements/[0-9a-f]+\.parquet|tables/[a-z]+/date=[0-9-]+/[^/]+\.parquet"
)
_TEMPORARY = re.compile(r"(?:.+/)?\.[0-9a-f]{16}\.tmp")


def clean(folder: Folder, older_than: timedelta, dry_run: bool) -> list[tuple[str, int]]:
    """Remove what is not needed and older than that, unless `dry_run`; what it is, with sizes."""
    # Listed before the markers are: what a run publishes meanwhile is not in the list, or its marker is read.
    objects = folder.listing()
    doomed = removable(objects, _markers(folder), time.time() - older_than.total_seconds())
    if not dry_run:
        side_by_side(folder.remove, doomed, AT_ONCE)
    return [(path, objects[path][0]) for path in doomed]


def removable(objects: Listing, markers: Mapping[str, Mapping[str, object]], before: float) -> list[str]:
    """The paths that nothing needs and that were last written before that time, in seconds since 1970.

    `markers` are those of all runs that have one. What is not of a store's making is left alone.
    """
    named = {part.path for marker in markers.values() for part in parts_of(marker)}
    complete = {run for run, marker in markers.items() if marker["complete"]}
    alive = set(_runs_written_since(objects, before))

    def needless(path: str, changed: float | None) -> bool:
        if changed is None or changed >= before:
            return False
        if unit := UNITS.fullmatch(path):
            return unit[1] in complete or unit[1] not in alive
        if plan := _PLAN.fullmatch(path):
            return plan[1] not in markers and plan[1] not in alive
        return bool(_PART.fullmatch(path) or _TEMPORARY.fullmatch(path)) and path not in named

    return [path for path, (_, changed) in objects.items() if needless(path, changed)]


def _runs_written_since(objects: Listing, before: float) -> Iterator[str]:
    for path, (_, changed) in objects.items():
        if path.startswith("runs/") and (changed is None or changed >= before):
            yield path.split("/")[1]


def _markers(folder: Folder) -> dict[str, dict[str, object]]:
    """All markers by run; one that cannot be read is an error, since nobody knows what it names."""
    paths = [path for path in folder.listing("runs") if _MARKER.fullmatch(path)]
    return {
        path.split("/")[1]: parse_marker(data, folder.name(path))
        for path, data in folder.fetch_each(paths)
        if data is not None
    }
