"""Where an index and the headers of its shards disagree: which tensors that costs, and what to say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from diffai_dist.checkpoint import Violation
from diffai_dist.errors import BadHeader, BadIndex, CheckpointError, Failure, MissingShard
from diffai_dist.formats.index import Index
from diffai_dist.formats.names import listed, quoted, shown

SAVE_AGAIN = "Save the checkpoint again, into an empty folder"

Owners = Mapping[str, list[str]]  # the shards whose headers have the tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the shards and the index make of each other."""

    unreadable: Mapping[str, Failure]  # by tensor
    failures: tuple[Failure, ...]
    warnings: tuple[str, ...]
    violations: tuple[Violation, ...]


def judge(where: str, owners: Owners, broken: Mapping[str, Failure], index: Index | None) -> Verdict:
    """Headers are the truth; a tensor that two shards have, or whose own shard is broken, is not guessed at.

    `broken` holds the shards without a header.
    """
    weight_map = index.weight_map if index else {}
    doubles = _doubles(where, owners)
    absent = _absent(where, owners, broken, weight_map)
    # Another shard that has the tensor of a broken one may be left over from another save.
    lost = {name: replace(broken[shard], tensor=name) for name, shard in weight_map.items() if shard in broken}
    misplaced = [
        name for name, shard in weight_map.items() if name in owners and name not in lost and shard not in owners[name]
    ]
    failures = (
        _summary(BadIndex, where, "tensors lie in more than one shard", list(doubles)),
        _summary(MissingShard, where, "tensors of the index are in no shard", list(absent)),
        _summary(BadIndex, where, "tensors lie in another shard than the index says", misplaced),
    )
    complaints = tuple(failure for failure in failures if failure)
    unmapped = [name for name in owners if name not in weight_map] if index else []
    warnings = (f"{len(unmapped):,} tensors are in the shards and not in the index: {listed(unmapped)}",)
    broken_rules = {
        "double-tensor": (failures[0], list(doubles)),
        "lost-tensor": (failures[1], list(absent)),
        "misplaced-tensor": (failures[2], misplaced),
    }
    violations = [
        Violation(rule, where, failure.found, tuple(names))
        for rule, (failure, names) in broken_rules.items()
        if failure
    ]
    if unmapped:
        violations.append(Violation("unmapped-tensor", where, warnings[0], tuple(unmapped)))
    return Verdict(lost | absent | doubles, complaints, warnings if unmapped else (), tuple(violations))


def broken_shard(failure: Failure) -> Violation:
    """A shard without a header that can be read."""
    rules = {MissingShard.code: "missing-shard", BadHeader.code: "bad-header"}
    found = f"{failure.found}, expected {failure.expected}" if failure.expected else failure.found
    return Violation(rules.get(failure.code, "unreadable-shard"), failure.object, found)


def odd_total(where: str, index: Index, nbytes: int) -> tuple[Violation, ...]:
    """Whether the index gives another size than all tensors have together; it often counts something else."""
    total = index.total_size
    if not isinstance(total, int | float) or total == nbytes:
        return ()
    found = f"the index gives a total_size of {shown(total)} bytes, the tensors have {nbytes:,}"
    return (Violation("wrong-total-size", where, found),)


def _doubles(where: str, owners: Owners) -> dict[str, Failure]:
    return {
        name: BadIndex(where, f"in {len(shards):,} shards: {listed(shards)}", tensor=name, hint=SAVE_AGAIN).failure
        for name, shards in owners.items()
        if len(shards) > 1
    }


def _absent(
    where: str, owners: Owners, broken: Mapping[str, Failure], weight_map: Mapping[str, str]
) -> dict[str, Failure]:
    found = "the index maps it to {}, whose header does not have it"
    return {
        name: MissingShard(where, found.format(quoted(shard)), tensor=name, hint=SAVE_AGAIN).failure
        for name, shard in weight_map.items()
        if name not in owners and shard not in broken
    }


def _summary(error: type[CheckpointError], where: str, what: str, names: list[str]) -> Failure | None:
    return error(where, f"{len(names):,} {what}: {listed(names)}", hint=SAVE_AGAIN).failure if names else None
