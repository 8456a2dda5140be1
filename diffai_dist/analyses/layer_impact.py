"""Where the change lies: its share per block and per role."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST
from diffai_dist.analyses.roles import block, role
from diffai_dist.analyses.sums import LEFT_OUT, Shift, exact, grouped, left_out, rolled_up, share, shifts_of
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord

_NUMBERED = re.compile(r"(?:(.*)[./_])?[0-9]+", re.DOTALL)  # a block of a stack, as roles.block names it


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
    result: ClassVar[Mapping[str, str]] = {
        "rel_l2": "sqrt(sum d^2) / sqrt(sum a^2) over all compared tensors; null where squares leave float64",
        "changed_fraction": "elements with another value / elements",
        "l2": "sqrt(d2)",
        "d2": "sum of d^2, d = b - a",
        "tensors": "tensors compared value by value",
        "elements": "their elements",
        **LEFT_OUT,
        "blocks": "the same of each block, in the order of names, and its share of d2",
        "roles": "the same of each role",
        "depth": f"of each stack of numbered blocks, at most {MOST}: centre, where its d2 has its centre of mass, 0 in "
        "the first block, 1 in the last; gini, how unevenly it is spread: 0 for even, near 1 for one block alone",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "dominant-block": "one block of several has more than dominant_share of d2: low"
    }
    sources: ClassVar[tuple[str, ...]] = (
        "shares, centre of mass and Gini coefficient: derived",
        "a block with more than half of the change is worth a look: judgement",
    )

    dominant_share: float = threshold(0.5, "share of the whole, in one block out of several, worth a finding")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Blocks and roles in the order of the comparison's tensors, so that depth reads from top to bottom."""
        rows = shifts_of(measured, pair_index, records)
        blocks, roles = _table(rows, "block", block), _table(rows, "role", role)
        tables = {"blocks": blocks, "roles": roles, "depth": _depth(rows)}
        result = {**rolled_up(rows), **left_out(measured, pair_index, records), **tables}
        return AnalysisRecord(self.name, result, self._findings(blocks))

    def _findings(self, blocks: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
        return tuple(
            finding(self, "dominant-block", "low", one["block"], one["share"], "dominant_share")
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


def _depth(rows: Sequence[Shift]) -> list[dict[str, Any]]:
    """Where in each stack the change lies, and how evenly."""
    stacks: dict[str, list[Fraction | None]] = {}
    for name, group in grouped(rows, block).items():
        if found := _NUMBERED.fullmatch(name):
            stacks.setdefault(found[1] or "", []).append(exact(row.d2 for row in group))
    return [{"stack": name, "blocks": len(parts), **_spread(parts)} for name, parts in stacks.items()][:MOST]


def _spread(parts: Sequence[Fraction | None]) -> dict[str, float | None]:
    """Centre of mass of the parts over their places, and the Gini coefficient of their sizes; None without a sum.

    >>> _spread([Fraction(1), Fraction(0), Fraction(3)]), _spread([Fraction(2), Fraction(2)])
    ({'centre': 0.75, 'gini': 0.5}, {'centre': 0.5, 'gini': 0.0})
    """
    known = [part for part in parts if part is not None]
    unit = math.lcm(*(part.denominator for part in known))  # integers: a hundred thousand fractions take seconds
    sizes = [part.numerator * (unit // part.denominator) for part in known]
    whole, last = sum(sizes), len(parts) - 1
    if len(known) < len(parts) or not whole or not last:
        return {"centre": None, "gini": None}
    ranked = sum(place * size for place, size in enumerate(sorted(sizes), 1))
    return {
        "centre": float(Fraction(sum(place * size for place, size in enumerate(sizes)), whole * last)),
        "gini": float(Fraction(2 * ranked, len(sizes) * whole) - Fraction(len(sizes) + 1, len(sizes))),
    }
