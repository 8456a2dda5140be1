"""A finished run as it was, from the store alone."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffai_dist.conclusions import Results
from diffai_dist.errors import DamagedStore, StoreError
from diffai_dist.records import Result, Sweep, TensorRecord
from diffai_dist.store.document import Document, result_of, sweep_of
from diffai_dist.store.parts import AGAIN, Folder, Part, parse, parts_of
from diffai_dist.store.tables import tensor_records

if TYPE_CHECKING:
    import pyarrow

KEPT_RESULTS = 2


def load_document(folder: Folder, run: str, marker: Mapping[str, Any]) -> Document:
    """The run document that the marker names."""
    part = _part(folder, marker, f"runs/{run}/run-")
    return parse(folder.read(part), folder.name(part.path))


def load_sweep(folder: Folder, run: str, marker: Mapping[str, Any]) -> Sweep:
    """The sweep that the run ended with, every part verified first; the results are made when they are asked for."""
    described, tensors = (_part(folder, marker, start) for start in (f"runs/{run}/run-", "tables/tensors/"))
    data = {part: found for part, found in folder.read_each(parts_of(marker)) if part in (described, tensors)}
    name = folder.name(described.path)
    document = parse(data[described], name)
    try:
        rows = _TensorRows(data[tensors], [pair["tensors"] for pair in document["pairs"]])
        results = Results(len(document["pairs"]), functools.partial(_result, document, rows), KEPT_RESULTS)
        return sweep_of(document, results)
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedStore(f"{name} is not as this version writes it: {error}. {AGAIN}") from error


def _part(folder: Folder, marker: Mapping[str, Any], start: str) -> Part:
    found = next((part for part in parts_of(marker) if part.path.startswith(start)), None)
    if found is None:  # as version 0.1.0 left them
        where = folder.name(f"runs/{marker['run']}/_SUCCESS.json")
        raise StoreError(f"{where} names no {start}*, which a report needs: compare again")
    return found


def _result(document: Document, rows: _TensorRows, index: int) -> Result:
    return result_of(document, index, rows.records(index))


class _TensorRows:
    """The tensors of each pair in the tensors table, whose row groups hold whole pairs."""

    def __init__(self, data: bytes, counts: Sequence[int]) -> None:
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        if sum(groups) != sum(counts):
            raise ValueError(f"the tensors table has {sum(groups):,} rows, expected {sum(counts):,}")
        self._starts = list(itertools.accumulate(counts, initial=0))
        self._groups = list(itertools.accumulate(groups, initial=0))
        self._read = functools.lru_cache(1)(file.read_row_group)

    def records(self, index: int) -> list[TensorRecord]:
        """The tensors of one pair, in their order."""
        start, stop = self._starts[index], self._starts[index + 1]
        if start == stop:
            return []
        group = next(i for i, end in enumerate(self._groups[1:]) if stop <= end)
        rows: pyarrow.Table = self._read(group).slice(start - self._groups[group], stop - start)
        return tensor_records(rows)
