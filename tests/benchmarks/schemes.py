"""Decoding of each scheme on one core, from bytes in memory to float32: G elements a second, and over a plain copy.

    python tests/benchmarks/schemes.py [--rows 4096] [--runs 7]

The weight is written with random codes, opened as any checkpoint, and decoded leaf by leaf, as comparisons do. The
copy is of as many float32 values, what decoding would cost if there were nothing to decode.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from diffai_dist.checkpoint import Tensor
from diffai_dist.formats import open_checkpoint
from diffai_dist.grid import leaf_elements
from diffai_dist.storage import Profile

COLUMNS = 4096
RANDOM = np.random.default_rng(0)

Arrays = dict[str, Any]
Written = tuple[Arrays, dict[str, Any]]  # stored tensors, quantization_config


def _bytes(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


def _words(*shape: int) -> np.ndarray:
    return RANDOM.integers(-(2**31), 2**31, shape).astype(np.int32)


def _scales(*shape: int) -> np.ndarray:
    return RANDOM.uniform(0.5, 1.5, shape).astype(np.float32)


def _text(document: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(document).encode(), np.uint8)


def fp8(rows: int) -> Written:
    codes = (_bytes(rows, COLUMNS) & 0x77).view(ml_dtypes.float8_e4m3fn)
    return {"p.weight": codes, "p.weight_scale_inv": _scales(rows // 128, COLUMNS // 128)}, {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }


def int8(rows: int) -> Written:
    return {"p.weight": _bytes(rows, COLUMNS).view(np.int8), "p.weight_scale": _scales(rows, 1)}, {}


def nvfp4(rows: int) -> Written:
    scales = (_bytes(rows, COLUMNS // 16) & 0x77).view(ml_dtypes.float8_e4m3fn)
    return {
        "p.weight_packed": _bytes(rows, COLUMNS // 2),
        "p.weight_scale": scales,
        "p.weight_global_scale": _scales(1),
    }, {}


def mxfp4(rows: int) -> Written:
    return {
        "p.experts.gate_up_proj_blocks": _bytes(1, rows, COLUMNS // 32, 16),
        "p.experts.gate_up_proj_scales": RANDOM.integers(120, 130, (1, rows, COLUMNS // 32)).astype(np.uint8),
    }, {"quant_method": "mxfp4"}


def gptq(bits: int, ordered: bool = False) -> Callable[[int], Written]:
    def written(rows: int) -> Written:
        groups = np.arange(COLUMNS) // 128
        return {
            "p.qweight": _words(COLUMNS * bits // 32, rows),
            "p.qzeros": _words(COLUMNS // 128, rows * bits // 32),
            "p.scales": _scales(COLUMNS // 128, rows).astype(np.float16),
            "p.g_idx": (RANDOM.permutation(groups) if ordered else groups).astype(np.int32),
        }, {"quant_method": "gptq", "bits": bits, "group_size": 128, "desc_act": ordered, "checkpoint_format": "gptq"}

    return written


def awq(rows: int) -> Written:
    return {
        "p.qweight": _words(COLUMNS, rows // 8),
        "p.qzeros": _words(COLUMNS // 128, rows // 8),
        "p.scales": _scales(COLUMNS // 128, rows).astype(np.float16),
    }, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def packed(bits: int) -> Callable[[int], Written]:
    def written(rows: int) -> Written:
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
        return {
            "p.weight_packed": _words(rows, COLUMNS * bits // 32),
            "p.weight_scale": _scales(rows, COLUMNS // 128),
            "p.weight_shape": np.array([rows, COLUMNS]),
        }, {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }

    return written


def nf4(rows: int) -> Written:
    blocks = rows * COLUMNS // 64
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, COLUMNS]}
    nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.04}
    return {
        "p.weight": _bytes(rows * COLUMNS // 2, 1),
        "p.weight.absmax": _bytes(blocks),
        "p.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "p.weight.nested_absmax": _scales(blocks // 256),
        "p.weight.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        "p.weight.quant_state.bitsandbytes__nf4": _text({**state, **nested}),
    }, {"quant_method": "bitsandbytes", "load_in_4bit": True}


def bnb8(rows: int) -> Written:
    return {
        "p.weight": _bytes(rows, COLUMNS).view(np.int8),
        "p.SCB": _scales(rows),
        "p.weight_format": np.array(0, np.uint8),
    }, {"quant_method": "bitsandbytes", "load_in_8bit": True}


SCHEMES: dict[str, Callable[[int], Written]] = {
    "FP8, tiles of 128": fp8,
    "INT8, a scale per row": int8,
    "NVFP4": nvfp4,
    "MXFP4 (gpt-oss)": mxfp4,
    "GPTQ, 4 bits": gptq(4),
    "GPTQ, 4 bits, act-order": gptq(4, ordered=True),
    "GPTQ, 3 bits": gptq(3),
    "GPTQ, 8 bits": gptq(8),
    "AWQ, 4 bits": awq,
    "compressed-tensors, 4 bits packed": packed(4),
    "compressed-tensors, 3 bits packed": packed(3),
    "bitsandbytes NF4, nested": nf4,
    "bitsandbytes INT8": bnb8,
}
BLOCK_TYPES = (
    *("Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4", "NVFP4", "Q1_0", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
)


def weights(folder: Path, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Each scheme with its weight in a checkpoint on disk."""
    for number, (name, written) in enumerate(SCHEMES.items()):
        (place := folder / str(number)).mkdir()
        arrays, declared = written(rows)
        save_file(arrays, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"quantization_config": declared}))
        checkpoint = open_checkpoint(str(place), Profile())
        (tensor,) = checkpoint.tensors.values() or [checkpoint.unreadable]
        yield name, tensor
    for kind in BLOCK_TYPES:
        yield f"GGUF {kind}", _gguf(folder / f"{kind}.gguf", kind, rows)


