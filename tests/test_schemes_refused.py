"""Layouts that are not read: each is named, its parts are not compared, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

import checkpoints
from decoding import failure_of, opened
from diffai_dist import compare
from diffai_dist.dtypes import BITS
from diffai_dist.schemes import SCHEMES
from diffai_dist.schemes.refused import LAYOUTS, Layout

# What the libraries write, by the module or the weight that it is for: torchao 0.18.0, hqq 0.2.8, optimum-quanto 0.2.7,
# exllamav2 and 3, IST-DASLab's Marlin, QQQ, BitBLAS, aqlm, vptq, QuIP#, compressed-tensors before 0.13, EETQ,
# TensorRT-LLM, mlx-lm, BitNet, Quark.
WRITTEN = {
    "F4, F6 or F8_E5M2FNUZ with scales": {"weight": "F4", "weight_scale": "F32"},
    "of torchao": {"_weight_qdata": "I8", "_weight_scale": "BF16", "_weight_zero_point": "I8"},
    "of torchao, tile-packed": {"_weight_qdata": "I32", "_weight_scale_and_zero": "BF16"},
    "of HQQ": {"W_q": "U8", "scale": "F16", "zero": "F16", "nbits": "U8", "shape": "U8", "packing": "U8"},
    "of quanto": {"weight._data": "F8_E4M3", "weight._scale": "F32"},
    "of quanto ": {"weight._data._data": "U8", "weight._scale": "F32", "weight._shift": "F32"},
    "EXL2": {"q_weight": "I32", "q_scale": "I32", "q_scale_max": "F16", "q_groups": "I16", "q_invperm": "I32"},
    "EXL3": {"trellis": "I16", "suh": "F16", "svh": "F16"},
    "Marlin": {"B": "I32", "s": "F16"},
    "QQQ": {"B": "I32", "s_channel": "F32", "s_group": "F16"},
    "of BitBLAS": {"qweight": "I8", "scales": "F16", "zeros": "F16"},
    "of AQLM": {"codes": "I8", "codebooks": "F16", "scales": "F16"},
    "of VPTQ": {"indices": "I32", "centroids.weight": "F16", "perm": "I16"},
    "of QuIP#": {"Qidxs": "I64", "SU": "F16", "SV": "F16", "codebook_id": "I64"},
    "sparse-bitmask of compressed-tensors": {
        "weight.compressed": "BF16",
        "weight.bitmask": "U8",
        "weight.shape": "I64",
        "weight.row_offsets": "I64",
    },
    "of EETQ": {"weight": "I8", "weight_scales": "F16"},
    "of TensorRT-LLM": {"weight": "I8", "weights_scaling_factor": "F16"},
    "of MLX": {"weight": "U32", "scales": "BF16", "biases": "BF16"},
    "of BitNet or Quark": {"weight": "U8", "weight_scale": "BF16"},
}


def write(folder: Path, parts: dict[str, str], prefix: str = "layers.0.up") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{prefix}.{name}": (dtype, (4, 8)) for name, dtype in parts.items()}
    return checkpoints.write_sparse(folder / "model.safetensors", {**tensors, f"{prefix}.bias": ("F32", (4,))}).parent


@pytest.mark.parametrize("name", WRITTEN)
def test_each_layout_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, WRITTEN[name])
    failure = failure_of(folder, "layers.0.up.weight")
    assert failure.code == "E1205"
    assert failure.found == f"it is in the layout {name.strip()}, which is not read"
    assert "--raw" in failure.hint
    assert set(opened(folder).tensors) == {"layers.0.up.bias"}


def test_every_layout_of_the_table_is_written_in_a_test() -> None:
    assert {layout.name for layout in LAYOUTS} == {name.strip() for name in WRITTEN}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.name} {layout.codes}")
def test_codes_alone_are_no_layout_unless_their_name_is_enough(tmp_path: Path, layout: Layout) -> None:
    dtype = sorted(layout.dtypes)[0]
    checkpoints.write_sparse(tmp_path / "model.safetensors", {f"m{layout.codes}": (dtype, (4, 8))})
    assert set(opened(tmp_path).tensors) == (set() if not layout.beside else {f"m{layout.codes}"})


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.name} {layout.codes}")
def test_layouts_are_of_dtypes_that_exist_and_of_parts_that_are_named_once(layout: Layout) -> None:
    assert layout.dtypes <= BITS.keys()
    names = [layout.codes, *layout.beside, *layout.parts]
    assert len(names) == len(set(names))


def test_refusals_come_after_all_that_is_read() -> None:
    refusing = [finder.find.__class__.__name__ == "partial" for finder in SCHEMES]
    assert refusing == sorted(refusing)


def test_a_refused_weight_is_told_and_the_rest_is_compared(tmp_path: Path) -> None:
    for side in ("a", "b"):
        write(tmp_path / side, WRITTEN["EXL3"])
    report = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (report.coverage.tensors_compared, sum(report.coverage.not_compared.values())) == (1, 1)
    raw = compare(str(tmp_path / "a"), str(tmp_path / "b"), raw=True)
    assert (raw.coverage.tensors_compared, raw.coverage.complete) == (4, True)
