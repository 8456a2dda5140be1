"""How each tensor of a pair moved, or did not, with the names that tell what it is for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffai_dist.analyses.roles import block, role
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.dtypes import Family
from diffai_dist.records import Measurements, TensorRecord

if TYPE_CHECKING:
    from diffai_dist.checkpoint import Tensor

# LoRA as PEFT, diffusers and kohya name its two matrices; the second starts at 0, so that training starts at the base.
_FIRST = re.compile(r"(?:^|[._])lora_(?:A|embedding_A|down)(?:[._]|$)")
_SECOND = re.compile(r"(?:^|[._])lora_(?:B|embedding_B|up)(?:[._]|$)")

_TELLING = 1024  # elements of a matrix whose angle means something: the cosine of random ones is 3 % or so

REINITIALISED_COSINE = 0.1
_SAME_LENGTH = 1.25  # of |b| / |a|, either way. Judgement
_SAME_VALUES = 1e-9  # of that ratio: the same values in other places, which nothing drew anew


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of both sides; it moved unless bits are equal, or values where dtypes are not."""

    name: str
    shape: tuple[int, ...]
    moved: bool
    retyped: bool
    quantised: bool  # whether the candidate alone holds it as codes
    elements: int
    changed: int
    cosine_distance: float | None
    factor: float  # c of b = c a + rest
    aside: float  # |rest|^2 / |d|^2: how much of the move is not along a
    length: float  # |b| / |a|
    role: str
    block: str


@dataclass(frozen=True, slots=True)
class Moves:
    """All tensors of a pair: those that can be compared, and names of the others by their status."""

    parts: tuple[Part, ...]
    others: Mapping[str, tuple[str, ...]]
    grown: tuple[tuple[str, int, int], ...]  # embeddings and heads with more rows than before; how many
    adapters: tuple[str, ...]  # second matrices of the candidate's adapters
    untrained: tuple[str, ...]  # those among them that are all zeros
    state: int  # tensors of optimizers and saved gradients, which turn over by themselves and are in nothing else

    @property
    def moved(self) -> list[Part]:
        """Those that are not frozen."""
        return [one for one in self.parts if one.moved]

    @property
    def frozen(self) -> list[Part]:
        """Those whose values are the baseline's."""
        return [one for one in self.parts if not one.moved]


def moves_of(measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> Moves:
    """What is known of each tensor of the pair."""
    from diffai_dist.analyses.optimizer_state import told  # brings NumPy, which --help does not need

    pair = measured.comparison.pairs[pair_index]
    by_name = {record.name: record for record in records}
    parts, others, grown = [], dict[str, list[str]](), []
    adapters, untrained, state = [], [], 0
    shifts = {key: measured.shifts[key][:, pair_index].tolist() for key in _SUMS}
    for i, aligned in enumerate(measured.comparison.aligned):
        record = by_name.get(aligned.name)
        before, after = aligned.tensors[pair.baseline], aligned.tensors[pair.candidate]
        if record is None:
            continue
        if is_state(aligned.name) or told(aligned.name)[0]:
            state += 1
            continue
        if after and _SECOND.search(aligned.name) and (count := int(measured.moments["count"][i, pair.candidate])):
            adapters.append(aligned.name)
            untrained += [aligned.name] * (int(measured.moments["zeros"][i, pair.candidate]) == count)
        if record.change is not None and before and after and after.decoder.family != Family.BYTES:
            parts.append(_part({key: column[i] for key, column in shifts.items()}, record, before, after))
        elif record.status == "incomparable" and before and after and _is_grown(before, after):
            grown.append((aligned.name, before.shape[0], after.shape[0]))
        elif record.change is None:
            others.setdefault(record.status, []).append(aligned.name)
    named = {status: tuple(names) for status, names in others.items()}
    return Moves(tuple(parts), named, tuple(grown), tuple(adapters), tuple(untrained), state)


def is_adapter(name: str) -> bool:
    """Whether a tensor is a matrix of LoRA, by its name.

    >>> is_adapter("h.0.q_proj.lora_A.weight"), is_adapter("h.0.q_proj.lora_up.weight"), is_adapter("h.0.q_proj.weight")
    (True, True, False)
    """
    return bool(_FIRST.search(name) or _SECOND.search(name))


_SUMS = ("changed", "bits", "aa", "bb", "slope", "d2", "rest")


def _part(row: Mapping[str, Any], record: TensorRecord, before: Tensor, after: Tensor) -> Part:
    """Of these sums of SHIFT."""
    change, retyped = record.change, before.dtype != after.dtype
    changed = row["changed"] if retyped else max(row["bits"], row["changed"])
    aa, bb = row["aa"], row["bb"]
    length = math.sqrt(bb / aa) if 0 < aa < math.inf and bb < math.inf else math.nan
    angle = change.cosine_distance if change else None
    names = role(record.name), block(record.name)
    factor, d2 = 1 + row["slope"], row["d2"]
    aside = row["rest"] / d2 if d2 else 0.0
    sizes = changed > 0, retyped, after.quantised and not before.quantised, after.elements, changed
    return Part(record.name, after.shape, *sizes, angle, factor, aside, length, *names)


def _is_grown(before: Tensor, after: Tensor) -> bool:
    same = before.dtype == after.dtype and before.shape[1:] == after.shape[1:] and len(before.shape) == len(after.shape)
    more = bool(before.shape) and after.shape[:1] > before.shape[:1]
    return more and same and role(after.name) in ("embed", "head")


def reinitialised(moves: Moves, cosine: float = REINITIALISED_COSINE) -> list[Part]:
    """Matrices that point elsewhere and are as long as before, as if they had been drawn anew."""
    return [
        one
        for one in moves.moved
        if len(one.shape) > 1
        and one.elements >= _TELLING
        and one.cosine_distance is not None
        and abs(1 - one.cosine_distance) < cosine
        and 1 / _SAME_LENGTH <= one.length <= _SAME_LENGTH
        and abs(one.length - 1) > _SAME_VALUES
    ]


def moved_share(moves: Moves) -> float:
    """Share of the compared elements that lie in tensors that moved."""
    total = sum(one.elements for one in moves.parts)
    return sum(one.elements for one in moves.moved) / total if total else 0.0


def changed_share(parts: Sequence[Part]) -> float | None:
    """Share of the elements that changed, in bits where dtypes are equal."""
    total = sum(one.elements for one in parts)
    return sum(one.changed for one in parts) / total if total else None


def runs(moves: Moves) -> Iterator[dict[str, Any]]:
    """Blocks in their order, neighbours in which the same roles moved in one row."""
    blocks: dict[str, list[Part]] = {}
    for one in moves.parts:
        blocks.setdefault(one.block, []).append(one)
    row: dict[str, Any] | None = None
    for name, parts in blocks.items():
        moved, still = (", ".join(sorted({one.role for one in parts if one.moved is how})) for how in (True, False))
        if row and (row["moved"], row["frozen"]) == (moved or None, still or None):
            row |= {"to": name, "blocks": row["blocks"] + 1}
            continue
        if row:
            yield row
        row = {"from": name, "to": name, "blocks": 1, "moved": moved or None, "frozen": still or None}
    if row:
        yield row


def by_role(moves: Moves) -> list[dict[str, Any]]:
    """Tensors of each role that moved and that did not, in the order of the comparison."""
    moved = Counter(one.role for one in moves.moved)
    every = Counter(one.role for one in moves.parts)
    return [{"role": kind, "moved": moved[kind], "frozen": number - moved[kind]} for kind, number in every.items()]
