"""Measurements of earlier runs: the merged partials of a member or a pair, named by what was measured.

The name digests the pinned objects, the selection and the algorithm: same name, same numbers. A file verifies itself,
since its bytes may change with the version of the Parquet library; what does not verify is measured again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffai_dist.checkpoint import Checkpoint
from diffai_dist.comparison import Pair
from diffai_dist.errors import StoreError
from diffai_dist.opening import side_by_side
from diffai_dist.partials import ALGORITHM, MOMENTS, SHIFT
from diffai_dist.records import Measurements
from diffai_dist.run import Settings
from diffai_dist.store import details
from diffai_dist.store.parts import AT_ONCE, Folder, Part
from diffai_dist.store.tables import parquet, utf8

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

Rows = Mapping[str, Any]  # by tensor name: a row of MOMENTS or SHIFT


def measurement_key(role: str, members: Sequence[Checkpoint], settings: Settings) -> str:
    """Digest of what was measured; the role is `member` or `pair`, or says which details of one."""
    pinned = [[(one.url, one.size, one.version) for one in member.sources] for member in members]
    part = settings.digest_part()
    chosen = [part[key] for key in ("include", "exclude", "ignore_keys_regex")]
    coded = [member.coded for member in members]
    text = json.dumps([ALGORITHM, role, pinned, chosen, *([coded] if any(coded) else [])])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_rows(folder: Folder, key: str) -> Rows | None:
    """The rows by tensor name; None where there are none, or none that verify."""
    path = _path(key)
    data = folder.fetch(path)
    found = None if data is None else _unpacked(data, key)
    if data is not None and found is None:
        log.warning("%s is damaged; it is measured again", folder.name(path))
    return None if found is None else dict(zip(*found, strict=True))


def save_measurements(folder: Folder, measured: Measurements, settings: Settings) -> list[Part]:
    """Keep the members and pairs that were measured to the last element. Less helps no later run, nor do the products
    of a group, or names that were matched in it: the next night has another group."""
    if measured.comparison.matches:
        return []
    complete = [one for one in _complete(measured) if one.tensors]
    parts = side_by_side(lambda one: _keep(folder, *_rows_of(measured, one, settings)), complete, AT_ONCE)
    if measured.comparison.details:
        parts += side_by_side(lambda one: _keep_details(folder, measured, one, settings), complete, AT_ONCE)
    return parts


@dataclass(frozen=True, slots=True)
class _Whole:
    """A member or a pair that was measured to the last element: its index, and its tensors by index."""

    role: Literal["member", "pair"]
    index: int
    members: tuple[Checkpoint, ...]
    tensors: tuple[int, ...]


def _complete(measured: Measurements) -> Iterator[_Whole]:
    """What can be kept."""
    comparison = measured.comparison
    members = comparison.members
    whole = [i for i, member in enumerate(members) if _is_whole(measured, i) and _is_pinned(member)]
    for i in whole:
        rows = (t for t, one in enumerate(comparison.aligned) if one.tensors[i])
        yield _Whole("member", i, (members[i],), tuple(rows))
    for index, pair in enumerate(comparison.pairs):
        comparable, shifts = tuple(_comparable(measured, pair)), measured.shifts[:, index]
        sides = pair.baseline, pair.candidate
        if set(sides) <= set(whole) and all(_counted(measured, t, pair, shifts) for t in comparable):
            yield _Whole("pair", index, tuple(members[side] for side in sides), comparable)


def _names(measured: Measurements, one: _Whole) -> list[str]:
    return [measured.comparison.aligned[t].name for t in one.tensors]


def _rows_of(measured: Measurements, one: _Whole, settings: Settings) -> tuple[str, list[str], np.ndarray]:
    rows = measured.moments if one.role == "member" else measured.shifts
    key = measurement_key(one.role, one.members, settings)
    return key, _names(measured, one), rows[list(one.tensors), one.index]


def _keep_details(folder: Folder, measured: Measurements, one: _Whole, settings: Settings) -> Part:
    """Publish them; what is there and verifies is published again, as measurements are."""
    key = measurement_key(details.role_of(one.role, measured.comparison.details), one.members, settings)
    names = _names(measured, one)
    tables = [details.tables_of(measured.details, one.role, t, one.index) for t in one.tensors]
    data = folder.fetch(_path(key))
    there = None if data is None else details.unpacked(data, one.role, key)
    if data is None or there is None:
        return folder.put(_path(key), details.packed(names, tables, one.role, key))
    if details.mark(list(there), list(there.values()), one.role, key) != details.mark(names, tables, one.role, key):
        raise StoreError(_other_numbers(folder, key))
    return folder.put(_path(key), data)


def load_details(folder: Folder, key: str, role: str) -> Mapping[str, details.Tables] | None:
    """The tables by tensor name; None where there are none, or none that verify."""
    data = folder.fetch(_path(key))
    found = None if data is None else details.unpacked(data, role, key)
    if data is not None and found is None:
        log.warning("%s is damaged; it is measured again", folder.name(_path(key)))
    return found


def _is_whole(measured: Measurements, member: int) -> bool:
    """Whether every element of the member was measured."""
    if any(failed == member for _, failed in measured.failures):
        return False
    counts = measured.moments["count"][:, member].tolist()
    for one, count in zip(measured.comparison.aligned, counts, strict=True):
        tensor = one.tensors[member]
        if one.unreadable[member] or (tensor and count != tensor.counted):
            return False
    return True


def _is_pinned(member: Checkpoint) -> bool:
    """Whether the objects can be told from others of their URL and size."""
    return all(source.version != "none" for source in member.sources)


def _comparable(measured: Measurements, pair: Pair) -> list[int]:
    aligned = enumerate(measured.comparison.aligned)
    both = ((t, one) for t, one in aligned if one.tensors[pair.baseline] and one.tensors[pair.candidate])
    return [t for t, one in both if not one.incomparable(pair)]


def _counted(measured: Measurements, tensor: int, pair: Pair, shifts: np.ndarray) -> bool:
    one = measured.comparison.aligned[tensor].tensors[pair.baseline]
    return one is not None and bool(shifts["count"][tensor] == one.counted)


def _keep(folder: Folder, key: str, names: list[str], rows: np.ndarray) -> Part:
    """Publish them unless they are there. What is there is published again: that makes it young, so that a cleaning
    under way spares it until the marker names it."""
    path = _path(key)
    data = folder.fetch(path)
    there = None if data is None else _unpacked(data, key)
    if data is None or there is None:
        return folder.put(path, _packed(names, rows, key))
    if _mark(*there, key) != _mark(names, rows, key):
        raise StoreError(_other_numbers(folder, key))
    return folder.put(path, data)


def _other_numbers(folder: Folder, key: str) -> str:
    return (
        f"non-deterministic result: {folder.name(_path(key))} has other numbers than were measured now of the same "
        "objects. Check that all machines run the same versions, and their memory; then remove the file"
    )


def _path(key: str) -> str:
    return f"measurements/{key}.parquet"


def _packed(names: list[str], rows: np.ndarray, key: str) -> bytes:
    """A column per field of a partial, in the words of partials.py.

    Names that are no UTF-8 are escaped in `name`, and whole in the metadata.
    """
    import pyarrow as pa

    columns = {"name": pa.array(map(utf8, names), pa.string())}
    columns |= {field: pa.array(np.ascontiguousarray(rows[field])) for field in rows.dtype.names or ()}
    about = {"key": key, "blake2b": _mark(names, rows, key)}
    if columns["name"].to_pylist() != names:
        about["names"] = json.dumps(names)
    return parquet(pa.table(columns).replace_schema_metadata(about))


def _unpacked(data: bytes, key: str) -> tuple[list[str], np.ndarray] | None:
    """Names and rows of a file; None if it is not what was once written under that key."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        about = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        names = json.loads(about["names"]) if "names" in about else table["name"].to_pylist()
        rows = _rows(table)
        return (names, rows) if _mark(names, rows, key) == about["blake2b"] else None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _rows(table: pyarrow.Table) -> np.ndarray:
    columns = {name: table[name].combine_chunks() for name in table.column_names[1:]}
    rows = np.empty(len(table), {dtype.names: dtype for dtype in (MOMENTS, SHIFT)}[tuple(columns)])
    for name, column in columns.items():
        rows[name] = column.to_numpy()
    return rows


def _mark(names: Sequence[str], rows: np.ndarray, key: str) -> str:
    text = json.dumps([key, list(names), list(rows.shape)])
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return hashlib.blake2b(text.encode() + little.tobytes(), digest_size=32).hexdigest()
