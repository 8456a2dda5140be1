"""Unit records: what finished units of a run measured, kept in batches until the run is finished.

A batch is a file of JSON lines. Each line verifies itself, so that a damaged one costs its own unit only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from diffai_dist.errors import StoreError
from diffai_dist.partials import ALGORITHM
from diffai_dist.rows import DTYPES, Rows
from diffai_dist.store.parts import Folder, short

log = logging.getLogger(__name__)

BATCH = 64  # records an object: 100,000 units make 1,600 objects
BATCH_BYTES = 16 * 2**20
BATCH_SECONDS = 10.0  # what a killed run measures again at most, beside the units under way
SIGNAL_SECONDS = 3.0  # for the last batch of a run that a signal ends: it has 10 s, of which units under way take 5

# What decoding a line may raise that is not as it was written.
DAMAGED = (ValueError, LookupError, TypeError, OverflowError, RecursionError, zlib.error)
UNITS = re.compile(r"runs/([^/]+)/units/[0-9a-f]{16}-([0-9]+)\.jsonl")  # run, records in the batch


@dataclass(slots=True)
class Publisher:
    """Gathers records of a run and publishes them in batches. Leaving its block publishes the rest."""

    folder: Folder
    run: str
    clock: Callable[[], float] = time.monotonic
    _lines: list[bytes] = field(default_factory=list, init=False)
    _size: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)
    _published: int = field(default=0, init=False)

    def add(self, key: str, rows: Rows) -> None:
        """Take a finished unit; a batch is published when it is full, or when its first record is old."""
        line = encode(key, rows)
        if self._size + len(line) > BATCH_BYTES:
            self.flush()
        if not self._lines:
            self._since = self.clock()
        self._lines.append(line)
        self._size += len(line)
        if len(self._lines) >= BATCH or self.clock() - self._since >= BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Publish what was gathered."""
        if self._lines:
            data = b"".join(self._lines)
            self.folder.put(f"runs/{self.run}/units/{short(data)}-{len(self._lines)}.jsonl", data)
            self._published += len(self._lines)
            self._lines, self._size = [], 0
            log.info("published %d units of run %s", self._published, self.run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, Exception):
                self.flush()
            else:
                self._flush_within(SIGNAL_SECONDS)
        except StoreError as lost:
            if error is None:
                raise
            log.warning("%s: units of run %s are measured again when it is resumed", lost, self.run)

    def _flush_within(self, seconds: float) -> None:
        pool = ThreadPoolExecutor(1)
        flushed = pool.submit(self.flush)
        pool.shutdown(wait=False)
        try:
            flushed.result(seconds)
        except TimeoutError as error:
            raise StoreError(f"{self.folder.name('')} did not answer within {seconds:.0f} s") from error


def read_units(folder: Folder, run: str) -> dict[str, Rows]:
    """All verified records by the key of their unit; damaged lines are logged, their units are measured again."""
    found: dict[str, tuple[str, str, Rows]] = {}  # digest, path, rows
    paths = sorted(path for path in folder.listing(f"runs/{run}/units") if UNITS.fullmatch(path))
    for path, data in folder.fetch_each(paths):
        for number, line in enumerate((data or b"").splitlines(), 1):
            try:
                key, mark, rows = decode(line)
            except DAMAGED:
                log.warning("%s: line %d is damaged; its unit is measured again", folder.name(path), number)
                continue
            other, where, _ = found.setdefault(key, (mark, path, rows))
            if other != mark:
                raise StoreError(
                    f"non-deterministic result: {folder.name(path)} has other numbers for unit {key} than {where}. "
                    "Check that all machines run the same versions, and their memory; then remove both files"
                )
    return {key: rows for key, (_, _, rows) in found.items()}


def encode(key: str, rows: Rows) -> bytes:
    """A record as a JSON line; its digest is of the numbers, whatever compressed them."""
    arrays = {name: getattr(rows, name) for name in DTYPES}
    shapes = {name: list(array.shape) for name, array in arrays.items() if array is not None}
    raw = b"".join(
        np.ascontiguousarray(array, DTYPES[name].newbyteorder("<")).tobytes()
        for name, array in arrays.items()
        if array is not None
    )
    line = {"key": key, "algorithm": ALGORITHM, "shapes": shapes, "blake2b": _mark(key, shapes, raw)}
    line["data"] = base64.b64encode(zlib.compress(raw, 1)).decode()
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> tuple[str, str, Rows]:
    """Key, digest and read-only rows of a record; one of DAMAGED is raised if it is not as this version wrote it."""
    record = json.loads(line)
    key, shapes = record["key"], record["shapes"]
    if type(key) is not str or record["algorithm"] != ALGORITHM:
        raise ValueError("another kind of record")
    if type(shapes) is not dict or not {"moments", "shifts"} <= set(shapes) <= set(DTYPES):
        raise ValueError("other arrays than a unit has")
    sizes = {name: _nbytes(shapes.get(name), dtype) for name, dtype in DTYPES.items()}
    # No more than was announced is ever unpacked.
    raw = zlib.decompressobj().decompress(base64.b64decode(record["data"], validate=True), sum(sizes.values()) + 1)
    if len(raw) != sum(sizes.values()) or _mark(key, shapes, raw) != record["blake2b"]:
        raise ValueError("other numbers than were written")
    arrays: dict[str, Any] = {}
    start = 0
    for name, dtype in DTYPES.items():
        part = np.frombuffer(raw[start : start + sizes[name]], dtype.newbyteorder("<")).astype(dtype, copy=False)
        arrays[name] = None if shapes.get(name) is None else part.reshape(shapes[name])
        start += sizes[name]
    return key, record["blake2b"], Rows(**arrays)


def _nbytes(shape: list[int] | None, dtype: np.dtype) -> int:
    if shape is None:
        return 0
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("not a shape")
    return math.prod(shape) * dtype.itemsize


def _mark(key: str, shapes: object, raw: bytes) -> str:
    mark = hashlib.blake2b(json.dumps([key, ALGORITHM, shapes]).encode(), digest_size=32)
    mark.update(raw)
    return mark.hexdigest()
