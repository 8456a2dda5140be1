"""What is declared of quantisation beside the weights, and the small tensors that say what codes mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.errors import BadHeader, CheckpointError
from diffai_dist.formats.logical import logical, may_be_quantised, told
from diffai_dist.formats.model_config import NAME, read_config
from diffai_dist.schemes.stored import Declared
from diffai_dist.storage import Profile, Read, entries, fill, redact

MOST_TOLD = 1024  # bytes of such a small tensor: a JSON of bitsandbytes has some 200

Fields = Mapping[str, Any]


def as_values(checkpoint: Checkpoint, folder: str, files: Collection[str] | None, profile: Profile) -> Checkpoint:
    """The checkpoint with quantised weights as the values they stand for; itself, and nothing read, where none are."""
    if not may_be_quantised(checkpoint):
        return checkpoint
    if files is None:
        with contextlib.suppress(CheckpointError):
            files = entries(folder, profile)
    return logical(checkpoint, declared_in(folder, files or (), profile), _content(told(checkpoint), profile))


def declared_in(folder: str, files: Collection[str], profile: Profile) -> Declared:
    """The quantisation that the first of these files declares; a broken one declares nothing."""
    for name, section in FILES.items():
        fields, _ = read_config(folder, files, profile, name)
        found = section(fields) if fields is not None else None
        if isinstance(found, dict):
            return Declared(_method(found), found, name)
    return Declared()


def _content(tensors: list[Tensor], profile: Profile) -> dict[str, bytes]:
    for tensor in tensors:
        if tensor.nbytes > MOST_TOLD:
            where = redact(tensor.spans[0].source.url)
            raise BadHeader(where, f"{tensor.nbytes:,} bytes", expected=f"at most {MOST_TOLD:,}", tensor=tensor.name)
    buffers = {tensor.name: np.empty(tensor.nbytes, np.uint8) for tensor in tensors}
    reads = [Read(span.source, span.start, buffers[one.name]) for one in tensors for span in one.spans]
    fill(sorted(reads, key=lambda read: (read.source.url, read.start)), profile)
    return {name: buffer.tobytes() for name, buffer in buffers.items()}


def _method(fields: Fields) -> str:
    method = fields.get("quant_method")
    return method.lower() if isinstance(method, str) else ""


def _of_model(fields: Fields) -> Any:
    return fields.get("quantization_config") or fields.get("compression_config")


def _of_modelopt(fields: Fields) -> Any:
    found = fields.get("quantization")
    return {"quant_method": "modelopt", **found} if isinstance(found, dict) else None


# In this order: who has the section, and where. The last two are of old GPTQ and AWQ, and are all about it.
FILES: Mapping[str, Callable[[Fields], Any]] = {
    NAME: _of_model,
    "hf_quant_config.json": _of_modelopt,
    "quantize_config.json": lambda fields: {"quant_method": "gptq", **fields},
    "quant_config.json": lambda fields: {"quant_method": "awq", **fields},
}
