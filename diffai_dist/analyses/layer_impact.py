"""Where the change lies: its share per block and per role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.analyses.base import Kind
from diffai_dist.analyses.roles import block, role
from diffai_dist.analyses.sums import Shift, exact, grouped, rolled_up, share, shifts_of, undecoded
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord


@dataclass(frozen=True)
class LayerImpact:
    """Which layers changed most: share of the squared displacement per block and role.

    The whole is the sum of the tensors' d2, float64 numbers, as an exact rational; a group's part of it likewise, so
    that the parts add up to the whole exactly, blocks and roles to the same one. `d2` is each sum and `share` each
    quotient part / whole, correctly rounded: shares add to 1 within an ulp, and published d2 to each other within half
    an ulp of each. All shares are null where the whole is 0 or no finite float64. Tensors of dtypes without a decoder
    have no d2 and are left out; `undecoded` says how many. `tensor` of a finding is the block. Impact on what the model
    does cannot be read from weights.
    """

    name: ClassVar[str] = "layer_impact"
    flag: ClassVar[str] = "--show-layer-impact"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True

    dominant_share: float = 0.5  # of the whole, in one block out of several; judgement

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Blocks and roles in the order of the comparison's tensors, so that depth reads from top to bottom."""
        rows = shifts_of(measured, pair_index, records)
        blocks, roles = _table(rows, "block", block), _table(rows, "role", role)
        left_out = undecoded(measured, pair_index, records)
        result = {**rolled_up(rows), "undecoded": left_out, "blocks": blocks, "roles": roles}
        return AnalysisRecord(self.name, result, self._findings(blocks))

    def _findings(self, blocks: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
        source = "judgement: default of dominant_share"
        return tuple(
            Finding("dominant-block", "low", one["block"], one["share"], self.dominant_share, source)
            for one in blocks
            if len(blocks) > 1 and one["share"] is not None and one["share"] > self.dominant_share
        )


def _table(rows: Sequence[Shift], label: str, key: Callable[[str], str]) -> list[dict[str, Any]]:
    """A row per group."""
    whole = exact(row.d2 for row in rows)
    return [
        {label: name, "share": share(exact(row.d2 for row in group), whole), **rolled_up(group)}
        for name, group in grouped(rows, key).items()
    ]
