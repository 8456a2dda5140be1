"""Small checkpoint files, real and hostile, made on the spot. Sparse where only the header matters."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from diffai_dist.dtypes import BITS

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape of each tensor


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; one for each element where the dtype is not known."""
    return math.prod(shape) * BITS.get(dtype, 8) // 8


def entries(tensors: Shapes) -> dict[str, dict[str, object]]:
    """Header entries of tensors that lie one after the other."""
    found, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + nbytes(dtype, shape)
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return found


def head(header: object, *, length: int | None = None) -> bytes:
    """The length and the header, which is JSON, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def write_sparse(path: Path, tensors: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    """A valid file whose data are a hole in the file system."""
    header = ({} if metadata is None else {"__metadata__": dict(metadata)}) | entries(tensors)
    return write_head(path, head(header), sum(nbytes(*tensor) for tensor in tensors.values()))


def write_head(path: Path, first: bytes, buffer: int = 0) -> Path:
    """Any first bytes, followed by `buffer` bytes that are a hole in the file system."""
    with path.open("wb") as file:
        file.write(first)
        file.truncate(len(first) + buffer)
    return path


def write_data(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] | None = None
) -> Path:
    """A valid file of any dtype, the unknown too, from raw bytes in order."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        begin, end = end, end + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    path.write_bytes(head(header) + b"".join(data for _, _, data in tensors.values()))
    return path


def write_sharded(folder: Path, shards: Mapping[str, Shapes], **index: object) -> Path:
    """Shards and their index; `index` replaces fields of the index."""
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        write_sparse(folder / name, tensors, {"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(nbytes(*tensor) for tensors in shards.values() for tensor in tensors.values())
    fields = {"metadata": {"total_size": total}, "weight_map": weight_map} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(fields))
    return folder