def _gguf(path: Path, kind: str, rows: int) -> Tensor:
    import gguf

    type_ = gguf.GGMLQuantizationType[kind]
    elements, nbytes = gguf.GGML_QUANT_SIZES[type_]
    writer = gguf.GGUFWriter(path, "bench")
    writer.add_tensor("w", _bytes(rows, COLUMNS // elements * nbytes), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = open_checkpoint(str(path), Profile()).tensors.values()
    return tensor


def leaves(tensor: Tensor) -> Iterator[tuple[int, int]]:
    step = leaf_elements(tensor.shape)
    for first in range(0, tensor.elements, step):
        yield first, min(first + step, tensor.elements)


def rate(tensor: Tensor, runs: int) -> float:
    """Elements a second, of the best of the runs."""
    assert tensor.scheme is not None
    data = {span.source.url: Path(span.source.url).read_bytes() for span in tensor.spans}
    work = [
        (first, stop, [np.frombuffer(data[one.source.url][one.start : one.stop], np.uint8).copy() for one in spans])
        for first, stop in leaves(tensor)
        for spans in [tensor.ranges(first, stop)]
    ]
    out = np.empty(leaf_elements(tensor.shape) * 4, np.uint8)
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        for first, stop, parts in work:
            tensor.scheme.decode(tensor, parts, first, stop, out[: (stop - first) * 4])
        seconds.append(time.perf_counter() - start)
    return tensor.elements / min(seconds[1:])


def copy_rate(elements: int, leaf: int, runs: int) -> float:
    values, out = np.ones(elements, np.float32), np.empty(leaf, np.float32)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        for first in range(0, elements, leaf):
            out[:] = values[first : first + leaf]
        seconds.append(time.perf_counter() - start)
    return elements / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help=f"rows of the weight, which has {COLUMNS:,} columns")
    parser.add_argument("--runs", type=int, default=7, help="counted runs; the best one is told")
    options = parser.parse_args()
    print("decoded on one core | G elements/s | over a copy of float32\n--- | --- | ---")
    with tempfile.TemporaryDirectory() as folder:
        for name, tensor in weights(Path(folder), options.rows):
            copied = copy_rate(tensor.elements, leaf_elements(tensor.shape), options.runs)
            found = rate(tensor, options.runs)
            print(f"{name} | {found / 1e9:.2f} | {found / copied:.2f}", flush=True)


if __name__ == "__main__":
    main()
