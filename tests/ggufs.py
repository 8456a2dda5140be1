"""GGUF files: real ones by the library's writer, and headers byte by byte for what no writer writes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

Stored = Mapping[str, tuple[np.ndarray, str]]  # values float32, and the type that they are stored as


def write(path: Path, architecture: str, tensors: Stored, split: int = 0, **fields: int) -> Path:
    """A file by GGUFWriter, with integer keys of the architecture; `split` tensors in each part, 0 for one file."""
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    for key, value in fields.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_token_list(["<s>", "a", "\u2581b"])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    for name, (values, kind) in tensors.items():
        constant = GGMLQuantizationType[kind]
        writer.add_tensor(name, quants.quantize(values, constant), raw_dtype=constant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def string(text: str | bytes) -> bytes:
    """A string with its length."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def field(key: str, kind: int, value: bytes) -> bytes:
    """A key with a value of any type, in bytes."""
    return string(key) + struct.pack("<I", kind) + value


def entry(name: str | bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """A row of the table of tensors; the innermost dimension first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def header(
    fields: Sequence[bytes],
    entries: Sequence[bytes],
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """All before the data, padded to 32 bytes; counts may lie."""
    tensors = len(entries) if tensor_count is None else tensor_count
    keys = len(fields) if key_count is None else key_count
    text = struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + b"".join(fields) + b"".join(entries)
    return text + bytes(-len(text) % 32)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as LlamaModel.permute of llama.cpp's converter puts them."""
    shape = heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape))


def llama(seed: int = 0, layers: int = 2, heads: int = 8, kv_heads: int = 4) -> dict[str, Any]:
    """A small model under the names of Hugging Face, float32."""
    generator = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    arrays = {
        "model.embed_tokens.weight": weight(100, 256),
        "model.norm.weight": weight(256),
        "lm_head.weight": weight(100, 256),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        arrays |= {
            prefix + "input_layernorm.weight": weight(256),
            prefix + "self_attn.q_proj.weight": weight(heads * 32, 256),
            prefix + "self_attn.k_proj.weight": weight(kv_heads * 32, 256),
            prefix + "self_attn.v_proj.weight": weight(kv_heads * 32, 256),
            prefix + "self_attn.o_proj.weight": weight(256, heads * 32),
            prefix + "post_attention_layernorm.weight": weight(256),
            prefix + "mlp.gate_proj.weight": weight(512, 256),
            prefix + "mlp.up_proj.weight": weight(512, 256),
            prefix + "mlp.down_proj.weight": weight(256, 512),
        }
    return arrays
