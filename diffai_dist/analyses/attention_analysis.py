"""Which attention heads moved, and which of them reach the rest of the model at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import gathered
from diffai_dist.analyses.telling import told_here
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord

if TYPE_CHECKING:
    from diffai_dist.analyses.heads import Heads, Layer

_ROWS = 20  # of the table of heads
_LAYERS = 200


@dataclass(frozen=True)
class AttentionAnalysis:
    """Head by head how far queries, keys, values and outputs moved, and the share of the layer's norm that a head has.

    Rows of q, k and v belong to heads of equal size, columns of o likewise; heads of k and v serve groups of those of
    q. The size of a head is that of --architecture-comparison, from q_norm and k_norm, config.json or inv_freq; else it
    is assumed, and `source` says so. Fused and latent projections are left out, and counted. Shares of norms are a
    proxy: which head matters, and what it attends to, needs data.
    """

    name: ClassVar[str] = "attention_analysis"
    flag: ClassVar[str] = "--attention-analysis"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("config", "rows", "columns")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "layers": "of each attention with projections of its own: layer, heads, kv_heads, head_size, source of the"
        " size, largest_rel_l2 of a head and which head that is, dead heads of the candidate, qk_growth = ‖W_q‖‖W_k‖"
        " of the candidate / the baseline; the first 200",
        "layers_of": "how many there are",
        "left_out": "attentions whose shapes fit no size of a head; fused and latent ones are not among them",
        "heads": "the 20 heads that moved furthest: layer, head, rel_l2 = ‖d‖ / ‖a‖ over its rows of q, the rows of k"
        " and v that its group shares, and its columns of o; the same of each part; q_cosine_distance; norm_share ="
        " ‖W_o‖‖W_v‖ of the candidate's head / the sum over the layer's heads",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "dead-head": "the norm of a head's columns of o is 0, or below `dead_ratio` times that of the median head:"
        " medium",
        "qk-growth": "‖W_q‖‖W_k‖ of a layer grew by more than `qk_growth`: info; logits of attention may grow with it",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "heads as runs of rows and columns: format of multi-head and grouped-query attention",
        "dead heads by norm, growth of ‖W_q‖‖W_k‖: judgement, overridable; no claim about what a head does",
    )

    dead_ratio: float = threshold(1e-3, "of the median head's norm of output columns, below which a head is dead")
    qk_growth: float = threshold(2.0, "factor of ‖W_q‖‖W_k‖ from baseline to candidate, above which it is told")
    listed: int = threshold(20, "findings of one rule, beyond which one counts them")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """A row per layer, and the heads that moved most."""
        from diffai_dist.analyses.heads import Heads  # brings NumPy, which --help does not need

        heads = Heads(measured, pair_index)
        tables = [(layer, list(_head_rows(heads, layer))) for layer in heads.layers]
        rows = [self._layer_row(heads, layer, found) for layer, found in tables]
        every = [row for _, found in tables for row in found if row["rel_l2"] is not None]
        result: dict[str, Any] = {
            "layers": rows[:_LAYERS],
            "layers_of": len(rows),
            "left_out": len(heads.unknown),
            "heads": sorted(every, key=lambda row: -row["rel_l2"])[:_ROWS],
        }
        findings = [*self._dead(heads), *self._growing(rows)]
        return AnalysisRecord(self.name, result, tuple(gathered(self, findings)))

    def _layer_row(self, heads: Heads, layer: Layer, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        from diffai_dist.analyses.lines import number, tensor_lines

        known = [row for row in found if row["rel_l2"] is not None]
        furthest = max(known, key=lambda row: row["rel_l2"], default=None)
        growth = 1.0
        for part in ("q", "k"):
            growth *= float(tensor_lines(heads.measured, layer.parts[part], heads.pair_index).norm_ratio[0])
        return {
            "layer": layer.path,
            "heads": layer.heads,
            "kv_heads": layer.groups,
            "head_size": layer.size,
            "source": layer.source,
            "largest_rel_l2": None if furthest is None else furthest["rel_l2"],
            "head": None if furthest is None else furthest["head"],
            "dead": len(self._dead_heads(heads, layer, heads.members[1])),
            "qk_growth": number(growth),
        }

    def _dead_heads(self, heads: Heads, layer: Layer, member: int) -> list[tuple[int, float]]:
        """Heads, and their norm of output columns by that of the median head."""
        import numpy as np

        squares = heads.outward(layer, member)
        if squares is None or layer.heads < 2 or heads.spoiled(layer, member):
            return []
        norms = np.sqrt(squares)
        middle = float(np.median(norms))
        dead = np.flatnonzero((norms == 0.0) | (norms < self.dead_ratio * middle)).tolist() if norms.any() else []
        return [(head, float(norms[head]) / middle if middle else 0.0) for head in dead]

    def _dead(self, heads: Heads) -> Iterator[Finding]:
        for layer in heads.layers:

            def problems(member: int, layer: Layer = layer) -> dict[str, tuple[int, float]]:
                return {str(head): (head, ratio) for head, ratio in self._dead_heads(heads, layer, member)}

            for side, _, (head, ratio) in told_here(heads.measured.comparison.pairs, heads.pair_index, problems):
                tensor = heads.measured.comparison.aligned[layer.parts["o"]].name
                told = finding(self, "dead-head", "medium", tensor, ratio, "dead_ratio")
                size = f"size {layer.size} {layer.source}"
                words = (
                    f"of the {side}, head {head} of {layer.heads} ({size}): norm of its columns by the median head's"
                )
                yield replace(told, source=f"{words}; {told.source}")

    def _growing(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        for row in rows:
            if row["qk_growth"] is not None and row["qk_growth"] > self.qk_growth:
                yield finding(self, "qk-growth", "info", row["layer"], row["qk_growth"], "qk_growth")


def _head_rows(heads: Heads, layer: Layer) -> Iterator[dict[str, Any]]:
    """How far each head moved; nothing where rows or columns were not measured, or hold what is not finite."""
    from diffai_dist.analyses.lines import Lines, number

    squares, change = heads.outward(layer, heads.members[0]), heads.outward_change(layer)
    if squares is None or change is None or any(heads.spoiled(layer, member) for member in heads.members):
        return
    lines = {"o": Lines(squares, squares, change, change)}  # of columns the angle is not measured
    for part, times in (("q", 1), ("k", layer.heads // layer.groups), ("v", layer.heads // layer.groups)):
        if (found := heads.lines(layer, part)) is None:
            return
        lines[part] = found.repeated(times)
    whole = lines["o"] + lines["q"] + lines["k"] + lines["v"]
    shares = heads.norm_shares(layer)
    for head in range(layer.heads):
        yield {
            "layer": layer.path,
            "head": head,
            "rel_l2": number(whole.rel_l2[head]),
            **{f"{part}_rel_l2": number(lines[part].rel_l2[head]) for part in "qkvo"},
            "q_cosine_distance": number(lines["q"].cosine_distance[head]),
            "norm_share": None if shares is None else number(shares[head]),
        }
