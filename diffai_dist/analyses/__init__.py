"""Questions answered from measurements, one per file: `ANALYSES` of a pair, `SERIES` of many, `NOT_YET` come later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from diffai_dist.analyses.anomaly_detection import AnomalyDetection
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.convergence_analysis import ConvergenceAnalysis
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.similarity_matrix import SimilarityMatrix
from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.analyses.staleness_check import StalenessCheck
from diffai_dist.analyses.update_anomaly import UpdateAnomaly
from diffai_dist.records import AnalysisRecord, Measurements, TensorRecord

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series

__all__ = ["ANALYSES", "NOT_YET", "SERIES", "Analysis", "SeriesAnalysis", "sort_by_change"]


class Analysis(Protocol):
    """One question about a pair. Options are fields of a frozen dataclass; the docstring's first line is its help text.

    The call gets the pair's records as judged, --epsilon included, and reads sums that records do not hold from
    `measured.shifts[:, pair_index]`. It reads no files.
    """

    name: ClassVar[str]
    flag: ClassVar[str]

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """The answer as JSON values, with findings."""


class SeriesAnalysis(Protocol):
    """One question about all members in their order. Its thresholds are fields, and findings say which one they passed.

    Without a flag it is asked of every sweep. `needs_gram` says whether the Gram of the group must be measured for it;
    the others use it where it is there.
    """

    name: ClassVar[str]
    flag: ClassVar[str | None]
    needs_gram: ClassVar[bool]

    def __call__(self, series: Series) -> AnalysisRecord:
        """The answer as JSON values, with findings."""


ANALYSES: dict[str, type[LayerImpact] | type[ChangeSummary]] = {
    "layer_impact": LayerImpact,
    "change_summary": ChangeSummary,
}

SERIES: dict[
    str,
    type[StalenessCheck]
    | type[AnomalyDetection]
    | type[UpdateAnomaly]
    | type[SimilarityMatrix]
    | type[ConvergenceAnalysis],
] = {
    "staleness_check": StalenessCheck,
    "anomaly_detection": AnomalyDetection,
    "update_anomaly": UpdateAnomaly,
    "similarity_matrix": SimilarityMatrix,
    "convergence_analysis": ConvergenceAnalysis,
}

NOT_YET = {
    "--quantization-analysis": "compression, SQNR and clipping of a quantised checkpoint against its original",
    "--architecture-comparison": "family, depth, widths, heads and experts of both sides, from names and shapes",
    "--memory-analysis": "bytes of weights, optimiser state and KV cache",
    "--anomaly-detection": "dead, constant and exploding tensors; a sweep finds non-finite values without it",
    "--gradient-analysis": "signal and noise of gradients, from optimiser state",
}
