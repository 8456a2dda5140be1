"""What is declared of quantisation beside the weights, and the small tensors that say what codes mean."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Checkpoint, Span, Violation
from diffai_dist.errors import CheckpointError
from diffai_dist.formats.logical import OTHERWISE, headed, logical, may_be_quantised, told
from diffai_dist.formats.model_config import NAME, read_config
from diffai_dist.schemes.declared import wants_codes
from diffai_dist.schemes.stored import Declared
from diffai_dist.storage import Profile, Read, entries, fill

MOST_TOLD = 1024  # bytes of such a small tensor: a JSON of bitsandbytes has some 200. Of larger ones nobody is told
HEAD_BYTES = 64  # of a large one: 128 zero points of 4 bits
MOST_HEADS = 8  # large ones that are looked into: a model has hundreds, all written alike

Fields = Mapping[str, Any]


def as_values(checkpoint: Checkpoint, folder: str, files: Collection[str] | None, profile: Profile) -> Checkpoint:
    """The checkpoint with quantised weights as the values they stand for; nothing is read where none can be."""
    if not may_be_quantised(checkpoint):
        return _borne_out(checkpoint, _declared(NAME, checkpoint.config))
    if files is None:
        with contextlib.suppress(CheckpointError):
            files = entries(folder, profile)
    declared, warnings = declared_in(folder, FILES if files is None else files, profile)
    told = dataclasses.replace(checkpoint, warnings=tuple(dict.fromkeys((*checkpoint.warnings, *warnings))))
    return _borne_out(logical(told, declared, _content(checkpoint, profile)), declared)


def declared_in(folder: str, files: Collection[str], profile: Profile) -> tuple[Declared, tuple[str, ...]]:
    """The quantisation that the first of these files declares; a broken one declares nothing, with a warning."""
    warnings: tuple[str, ...] = ()
    model: Any = ""
    for name in FILES:
        fields, told = read_config(folder, files, profile, name)
        warnings += told
        model = fields.get("model_type") if name == NAME and fields else model
        found = _declared(name, fields)
        if found.file:
            break
    return dataclasses.replace(found, model=model if isinstance(model, str) else ""), warnings


def _declared(name: str, fields: Fields | None) -> Declared:
    found = FILES[name](fields) if fields is not None else None
    return Declared(_method(found), found, name) if isinstance(found, dict) else Declared()


def _borne_out(checkpoint: Checkpoint, declared: Declared) -> Checkpoint:
    """The checkpoint with a complaint if quantisation is declared and nothing at all is stored as codes."""
    quantised = any(tensor.quantised for tensor in checkpoint.tensors.values()) or checkpoint.unreadable
    if quantised or not wants_codes(declared):
        return checkpoint
    found = f"{declared.file} declares {declared.method[:40]}, but no tensor is stored as codes"
    return dataclasses.replace(
        checkpoint,
        warnings=(*checkpoint.warnings, found),
        violations=(*checkpoint.violations, Violation(OTHERWISE, checkpoint.url, found)),
    )


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
