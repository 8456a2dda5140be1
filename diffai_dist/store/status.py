"""Which runs a store holds and how far they are, from listings, plans and markers alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from diffai_dist import storage
from diffai_dist.errors import Failure, StoreError, UsageError
from diffai_dist.storage.hints import similar
from diffai_dist.store.document import failures_of
from diffai_dist.store.finishing import moment
from diffai_dist.store.parts import Folder, Listing, parse, parse_marker, parts_of
from diffai_dist.store.reading import load_document
from diffai_dist.store.units import UNITS
from diffai_dist.terminal import count

State = Literal["planned", "running", "finished", "incomplete", "unreadable"]


@dataclass(frozen=True, slots=True)
class RunState:
    """A run in a line. A run that was killed looks like one that is `running`, but for the age of what it left."""

    run: str
    name: str | None
    started: datetime | None
    state: State  # incomplete: finished, but something could not be read; unreadable: `problem` says why
    units: int | None  # that are done
    units_total: int | None
    members: tuple[str, ...]  # URLs
    pairs: int
    failures: int
    exit_code: int | None  # None for a run that is not finished
    touched: float | None  # when its youngest object was written, in seconds since 1970; None where nobody tells
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RunDetail:
    """A run with what it compares, what went wrong, and what it left in the store."""

    state: RunState
    comparison: Mapping[str, Any]  # as in the plan: mode, name, anchor, elementwise, members, pairs
    settings: Mapping[str, Any]
    failures: tuple[Failure, ...]
    marker: Mapping[str, Any] | None
    nbytes: int  # of the parts that the marker names


def runs(folder: Folder) -> list[RunState]:
    """All runs, the latest first; those whose start nobody knows come last."""
    known = _known(folder)
    documents = [_told_by(run, objects) for run, objects in known.items()]
    states = [_state(folder, path, data, known[path.split("/")[1]]) for path, data in folder.fetch_each(documents)]
    return sorted((one for one in states if one), key=_latest_first)


def resolve(folder: Folder, run: str) -> str:
    """The id of the run that is meant."""
    ids = sorted(_known(folder))
    if run in ids:
        return run
    if run == "latest" and ids:
        return runs(folder)[0].run
    found = [one for one in ids if run and one.startswith(run)]
    if len(found) == 1:
        return found[0]
    where = f"diffai-dist status --store {storage.redact(folder.url)} lists them"
    if found:
        raise UsageError(f"{len(found):,} runs begin with {run!r}: give more of the id; {where}")
    hint = similar(run, ids) or f"The store holds {count(len(ids), 'run')}"
    raise UsageError(f"no run {run!r} in {storage.redact(folder.url)}. {hint}; {where}")


def detail(folder: Folder, run: str) -> RunDetail:
    """What the store knows about one run; StoreError if it is neither planned nor finished."""
    objects = folder.listing(f"runs/{run}")
    path = _told_by(run, objects)
    data = folder.fetch(path)
    if data is None:
        raise StoreError(f"{folder.name(f'runs/{run}')} holds neither a plan nor a marker")
    state = _state_of(folder, path, data, objects)
    if not path.endswith("_SUCCESS.json"):
        plan = parse(data, folder.name(path))
        return RunDetail(state, plan["comparison"], plan["settings"], (), None, 0)
    marker = parse_marker(data, folder.name(path))
    document = load_document(folder, run, marker)
    failures = failures_of(document)
    size = sum(part.size for part in parts_of(marker))
    return RunDetail(state, document["comparison"], document["settings"], failures, marker, size)


def latest_before(folder: Folder, plan: Mapping[str, Any]) -> str | None:
    """The run with a marker that started last before this one and has its name, or a member of it."""
    comparison = plan["comparison"]
    name, urls = comparison["name"], {member["url"] for member in comparison["members"]}
    began = moment(plan["started"])
    for one in runs(folder):
        if one.run == plan["run"] or one.exit_code is None or one.started is None:
            continue
        if one.started < began and ((name is not None and one.name == name) or urls & set(one.members)):
            return one.run
    return None


def _known(folder: Folder) -> dict[str, Listing]:
    """The objects of each run that was begun or finished."""
    objects: dict[str, Listing] = defaultdict(dict)
    for path, about in folder.listing("runs").items():
        if path.count("/") > 1:
            objects[path.split("/")[1]][path] = about
    return {run: found for run, found in objects.items() if _told_by(run, found) in found}


def _told_by(run: str, objects: Listing) -> str:
    """The document that says most about a run: its marker, else its plan."""
    marker = f"runs/{run}/_SUCCESS.json"
    return marker if marker in objects else f"runs/{run}/plan.json"


def _state(folder: Folder, path: str, data: bytes | None, objects: Listing) -> RunState | None:
    """The state of a run, also of one that this version cannot read; None for one that is gone meanwhile."""
    if data is None:
        return None
    try:
        return _state_of(folder, path, data, objects)
    except StoreError as error:
        run = path.split("/")[1]
        return RunState(run, None, None, "unreadable", None, None, (), 0, 0, None, _touched(objects), str(error))


def _state_of(folder: Folder, path: str, data: bytes, objects: Listing) -> RunState:
    batches = [found for one in objects if (found := UNITS.fullmatch(one))]
    done = sum(int(found[2]) for found in batches)
    if path.endswith("_SUCCESS.json"):
        marker = parse_marker(data, folder.name(path))
        total = marker["units"]
        return RunState(
            marker["run"],
            marker["name"],
            moment(marker["started"]) if marker["started"] else None,
            "finished" if marker["complete"] else "incomplete",
            total if marker["complete"] else _at_most(done, total),
            total,
            tuple(marker["members"]),
            marker["pairs"],
            marker["failures"],
            marker["exit_code"],
            _touched(objects),
        )
    plan = parse(data, folder.name(path))
    total = plan.get("units")
    return RunState(
        plan["run"],
        plan["comparison"].get("name"),
        moment(plan["started"]) if "started" in plan else None,
        "running" if batches else "planned",
        _at_most(done, total),
        total,
        tuple(member["url"] for member in plan["comparison"]["members"]),
        len(plan["comparison"]["pairs"]),
        0,
        None,
        _touched(objects),
    )


def _at_most(done: int, total: int | None) -> int:
    """Two processes at one run may both have kept a unit."""
    return done if total is None else min(done, total)


def _touched(objects: Listing) -> float | None:
    return max((changed for _, changed in objects.values() if changed is not None), default=None)


def _latest_first(state: RunState) -> tuple[float, float]:
    """Plans count whole seconds: of those that began in the same one, the last that wrote is the latest."""
    return -state.started.timestamp() if state.started else math.inf, -(state.touched or 0.0)
