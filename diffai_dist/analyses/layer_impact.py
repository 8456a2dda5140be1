"""Where the change lies: its share per block and per role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.analyses.roles import block, role
from diffai_dist.analyses.sums import Shift, ratio, rolled_up, shifts_of, total
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord


@dataclass(frozen=True)
class LayerImpact:
    """Which layers changed most: share of the squared displacement per block and role.

    A group's d2 is the correctly rounded sum over its tensors; `d2` of the whole is that sum over the blocks' d2, so
    that the blocks add to it exactly. The roles' shares refer to the sum over the roles, which may differ in the last
    bit. `tensor` of a finding is the block. Impact on what the model does cannot be read from weights.
    """

    name: ClassVar[str] = "layer_impact"
    flag: ClassVar[str] = "--show-layer-impact"

    dominant_share: float = 0.5  # of the whole, in one block out of several; judgement

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Blocks and roles in the order of the comparison's tensors, so that depth reads from top to bottom."""
        rows = shifts_of(measured, pair_index, records)
        blocks, whole = _grouped(rows, "block", block)
        roles, _ = _grouped(rows, "role", role)
        result = {**rolled_up(rows, whole), "blocks": blocks, "roles": roles}
        return AnalysisRecord(self.name, result, self._findings(blocks))

    def _findings(self, blocks: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
        source = "judgement: default of dominant_share"
        return tuple(
            Finding("dominant-block", "low", one["block"], one["share"], self.dominant_share, source)
            for one in blocks
            if len(blocks) > 1 and one["share"] is not None and one["share"] > self.dominant_share
        )


def _grouped(rows: Sequence[Shift], label: str, key: Callable[[str], str]) -> tuple[list[dict[str, Any]], float]:
    """A row per group, and the whole that the shares refer to: the sum of the groups' d2."""
    groups: dict[str, list[Shift]] = {}
    for row in rows:
        groups.setdefault(key(row.name), []).append(row)
    parts = {name: total(row.d2 for row in group) for name, group in groups.items()}
    whole = total(parts.values())
    table = [
        {label: name, "share": ratio(parts[name], whole), **rolled_up(group, parts[name])}
        for name, group in groups.items()
    ]
    return table, whole
