"""The tables of the history: their columns, which stay as they are, and rows for them.

    runs       one row per run
    members    one per checkpoint of a run
    pairs      one per pair: its counts, and the change of the whole checkpoint
    tensors    one per tensor of a pair
    findings   one per finding of an analysis

What a column cannot hold to the last bit (an integer among floats or beyond 64 bits, a lone surrogate) is rounded or
escaped in it, and whole in the row's `exact`: a JSON object of such values by their column.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffai_dist.records import Change, Coverage, ErrorBound, Result, Side, TensorRecord

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, Any]
Columns = Mapping[str, str]  # type by name

STATUSES = ("changed", "identical", "added", "removed", "incomparable", "failed")
SIDE = tuple(field.name for field in dataclasses.fields(Side))
CHANGE = tuple(field.name for field in dataclasses.fields(Change))
BOUND = tuple(field.name for field in dataclasses.fields(ErrorBound))
COVERAGE = tuple(field.name for field in dataclasses.fields(Coverage) if field.name != "not_compared")

_FLOATS = {"mean", "std", "min", "max", "absmax", "rms", "l2"}
_KINDS = {"dtype": "string", "shape": "list<int64>"}
_SIDE = {name: _KINDS.get(name, "double" if name in _FLOATS else "int64") for name in SIDE}
_CHANGE = {name: "int64" if name == "max_abs_index" else "double" for name in CHANGE}
_BOUND = {f"{name}_error": "double" for name in BOUND}
_PAIR = {"run": "string", "baseline": "string", "candidate": "string"}

TABLES: Mapping[str, Columns] = {
    "runs": {
        "run": "string",
        "name": "string",
        "started": "timestamp",
        "mode": "string",
        "members": "int64",
        "pairs": "int64",
        "schema_version": "string",
        "version": "string",
        "exit_code": "int64",
        "failures": "int64",
    },
    "members": {
        "run": "string",
        "member": "string",
        "url": "string",
        "position": "int64",
        "step": "int64",
        "dated": "string",
        "format": "string",
        "objects": "list<object>",
        "tensors": "int64",
        "bytes": "int64",
        "failure": "string",
    },
    "pairs": {
        **_PAIR,
        "method": "string",
        **_CHANGE,
        **_BOUND,
        **dict.fromkeys(COVERAGE, "int64"),
        **{f"tensors_{status}": "int64" for status in STATUSES},
        "failures": "int64",
        "exact": "string",
    },
    "tensors": {
        **_PAIR,
        "name": "string",
        "status": "string",
        "candidate_name": "string",
        "reason": "string",
        "method": "string",
        "within_epsilon": "double",
        **_CHANGE,
        **_BOUND,
        **{f"{side}_{name}": kind for side in ("baseline", "candidate") for name, kind in _SIDE.items()},
        "exact": "string",
    },
    "findings": {
        "run": "string",
        "analysis": "string",
        "rule": "string",
        "severity": "string",
        "tensor": "string",
        "baseline": "string",
        "candidate": "string",
        "value": "double",
        "value_text": "string",
        "threshold": "double",
        "source": "string",
    },
}


def schema(table: str) -> pyarrow.Schema:
    """The table's columns with their Arrow types."""
    import pyarrow as pa

    pinned = pa.struct([("url", pa.string()), ("size", pa.int64()), ("version", pa.string())])
    special = {
        "timestamp": pa.timestamp("us", "UTC"),
        "list<int64>": pa.list_(pa.int64()),
        "list<object>": pa.list_(pinned),
    }
    return pa.schema([(name, special.get(kind) or pa.type_for_alias(kind)) for name, kind in TABLES[table].items()])


def arrow(table: str, rows: Sequence[Row]) -> pyarrow.Table:
    """Rows as an Arrow table; a column that a row does not name is null in it."""
    return _table(table, {name: [row.get(name) for row in rows] for name in TABLES[table]})


def _table(table: str, columns: Mapping[str, list[Any]]) -> pyarrow.Table:
    import pyarrow as pa

    types = schema(table)
    exact: list[dict[str, Any]] = [{} for _ in columns["run"]]
    arrays = {name: _array(columns[name], types.field(name).type, name, exact) for name in types.names}
    if "exact" in arrays:
        arrays["exact"] = pa.array([json.dumps(cells) if cells else None for cells in exact], pa.string())
    return pa.table(arrays, types)


