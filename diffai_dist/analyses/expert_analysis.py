"""Which experts of a mixture moved, which are the same, dead, or no longer those of the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import gathered
from diffai_dist.analyses.telling import told_here
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.experts import Experts, Layer

_ROWS = 20  # of the table of experts
_LAYERS = 200
_TOLD = 8  # numbers of experts in the source of a finding


@dataclass(frozen=True)
class ExpertAnalysis:
    """Expert by expert how far a mixture moved, and with it the router's row for each.

    Experts are numbered in names, or the first axis of a stack. An expert that was drawn anew, while the rest of the
    model is the baseline's, has a cosine near 0 to what it was and about its norm; one with exactly the baseline's norm
    and largest magnitude was rearranged: transposed, permuted, or swapped with another. Experts that are an earlier one
    again have the same bits; in stacks the same statistics of all rows, which is possible and no proof. How alike two
    experts are that differ is not measured: it takes the products of all pairs.
    """

    name: ClassVar[str] = "expert_analysis"
    flag: ClassVar[str] = "--expert-analysis"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("content", "rows")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "layers": "of each layer: layer, experts, stacked, smallest, median and largest rel_l2 = ‖d‖ / ‖a‖ of an"
        " expert, untouched experts, which did not move while others did, renewed and rearranged ones, identical and"
        " dead ones of the candidate, router_rel_l2 of the median expert's row; the first 200",
        "layers_of": "how many there are",
        "left_out": "tensors of experts that have not the parts of the others",
        "rest_cosine": "cosine of baseline and candidate over all other matrices; null for none",
        "experts": "the 20 experts that moved furthest: layer, expert, rel_l2, cosine_distance, norm_ratio,"
        " router_rel_l2",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "collapsed-experts": "experts of a layer with the same bits, which training would have parted: high",
        "possible-collapsed-experts": "experts of a stack with the same statistics of all rows: medium",
        "dead-experts": "experts of norm 0, or below `dead_ratio` times the median expert's: medium",
        "reinitialised-experts": "experts of |cos| below `renewed_cosine` to the baseline's, a norm between half and"
        " twice of it, in a model whose other matrices have a cosine above `kept_cosine`: high",
        "rearranged-experts": "the same with exactly the baseline's norm and largest magnitude: high",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "upcycled experts start identical and stay similar: 2604.13508 (published); cosines near 0 between experts are"
        " normal",
        "the spread of updates as a proxy of tokens received, and all limits: judgement, overridable",
    )

    dead_ratio: float = threshold(1e-3, "of the median expert's norm, below which an expert is dead")
    renewed_cosine: float = threshold(0.1, "|cos| to the baseline's expert, below which it is another one")
    kept_cosine: float = threshold(0.5, "cosine of all other matrices, above which the rest is the baseline's")
    listed: int = threshold(20, "findings of one rule, beyond which one counts them")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """A row per layer, and the experts that moved most."""
        from diffai_dist.analyses.experts import Experts  # brings NumPy, which --help does not need

        experts = Experts(measured, pair_index)
        every = [row for layer in experts.layers for row in _expert_rows(experts, layer)]
        result: dict[str, Any] = {
            "layers": [self._layer_row(experts, layer) for layer in experts.layers[:_LAYERS]],
            "layers_of": len(experts.layers),
            "left_out": experts.left_out,
            "rest_cosine": experts.rest_cosine,
            "experts": sorted(every, key=lambda row: -row["rel_l2"])[:_ROWS],
        }
        findings = [*self._broken(experts), *self._others(experts)]
        return AnalysisRecord(self.name, result, tuple(gathered(self, findings)))

    def _layer_row(self, experts: Experts, layer: Layer) -> dict[str, Any]:
        import numpy as np

        lines, router = experts.lines(layer), experts.router(layer)
        known = lines.rel_l2[np.isfinite(lines.rel_l2)]
        renewed, rearranged = self._strange(experts, layer)
        candidate = experts.members[1]
        return {
            "layer": layer.path,
            "experts": len(layer.numbers),
            "stacked": layer.stacked,
            "smallest_rel_l2": float(known.min()) if known.size else None,
            "median_rel_l2": float(np.median(known)) if known.size else None,
            "largest_rel_l2": float(known.max()) if known.size else None,
            "untouched": int((known == 0.0).sum()) if known.any() else 0,
            "renewed": len(renewed),
            "rearranged": len(rearranged),
            "identical": len(experts.identical(layer, candidate)),
            "dead": len(self._dead(experts, layer, candidate)),
            "router_rel_l2": None if router is None or not np.isfinite(router).all() else float(np.median(router)),
        }

    def _strange(self, experts: Experts, layer: Layer) -> tuple[list[int], list[int]]:
        """Numbers of the experts that were drawn anew, and of those that were rearranged."""
        import numpy as np

        if experts.rest_cosine is None or experts.rest_cosine <= self.kept_cosine:
            return [], []
        lines = experts.lines(layer)
        with np.errstate(invalid="ignore"):
            other = (np.abs(lines.cosine) < self.renewed_cosine) & (lines.norm_ratio > 0.5) & (lines.norm_ratio < 2.0)
        same = experts.rearranged(layer)
        return _numbers(layer, other & ~same), _numbers(layer, other & same)

    def _dead(self, experts: Experts, layer: Layer, member: int) -> list[int]:
        import numpy as np

        norms = np.sqrt(experts.squares(layer, member))
        known = np.isfinite(norms)
        if not norms[known].any():
            return []
        least = self.dead_ratio * float(np.median(norms[known]))
        with np.errstate(invalid="ignore"):
            return _numbers(layer, known & ((norms == 0.0) | (norms < least)))

    def _broken(self, experts: Experts) -> Iterator[Finding]:
        """What is wrong with one side by itself."""
        pairs = experts.measured.comparison.pairs
        for layer in experts.layers:
            for side, rule, numbers in told_here(pairs, experts.pair_index, self._problems(experts, layer)):
                words = f"of the {side}: {_listed(numbers)} of {len(layer.numbers)} experts"
                if rule == "dead-experts":
                    told = finding(self, rule, "medium", layer.path, len(numbers), "dead_ratio")
                    yield replace(told, threshold=0, source=f"{words}, {told.source}")
                elif layer.stacked:
                    source = f"{words} have the statistics of earlier ones in all rows; bits were not compared"
                    yield Finding(f"possible-{rule}", "medium", layer.path, len(numbers), 0, source)
                else:
                    yield Finding(rule, "high", layer.path, len(numbers), 0, f"{words} have the bits of earlier ones")

    def _problems(self, experts: Experts, layer: Layer) -> Callable[[int], dict[str, list[int]]]:
        def problems(member: int) -> dict[str, list[int]]:
            found = {
                "collapsed-experts": experts.identical(layer, member),
                "dead-experts": self._dead(experts, layer, member),
            }
            return {rule: numbers for rule, numbers in found.items() if numbers}

        return problems

    def _others(self, experts: Experts) -> Iterator[Finding]:
        """Experts that are not the baseline's any more."""
        for layer in experts.layers:
            found = zip(("reinitialised-experts", "rearranged-experts"), self._strange(experts, layer), strict=True)
            for rule, numbers in found:
                if numbers:
                    told = finding(self, rule, "high", layer.path, len(numbers), "renewed_cosine")
                    words = f"{_listed(numbers)} of {len(layer.numbers)} experts have |cos| below {told.threshold} to"
                    rest = f"the baseline's, all other matrices {experts.rest_cosine:.4g}; {told.source}"
                    yield replace(told, threshold=0, source=f"{words} {rest}")


def _expert_rows(experts: Experts, layer: Layer) -> Iterator[dict[str, Any]]:
    from diffai_dist.analyses.lines import number

    lines, router = experts.lines(layer), experts.router(layer)
    rel_l2, distance, ratio = lines.rel_l2, lines.cosine_distance, lines.norm_ratio
    for place, name in enumerate(layer.numbers):
        if (moved := number(rel_l2[place])) is not None:
            yield {
                "layer": layer.path,
                "expert": name,
                "rel_l2": moved,
                "cosine_distance": number(distance[place]),
                "norm_ratio": number(ratio[place]),
                "router_rel_l2": None if router is None else number(router[place]),
            }


def _numbers(layer: Layer, chosen: np.ndarray) -> list[int]:
    return [number for number, one in zip(layer.numbers, chosen.tolist(), strict=True) if one]


def _listed(numbers: Sequence[int]) -> str:
    """The first numbers, and how many there are.

    >>> _listed([2, 5]), _listed(range(10))
    ('2 (2, 5)', '10 (0, 1, 2, 3, 4, 5, 6, 7, ...)')
    """
    more = ", ..." if len(numbers) > _TOLD else ""
    return f"{len(numbers)} ({', '.join(map(str, numbers[:_TOLD]))}{more})"
