"""Fused tensors and what they are made of: both cut at the same elements, named after the finer side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffai_dist.comparison import Confidence
from diffai_dist.matching.names import Canonical, canonical
from diffai_dist.matching.view import Shape, View, cut, uncuttable

# In the order in which they lie in what libraries fuse.
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
# The heads' rows alternate in what these name, or do not: BLOOM and GPT-NeoX do, Falcon in groups, ChatGLM not at all.
UNSURE = ("query_key_value",)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of a fused tensor, and where it lies in the part that it belongs to."""

    name: str  # under which it is compared
    part: str
    shape: Shape
    first: int  # element of the fused tensor
    offset: int  # element of the part


@dataclass(frozen=True, slots=True)
class Fusion:
    """A fused tensor of that shape, and its pieces in order."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]
    parts: Mapping[str, Shape]

    def obstacle(self, view: View) -> str | None:
        """Why the member cannot be cut so; None where it can be, or need not be."""
        if self.name in view.tensors:
            shape = view.tensors[self.name].shape
            taken = next((piece.name for piece in self.pieces if piece.name in view), None)
            if shape != self.shape:
                return f"its shape is {list(shape)}, not {list(self.shape)}"
            return f"there is a {taken!r} beside it" if taken else uncuttable(view.tensors[self.name])
        if self.name in view.unreadable:
            return "it cannot be read"
        there = [name for name in self.parts if name in view.tensors]
        reasons = (uncuttable(view.tensors[name]) for name in there if len(self.pieces) > len(self.parts))
        odd = next((name for name in there if view.tensors[name].shape != self.parts[name]), None)
        return f"the shape of {odd!r} is another" if odd else next(filter(None, reasons), None)

    def apply(self, view: View, confidence: Confidence) -> None:
        """Cut the fused tensor, or its parts where their rows alternate; names that are there stay what they are."""
        whole = view.tensors.pop(self.name, None)
        sure = view.sure.pop(self.name, None)
        for piece in self.pieces:
            if whole:
                view.tensors[piece.name] = cut(whole, piece.first, piece.shape)
            elif piece.name != piece.part and piece.part in view.tensors:
                view.tensors[piece.name] = cut(view.tensors[piece.part], piece.offset, piece.shape)
            if whole and piece.name in view.tensors:
                view.sure[piece.name] = sure if sure == "assigned" else confidence
        for name in {piece.part for piece in self.pieces if piece.name != piece.part}:
            view.tensors.pop(name, None)


def fusion(name: str, shape: Shape, parts: Sequence[tuple[str, Shape]], groups: int = 1) -> Fusion | str:
    """How parts make a tensor along its first axes, a share of each in turn, `groups` times; or why they do not."""
    if len({one for one, _ in parts}) < len(parts):
        return "a part is named twice"
    if not parts or not all(map(math.prod, (shape, *(one for _, one in parts)))):
        return "there is nothing in it"
    if sum(math.prod(one) for _, one in parts) != math.prod(shape):
        return f"the parts have {sum(math.prod(one) for _, one in parts):,} elements, it has {math.prod(shape):,}"
    if any(not one or one[1:] != shape[len(shape) - len(one) + 1 :] for _, one in parts):
        return "the rows of its parts are not as long as its own"
    if any(one[0] % groups for _, one in parts):
        return f"the rows of its parts do not go into {groups} groups"
    inside = math.prod(shape[1:]) if any(len(one) < len(shape) for _, one in parts) else math.prod(shape)
    pieces = tuple(_pieces(parts, groups))
    if any(piece.first // inside != (piece.first + math.prod(piece.shape) - 1) // inside for piece in pieces):
        return "a part begins in one of its matrices and ends in another"
    return Fusion(name, shape, pieces, dict(parts))


def _pieces(parts: Sequence[tuple[str, Shape]], groups: int) -> Iterator[Piece]:
    first = 0
    for group in range(groups):
        for name, shape in parts:
            rows, row = shape[0] // groups, math.prod(shape[1:])
            own = name if groups == 1 else f"{name}[{group * rows}:{(group + 1) * rows}]"
            yield Piece(own, name, (rows, *shape[1:]), first, group * rows * row)
            first += rows * row


def recognised(fused: Mapping[str, Shape], fine: Mapping[str, Shape]) -> Iterator[Fusion]:
    """The tensors of one side that are made of tensors of the other, by names and shapes, where there is one way."""
    sizes = [[math.prod(shape) for shape in side.values()] for side in (fused, fine)]
    large, small = max(sizes[0], default=0), min(sizes[1], default=math.inf)
    candidates = _by_canonical(name for name, shape in fused.items() if math.prod(shape) > small)
    known = _by_canonical(name for name, shape in fine.items() if math.prod(shape) < large) if candidates else {}
    for found, name in candidates.items():
        if name is None or any(part in UNSURE for part in name.split(".")):
            continue
        shape = fused[name]
        numbers, roles = [found.numbers], FUSED.get(found.role, (found.role,))
        if found._replace(numbers=(*found.numbers, 0), role=roles[0]) in known and shape[0] <= len(fine):
            numbers = [(*found.numbers, expert) for expert in range(shape[0])]
        if len(numbers) * len(roles) == 1:
            continue
        keys = [found._replace(numbers=one, role=role) for one, role in itertools.product(numbers, roles)]
        parts = [known.get(key) for key in keys]
        names = [part for part in parts if part is not None]
        if len(names) == len(keys):
            made = fusion(name, shape, [(part, fine[part]) for part in names])
            if isinstance(made, Fusion):
                yield made


def _by_canonical(names: Iterable[str]) -> dict[Canonical, str | None]:
    """Names by what they are; None where several are the same."""
    found: dict[Canonical, str | None] = {}
    for name in names:
        if (key := canonical(name)) is not None:
            found[key] = None if key in found else name
    return found
