"""The array of records that JSON and YAML write; schema/records-1.json describes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from diffai_dist.errors import Failure
from diffai_dist.records import AnalysisRecord, Change, ErrorBound, Finding, Side, Sweep, TensorRecord
from diffai_dist.report.view import View, shown

Record = dict[str, Any]

SIDE = tuple(field.name for field in dataclasses.fields(Side))
CHANGE = tuple(field.name for field in dataclasses.fields(Change))
BOUND = tuple(field.name for field in dataclasses.fields(ErrorBound))
FAILURE = tuple(field.name for field in dataclasses.fields(Failure))
FINDING = tuple(field.name for field in dataclasses.fields(Finding))
RARE = ("baseline", "candidate", "waived")  # of a finding: only there where it names members, or is waived
_side, _change = attrgetter(*SIDE), attrgetter(*CHANGE)  # twice as fast as dataclasses.asdict on 100,000 tensors


def as_records(sweep: Sweep, view: View | None = None) -> Iterator[Record]:
    """Pair by pair one record per tensor shown, per failure and per analysis; then the analyses of the series.

    A failed tensor is its failure record alone, and a failure that spoils several pairs is told once. Where there can
    be several pairs, records of tensors and analyses name theirs.
    """
    view = view or View()
    told: set[Failure] = set()
    for result in sweep.results:
        pair: Record = {} if sweep.mode is None else {"pair": [result.baseline, result.candidate]}
        for record in shown(result, view):
            yield tensor(record, pair)
        yield from _failures(result.failures, told)
        for analysis in result.analyses:
            yield analysis_record(analysis, pair)
    yield from _failures(sweep.failures, told)
    for analysis in sweep.analyses:
        yield analysis_record(analysis, {"members": [member.name for member in sweep.members]})


def _failures(failures: tuple[Failure, ...], told: set[Failure]) -> Iterator[Record]:
    for failure in failures:
        if failure not in told:
            told.add(failure)
            yield {"kind": "failure", **{key: getattr(failure, key) for key in FAILURE}}


def tensor(record: TensorRecord, pair: Mapping[str, Any]) -> Record:
    """`candidate_name`, `reason`, `within_epsilon` and the bound are there only where there is something to say."""
    row: Record = {
        "kind": "tensor",
        **pair,
        "name": record.name,
        "status": record.status,
        "baseline": side(record.baseline),
        "candidate": side(record.candidate),
        "change": dict(zip(CHANGE, _change(record.change), strict=True)) if record.change else None,
    }
    if record.candidate_name is not None:
        row["candidate_name"] = record.candidate_name
    if record.reason is not None:
        row["reason"] = record.reason
    if record.within_epsilon is not None:
        row["within_epsilon"] = record.within_epsilon
    if record.error_bound is not None:
        row["method"] = "gram"
        row["error_bound"] = {key: getattr(record.error_bound, key) for key in BOUND}
    return row


def side(found: Side | None) -> Record | None:
    """All statistics of one side, those that are not defined as None."""
    if found is None:
        return None
    row = dict(zip(SIDE, _side(found), strict=True))
    row["shape"] = list(found.shape)
    return row


def analysis_record(analysis: AnalysisRecord, about: Mapping[str, Any]) -> Record:
    """The analysis with its findings as plain dictionaries, and the members it is `about`."""
    findings = [finding_record(finding) for finding in analysis.findings]
    return {"kind": "analysis", **about, "name": analysis.name, "result": analysis.result, "findings": findings}


def finding_record(finding: Finding) -> Record:
    """The finding; members and a waiver only where it has any."""
    row = {key: getattr(finding, key) for key in FINDING}
    return {key: value for key, value in row.items() if value is not None or key not in RARE}


def strict(value: Any) -> Any:
    """The value in plain lists and dictionaries, with None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
