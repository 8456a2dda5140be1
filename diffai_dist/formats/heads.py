"""One object of a checkpoint: its first bytes, by which it is recognised, and what it turns out to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffai_dist.checkpoint import Tensor
from diffai_dist.errors import Failure
from diffai_dist.storage import Source


@dataclass(frozen=True, slots=True)
class Head:
    """A pinned object, and as many of its first bytes as one request brings."""

    source: Source
    data: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What one object holds and where, tensors in order of their bytes or of the file's own list."""

    source: Source
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    format: str = "safetensors"
    unreadable: Mapping[str, Failure] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
