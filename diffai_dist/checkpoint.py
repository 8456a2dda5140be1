"""Where tensors lie: names, shapes, byte ranges in pinned objects. Nothing here reads data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from diffai_dist.dtypes import DType, Family, dtype_of
from diffai_dist.errors import Failure
from diffai_dist.storage import Source

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range [start, stop) of a pinned object."""

    source: Source
    start: int
    stop: int

    def part(self, first: int, stop: int) -> Span:
        """Bytes [first, stop) of it."""
        return Span(self.source, self.start + first, self.start + stop)


class Scheme(Protocol):
    """How stored bytes become values where they are not those values, one after the other.

    A frozen dataclass of a few numbers: tasks carry it, and its repr is part of the key of what was measured.
    """

    @property
    def values(self) -> str:
        """The dtype of what is decoded: F32 for codes; that of the file where values only lie in another order."""

    @property
    def whole(self) -> bool:
        """Whether any run of elements needs all bytes: they are read once, and runs are decoded out of them."""

    @property
    def bits(self) -> int:
        """Bits of a code; 0 where values are stored as they are, only in another order."""

    @property
    def digits(self) -> int:
        """Significant bits of a code that is a float, the leading one among them; 0 for integers and table indices."""

    @property
    def block(self) -> int:
        """How many values share a scale; 0 where none do, or nobody can say."""

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """The byte ranges that elements [first, stop) need, one for each of the tensor's spans and in their order.

        All of the tensor's spans, for any run, if the scheme is whole.
        """

    def decode(self, tensor: Tensor, parts: Sequence[np.ndarray], first: int, stop: int, out: np.ndarray) -> None:
        """Write elements [first, stop) into `out`, uint8 and aligned to 8; `parts` hold the bytes of those spans."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as its checkpoint stores it: `shape` counts logical elements, `spans` lie in scheme order.

    Without a scheme its values lie one after the other in its only span, as elements of `dtype`. With one, `dtype` says
    for people which scheme that is, and of how many bits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    scheme: Scheme | None = None

    @property
    def decoder(self) -> DType:
        """The dtype that the kernels decode its values as."""
        return dtype_of(self.scheme.values if self.scheme else self.dtype)

    def ranges(self, first: int, stop: int) -> tuple[Span, ...]:
        """The byte ranges that elements [first, stop) need: of plain values one, rounded outward to whole bytes.

        Elements are counted as the decoder counts them: values, or bytes for dtypes without a decoder.
        """
        if self.scheme:
            return self.scheme.spans(self, first, stop)
        (whole,), bits = self.spans, self.decoder.bits
        return (whole.part(first * bits // 8, -(-stop * bits // 8)),)

    @property
    def quantised(self) -> bool:
        """Whether its values are decoded from codes, and not only stored in another order."""
        return self.scheme is not None and self.scheme.bits > 0

    @property
    def elements(self) -> int:
        """How many logical elements it has."""
        return math.prod(self.shape)

    @property
    def counted(self) -> int:
        """How many values are measured: the elements, or the bytes where the dtype has no values that are known."""
        return self.nbytes if self.decoder.family == Family.BYTES else self.elements

    def place(self, element: int) -> tuple[str, int] | None:
        """URL of the object and the byte in it at which an element begins; of two in a byte, that byte.

        None where bytes are not laid out by elements.
        """
        behind = element * self.decoder.bits // 8
        for span in self.spans if self.scheme is None else ():
            if behind < span.stop - span.start:
                return span.source.url, span.start + behind
            behind -= span.stop - span.start
        return None

    @property
    def nbytes(self) -> int:
        """How many bytes it occupies, over all its spans."""
        return sum(span.stop - span.start for span in self.spans)


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong or odd about how a checkpoint lies in its objects, for those who ask; failures and warnings tell it
    in words. `names` are all tensors or files that break the rule."""

    rule: str
    object: str  # redacted URL
    found: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named tensors with their metadata, in one or many pinned objects.

    `unreadable` holds the tensors that should be there but cannot be read (a missing shard), `failures` what is
    wrong with the checkpoint as a whole, `warnings` what is odd and harmless. `unknown` says which part is missing
    without anyone knowing its tensors: a name that is not here may be there. `config` is the model's config.json, where
    it was asked for and can be used.
    """

    url: str  # redacted
    format: str
    sources: tuple[Source, ...]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, Failure] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: Failure | None = None
    violations: tuple[Violation, ...] = ()
    config: Mapping[str, Any] | None = None

    @property
    def coded(self) -> dict[str, str]:
        """The tensors that are decoded by a scheme, each with all that decides how: other settings, other numbers."""
        return {name: repr(one.scheme) for name, one in self.tensors.items() if one.scheme}

    @property
    def nbytes(self) -> int:
        """How many bytes its tensors occupy; those that tied ones share count once."""
        return sum(span.stop - span.start for span in {span for one in self.tensors.values() for span in one.spans})
