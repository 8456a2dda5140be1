"""What a finished run leaves: measurements, tables, the run document, and last the marker that names them all."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from diffai_dist import storage
from diffai_dist.records import SCHEMA_VERSION, Finding, Measurements, Member, PairSummary, Sweep
from diffai_dist.run import Settings
from diffai_dist.store.document import Document, document_of, exit_code, failure_numbers, pair_document
from diffai_dist.store.measurements import save_measurements
from diffai_dist.store.parts import Folder, Part, dump, short
from diffai_dist.store.tables import COVERAGE, STATUSES, arrow, change_cells, parquet, schema, tensor_table, utf8

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

GROUP_ROWS = 1 << 16  # rows of the tensors table that are written, and read, together; a pair is never cut


def save_parts(
    folder: Folder, plan: Mapping[str, Any], sweep: Sweep, measured: Measurements | None, settings: Settings
) -> list[Part]:
    """Publish everything but the marker."""
    parts = save_measurements(folder, measured, settings) if measured else []
    document, tables = compose(plan, sweep)
    run, day = plan["run"], moment(plan["started"]).date().isoformat()
    for table, data in tables.items():
        parts.append(folder.put(f"tables/{table}/date={day}/{run}-{short(data)}.parquet", data))
    data = dump(document)
    return [*parts, folder.put(f"runs/{run}/run-{short(data)}.json", data)]


def marker_document(
    plan: Mapping[str, Any], sweep: Sweep, parts: Sequence[Part], environment: Mapping[str, Any]
) -> Document:
    """What a finished run consists of, and what tells it from others at a glance."""
    return {
        **environment,
        "schema_version": SCHEMA_VERSION,
        "version": version("diffai-dist"),
        "run": plan["run"],
        "name": sweep.name,
        "mode": sweep.mode,
        "started": plan["started"],
        "written": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "complete": sweep.complete,
        "exit_code": exit_code(sweep),
        "failures": len(sweep.failures),
        "members": [member.url for member in sweep.members],
        "pairs": len(sweep.pairs),
        "units": plan.get("units"),
        "parts": [dataclasses.asdict(part) for part in parts],
    }


def compose(plan: Mapping[str, Any], sweep: Sweep) -> tuple[Document, dict[str, bytes]]:
    """The run document and the tables, in one pass over the results, of which one is held at a time."""
    run = plan["run"]
    known = failure_numbers(sweep)
    tensors, pairs = _TensorFile(), []
    findings = [_finding(run, one.name, finding, None) for one in sweep.analyses for finding in one.findings]
    for summary, result in zip(sweep.pairs, sweep.results, strict=True):
        tensors.add(tensor_table(result, run))
        pairs.append(pair_document(summary, result, known))
        for one in result.analyses:
            findings += [_finding(run, one.name, finding, summary) for finding in one.findings]
    rows = {
        "runs": [_run_row(plan, sweep)],
        "members": list(_member_rows(run, sweep)),
        "pairs": [_pair_row(run, summary) for summary in sweep.pairs],
        "findings": findings,
    }
    tables = {table: parquet(arrow(table, found)) for table, found in rows.items()}
    document = document_of(run, sweep, plan["settings"], pairs)
    document["comparison"] = plan["comparison"] | document["comparison"]
    return document, tables | {"tensors": tensors.close()}


class _TensorFile:
    """The tensors table, written pair by pair into row groups of whole pairs."""

    def __init__(self) -> None:
        import pyarrow.parquet

        self._buffer = io.BytesIO()
        self._writer = pyarrow.parquet.ParquetWriter(self._buffer, schema("tensors"), compression="zstd")
        self._waiting: list[pyarrow.Table] = []

    def add(self, table: pyarrow.Table) -> None:
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= GROUP_ROWS:
            self._flush()

    def close(self) -> bytes:
        self._flush()
        self._writer.close()
        return self._buffer.getvalue()

    def _flush(self) -> None:
        import pyarrow as pa

        rows = pa.concat_tables([schema("tensors").empty_table(), *self._waiting])
        if len(rows):
            self._writer.write_table(rows, row_group_size=len(rows))
        self._waiting = []


def _run_row(plan: Mapping[str, Any], sweep: Sweep) -> Row:
    return {
        "run": plan["run"],
        "name": sweep.name,
        "started": moment(plan["started"]),
        "mode": sweep.mode,
        "members": len(sweep.members),
        "pairs": len(sweep.pairs),
        "schema_version": SCHEMA_VERSION,
        "version": version("diffai-dist"),
        "exit_code": exit_code(sweep),
        "failures": len(sweep.failures),
    }


def _member_rows(run: str, sweep: Sweep) -> Iterator[Row]:
    for position, member in enumerate(sweep.members):
        objects = [
            {"url": utf8(storage.redact(one.url)), "size": one.size, "version": utf8(one.version)}
            for one in member.objects
        ]
        yield {
            "run": run,
            "member": member.name,
            "url": member.url,
            "position": position,
            "step": member.step,
            "dated": member.date,
            "format": member.format,
            "objects": objects,
            "tensors": member.tensors,
            "bytes": member.nbytes,
            "failure": _failure(member, sweep),
        }


def _failure(member: Member, sweep: Sweep) -> str | None:
    """The first thing of the member that could not be read."""
    objects = {member.url, *(storage.redact(one.url) for one in member.objects)}
    for failure in sweep.failures:
        if failure.object in objects or failure.object.startswith(f"{member.url}/"):
            return failure.sentence()
    return None


def _pair_row(run: str, summary: PairSummary) -> Row:
    row: Row = {"run": run, "baseline": summary.baseline, "candidate": summary.candidate}
    row |= change_cells(summary.whole, summary.error_bound)
    row |= {name: getattr(summary.coverage, name) for name in COVERAGE}
    row |= {f"tensors_{status}": summary.statuses.get(status, 0) for status in STATUSES}
    return row | {"failures": summary.failures}


def _finding(run: str, analysis: str, finding: Finding, pair: PairSummary | None) -> Row:
    """Value and threshold as numbers where they are numbers; the value as text, too, so that nothing is lost."""
    return {
        "run": run,
        "analysis": analysis,
        "rule": finding.rule,
        "severity": finding.severity,
        "tensor": finding.tensor,
        "baseline": finding.baseline or (pair and pair.baseline),
        "candidate": finding.candidate or (pair and pair.candidate),
        "value": _number(finding.value),
        "value_text": None if finding.value is None else str(finding.value),
        "threshold": _number(finding.threshold),
        "source": finding.source,
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def moment(text: str) -> datetime:
    """The time that a plan holds; without a zone it is UTC."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
