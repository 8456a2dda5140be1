"""What was trained and what was left alone: the map of frozen and moved tensors, and what kind of training fits it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST, bounded
from diffai_dist.analyses.moves import (
    REINITIALISED_COSINE,
    Moves,
    Part,
    by_role,
    changed_share,
    moves_of,
    reinitialised,
    runs,
)
from diffai_dist.analyses.regimes import regime
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Severity, TensorRecord

_FINE_TO_DRAW = ("head", "router", "embed")  # what transfer learning draws anew on purpose, for another task


@dataclass(frozen=True)
class TransferLearningAnalysis:
    """Which tensors were frozen or trained, and what kind of training that looks like.

    Frozen tensors have the baseline's values, bit for bit, or exactly in another dtype. A regime is a label for the
    evidence listed with it, the first of these that holds: adapter (matrices of LoRA), identical, quantised (all
    that moved is held as codes, by the candidate alone), vocabulary-grown,
    decay-only (all that moved is c times what it was, 1 - cos below 1e-7, c below 1 and within 10 % one number),
    norms-and-biases-only, head-only, embeddings-only, re-initialised, lora-like (matrices of some roles moved in 9 of
    10 of the blocks that have them, and nothing else; the rank of the change is not measured), partly-frozen, sparse
    (at most 30 % of all elements changed, in nearly all tensors), dense, unchanged (what both sides have is the same).
    """

    name: ClassVar[str] = "transfer_learning_analysis"
    flag: ClassVar[str] = "--transfer-learning-analysis"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "regime": "the label; null where nothing can be compared",
        "frozen": "compared tensors that have the baseline's values",
        "moved": "compared tensors that have not",
        "frozen_elements_fraction": "elements in frozen tensors / elements compared",
        "changed_fraction": "elements that changed, in bits where dtypes are equal / elements compared",
        "state": "tensors of optimizers and saved gradients, which are in none of the numbers",
        "adapters": "matrices B of LoRA in the candidate",
        "untrained_adapters": "those of them that are all zeros",
        "evidence": "what the label rests on, and what qualifies it",
        "roles": "tensors that moved and that did not, by role",
        "blocks": f"which roles moved in which blocks, neighbours alike in one row; the first {MOST}",
        "reinitialised": f"matrices that point elsewhere, as long as before; the first {MOST}, 1 - cos and |b| / |a|",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "untrained-adapter": "every matrix B of the candidate's LoRA is 0, as at its start, and changes nothing: high",
        "re-initialised": "|cos| of a matrix of 1,024 elements and more below unrelated, as long to 25 %: info; "
        "high where the median of the other matrices is within stayed, and it is no head, router, embedding",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "bit-identical tensors are frozen: exact",
        "LoRA adds B A, which is 0 where B is: derived",
        "reinforcement learning changes 5 to 30 % of parameters: 2505.11711, published; that sparse is at most that: "
        "judgement",
    )

    unrelated: float = threshold(
        REINITIALISED_COSINE, "|cos| below which a matrix is no continuation of the baseline's"
    )
    stayed: float = threshold(0.05, "largest median 1 - cos of the other matrices that makes one re-initialised odd")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Labels from the bits, angles and lengths of all tensors."""
        moves = moves_of(measured, pair_index, records)
        label, evidence = regime(moves)
        drawn = reinitialised(moves, self.unrelated)
        elements = sum(one.elements for one in moves.parts)
        result: dict[str, Any] = {
            "regime": label,
            "frozen": len(moves.frozen),
            "moved": len(moves.moved),
            "frozen_elements_fraction": sum(one.elements for one in moves.frozen) / elements if elements else None,
            "changed_fraction": changed_share(moves.parts),
            "state": moves.state,
            "adapters": len(moves.adapters),
            "untrained_adapters": len(moves.untrained),
            "evidence": evidence,
            "roles": by_role(moves),
            "blocks": [row for row, _ in zip(runs(moves), range(MOST), strict=False)],
            "reinitialised": [_row(one) for one in drawn[:MOST]],
        }
        return AnalysisRecord(self.name, result, tuple(bounded(self._findings(moves, drawn))))

    def _findings(self, moves: Moves, drawn: Sequence[Part]) -> Iterator[Finding]:
        if moves.adapters and len(moves.untrained) == len(moves.adapters):
            source = "zeros of every matrix B, with which LoRA adds nothing"
            yield Finding("untrained-adapter", "high", moves.untrained[0], len(moves.untrained), 0, source)
        odd = self._others_stayed(moves, drawn)
        for one in drawn:
            severity: Severity = "high" if odd and one.role not in _FINE_TO_DRAW else "info"
            cosine = 1 - (one.cosine_distance or 0.0)
            yield finding(self, "re-initialised", severity, one.name, cosine, "unrelated")

    def _others_stayed(self, moves: Moves, drawn: Sequence[Part]) -> bool:
        names = {one.name for one in drawn}
        others = [one for one in moves.parts if len(one.shape) > 1 and one.name not in names]
        angles = sorted(one.cosine_distance for one in others if one.cosine_distance is not None)
        return bool(angles) and angles[len(angles) // 2] <= self.stayed


def _row(one: Part) -> dict[str, Any]:
    keys = {"tensor": one.name, "role": one.role, "block": one.block}
    return {**keys, "cosine_distance": one.cosine_distance, "length_ratio": one.length}
