"""The blocks of one model as members of a comparison: which layers are alike, with the engine that compares models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from diffai_dist.analyses import SERIES
from diffai_dist.analyses.roles import block
from diffai_dist.analyses.series import Series
from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.comparison import Comparison, Pair, Selection, compare_members, natural
from diffai_dist.records import AnalysisRecord, Measurements, Member

FEWEST = 2  # blocks that can be compared
MOST = 256  # each is compared with every other, and the deepest published models have some 130

_OF_TRAINING = ("anchor", "task_cosine")  # what members have moved from where they began: layers began nowhere together
_AS_LAYERS = {"checkpoint": "layer", "checkpoints": "layers"}


def blocks_of(checkpoint: Checkpoint, selection: Selection) -> dict[str, dict[str, Tensor]]:
    """The numbered blocks in their natural order, each with its tensors by the part of their names behind the block.

    >>> blocks_of(Checkpoint("a", "safetensors", (), {}), Selection())
    {}
    """
    takes_part = selection.predicate()
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        path = block(name)
        if takes_part(name) and path[-1:].isdigit() and name.startswith(f"{path}."):
            rest = name[len(path) + 1 :]
            found.setdefault(path, {})[rest] = dataclasses.replace(tensor, name=rest)
    return {path: found[path] for path in sorted(found, key=natural)}


def layer_comparison(checkpoint: Checkpoint, selection: Selection) -> Comparison | None:
    """Every block against every other, from the products of all; None for a model of too few or too many."""
    blocks = blocks_of(checkpoint, selection)
    if not FEWEST <= len(blocks) <= MOST:
        return None
    members = [dataclasses.replace(checkpoint, url=path, tensors=tensors) for path, tensors in blocks.items()]
    pairs = [Pair(i, j) for j in range(len(members)) for i in range(j)]
    compared = compare_members(members, pairs)
    return dataclasses.replace(compared, anchor=0, elementwise=False)


def layer_similarity(checkpoint: Checkpoint, measured: Measurements | None) -> AnalysisRecord:
    """The similarity matrix of the blocks of one checkpoint: they are its layers, and none has learned from another."""
    if measured is None:
        reason = f"it takes {FEWEST} to {MOST} numbered blocks, to compare each with every other"
        return AnalysisRecord("similarity_matrix", {"checkpoint": checkpoint.url, "reason": reason})
    record = SERIES["similarity_matrix"]()(Series(measured, tuple(_members(measured))))
    result = {key: _of_layers(value) for key, value in record.result.items() if key not in _OF_TRAINING}
    findings = tuple(dataclasses.replace(one, tensor=one.candidate, candidate=None) for one in record.findings)
    return AnalysisRecord(record.name, {"checkpoint": checkpoint.url, **result}, findings)


def _of_layers(value: Any) -> Any:
    """Rows about members, told as rows about layers."""
    if not isinstance(value, list):
        return value
    return [
        {_AS_LAYERS.get(key, key): cell for key, cell in row.items()} if isinstance(row, dict) else row for row in value
    ]


def _members(measured: Measurements) -> Iterator[Member]:
    for one in measured.comparison.members:
        nbytes = sum(tensor.nbytes for tensor in one.tensors.values())
        yield Member(one.url, one.url, format=one.format, tensors=len(one.tensors), nbytes=nbytes)
