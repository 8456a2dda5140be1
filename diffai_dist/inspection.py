"""What headers alone tell: the listing of one checkpoint, and what a plan would read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffai_dist import storage
from diffai_dist.comparison import natural
from diffai_dist.records import SCHEMA_VERSION
from diffai_dist.terminal import count, escape, inert, size

if TYPE_CHECKING:
    from diffai_dist.checkpoint import Checkpoint
    from diffai_dist.cluster import Place
    from diffai_dist.comparison import Comparison
    from diffai_dist.opening import Opened
    from diffai_dist.plan import Plan
    from diffai_dist.records import Member

PROBLEMS = 10  # lines of a plan


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
        "unreadable": {name: checkpoint.unreadable[name].found for name in sorted(checkpoint.unreadable)},
        "warnings": list(checkpoint.warnings),
    }


def as_text(document: Mapping[str, Any]) -> Iterator[str]:
    """The listing: what it is, its tensors, the sums."""
    tensors = document["tensors"]
    yield f"{escape(document['url'], 400)}  ({document['format']})\n"
    for key, value in document["metadata"].items():
        yield f"  {inert(escape(key))}: {escape(value, 400)}\n"
    names = [inert(escape(tensor["name"], 100)) for tensor in tensors]
    wide = min(max(map(len, names), default=0), 60)
    dtypes = [escape(tensor["dtype"], 20) for tensor in tensors]
    room = max(map(len, dtypes), default=0)
    for name, dtype, tensor in zip(names, dtypes, tensors, strict=True):
        yield f"  {name:<{wide}}  {dtype:<{room}}  {tensor['shape']!s:<20}  {size(tensor['bytes'])}\n"
    for name, reason in document["unreadable"].items():
        yield f"  {inert(escape(name, 100))}  unreadable: {escape(reason, 400)}\n"
    for warning in document["warnings"]:
        yield f"  warning: {escape(warning, 400)}\n"
    by_dtype = Counter({dtype: 0 for dtype in sorted({tensor["dtype"] for tensor in tensors})})
    # Tied tensors are the same bytes, and count once.
    places = {(tensor["object"], tensor["offset"], tensor["bytes"]): tensor["dtype"] for tensor in tensors}
    for (_, _, nbytes), dtype in places.items():
        by_dtype[dtype] += nbytes
    sizes = ", ".join(f"{escape(dtype)} {size(nbytes)}" for dtype, nbytes in by_dtype.most_common())
    total = size(sum(by_dtype.values()))
    found = f"{count(len(tensors), 'tensor')} in {count(len(document['objects']), 'object')}, {total}"
    yield f"{found}: {sizes}\n" if sizes else f"{found}\n"


def plan_document(
    opened: Opened,
    comparison: Comparison | None = None,
    plan: Plan | None = None,
    place: Place | None = None,
    stored: Mapping[str, int] | None = None,
    published: int = 0,
) -> dict[str, Any]:
    """What a run would read and need, as JSON values; without a comparison, why there is none.

    The plan is of what remains of the comparison: `stored` says what the store has of it already, `published` how many
    bytes of the plan that saves.
    """
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "mode": opened.group.mode,
        "members": [
            {"name": member.name, "url": member.url} | (_size(member) if member.format else {})
            for member in opened.members
        ],
        "pairs": len(opened.group.pairs),
        "problems": [failure.sentence() for failure in opened.all_failures],
        "warnings": [warning for one in opened.checkpoints if one for warning in one.warnings],
    }
    if comparison is None or plan is None or place is None:
        return document
    unreadable = dict.fromkeys(failure for one in comparison.aligned for failure in one.unreadable if failure)
    document["problems"] += [failure.sentence() for failure in unreadable if failure not in opened.all_failures]
    kinds = _pair_kinds(comparison) if opened.group.mode is None else _group_kinds(comparison)
    reading = {"tensors": kinds, "left_out": comparison.left_out, **_reading(plan, place, published)}
    return document | reading | ({} if stored is None else {"stored": dict(stored)})


def _size(member: Member) -> dict[str, Any]:
    return {"objects": len(member.objects), "tensors": member.tensors, "bytes": member.nbytes}


def _reading(plan: Plan, place: Place, published: int) -> dict[str, Any]:
    return {
        "read_bytes": plan.nbytes - published,
        "shared_bytes": plan.shared_bytes,
        "requests": plan.requests,
        "units": sum(1 for _ in plan.units()),
        "unit_bytes": plan.unit_bytes,
        "processes": place.workers if place.scheduler is None else None,
        "threads": place.threads_each if place.scheduler is None else None,
        "peak_memory_bytes": plan.peak_memory(place.threads_each),
    }


def _pair_kinds(comparison: Comparison) -> dict[str, int]:
    pair = comparison.pairs[0]
    kinds: Counter[str] = Counter()
    for one in comparison.aligned:
        a, b = one.tensors[pair.baseline], one.tensors[pair.candidate]
        kind = "incomparable" if one.incomparable(pair) else "compared" if a and b else "removed" if a else "added"
        kinds["unreadable" if any(one.unreadable) else kind] += 1
    return dict(sorted(kinds.items()))


def _group_kinds(comparison: Comparison) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for one in comparison.aligned:
        in_all = all(tensor or failure for tensor, failure in zip(one.tensors, one.unreadable, strict=True))
        kinds["unreadable in some" if any(one.unreadable) else "in all" if in_all else "in some"] += 1
    return dict(sorted(kinds.items()))


def plan_text(document: Mapping[str, Any]) -> Iterator[str]:
    """The plan on one screen."""
    members = document["members"]
    if document["mode"] is None:
        for role, member in zip(("baseline", "candidate"), members, strict=True):
            yield f"  {role:<10} {escape(member['url'], 400)}: {_described(member)}\n"
    else:
        yield from _series_lines(document)
    if "read_bytes" in document:
        kinds = ", ".join(f"{count(number)} {kind}" for kind, number in document["tensors"].items()) or "none"
        left_out = f"   left out by the selection {count(document['left_out'])}" if document["left_out"] else ""
        yield f"  tensors    {kinds}{left_out}\n"
        yield f"  read       {_read(document)}\n"
        yield from _stored_lines(document)
        yield f"  memory     {size(document['peak_memory_bytes'])} at most {_where(document)}\n"
    if gate := document.get("gate"):
        yield f"  gate       {_gate(gate)}\n"
    for warning in document["warnings"]:
        yield f"  warning    {escape(warning, 400)}\n"
    for problem in document["problems"][:PROBLEMS]:
        yield f"  problem    {escape(problem, 1000)}\n"
    if more := document["problems"][PROBLEMS:]:
        yield f"  problem    and {len(more):,} more; --output json lists all\n"


def _series_lines(document: Mapping[str, Any]) -> Iterator[str]:
    members = document["members"]
    opened = [member for member in members if "tensors" in member]
    ends = f"{escape(members[0]['name'], 60)} to {escape(members[-1]['name'], 60)}"
    closed = f", {count(len(members) - len(opened))} cannot be opened" if len(opened) < len(members) else ""
    total = size(sum(member["bytes"] for member in opened))
    yield f"  checkpoints {len(members):,}: {ends}, {total}{closed}\n"
    yield f"  pairs      {document['pairs']:,} ({document['mode']})\n"


def _read(document: Mapping[str, Any]) -> str:
    requests = f", about {count(document['requests'], 'request')}" if document["requests"] else ""
    return f"{size(document['read_bytes'])} once, in {count(document['units'], 'unit')}{requests}"


def _stored_lines(document: Mapping[str, Any]) -> Iterator[str]:
    if document["shared_bytes"]:
        yield f"  shared     {size(document['shared_bytes'])} more are the same bytes, not read again\n"
    stored = document.get("stored", {})
    if any(stored.values()):
        units = f", {count(stored['units'], 'unit')} of this run" if stored["units"] else ""
        yield f"  stored     {count(stored['pairs'], 'pair')} of earlier runs, {size(stored['bytes'])}{units}\n"


def _described(member: Mapping[str, Any]) -> str:
    if "tensors" not in member:
        return "cannot be opened"
    return f"{count(member['tensors'], 'tensor')} in {count(member['objects'], 'object')}, {size(member['bytes'])}"


def _gate(gate: Mapping[str, Any]) -> str:
    parts = [f"fail on {', '.join(gate['fail_on'])}"] * bool(gate["fail_on"])
    if gate["policy"]:
        expired = f" ({count(gate['policy']['expired'])} expired)" if gate["policy"]["expired"] else ""
        parts.append(f"{count(gate['policy']['rules'], 'rule')}, {count(gate['policy']['waivers'], 'waiver')}{expired}")
    return "; ".join(parts)


def _where(document: Mapping[str, Any]) -> str:
    if document["threads"] is None:
        return "per thread of a worker"
    threads = f"with {count(document['threads'], 'thread')}"
    processes = document["processes"]
    return f"in each of {count(processes, 'worker')} {threads}" if processes else threads
