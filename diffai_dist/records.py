"""What a comparison says, as typed rows: one per tensor, failure and analysis. Every output is made of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diffai_dist.comparison import Comparison, Pair
from diffai_dist.errors import Failure
from diffai_dist.storage import Source

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = "1.2"
CLOSED = "could not be opened"  # a reason of Coverage that counts sides of pairs

Status = Literal["changed", "identical", "added", "removed", "incomparable", "failed"]
Severity = Literal["critical", "high", "medium", "low", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "info")  # worst first
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
class ErrorBound:
    """How far at most rounding may have taken numbers that come from the Gram of a group, absolute."""

    l2: float
    cosine_distance: float | None  # None where that itself is not defined
    rel_l2: float | None = None  # likewise; more than that of l2 where the baseline's norm comes from the Gram, too


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
    error_bound: ErrorBound | None = None  # set where the change comes from the Gram, not element by element
    candidate_name: str | None = None  # set where the candidate's is another, or it is a part: `qkv.weight[0:64]`


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing, with the threshold that makes it so and where that comes from."""

    rule: str
    severity: Severity
    tensor: str | None
    value: float | int | str | None
    threshold: float | int | str | None
    source: str
    baseline: str | None = None  # in a series: the members it is about, where the pair of the report does not say so
    candidate: str | None = None
    waived: str | None = None  # why it does not count against the checkpoint, and until when


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
class Details:
    """Partials that only some analyses need; None, or without a key, where they were not asked for or do not exist.

    Keys are (index of the aligned tensor, index of the member or of the pair). Rows and columns exist of tensors that
    have them (grid), whose dtype is real and decoded, and which were read to their end.
    """

    content: np.ndarray | None = None  # CONTENT [tensors, members]
    bitwise: np.ndarray | None = None  # BITWISE [tensors, pairs]
    rows: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)  # ROW [rows] of a member
    row_shifts: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)  # ROW_SHIFT [rows] of a pair
    columns: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)  # COLUMN [columns] of a member
    column_shifts: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)  # COLUMN_SHIFT of a pair
    histograms: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)  # HISTOGRAM [bins] of a member


@dataclass(frozen=True, slots=True)
class Measurements:
    """Merged partials of all aligned tensors: MOMENTS [tensors, members], SHIFT [tensors, pairs], GRAM.

    `grams` is float64 [tensors, planes, members, members], None where no Gram was asked for.
    """

    comparison: Comparison
    moments: np.ndarray
    shifts: np.ndarray
    failures: Mapping[tuple[int, int], Failure]  # by index of the aligned tensor, and of the member that failed
    grams: np.ndarray | None = None
    details: Details = field(default_factory=Details)

    def failure(self, tensor: int, pair: Pair) -> Failure | None:
        """Why one side of the pair could not be measured at that tensor."""
        return self.failures.get((tensor, pair.baseline)) or self.failures.get((tensor, pair.candidate))


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
    whole: Change | None = None  # of all compared elements together; None where nothing was compared
    error_bound: ErrorBound | None = None  # of `whole`, where it comes from the Gram

    @property
    def rel_l2(self) -> Number:
        """How far the whole checkpoint moved; None where it is not defined."""
        return self.whole.rel_l2 if self.whole else None

    @property
    def statuses(self) -> dict[str, int]:
        """How many tensors have each status."""
        return dict(sorted(Counter(record.status for record in self.tensors).items()))

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


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint of a comparison as reports name it."""

    name: str  # unique in the comparison: the part of the URL in which the members differ
    url: str  # redacted
    step: int | None = None
    date: str | None = None  # ISO 8601, where the URL tells one
    format: str | None = None  # None where it could not be opened
    objects: tuple[Source, ...] = ()
    tensors: int = 0
    nbytes: int = 0  # of its tensors


@dataclass(frozen=True, slots=True)
class PairSummary:
    """One pair in a line."""

    baseline: str  # names of members
    candidate: str
    statuses: Mapping[str, int]
    coverage: Coverage
    failures: int
    whole: Change | None
    error_bound: ErrorBound | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """All that a comparison of many checkpoints says; `results` has one Result per pair, made when asked for."""

    name: str | None  # of the configuration; None for none
    mode: str | None  # how the pairs were chosen; None for a comparison of two, whose records name no pair
    members: tuple[Member, ...]
    pairs: tuple[PairSummary, ...]
    results: Sequence[Result]
    analyses: tuple[AnalysisRecord, ...]  # of the series as a whole
    failures: tuple[Failure, ...]  # each once, whatever the number of pairs
    warnings: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether anything is not identical in any pair; what could not be read does not count."""
        return any(set(pair.statuses) - {"identical", "failed"} for pair in self.pairs)

    @property
    def complete(self) -> bool:
        """Whether everything that should be read was read."""
        return not self.failures
