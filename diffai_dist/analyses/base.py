"""What every analysis is: a frozen dataclass whose fields are its thresholds; it says what it needs and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from diffai_dist.records import AnalysisRecord, Finding, Measurements, Number, Severity, TensorRecord

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series

JUDGEMENT = "judgement"

# H: headers and small files only; 1: one checkpoint, one pass; 2: a pair, one pass; N: a series, each read once.
Kind = Literal["H", "1", "2", "N"]


class Explained(Protocol):
    """What `explain` prints of an analysis. The docstring's first line is its help text, the rest its definition."""

    name: ClassVar[str]
    flag: ClassVar[str]
    kind: ClassVar[Kind]
    # "gram", "config" for config.json, or out of partials.DETAILS; headers, moments and shifts are always there.
    partials: ClassVar[tuple[str, ...]]
    result: ClassVar[Mapping[str, str]]  # every key of the result: what it is, its unit, its formula
    rules: ClassVar[Mapping[str, str]]  # every rule that a finding may have: the test in words, and its severity
    sources: ClassVar[tuple[str, ...]]
    in_all: ClassVar[bool]  # whether --all asks for it: not what is read twice, or costs more than all the rest


class Analysis(Explained, Protocol):
    """One question about a pair.

    The call gets the pair's records as judged, --epsilon included, and reads sums that records do not hold from
    `measured.shifts[:, pair_index]` and `measured.details`. It reads no files.
    """

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """The answer as JSON values, with findings."""


class SeriesAnalysis(Explained, Protocol):
    """One question about all members, in their order or one by one; the two of a pair are a series, too."""

    always: ClassVar[bool]  # whether every sweep asks it

    def __call__(self, series: Series) -> AnalysisRecord:
        """The answer as JSON values, with findings; those about one member name it as their candidate."""


def threshold(default: Any, help: str, source: str = JUDGEMENT) -> Any:
    """A field that the configuration can set: what it limits, and who says so."""
    return dataclasses.field(default=default, metadata={"help": help, "source": source})


def thresholds(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """The thresholds of an analysis, by name."""
    return {field.name: field for field in dataclasses.fields(kind) if "source" in field.metadata}


def finding(
    analysis: Any,
    rule: str,
    severity: Severity,
    tensor: str | None,
    value: Number | str,
    option: str,
    baseline: str | None = None,
    candidate: str | None = None,
) -> Finding:
    """A finding whose threshold is a field of the analysis; its source says where that comes from."""
    field, limit = thresholds(analysis)[option], getattr(analysis, option)
    told = f"{field.metadata['source']}: default of {option}" if limit == field.default else f"setting of {option}"
    return Finding(rule, severity, tensor, value, limit, told, baseline, candidate)
