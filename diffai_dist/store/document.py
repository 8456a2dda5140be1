"""The run document: all that a run says but its tensors, which are rows of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from diffai_dist.errors import CheckpointError, Failure
from diffai_dist.records import (
    SCHEMA_VERSION,
    AnalysisRecord,
    Change,
    Coverage,
    ErrorBound,
    Finding,
    Member,
    PairSummary,
    Result,
    Sweep,
    TensorRecord,
)
from diffai_dist.report.array import strict
from diffai_dist.run import described
from diffai_dist.storage import Source

Document = dict[str, Any]
T = TypeVar("T")


def run_document(run: str, sweep: Sweep, settings: Mapping[str, Any]) -> Document:
    """What a run was and how it ended; equal runs have equal documents."""
    known = failure_numbers(sweep)
    pairs = [pair_document(*both, known) for both in zip(sweep.pairs, sweep.results, strict=True)]
    return document_of(run, sweep, settings, pairs)


def document_of(run: str, sweep: Sweep, settings: Mapping[str, Any], pairs: Sequence[Document]) -> Document:
    """The run document, its pairs given. Numbers that are not finite are null, as in the records."""
    members = [{**described(one), "tensors": one.tensors, "bytes": one.nbytes} for one in sweep.members]
    document: Document = strict(
        {
            "schema_version": SCHEMA_VERSION,
            "run": run,
            "exit_code": exit_code(sweep),
            "comparison": {"name": sweep.name, "mode": sweep.mode, "members": members},
            "settings": settings,
            "pairs": list(pairs),
            "failures": list(map(_plain, sweep.failures)),
            "analyses": list(map(_analysis, sweep.analyses)),
            "warnings": list(sweep.warnings),
        }
    )
    return document


def failure_numbers(sweep: Sweep) -> dict[Failure, int]:
    """Where each failure stands in the run's list."""
    return {failure: number for number, failure in enumerate(sweep.failures)}


def exit_code(sweep: Sweep) -> int:
    """How the run ended: 0 done, 3 when something could not be read."""
    return 0 if sweep.complete else CheckpointError.exit_code


def pair_document(summary: PairSummary, result: Result, failures: Mapping[Failure, int]) -> Document:
    """What one pair says beside its tensors; a failure that the whole run names is a number in its list."""
    return {
        "baseline": summary.baseline,
        "candidate": summary.candidate,
        "tensors": len(result.tensors),
        "statuses": dict(summary.statuses),
        "coverage": _plain(summary.coverage),
        "whole": summary.whole and _plain(summary.whole),
        "error_bound": summary.error_bound and _plain(summary.error_bound),
        "failures": [failures.get(one, _plain(one)) for one in result.failures],
        "analyses": list(map(_analysis, result.analyses)),
        "warnings": list(result.warnings),
    }


def sweep_of(document: Document, results: Sequence[Result]) -> Sweep:
    """The sweep that a document was made of, its results given."""
    comparison = document["comparison"]
    return Sweep(
        comparison["name"],
        comparison["mode"],
        tuple(map(_member, comparison["members"])),
        tuple(map(_summary, document["pairs"])),
        results,
        tuple(map(_analysis_record, document["analyses"])),
        failures_of(document),
        tuple(document["warnings"]),
    )


def result_of(document: Document, index: int, tensors: Sequence[TensorRecord]) -> Result:
    """The result of one pair of a run document, its tensors given."""
    pair, known = document["pairs"][index], document["failures"]
    summary = _summary(pair)
    failures = (known[one] if isinstance(one, int) else one for one in pair["failures"])
    return Result(
        summary.baseline,
        summary.candidate,
        tuple(tensors),
        tuple(made(Failure, one) for one in failures),
        tuple(map(_analysis_record, pair["analyses"])),
        summary.coverage,
        tuple(pair["warnings"]),
        summary.whole,
        summary.error_bound,
    )


def failures_of(document: Document) -> tuple[Failure, ...]:
    """What the run could not read."""
    return tuple(made(Failure, one) for one in document["failures"])


def made(kind: type[T], fields: Mapping[str, Any]) -> T:
    """A record of its fields; what a later minor version added to it is left out."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in fields.items() if name in names})


def _plain(record: Any) -> Document:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _analysis(analysis: AnalysisRecord) -> Document:
    findings = list(map(_plain, analysis.findings))
    return {"name": analysis.name, "result": analysis.result, "findings": findings}


def _analysis_record(fields: Document) -> AnalysisRecord:
    return AnalysisRecord(fields["name"], fields["result"], tuple(made(Finding, one) for one in fields["findings"]))


def _summary(fields: Document) -> PairSummary:
    return PairSummary(
        fields["baseline"],
        fields["candidate"],
        fields["statuses"],
        made(Coverage, fields["coverage"]),
        len(fields["failures"]),
        fields["whole"] and made(Change, fields["whole"]),
        fields["error_bound"] and made(ErrorBound, fields["error_bound"]),
    )


def _member(fields: Document) -> Member:
    objects = tuple(made(Source, one) for one in fields["objects"])
    return made(Member, {**fields, "objects": objects, "nbytes": fields["bytes"]})
