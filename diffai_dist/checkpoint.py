"""Where tensors lie: names, shapes, byte ranges in pinned objects. Nothing here reads data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffai_dist.dtypes import DType, Family, dtype_of
from diffai_dist.errors import Failure
from diffai_dist.storage import Source


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range [start, stop) of a pinned object."""

    source: Source
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as its checkpoint stores it: `shape` counts logical elements, `spans` lie in scheme order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    scheme: str = "plain"

    @property
    def decoder(self) -> DType:
        """The dtype that the kernels decode its values as."""
        return dtype_of(self.dtype)

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
        for span in self.spans if self.scheme == "plain" else ():
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
