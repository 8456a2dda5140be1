"""What headers alone tell: the listing of one checkpoint, and what a plan would read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffai_dist import storage
from diffai_dist.comparison import natural
from diffai_dist.records import SCHEMA_VERSION
from diffai_dist.terminal import count, escape, size

if TYPE_CHECKING:
    from diffai_dist.checkpoint import Checkpoint
    from diffai_dist.cluster import Place
    from diffai_dist.pipeline import Opened
    from diffai_dist.plan import Plan


def as_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "url": checkpoint.url,
        "format": checkpoint.format,
        "objects": [
            {"url": storage.redact(source.url), "size": source.size, "version": source.version}
            for source in checkpoint.sources
        ],
        "metadata": dict(checkpoint.metadata),
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
                "object": storage.redact(tensor.spans[0].source.url),
                "offset": tensor.spans[0].start,
            }
            for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: natural(tensor.name))
        ],
        "unreadable": sorted(checkpoint.unreadable),
        "warnings": list(checkpoint.warnings),
    }


def as_text(document: Mapping[str, Any]) -> Iterator[str]:
    """The listing: what it is, its tensors, the sums."""
    tensors = document["tensors"]
    yield f"{escape(document['url'], 400)}  ({document['format']})\n"
    for key, value in document["metadata"].items():
        yield f"  {escape(key)}: {escape(value, 400)}\n"
    names = [escape(tensor["name"], 100) for tensor in tensors]
    wide = min(max(map(len, names), default=0), 60)
    for name, tensor in zip(names, tensors, strict=True):
        yield f"  {name:<{wide}}  {escape(tensor['dtype'], 20):<8}  {tensor['shape']!s:<20}  {size(tensor['bytes'])}\n"
    for name in document["unreadable"]:
        yield f"  {escape(name, 100)}  unreadable\n"
    for warning in document["warnings"]:
        yield f"  warning: {escape(warning, 400)}\n"
    by_dtype = Counter({dtype: 0 for dtype in sorted({tensor["dtype"] for tensor in tensors})})
    for tensor in tensors:
        by_dtype[tensor["dtype"]] += tensor["bytes"]
    dtypes = ", ".join(f"{escape(dtype)} {size(nbytes)}" for dtype, nbytes in by_dtype.most_common())
    total = size(sum(by_dtype.values()))
    found = f"{count(len(tensors), 'tensor')} in {count(len(document['objects']), 'object')}, {total}"
    yield f"{found}: {dtypes}\n" if dtypes else f"{found}\n"


def plan_document(plan: Plan | None, place: Place, opened: Opened) -> dict[str, Any]:
    """What a run of the plan would read and need, as JSON values; without a plan, why there is none."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "members": [
            {"url": url} if member is None else _size(member)
            for url, member in zip(opened.urls, opened.members, strict=True)
        ],
        "problems": [failure.sentence() for failure in opened.failures],
        "warnings": [warning for member in opened.members if member for warning in member.warnings],
    }
    return document if plan is None else document | _reading(plan, place)


def _size(member: Checkpoint) -> dict[str, Any]:
    nbytes = sum(tensor.nbytes for tensor in member.tensors.values())
    return {"url": member.url, "objects": len(member.sources), "tensors": len(member.tensors), "bytes": nbytes}


def _reading(plan: Plan, place: Place) -> dict[str, Any]:
    comparison = plan.comparison
    pair = comparison.pairs[0]
    kinds: Counter[str] = Counter()
    for one in comparison.aligned:
        a, b = one.tensors[pair.baseline], one.tensors[pair.candidate]
        kind = "incomparable" if one.incomparable(pair) else "compared" if a and b else "removed" if a else "added"
        kinds["unreadable" if any(one.unreadable) else kind] += 1
    return {
        "tensors": dict(sorted(kinds.items())),
        "left_out": comparison.left_out,
        "read_bytes": plan.nbytes,
        "units": sum(1 for _ in plan.units()),
        "unit_bytes": plan.unit_bytes,
        "processes": place.workers if place.scheduler is None else None,
        "threads": place.threads_each if place.scheduler is None else None,
        "peak_memory_bytes": plan.peak_memory(place.threads_each),
    }


def plan_text(document: Mapping[str, Any]) -> Iterator[str]:
    """The plan on one screen."""
    for role, member in zip(("baseline", "candidate"), document["members"], strict=True):
        yield f"  {role:<10} {escape(member['url'], 400)}: {_described(member)}\n"
    if "read_bytes" in document:
        kinds = ", ".join(f"{count(number)} {kind}" for kind, number in document["tensors"].items()) or "none"
        left_out = f"   left out by the selection {count(document['left_out'])}" if document["left_out"] else ""
        yield f"  tensors    {kinds}{left_out}\n"
        yield f"  read       {size(document['read_bytes'])} once, in {count(document['units'], 'unit')}\n"
        yield f"  memory     {size(document['peak_memory_bytes'])} at most {_where(document)}\n"
    for warning in document["warnings"]:
        yield f"  warning    {escape(warning, 400)}\n"
    for problem in document["problems"]:
        yield f"  problem    {escape(problem, 1000)}\n"


def _described(member: Mapping[str, Any]) -> str:
    if "tensors" not in member:
        return "cannot be opened"
    return f"{count(member['tensors'], 'tensor')} in {count(member['objects'], 'object')}, {size(member['bytes'])}"


def _where(document: Mapping[str, Any]) -> str:
    if document["threads"] is None:
        return "per thread of a worker"
    threads = f"with {count(document['threads'], 'thread')}"
    processes = document["processes"]
    return f"in each of {count(processes, 'worker')} {threads}" if processes else threads
