"""Sweeps made by hand, from a few of each kind to any there may be: what the report store is tested with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import Failure
from diffai_dist.partials import GRAM, MOMENTS, SHIFT, empty
from diffai_dist.records import (
    SCHEMA_VERSION,
    AnalysisRecord,
    Change,
    Coverage,
    ErrorBound,
    Finding,
    Measurements,
    Member,
    PairSummary,
    Result,
    Side,
    Sweep,
    TensorRecord,
)
from diffai_dist.run import Settings, described
from diffai_dist.storage import Source
from results import IMPACT, change, failure, tensor

SETTINGS = Settings()
STARTED = "2026-03-04T23:30:00+00:00"


def summary(result: Result) -> PairSummary:
    """The result in a line."""
    parts = result.statuses, result.coverage, len(result.failures), result.whole, result.error_bound
    return PairSummary(result.baseline, result.candidate, *parts)


def member(step: int, folder: str = "s3://bucket/run7") -> Member:
    """A checkpoint of two tensors in one object."""
    name = f"step-{step:06}"
    source = Source(f"{folder}/{name}/model.safetensors", 64, f"etag:{step}")
    return Member(name, f"{folder}/{name}", step, None, "safetensors", (source,), 2, 64)


def sweep(steps: int = 3, name: str | None = "nightly", failures: Sequence[Failure] = (), **fields: Any) -> Sweep:
    """A consecutive sweep with a change, an added tensor and an analysis in every pair."""
    members = tuple(member(100 * step) for step in range(1, steps + 1))
    results = [_result(before.name, after.name, failures) for before, after in itertools.pairwise(members)]
    finding = Finding("stale", "high", "h.0", 2, 1, "judgement", members[0].name, members[1].name)
    series = AnalysisRecord("staleness_check", {"intervals": len(results)}, (finding,))
    parts: dict[str, Any] = {"mode": "consecutive", "members": members, "warnings": ("odd",)}
    return Sweep(
        name=name, pairs=tuple(map(summary, results)), results=results, analyses=(series,),
        failures=tuple(failures), **parts | fields,
    )  # fmt: skip


def _result(baseline: str, candidate: str, failures: Sequence[Failure]) -> Result:
    moved = tensor("h.1", error_bound=ErrorBound(1e-12, None), change=change(rel_l2=0.5))
    records = (tensor("h.0"), moved, tensor("new", "added"), *(tensor(str(one.tensor), "failed") for one in failures))
    covered = Coverage(3, 2, 24, 16, 192, 128, 0, {"only in the candidate": 1})
    return Result(baseline, candidate, records, tuple(failures), (IMPACT,), covered, (), change(rel_l2=0.25))


BROKEN = failure("h.9", object="s3://bucket/run7/step-000200/model.safetensors")


def plan_of(made: Sweep, run: str = "00000000000000a1", started: str = STARTED, **fields: Any) -> dict[str, Any]:
    """The plan of a run that ends with this sweep."""
    comparison = {
        "mode": made.mode,
        "name": made.name,
        "anchor": None,
        "elementwise": True,
        "members": [described(one) for one in made.members],
        "pairs": [[index, index + 1] for index in range(len(made.pairs))],
    }
    document = {"schema_version": SCHEMA_VERSION, "run": run, "started": started, "comparison": comparison}
    return document | {"settings": SETTINGS.digest_part(), "units": 8} | fields


# Any sweep: names that are no UTF-8, integers beyond float64, numbers of either sign of zero.

texts = st.text(st.characters(), max_size=6)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.just(-0.0) | st.none()
numbers = floats | st.integers(-(2**63), 2**64 - 1)
counts = st.integers(0, 2**63 - 1) | st.none()
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | floats | texts
tables = st.lists(st.dictionaries(texts, scalars, max_size=3), max_size=3)
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=3) | tables
sides = st.builds(
    Side,
    dtype=texts,
    shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    **dict.fromkeys(("count", "absmax_index", "zeros", "subnormals", "nans", "posinfs", "neginfs"), counts),
    **dict.fromkeys(("mean", "std", "rms", "l2"), floats),
    **dict.fromkeys(("min", "max", "absmax"), numbers),
)
changes = st.builds(
    Change,
    max_abs=numbers,
    max_abs_index=counts,
    **{field.name: floats for field in dataclasses.fields(Change) if field.name not in ("max_abs", "max_abs_index")},
)
bounds = st.builds(ErrorBound, st.floats(0, 1e300), floats, floats)
statuses = st.sampled_from(["changed", "identical", "added", "removed", "incomparable"])


@st.composite
def tensors(draw: st.DrawFn) -> TensorRecord:
    moved = draw(changes | st.none())
    bound = draw(bounds | st.none()) if moved else None
    either = draw(sides | st.none()), draw(sides | st.none())
    within = draw(st.floats(0, 1) | st.none())
    return TensorRecord(draw(texts), draw(statuses), *either, moved, draw(texts | st.none()), within, bound)


all_failures = st.builds(Failure, texts, texts, texts | st.none(), texts, texts, texts)
severities = st.sampled_from(["critical", "high", "medium", "low", "info"])
values = st.none() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | texts
findings = st.builds(
    Finding, texts, severities, texts | st.none(), values, values, texts, texts | st.none(), texts | st.none()
)
analyses = st.builds(
    AnalysisRecord,
    texts,
    st.dictionaries(texts, json_values, max_size=3),
    st.lists(findings, max_size=2).map(tuple),
)
sizes = st.integers(0, 2**62)
coverages = st.builds(Coverage, *[sizes] * 7, st.dictionaries(texts, sizes, max_size=2))
members = st.builds(
    Member,
    texts,
    texts,
    st.none() | st.integers(0, 2**60),
    texts | st.none(),
    texts | st.none(),
    st.lists(st.builds(Source, texts, sizes, texts), max_size=2).map(tuple),
    sizes,
    sizes,
)


@st.composite
def sweeps(draw: st.DrawFn) -> Sweep:
    """Any sweep that could be kept."""
    mode = draw(st.sampled_from([None, "consecutive", "all"]))
    group = draw(st.lists(members, min_size=2, max_size=3, unique_by=lambda one: one.name))
    names = st.sampled_from([one.name for one in group])
    failed = draw(st.lists(all_failures, max_size=3, unique=True))
    results = [
        Result(
            draw(names),
            draw(names),
            tuple(draw(st.lists(tensors(), max_size=4))),
            tuple(draw(st.lists(st.sampled_from(failed) if failed else all_failures, max_size=3))),
            tuple(draw(st.lists(analyses, max_size=2))),
            draw(coverages),
            tuple(draw(st.lists(texts, max_size=2))),
            draw(changes | st.none()),
            draw(bounds | st.none()),
        )
        for _ in range(draw(st.integers(1, 3)) if mode else 1)
    ]
    return Sweep(
        draw(texts | st.none()),
        mode,
        tuple(group),
        tuple(map(summary, results)),
        results,
        tuple(draw(st.lists(analyses, max_size=2))),
        tuple(failed),
        tuple(draw(st.lists(texts, max_size=2))),
    )


# Measurements


def checkpoint(number: int, shapes: dict[str, tuple[str, tuple[int, ...]]], version: str | None = None) -> Checkpoint:
    """A checkpoint of tensors given as name: (dtype, shape)."""
    source = Source(f"/run/{number}.safetensors", 10**6, version or f"mtime:{number}")
    made = {
        name: Tensor(name, dtype, shape, (Span(source, 0, 4 * int(np.prod(shape))),))
        for name, (dtype, shape) in shapes.items()
    }
    return Checkpoint(source.url, "safetensors", (source,), made)


def measured(
    *checkpoints: Checkpoint, pairs: Sequence[tuple[int, int]] = ((0, 1),), seed: int = 0, gram: bool = False
) -> Measurements:
    """Complete measurements of float32 checkpoints, their numbers random."""
    comparison = compare_members(checkpoints, [Pair(*pair) for pair in pairs])
    if gram:
        comparison = dataclasses.replace(comparison, anchor=0, elementwise=False)
    generator = np.random.default_rng(seed)
    moments = empty(MOMENTS, (len(comparison.aligned), len(checkpoints)))
    shifts = empty(SHIFT, (len(comparison.aligned), len(pairs)))
    for t, one in enumerate(comparison.aligned):
        for m, found in enumerate(one.tensors):
            if found:
                moments[t, m]["count"], moments[t, m]["mean"] = found.elements, generator.standard_normal()
        for p, pair in enumerate(comparison.pairs):
            found = one.tensors[pair.baseline]
            if found and one.tensors[pair.candidate] and not gram:
                shifts[t, p]["count"], shifts[t, p]["d2"] = found.elements, generator.random()
    side = len(checkpoints)
    grams = generator.random((len(comparison.aligned), len(GRAM), side, side)) if gram else None
    return Measurements(comparison, moments, shifts, {}, grams)
