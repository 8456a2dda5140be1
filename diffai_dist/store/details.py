"""Details of earlier runs beside their measurements: tables of each tensor as bytes, in a file for a member or a pair.

Named like measurements, with the details that were asked for; a file verifies itself.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from diffai_dist.partials import BITWISE, COLUMN, COLUMN_SHIFT, CONTENT, HISTOGRAM, ROW, ROW_SHIFT
from diffai_dist.records import Details
from diffai_dist.store.tables import parquet, utf8

# What each partial of a comparison asks of a member, or of a pair.
_ASKED = {"member": ("content", "rows", "columns", "histogram", "codes"), "pair": ("bitwise", "rows", "columns")}

Tables = dict[str, np.ndarray]  # of one tensor, by field of Details

# Fields of Details by what they are of: those with a row per tensor, and those with a table per tensor.
FIXED: Mapping[str, Mapping[str, np.dtype]] = {"member": {"content": CONTENT}, "pair": {"bitwise": BITWISE}}
TABLES: Mapping[str, Mapping[str, np.dtype]] = {
    "member": {"rows": ROW, "columns": COLUMN, "histograms": HISTOGRAM},
    "pair": {"row_shifts": ROW_SHIFT, "column_shifts": COLUMN_SHIFT},
}


def role_of(role: str, details: Iterable[str]) -> str:
    """How the key of such a file names what was measured."""
    return " ".join([f"{role}-details", *(name for name in _ASKED[role] if name in details)])


def tables_of(details: Details, role: str, tensor: int, index: int) -> Tables:
    """What there is of one tensor in a member, or a pair."""
    found = {name: table[[tensor], index] for name in FIXED[role] if (table := getattr(details, name)) is not None}
    for name in TABLES[role]:
        if (tensor, index) in (tables := getattr(details, name)):
            found[name] = tables[tensor, index]
    return found


def put_tables(details: Details, role: str, tensor: int, index: int, tables: Mapping[str, np.ndarray]) -> None:
    """The reverse: into arrays that are there, and mappings that can be written."""
    for name, table in tables.items():
        if name in FIXED[role]:
            getattr(details, name)[tensor, index] = table[0]
        else:
            getattr(details, name)[tensor, index] = table


def packed(names: list[str], tables: list[Tables], role: str, key: str) -> bytes:
    """A row per tensor, its tables as little-endian bytes, null where it has none."""
    import pyarrow as pa

    columns: dict[str, Any] = {"name": pa.array(map(utf8, names), pa.string())}
    for field, dtype in _fields(role):
        cells = [_bytes(one[field], dtype) if field in one else None for one in tables]
        columns[field] = pa.array(cells, pa.large_binary())
    about = {"key": key, "names": json.dumps(names), "blake2b": mark(names, tables, role, key)}
    return parquet(pa.table(columns).replace_schema_metadata(about))


def unpacked(data: bytes, role: str, key: str) -> dict[str, Tables] | None:
    """The tables by the name of their tensor; None if the file is not what was once written under that key."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        about = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        names = json.loads(about["names"])
        tables: list[Tables] = [{} for _ in names]
        for field, dtype in _fields(role):
            for one, cell in zip(tables, table[field].to_pylist(), strict=True):
                if cell is not None:
                    one[field] = np.frombuffer(cell, dtype.newbyteorder("<")).astype(dtype)
        return dict(zip(names, tables, strict=True)) if mark(names, tables, role, key) == about["blake2b"] else None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def mark(names: list[str], tables: list[Tables], role: str, key: str) -> str:
    """Digest of the numbers, whatever packs them."""
    digest = hashlib.blake2b(json.dumps([key, names]).encode(), digest_size=32)
    for one in tables:
        for field, dtype in _fields(role):
            digest.update(f"{field} {len(one[field]) if field in one else None} ".encode())
            digest.update(_bytes(one[field], dtype) if field in one else b"")
    return digest.hexdigest()


def _fields(role: str) -> Iterator[tuple[str, np.dtype]]:
    yield from {**FIXED[role], **TABLES[role]}.items()


def _bytes(table: np.ndarray, dtype: np.dtype) -> bytes:
    return np.ascontiguousarray(table, dtype.newbyteorder("<")).tobytes()
