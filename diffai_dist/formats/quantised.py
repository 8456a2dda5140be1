"""What is declared of quantisation beside the weights, and the small tensors that say what codes mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Checkpoint, Span
from diffai_dist.errors import CheckpointError
from diffai_dist.formats.logical import headed, logical, may_be_quantised, told
from diffai_dist.formats.model_config import NAME, read_config
from diffai_dist.schemes.stored import Declared
from diffai_dist.storage import Profile, Read, entries, fill

MOST_TOLD = 1024  # bytes of such a small tensor: a JSON of bitsandbytes has some 200. Of larger ones nobody is told
HEAD_BYTES = 64  # of a large one: 128 zero points of 4 bits
MOST_HEADS = 8  # large ones that are looked into: a model has hundreds, all written alike

Fields = Mapping[str, Any]


def as_values(checkpoint: Checkpoint, folder: str, files: Collection[str] | None, profile: Profile) -> Checkpoint:
    """The checkpoint with quantised weights as the values they stand for; itself, and nothing read, where none are."""
    if not may_be_quantised(checkpoint):
        return checkpoint
    if files is None:
        with contextlib.suppress(CheckpointError):
            files = entries(folder, profile)
    return logical(
        checkpoint, declared_in(folder, FILES if files is None else files, profile), _content(checkpoint, profile)
    )


def declared_in(folder: str, files: Collection[str], profile: Profile) -> Declared:
    """The quantisation that the first of these files declares; a broken one declares nothing."""
    for name, section in FILES.items():
        fields, _ = read_config(folder, files, profile, name)
        found = section(fields) if fields is not None else None
        if isinstance(found, dict):
            return Declared(_method(found), found, name)
    return Declared()


def _content(checkpoint: Checkpoint, profile: Profile) -> dict[str, bytes]:
    wanted = {tensor.name: tensor.spans for tensor in told(checkpoint) if tensor.nbytes <= MOST_TOLD}
    wanted |= {one.name: tuple(map(_head, one.spans[:1])) for one in headed(checkpoint)[:MOST_HEADS]}
    buffers = {name: [np.empty(span.stop - span.start, np.uint8) for span in spans] for name, spans in wanted.items()}
    reads = [
        Read(span.source, span.start, buffer)
        for name, spans in wanted.items()
        for span, buffer in zip(spans, buffers[name], strict=True)
    ]
    fill(sorted(reads, key=lambda read: (read.source.url, read.start)), profile)
    return {name: b"".join(buffer.tobytes() for buffer in parts) for name, parts in buffers.items()}


def _head(span: Span) -> Span:
    return span.part(0, min(span.stop - span.start, HEAD_BYTES))


def _method(fields: Fields) -> str:
    method = fields.get("quant_method")
    return method.lower() if isinstance(method, str) else ""


def _of_model(fields: Fields) -> Any:
    inner = fields.get("text_config")  # of models that see or hear, too
    found = fields.get("quantization_config") or fields.get("compression_config")
    return found or (_of_model({**inner, "text_config": None}) if isinstance(inner, dict) else None)


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