def _array(cells: list[Any], kind: pyarrow.DataType, name: str, exact: Sequence[dict[str, Any]]) -> pyarrow.Array:
    """The cells as a column; what does not fit is replaced in it, and goes to `exact`."""
    import pyarrow as pa

    if str(kind) not in _FITS:
        return pa.array(cells, kind)
    python, instead = _FITS[str(kind)]
    with contextlib.suppress(UnicodeEncodeError, OverflowError):
        if set(map(type, cells)) <= {python, type(None)}:
            return pa.array(cells, kind)
    fitted = list(cells)
    for i, cell in enumerate(cells):
        if cell is not None and (type(cell) is not python or instead(cell) != cell):
            exact[i][name], fitted[i] = cell, instead(cell)
    return pa.array(fitted, kind)


def utf8(text: str) -> str:
    """The text with lone surrogates as escapes: Parquet strings are UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _int64(number: float) -> int | None:
    return int(number) if -(2**63) <= number < 2**63 else None


# By Arrow type: the Python type that fits, and what stands for a value that does not.
_FITS: Mapping[str, tuple[type, Callable[[Any], Any]]] = {
    "string": (str, utf8),
    "double": (float, float),
    "int64": (int, _int64),
}


def tensor_table(result: Result, run: str) -> pyarrow.Table:
    """One row per tensor of the pair: names, status, both sides' statistics, the change."""
    records = result.tensors
    columns: dict[str, list[Any]] = {
        name: [value] * len(records)
        for name, value in (("run", run), ("baseline", result.baseline), ("candidate", result.candidate))
    }
    columns |= _fields(records, ("name", "status", "candidate_name", "reason", "within_epsilon"))
    columns |= _fields([record.change for record in records], CHANGE)
    bounds = [record.error_bound for record in records]
    columns |= {f"{name}_error": cells for name, cells in _fields(bounds, BOUND).items()}
    columns["method"] = [method(record.change, record.error_bound) for record in records]
    for side in ("baseline", "candidate"):
        cells = _fields([getattr(record, side) for record in records], SIDE)
        columns |= {f"{side}_{name}": column for name, column in cells.items()}
    return _table("tensors", columns | {"exact": []})


def all_tensors(results: Iterable[Result], run: str) -> pyarrow.Table:
    """The rows of many pairs, one pair after the other."""
    import pyarrow as pa

    return pa.concat_tables([schema("tensors").empty_table(), *(tensor_table(result, run) for result in results)])


def _fields(records: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """A column per field; null where there is no record."""
    return {name: [None if one is None else getattr(one, name) for one in records] for name in names}


def tensor_records(rows: pyarrow.Table) -> list[TensorRecord]:
    """The records that rows of the tensors table were made of."""
    columns = rows.to_pydict()
    for i, text in enumerate(columns["exact"]):
        for name, cell in json.loads(text).items() if text else ():
            columns[name][i] = cell
    for name in ("baseline_shape", "candidate_shape"):
        columns[name] = [None if shape is None else tuple(shape) for shape in columns[name]]
    made = zip(
        columns["name"],
        columns["status"],
        *(_made(Side, [columns[f"{side}_{name}"] for name in SIDE]) for side in ("baseline", "candidate")),
        _made(Change, [columns[name] for name in CHANGE], [how is not None for how in columns["method"]]),
        columns["reason"],
        columns["within_epsilon"],
        _made(ErrorBound, [columns[f"{name}_error"] for name in BOUND]),
        columns.get("candidate_name", [None] * len(rows)),  # no such column in older stores
        strict=True,
    )
    return [TensorRecord(*row) for row in made]


def _made(
    kind: Callable[..., Any], columns: Sequence[Sequence[Any]], present: Sequence[bool] | None = None
) -> Iterator[Any]:
    """A record per row; none where it is not present, or by default where its first field is null."""
    present = [cell is not None for cell in columns[0]] if present is None else present
    for there, row in zip(present, zip(*columns, strict=True), strict=True):
        yield kind(*row) if there else None


def method(change: Change | None, bound: ErrorBound | None) -> str | None:
    """How a change was measured; null where there is none."""
    return None if change is None else "gram" if bound else "elementwise"


def change_cells(change: Change | None, bound: ErrorBound | None) -> dict[str, Any]:
    """The cells of a change and how it came about, by column."""
    cells = {name: getattr(change, name) for name in CHANGE} if change else {}
    errors = {f"{name}_error": getattr(bound, name) for name in BOUND} if bound else {}
    return cells | errors | {"method": method(change, bound)}


def parquet(table: pyarrow.Table) -> bytes:
    """The table as a Parquet file; the same table has the same bytes."""
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
