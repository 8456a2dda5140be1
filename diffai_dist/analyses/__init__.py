"""Questions answered from measurements, one per file: `ANALYSES` of a pair, `SERIES` of checkpoints and their order."""

from __future__ import annotations

from diffai_dist.analyses.anomaly_detection import AnomalyDetection
from diffai_dist.analyses.base import Analysis, SeriesAnalysis
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.convergence_analysis import ConvergenceAnalysis
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.similarity_matrix import SimilarityMatrix
from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.analyses.staleness_check import StalenessCheck
from diffai_dist.analyses.update_anomaly import UpdateAnomaly

__all__ = ["ANALYSES", "SERIES", "Analysis", "SeriesAnalysis", "sort_by_change"]

ANALYSES: dict[str, type[Analysis]] = {
    "layer_impact": LayerImpact,
    "change_summary": ChangeSummary,
}

SERIES: dict[str, type[SeriesAnalysis]] = {
    "staleness_check": StalenessCheck,
    "anomaly_detection": AnomalyDetection,
    "update_anomaly": UpdateAnomaly,
    "similarity_matrix": SimilarityMatrix,
    "convergence_analysis": ConvergenceAnalysis,
}
