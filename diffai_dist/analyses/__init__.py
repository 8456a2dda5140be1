"""Questions answered from measurements, one per file: `ANALYSES` are there, `NOT_YET` come later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.records import AnalysisRecord, Measurements, TensorRecord

__all__ = ["ANALYSES", "NOT_YET", "Analysis", "sort_by_change"]


class Analysis(Protocol):
    """One question about a pair. Options are fields of a frozen dataclass; the docstring's first line is its help text.

    The call gets the pair's records as judged, --epsilon included, and reads sums that records do not hold from
    `measured.shifts[:, pair_index]`. It reads no files.
    """

    name: ClassVar[str]
    flag: ClassVar[str]

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """The answer as JSON values, with findings."""


ANALYSES: dict[str, type[LayerImpact] | type[ChangeSummary]] = {
    "layer_impact": LayerImpact,
    "change_summary": ChangeSummary,
}

NOT_YET = {
    "--quantization-analysis": "compression, SQNR and clipping of a quantised checkpoint against its original",
    "--architecture-comparison": "family, depth, widths, heads and experts of both sides, from names and shapes",
    "--memory-analysis": "bytes of weights, optimiser state and KV cache",
    "--anomaly-detection": "dead, constant, exploding and non-finite tensors",
    "--convergence-analysis": "trend of the updates over a series of checkpoints",
    "--gradient-analysis": "signal and noise of gradients, from optimiser state",
    "--similarity-matrix": "how alike the checkpoints of a group are",
}
