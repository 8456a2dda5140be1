"""The array of records that JSON and YAML write; schema/records-1.json describes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from diffai_dist.errors import Failure
from diffai_dist.records import AnalysisRecord, Change, Finding, Result, Side, TensorRecord
from diffai_dist.report.view import View, shown

Record = dict[str, Any]

SIDE = tuple(field.name for field in dataclasses.fields(Side))
CHANGE = tuple(field.name for field in dataclasses.fields(Change))
FAILURE = tuple(field.name for field in dataclasses.fields(Failure))
FINDING = tuple(field.name for field in dataclasses.fields(Finding))
_side, _change = attrgetter(*SIDE), attrgetter(*CHANGE)  # twice as fast as dataclasses.asdict on 100,000 tensors


def as_records(result: Result, view: View | None = None) -> Iterator[Record]:
    """One record per tensor shown, then per failure, then per analysis. A failed tensor is its failure record alone."""
    for record in shown(result, view or View()):
        yield tensor(record)
    for failure in result.failures:
        yield {"kind": "failure", **{key: getattr(failure, key) for key in FAILURE}}
    for analysis in result.analyses:
        yield analysis_record(analysis)


def tensor(record: TensorRecord) -> Record:
    """`reason` and `within_epsilon` are there only where there is something to say."""
    row: Record = {
        "kind": "tensor",
        "name": record.name,
        "status": record.status,
        "baseline": side(record.baseline),
        "candidate": side(record.candidate),
        "change": dict(zip(CHANGE, _change(record.change), strict=True)) if record.change else None,
    }
    if record.reason is not None:
        row["reason"] = record.reason
    if record.within_epsilon is not None:
        row["within_epsilon"] = record.within_epsilon
    return row


def side(found: Side | None) -> Record | None:
    """All statistics of one side, those that are not defined as None."""
    if found is None:
        return None
    row = dict(zip(SIDE, _side(found), strict=True))
    row["shape"] = list(found.shape)
    return row


def analysis_record(analysis: AnalysisRecord) -> Record:
    """The analysis with its findings as plain dictionaries."""
    findings = [{key: getattr(finding, key) for key in FINDING} for finding in analysis.findings]
    return {"kind": "analysis", "name": analysis.name, "result": analysis.result, "findings": findings}


def strict(value: Any) -> Any:
    """The value in plain lists and dictionaries, with None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
