"""A member as the others see it: its tensors under the names by which they are compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Confidence
from diffai_dist.dtypes import Family
from diffai_dist.errors import Failure
from diffai_dist.schemes.cut import part_of

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape | None]  # by name; None of what cannot be read


@dataclass(slots=True)
class View:
    """Tensors keep their own names as `Tensor.name`; `sure` tells of those that are here under others."""

    tensors: dict[str, Tensor]
    unreadable: dict[str, Failure]
    sure: dict[str, Confidence] = field(default_factory=dict)

    @classmethod
    def of(cls, member: Checkpoint) -> View:
        """The member under its own names."""
        return cls(dict(member.tensors), dict(member.unreadable))

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.unreadable

    @property
    def shapes(self) -> dict[str, Shape | None]:
        """Every name with its shape."""
        shapes: dict[str, Shape | None] = dict.fromkeys(self.unreadable)
        return shapes | {name: tensor.shape for name, tensor in self.tensors.items()}

    def rename(self, names: Mapping[str, tuple[str, Confidence]]) -> None:
        """Give tensors other names, all at once: they may take each other's, but no two the same."""
        new = {old: name for old, (name, _) in names.items()}
        self.tensors = {new.get(name, name): tensor for name, tensor in self.tensors.items()}
        self.unreadable = {new.get(name, name): failure for name, failure in self.unreadable.items()}
        kept = {name: sure for name, sure in self.sure.items() if name not in names}
        self.sure = kept | {name: sure for name, sure in names.values()}

    def checkpoint(self, member: Checkpoint) -> Checkpoint:
        """The member under these names."""
        return dataclasses.replace(member, tensors=self.tensors, unreadable=self.unreadable)


def uncuttable(tensor: Tensor) -> str | None:
    """Why no part of the tensor can be read alone; None where one can."""
    if tensor.decoder.family == Family.BYTES or tensor.decoder.bits < 8:
        return f"elements of dtype {tensor.dtype} have no bytes of their own"
    if tensor.scheme and tensor.scheme.whole:
        how = f"is quantised ({tensor.dtype})" if tensor.quantised else "lies in another order than that of its shape"
        return f"it {how}, so that each part would need all of its bytes"
    return None


def cut(tensor: Tensor, first: int, shape: Shape) -> Tensor:
    """So many of its elements from `first` on, as a tensor of that shape: a part of the same bytes.

    >>> from diffai_dist.storage import Source
    >>> whole = Tensor("qkv", "BF16", (6, 4), (Span(Source("/m", 99, "v"), 8, 56),))
    >>> part = cut(whole, 8, (2, 4))
    >>> part.name, part.spans[0].start, part.spans[0].stop
    ('qkv[2:4]', 24, 40)
    """
    elements, bits = math.prod(shape), tensor.decoder.bits
    place = f"{tensor.name}{_place(tensor.shape, first, elements)}"
    if tensor.scheme:
        return part_of(tensor, place, first, first + elements, shape)
    (span,) = tensor.spans
    start, stop = first * bits // 8, (first + elements) * bits // 8
    return Tensor(place, tensor.dtype, shape, (Span(span.source, span.start + start, span.start + stop),))


def _place(shape: Shape, first: int, elements: int) -> str:
    """Where the elements lie: rows of the first axis, or of the second inside one of the first."""
    row = math.prod(shape[1:])
    if first % row == 0 and elements % row == 0:
        one = elements == row and len(shape) > 2
        return f"[{first // row}]" if one else f"[{first // row}:{(first + elements) // row}]"
    inner = math.prod(shape[2:])
    return f"[{first // row},{first % row // inner}:{(first % row + elements) // inner}]"
