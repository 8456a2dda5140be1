"""What a comparison says, as typed rows: one per tensor, failure and analysis. Every output is made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffai_dist.comparison import Comparison
from diffai_dist.errors import Failure

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = "1.0"

Status = Literal["changed", "identical", "added", "removed", "incomparable", "failed"]
Number = int | float | None


@dataclass(frozen=True, slots=True)
class Side:
    """The statistics of one tensor in one member; None where a number is not defined."""

    dtype: str
    shape: tuple[int, ...]
    count: Number = None
    mean: Number = None
    std: Number = None
    min: Number = None
    max: Number = None
    absmax: Number = None
    absmax_index: Number = None
    rms: Number = None
    l2: Number = None
    zeros: Number = None
    subnormals: Number = None
    nans: Number = None
    posinfs: Number = None
    neginfs: Number = None


@dataclass(frozen=True, slots=True)
class Change:
    """How far the candidate's elements are from the baseline's; None where a number is not defined."""

    l2: Number
    rel_l2: Number
    rel_l1: Number
    max_abs: Number
    max_abs_index: Number
    mean_abs: Number
    cosine_distance: Number
    changed_fraction: Number
    bits_changed_fraction: Number
    sign_flip_fraction: Number


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a pair. `reason` says why numbers are missing, or why a difference counts as none."""

    name: str
    status: Status
    baseline: Side | None
    candidate: Side | None
    change: Change | None
    reason: str | None = None
    within_epsilon: float | None = None  # set where only --epsilon makes the tensor count as identical


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing, with the threshold that makes it so and where that comes from."""

    rule: str
    severity: Literal["critical", "high", "medium", "low", "info"]
    tensor: str | None
    value: float | int | str | None
    threshold: float | int | str | None
    source: str


@dataclass(frozen=True, slots=True)
class AnalysisRecord:
    """The answer to one question; `result` holds JSON values only."""

    name: str
    result: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was compared, in tensors, elements and bytes (bytes of both sides), and what was not, by reason."""

    tensors: int
    tensors_compared: int
    elements: int
    elements_compared: int
    bytes: int
    bytes_compared: int
    byte_by_byte: int  # compared tensors whose dtype has no decoder
    not_compared: Mapping[str, int]  # reason -> tensors

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return not self.not_compared


@dataclass(frozen=True, slots=True)
class Measurements:
    """Merged partials of all aligned tensors: MOMENTS [tensors, members], SHIFT [tensors, pairs]."""

    comparison: Comparison
    moments: np.ndarray
    shifts: np.ndarray
    failures: Mapping[int, Failure]  # by index of the aligned tensor


@dataclass(frozen=True, slots=True)
class Result:
    """All that one pair's comparison says, in the order in which it is shown."""

    baseline: str
    candidate: str
    tensors: tuple[TensorRecord, ...]
    failures: tuple[Failure, ...]
    analyses: tuple[AnalysisRecord, ...]
    coverage: Coverage
    warnings: tuple[str, ...] = ()
    rel_l2: float | None = None  # of all compared elements together; None where it is not defined

    @property
    def differs(self) -> bool:
        """Whether anything is not identical; what could not be read does not count."""
        return any(record.status not in ("identical", "failed") for record in self.tensors)

    @property
    def complete(self) -> bool:
        """Whether everything that should be read was read."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """The result in a word."""
        return "incomplete" if self.failures else "different" if self.differs else "identical"
