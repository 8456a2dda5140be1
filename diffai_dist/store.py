"""The report store: where runs land as JSON documents and Parquet tables. The only module that knows pyarrow.

    runs/<run>/plan.json          what was to be compared: pinned members, pairs, settings
    runs/<run>/run.json           the run document
    runs/<run>/_SUCCESS.json      last: every part with its size and digest; readers trust only what it names
    measurements/<key>.parquet    merged partials of one member or pair
    tables/<table>/date=YYYY-MM-DD/<run>-<digest>.parquet

Nothing is ever changed in place: a part's name digests its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from diffai_dist import storage
from diffai_dist.errors import StoreError
from diffai_dist.partials import ALGORITHM
from diffai_dist.records import SCHEMA_VERSION, Change, Finding, Measurements, Result, Side
from diffai_dist.run import Run
from diffai_dist.storage import Profile

if TYPE_CHECKING:
    import pyarrow


COUNTS = ("count", "absmax_index", "zeros", "subnormals", "nans", "posinfs", "neginfs", "max_abs_index")


def tensor_table(result: Result, run: str) -> pyarrow.Table:
    """One row per tensor of the pair: names, status, both sides' statistics, the change.

    Extremes of 64-bit integers are rounded to float64 here; the JSON records keep them whole.
    """
    import pyarrow as pa

    columns: dict[str, pyarrow.Array] = {}
    rows = result.tensors
    for name, values in (
        ("run", [run] * len(rows)),
        ("baseline", [_utf8(result.baseline)] * len(rows)),
        ("candidate", [_utf8(result.candidate)] * len(rows)),
        ("name", [_utf8(row.name) for row in rows]),
        ("status", [row.status for row in rows]),
        ("reason", [_utf8(row.reason) for row in rows]),
    ):
        columns[name] = pa.array(values, pa.string())
    columns["within_epsilon"] = pa.array([row.within_epsilon for row in rows], pa.float64())
    columns |= _columns(Change, [row.change for row in rows], "")
    for side in ("baseline", "candidate"):
        columns |= _columns(Side, [getattr(row, side) for row in rows], f"{side}_")
    return pa.table(columns)


def _columns(kind: type, rows: Sequence[Any], prefix: str) -> dict[str, pyarrow.Array]:
    import pyarrow as pa

    columns = {}
    for field in dataclasses.fields(kind):
        values = [None if row is None else getattr(row, field.name) for row in rows]
        if field.name == "dtype":
            column = pa.array(map(_utf8, values), pa.string())
        elif field.name == "shape":
            column = pa.array([None if value is None else list(value) for value in values], pa.list_(pa.int64()))
        elif field.name in COUNTS:
            column = pa.array(values, pa.int64())
        else:
            column = pa.array([None if value is None else float(value) for value in values], pa.float64())
        columns[prefix + field.name] = column
    return columns


def _utf8(text: str | None) -> str | None:
    """Parquet strings are UTF-8: a lone surrogate is written as its escape."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def run_document(run: Run) -> dict[str, Any]:
    """What a run was and how it ended; `environment` is the only part that may differ between equal runs."""
    result, plan = run.result, run.plan
    members = plan.comparison.members if plan else ()
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.id,
        "comparison": {
            "members": [
                {
                    "url": member.url,
                    "format": member.format,
                    "metadata": dict(member.metadata),
                    "objects": [
                        {"url": storage.redact(source.url), "size": source.size, "version": source.version}
                        for source in member.sources
                    ],
                }
                for member in members
            ],
            "pairs": [[result.baseline, result.candidate]],
        },
        "settings": run.settings.digest_part(),
        "coverage": _plain(result.coverage),
        "statuses": statuses(result),
        "failures": [_plain(failure) for failure in result.failures],
        "analyses": [_plain(analysis) for analysis in result.analyses],
        "warnings": list(result.warnings),
        "exit_code": run.exit_code(),
        "environment": {
            "diffai_dist": version("diffai-dist"),
            "numpy": version("numpy"),
            "numba": version("numba"),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def statuses(result: Result) -> dict[str, int]:
    """How many tensors have each status."""
    counts: dict[str, int] = {}
    for record in result.tensors:
        counts[record.status] = counts.get(record.status, 0) + 1
    return dict(sorted(counts.items()))


def _plain(record: Any) -> Any:
    return dataclasses.asdict(record)


@dataclasses.dataclass(frozen=True, slots=True)
class ReportStore:
    """Runs below a URL; local or in a bucket."""

    url: str
    profile: Profile

    def save(self, run: Run) -> str:
        """Keep a finished run; returns its name. A complete run that is already there is left as it is."""
        name, attempt = run.id, 1
        while (marker := self.marker(name)) is not None:
            if marker["complete"]:
                return name
            attempt += 1
            name = f"{run.id}-{attempt}"
        document = run_document(run) | {"run": name}
        plan = {key: document[key] for key in ("schema_version", "run", "comparison", "settings")}
        parts = [self._json(f"runs/{name}/plan.json", plan), *self._measurements(run)]
        parts += self._tables(run, name, document)
        parts.append(self._json(f"runs/{name}/run.json", document))
        success = {"schema_version": SCHEMA_VERSION, "run": name, "complete": run.result.complete, "parts": parts}
        self._json(f"runs/{name}/_SUCCESS.json", success)
        return name

    def marker(self, run: str) -> dict[str, Any] | None:
        """What a finished run consists of; None for a run that is not there or not finished."""
        data = storage.fetch(self._url(f"runs/{run}/_SUCCESS.json"), self.profile)
        if data is None:
            return None
        try:
            marker: dict[str, Any] = json.loads(data)
            major = str(marker["schema_version"]).split(".")[0]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{storage.redact(self.url)}: the marker of run {run} is damaged: {error}") from error
        if major != SCHEMA_VERSION.split(".")[0]:
            raise StoreError(f"run {run} has schema {marker['schema_version']}; this version reads {SCHEMA_VERSION}")
        return marker

    def _url(self, path: str) -> str:
        url = self.url
        for part in path.split("/"):
            url = storage.join(url, part)
        return url

    def _write(self, path: str, data: bytes) -> dict[str, Any]:
        storage.publish(self._url(path), data, self.profile)
        return {"path": path, "size": len(data), "blake2b": hashlib.blake2b(data, digest_size=32).hexdigest()}

    def _json(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return self._write(path, json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n")

    def _parquet(self, path: str, table: pyarrow.Table) -> dict[str, Any]:
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
        return self._write(path, buffer.getvalue())

    def _measurements(self, run: Run) -> Iterable[dict[str, Any]]:
        """The merged partials, by what they were measured of: a later run can take them from here."""
        measured = run.measurements
        if measured is None or measured.failures:
            return
        members, selection = measured.comparison.members, run.settings.digest_part()
        pinned = [[(source.url, source.size, source.version) for source in member.sources] for member in members]
        for index in range(len(members)):
            table = partial_table(measured, measured.moments[:, index])
            yield self._parquet(f"measurements/{measurement_key([pinned[index]], selection)}.parquet", table)
        for index, pair in enumerate(measured.comparison.pairs):
            table = partial_table(measured, measured.shifts[:, index])
            key = measurement_key([pinned[pair.baseline], pinned[pair.candidate]], selection)
            yield self._parquet(f"measurements/{key}.parquet", table)

    def _tables(self, run: Run, name: str, document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        day = document["environment"]["written"][:10]
        for table, content in tables(run.result, name, document).items():
            digest = hashlib.blake2b(repr(content.to_pydict()).encode("utf-8", "replace"), digest_size=8).hexdigest()
            yield self._parquet(f"tables/{table}/date={day}/{name}-{digest}.parquet", content)


def measurement_key(pinned: Sequence[object], selection: Mapping[str, Any]) -> str:
    """Digest of what was measured: pinned objects, which tensors, algorithm version."""
    chosen = {key: selection[key] for key in ("include", "exclude", "ignore_keys_regex")}
    return hashlib.blake2b(json.dumps([ALGORITHM, pinned, chosen]).encode(), digest_size=16).hexdigest()


def partial_table(measured: Measurements, rows: np.ndarray) -> pyarrow.Table:
    """Partials as they merge, one row per tensor that was measured, in the columns of partials.py."""
    import pyarrow as pa

    present = np.flatnonzero(rows["count"])
    names = [_utf8(measured.comparison.aligned[index].name) for index in present.tolist()]
    columns = {"name": pa.array(names, pa.string())}
    columns |= {field: pa.array(np.ascontiguousarray(rows[field][present])) for field in rows.dtype.names or ()}
    return pa.table(columns)


def tables(result: Result, run: str, document: Mapping[str, Any]) -> dict[str, pyarrow.Table]:
    """The tables of one run, by name."""
    import pyarrow as pa

    pair = {"run": [run], "baseline": [_utf8(result.baseline)], "candidate": [_utf8(result.candidate)]}
    covered = {key: [value] for key, value in _plain(result.coverage).items() if isinstance(value, int)}
    counts = {f"tensors_{key}": [document["statuses"].get(key, 0)] for key in STATUSES}
    findings = [(analysis.name, finding) for analysis in result.analyses for finding in analysis.findings]
    members = [(member["url"], one) for member in document["comparison"]["members"] for one in member["objects"]]
    written = datetime.fromisoformat(document["environment"]["written"])
    return {
        "runs": pa.table(
            {
                "run": [run],
                "written": pa.array([written], pa.timestamp("s", "UTC")),
                "schema_version": [SCHEMA_VERSION],
                "version": [document["environment"]["diffai_dist"]],
                "exit_code": [document["exit_code"]],
                "failures": [len(result.failures)],
            }
        ),
        "members": pa.table(
            {
                "run": pa.array([run] * len(members), pa.string()),
                "member": pa.array([_utf8(url) for url, _ in members], pa.string()),
                "object": pa.array([_utf8(one["url"]) for _, one in members], pa.string()),
                "size": pa.array([one["size"] for _, one in members], pa.int64()),
                "version": pa.array([one["version"] for _, one in members], pa.string()),
            }
        ),
        "pairs": pa.table(pair | covered | counts),
        "tensors": tensor_table(result, run),
        "findings": _findings(result, run, findings),
    }


STATUSES = ("changed", "identical", "added", "removed", "incomparable", "failed")


def _findings(result: Result, run: str, findings: Sequence[tuple[str, Finding]]) -> pyarrow.Table:
    """Value and threshold as text where they are no numbers, so that the columns keep one type."""
    import pyarrow as pa

    def column(values: Iterable[object]) -> pyarrow.Array:
        return pa.array([None if value is None else _utf8(str(value)) for value in values], pa.string())

    def number(values: Iterable[object]) -> pyarrow.Array:
        return pa.array([float(v) if isinstance(v, int | float) else None for v in values], pa.float64())

    rows = [finding for _, finding in findings]
    return pa.table(
        {
            "run": column(run for _ in rows),
            "analysis": column(name for name, _ in findings),
            "rule": column(row.rule for row in rows),
            "severity": column(row.severity for row in rows),
            "tensor": column(row.tensor for row in rows),
            "baseline": column(result.baseline for _ in rows),
            "candidate": column(result.candidate for _ in rows),
            "value": number(row.value for row in rows),
            "value_text": column(row.value for row in rows),
            "threshold": number(row.threshold for row in rows),
            "source": column(row.source for row in rows),
        }
    )
