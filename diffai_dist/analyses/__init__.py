"""Questions answered from measurements, one per file: `ANALYSES` of a pair, `SERIES` of checkpoints and their order."""

from __future__ import annotations

from diffai_dist.analyses.anomaly_detection import AnomalyDetection
from diffai_dist.analyses.architecture_comparison import ArchitectureComparison
from diffai_dist.analyses.attention_analysis import AttentionAnalysis
from diffai_dist.analyses.base import Analysis, SeriesAnalysis
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.convergence_analysis import ConvergenceAnalysis
from diffai_dist.analyses.corruption_check import CorruptionCheck
from diffai_dist.analyses.distribution_shift import DistributionShift
from diffai_dist.analyses.duplicate_detection import DuplicateDetection
from diffai_dist.analyses.embedding_analysis import EmbeddingAnalysis
from diffai_dist.analyses.experiment_reproducibility import ExperimentReproducibility
from diffai_dist.analyses.expert_analysis import ExpertAnalysis
from diffai_dist.analyses.gradient_analysis import GradientAnalysis
from diffai_dist.analyses.integrity_check import IntegrityCheck
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.memory_analysis import MemoryAnalysis
from diffai_dist.analyses.precision_audit import PrecisionAudit
from diffai_dist.analyses.quantization_analysis import QuantizationAnalysis
from diffai_dist.analyses.similarity_matrix import SimilarityMatrix
from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.analyses.staleness_check import StalenessCheck
from diffai_dist.analyses.tensor_matching import TensorMatching
from diffai_dist.analyses.transfer_learning_analysis import TransferLearningAnalysis
from diffai_dist.analyses.update_anomaly import UpdateAnomaly
from diffai_dist.analyses.update_sparsity import UpdateSparsity

__all__ = ["ANALYSES", "SERIES", "Analysis", "SeriesAnalysis", "sort_by_change"]

ANALYSES: dict[str, type[Analysis]] = {
    "layer_impact": LayerImpact,
    "change_summary": ChangeSummary,
    "tensor_matching": TensorMatching,
    "quantization_analysis": QuantizationAnalysis,
    "update_sparsity": UpdateSparsity,
    "transfer_learning_analysis": TransferLearningAnalysis,
    "experiment_reproducibility": ExperimentReproducibility,
    "corruption_check": CorruptionCheck,
    "distribution_shift": DistributionShift,
    "embedding_analysis": EmbeddingAnalysis,
    "attention_analysis": AttentionAnalysis,
    "expert_analysis": ExpertAnalysis,
}

SERIES: dict[str, type[SeriesAnalysis]] = {
    "staleness_check": StalenessCheck,
    "anomaly_detection": AnomalyDetection,
    "update_anomaly": UpdateAnomaly,
    "similarity_matrix": SimilarityMatrix,
    "convergence_analysis": ConvergenceAnalysis,
    "gradient_analysis": GradientAnalysis,
    "precision_audit": PrecisionAudit,
    "duplicate_detection": DuplicateDetection,
    "integrity_check": IntegrityCheck,
    "architecture_comparison": ArchitectureComparison,
    "memory_analysis": MemoryAnalysis,
}
