"""Embeddings and heads of a pair, token by token, and whether they are one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffai_dist.analyses.expected import is_table, may_be_zero
from diffai_dist.analyses.lines import Lines, number, row_lines, tensor_lines
from diffai_dist.analyses.roles import role
from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import Family
from diffai_dist.records import Measurements

_LEAST_PART = 0.5  # of the embedding's rows that a head over the same vocabulary has; classifiers have a few


@dataclass(frozen=True)
class Tie:
    """How embedding and head of one member hang together; None where that is not known."""

    embedding: str | None
    head: str | None
    by_file: bool | None
    by_value: bool | None
    by_config: bool | None
    zero_head: bool
    places: tuple[int | None, int | None] = (None, None)  # of embedding and head among the aligned tensors


class Vocabulary:
    """What rows tell about the two sides of a pair."""

    def __init__(self, measured: Measurements, pair_index: int) -> None:
        self.measured, self.pair_index = measured, pair_index
        pair = measured.comparison.pairs[pair_index]
        self.members = (pair.baseline, pair.candidate)

    @cached_property
    def tensors(self) -> list[int]:
        """Embeddings of tokens, and heads, by index: matrices, not tables of positions nor of types."""
        return [tensor for tensor in self._named if self._wide(tensor, self.members)]

    @cached_property
    def _named(self) -> list[int]:
        kinds = ("embed", "head")
        names = [aligned.name for aligned in self.measured.comparison.aligned]
        return [
            tensor for tensor, name in enumerate(names)
            if role(name) in kinds and not is_table(name) and not may_be_zero(name)
        ]  # fmt: skip

    @cached_property
    def paired(self) -> list[int]:
        """Those whose rows were compared."""
        return [tensor for tensor in self.tensors if row_lines(self.measured, tensor, self.pair_index) is not None]

    def table(self, tensor: int, decay: float) -> dict[str, Any]:
        """How many rows of a tensor moved, and how far."""
        lines, shift = self._lines(tensor), self.measured.details.row_shifts[tensor, self.pair_index]
        changed = shift["changed"] > 0
        decayed = changed & (lines.cosine_distance < decay) & (lines.norm_ratio < 1.0)
        known = lines.rel_l2[np.isfinite(lines.rel_l2)]
        return {
            "tensor": self._name(tensor),
            "rows": len(shift),
            "changed_rows": int(changed.sum()),
            "never_updated": int((~changed).sum()) if changed.any() else 0,
            "decay_only": int(decayed.sum()),
            "median_rel_l2": number(np.median(known)) if known.size else None,
            "largest_rel_l2": number(known.max()) if known.size else None,
        }

    def top(self, count: int) -> list[dict[str, Any]]:
        """The rows that moved furthest for their length, of all tensors."""
        found: list[tuple[float, int, int]] = []
        for tensor in self.paired:
            far = np.nan_to_num(self._lines(tensor).rel_l2)
            furthest = np.argsort(-far, kind="stable")[:count].tolist()
            found += [(-float(far[token]), tensor, token) for token in furthest if far[token] > 0.0]
        return [self._token_row(tensor, token) for _, tensor, token in sorted(found)[:count]]

    def resized(self) -> Iterator[dict[str, Any]]:
        """Tensors with as many columns and another number of rows."""
        for tensor in self.tensors:
            a, b = (self._tensor(tensor, member) for member in self.members)
            if a is None or b is None or a.shape[1:] != b.shape[1:] or a.shape[0] == b.shape[0]:
                continue
            tables = [self.measured.details.rows.get((tensor, member)) for member in self.members]
            numbers = {"baseline_rows": a.shape[0], "candidate_rows": b.shape[0]}
            yield {"tensor": self._name(tensor), **numbers, **_new_rows(*tables)}

    def undertrained(self, share: float) -> list[dict[str, Any]] | None:
        """Rows within the lowest share of the norms of the candidate's embedding, shortest first; not those of 0."""
        member = self.members[1]
        place = self.tie(member).places[0]
        table = None if place is None else self.measured.details.rows.get((place, member))
        if place is None or table is None:
            return None
        norms = np.sqrt(table["squares"])
        telling = np.flatnonzero((norms > 0.0) & np.isfinite(norms))
        middle = float(np.median(norms[telling])) if telling.size else 0.0
        order = telling[np.argsort(norms[telling], kind="stable")][: int(share * len(norms))]
        found = zip(order.tolist(), norms[order].tolist(), strict=True)
        name = self._name(place)
        return [{"tensor": name, "token": token, "norm": norm, "of_median": norm / middle} for token, norm in found]

    def tie(self, member: int) -> Tie:
        """Embedding and head of a member: the largest of each over the same width."""
        found = {kind: [t for t in self._held(member) if role(self._name(t)) == kind] for kind in ("embed", "head")}
        embedding = max(found["embed"], key=lambda one: (self._shape(one, member)[0], -one), default=None)
        if embedding is None:
            return Tie(None, None, None, None, self._by_config(member), False)
        rows, width = self._shape(embedding, member)
        heads = [t for t in found["head"] if self._shape(t, member)[1] == width]
        heads = [t for t in heads if self._shape(t, member)[0] >= _LEAST_PART * rows]
        if not heads:
            complete = not self.measured.comparison.members[member].unknown
            return Tie(
                self._name(embedding), None, complete or None, None, self._by_config(member), False, (embedding, None)
            )
        head = max(heads, key=lambda one: (self._shape(one, member)[0], -one))
        row = self.measured.moments[head, member]
        zero = bool(self._known(head, member) and row["zeros"] == row["count"])
        value, config = self._same(embedding, head, member), self._by_config(member)
        return Tie(self._name(embedding), self._name(head), False, value, config, zero, (embedding, head))

    def cosines(self, baseline: Tie, candidate: Tie) -> tuple[str, float, float] | None:
        """The head's name, and the cosines of heads and of embeddings between both sides; None where unknown."""
        if baseline.places != candidate.places or None in candidate.places or candidate.head is None:
            return None
        found = []
        for tensor in candidate.places:
            shift = self.measured.shifts[tensor, self.pair_index]
            if tensor is None or not shift["both"]:
                return None
            found.append(number(tensor_lines(self.measured, tensor, self.pair_index).cosine[0]))
        embeddings, heads = found
        return None if embeddings is None or heads is None else (candidate.head, heads, embeddings)

    def _token_row(self, tensor: int, token: int) -> dict[str, Any]:
        lines = self._lines(tensor)
        return {
            "tensor": self._name(tensor),
            "token": token,
            "rel_l2": number(lines.rel_l2[token]),
            "cosine_distance": number(lines.cosine_distance[token]),
            "norm_ratio": number(lines.norm_ratio[token]),
        }

    def _same(self, embedding: int, head: int, member: int) -> bool | None:
        """Whether both hold the same bits, of what was read of both."""
        content, moments = self.measured.details.content, self.measured.moments
        one, other = (self._tensor(tensor, member) for tensor in (embedding, head))
        if one is None or other is None or not (self._known(embedding, member) and self._known(head, member)):
            return None
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        if moments[embedding, member].tobytes() != moments[head, member].tobytes():
            return False
        if content is None:
            return None
        return bool(content["digest"][embedding, member] == content["digest"][head, member])

    def _by_config(self, member: int) -> bool | None:
        """What config.json says, of the language model where it has parts; else the metadata of the file."""
        checkpoint = self.measured.comparison.members[member]
        config: Mapping[str, Any] = checkpoint.config or {}
        text = config.get("text_config")
        for part in (text if isinstance(text, Mapping) else {}, config):
            if isinstance(found := part.get("tie_word_embeddings"), bool):
                return found
        return {"true": True, "false": False}.get(str(checkpoint.metadata.get("tie_word_embeddings")).lower())

    def _held(self, member: int) -> list[int]:
        """Those of a member, which may be none of the pair; what a third one has in another shape hides none."""
        judged = (*self.members, member)
        return [one for one in self._named if self._tensor(one, member) is not None and self._wide(one, judged)]

    def _lines(self, tensor: int) -> Lines:
        found = row_lines(self.measured, tensor, self.pair_index)
        if found is None:
            raise ValueError(f"rows of {self._name(tensor)} were not measured")
        return found

    def _known(self, tensor: int, member: int) -> bool:
        one = self._tensor(tensor, member)
        whole = one is not None and self.measured.moments[tensor, member]["count"] == one.counted
        return bool(whole) and (tensor, member) not in self.measured.failures

    def _wide(self, tensor: int, members: Sequence[int]) -> bool:
        held = [one for one in (self._tensor(tensor, member) for member in members) if one is not None]
        return all(len(one.shape) == 2 and one.decoder.family <= Family.DOUBLE for one in held)

    def _tensor(self, tensor: int, member: int) -> Tensor | None:
        return self.measured.comparison.aligned[tensor].tensors[member]

    def _shape(self, tensor: int, member: int) -> tuple[int, int]:
        one = self._tensor(tensor, member)
        return (one.shape[0], one.shape[1]) if one else (0, 0)

    def _name(self, tensor: int) -> str:
        return self.measured.comparison.aligned[tensor].name


def _new_rows(before: np.ndarray | None, after: np.ndarray | None) -> dict[str, Any]:
    """What statistics tell about the rows that only one side has, and those that both have."""
    if before is None or after is None:
        return dict.fromkeys(("same_statistics", "new_zero", "new_equal", "norm_ratio"))
    shared = min(len(before), len(after))
    new, old = after[shared:], after[:shared]
    telling = new[new["absmax"] > 0.0]
    middle = float(np.median(np.sqrt(old["squares"]))) if len(old) else 0.0
    ratio = float(np.median(np.sqrt(new["squares"]))) / middle if len(new) and middle else None
    return {
        "same_statistics": int((before[:shared] == old).sum()),
        "new_zero": len(new) - len(telling),
        "new_equal": len(telling) - len({row.tobytes() for row in telling}),
        "norm_ratio": ratio,
    }
