"""Questions answered from measurements, one per file: `ANALYSES` of a pair, `SERIES` of checkpoints and their order."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from diffai_dist.analyses.base import Analysis, SeriesAnalysis

__all__ = ["ANALYSES", "EVERY", "SERIES", "Listed", "Registry"]

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Listed:
    """What a command line has to know of an analysis before anybody asks for it."""

    flag: str
    kind: str  # its class, in the module of the analysis' name
    help: str  # the first line of its docstring


class Registry(Mapping[str, Kind], Generic[Kind]):
    """Classes by the names of their analyses, each loaded when it is looked up: all of them are some 60 modules.

    >>> ANALYSES["layer_impact"].flag == ANALYSES.listed["layer_impact"].flag
    True
    """

    def __init__(self, listed: dict[str, Listed]) -> None:
        self.listed = listed

    def __getitem__(self, name: str) -> Kind:
        listed = self.listed[name]
        kind: Kind = getattr(importlib.import_module(f"{__name__}.{name}"), listed.kind)
        return kind

    def __contains__(self, name: object) -> bool:
        return name in self.listed

    def __iter__(self) -> Iterator[str]:
        return iter(self.listed)

    def __len__(self) -> int:
        return len(self.listed)


ANALYSES: Registry[type[Analysis]] = Registry(
    {
        "layer_impact": Listed(
            "--show-layer-impact",
            "LayerImpact",
            "Which layers changed most: share of the squared displacement per block and role.",
        ),
        "change_summary": Listed(
            "--change-summary",
            "ChangeSummary",
            "Counts, size of the whole change, top movers, share by role, and findings, on one screen.",
        ),
        "tensor_matching": Listed(
            "--tensor-matching",
            "TensorMatching",
            "Which tensor is which under other names, fused, split, transposed, permuted or exchanged.",
        ),
        "quantization_analysis": Listed(
            "--quantization-analysis",
            "QuantizationAnalysis",
            "How much precision a quantised checkpoint lost, against theory for its bits, and what it saves.",
        ),
        "update_sparsity": Listed(
            "--update-sparsity",
            "UpdateSparsity",
            "Which share of the weights changed, and how much of that is more than rounding would show.",
        ),
        "transfer_learning_analysis": Listed(
            "--transfer-learning-analysis",
            "TransferLearningAnalysis",
            "Which tensors were frozen or trained, and what kind of training that looks like.",
        ),
        "experiment_reproducibility": Listed(
            "--experiment-reproducibility",
            "ExperimentReproducibility",
            "Whether a run was reproduced: share of equal bits, distances in units in the last place, first "
            "difference.",
        ),
        "corruption_check": Listed(
            "--corruption-check",
            "CorruptionCheck",
            "Damage to bytes of the candidate: lone giants, flipped bits, zeroed runs, unwritten tails, rows "
            "out of place.",
        ),
        "distribution_shift": Listed(
            "--distribution-shift",
            "DistributionShift",
            "How far the distribution of values moved: KS, Wasserstein, Jensen-Shannon, PSI, effect size, quantiles.",
        ),
        "embedding_analysis": Listed(
            "--embedding-analysis",
            "EmbeddingAnalysis",
            "Token by token what changed in embeddings and heads, and the tie between the two: by file, by "
            "value, by config.",
        ),
        "attention_analysis": Listed(
            "--attention-analysis",
            "AttentionAnalysis",
            "Head by head how far queries, keys, values and outputs moved, and the share of the layer's norm "
            "that a head has.",
        ),
        "expert_analysis": Listed(
            "--expert-analysis",
            "ExpertAnalysis",
            "Expert by expert how far a mixture moved, and with it the router's row for each.",
        ),
    }
)

SERIES: Registry[type[SeriesAnalysis]] = Registry(
    {
        "staleness_check": Listed(
            "--staleness-check",
            "StalenessCheck",
            "Checkpoints, shards and tensors that were not rewritten while the rest moved on.",
        ),
        "anomaly_detection": Listed(
            "--anomaly-detection",
            "AnomalyDetection",
            "Where numbers go wrong: NaN, dead rows, constant tensors, exploding norms, layers out of line, "
            "near overflow.",
        ),
        "update_anomaly": Listed(
            "--update-anomaly",
            "UpdateAnomaly",
            "Updates of single layers, or of the whole model, that jump out of their series.",
        ),
        "similarity_matrix": Listed(
            "--similarity-matrix",
            "SimilarityMatrix",
            "How alike the checkpoints of a group are: cosine and relative distance of each two, overall and per role.",
        ),
        "convergence_analysis": Listed(
            "--convergence-analysis",
            "ConvergenceAnalysis",
            "Whether updates shrink or grow over a series, path against displacement, angles of updates, "
            "laws of distance.",
        ),
        "gradient_analysis": Listed(
            "--gradient-analysis",
            "GradientAnalysis",
            "Signal and noise of gradients, from Adam's state or saved gradients; else displacement alone.",
        ),
        "precision_audit": Listed(
            "--precision-audit",
            "PrecisionAudit",
            "Which dtypes hold which values: digits that are stored and empty, casts that lost values, mixes "
            "inside a role.",
        ),
        "duplicate_detection": Listed(
            "--duplicate-detection",
            "DuplicateDetection",
            "Tensors of one checkpoint that hold the same bits, and the bytes that storing them once would save.",
        ),
        "integrity_check": Listed(
            "--integrity-check",
            "IntegrityCheck",
            "Broken and missing shards, an index that does not fit its shards, parts of other saves, tensors "
            "without elements.",
        ),
        "architecture_comparison": Listed(
            "--architecture-comparison",
            "ArchitectureComparison",
            "Family, depth, widths, heads, experts and vocabulary of each member, and the tensors that "
            "neighbours differ in.",
        ),
        "memory_analysis": Listed(
            "--memory-analysis",
            "MemoryAnalysis",
            "Exact bytes of weights by dtype and role, estimates with their formulas and inputs, and savings "
            "that are proven.",
        ),
    }
)

EVERY: Registry[Any] = Registry(ANALYSES.listed | SERIES.listed)
