"""What FP8, INT8, NVFP4 and MXFP4 have in common: blocks of any shape, lists of modules, and files that are no good."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import codes_of, cut, opened, run_of, same_bits, scales_of, spread, write
from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.dtypes import BITS
from diffai_dist.formats.logical import logical
from diffai_dist.schemes import SCHEMES
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.schemes.declared import has_codes, left_out
from diffai_dist.schemes.modules import MOST_ENTRIES, MOST_PARTS, MOST_PATTERNS, Modules
from diffai_dist.schemes.stored import Declared, Late
from diffai_dist.schemes.strided import Strided
from diffai_dist.storage import Source


@given(
    stack=st.lists(st.integers(1, 3), max_size=2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_runs_of_any_shape_and_block_are_codes_times_scales(
    tmp_path_factory: pytest.TempPathFactory,
    stack: list[int],
    size: tuple[int, int],
    block: tuple[int, int],
    zeros: bool,
    seed: int,
) -> None:
    shape = (*stack, *size)
    rows, columns = (min(one, most) for one, most in zip(block, size, strict=True))
    grid = (*stack, -(-size[0] // rows), -(-size[1] // columns))
    codes, scales = codes_of(shape, seed), scales_of(grid, seed)
    points = np.random.default_rng(seed).integers(-128, 128, grid).astype(np.int8)
    parts = [codes, scales, points] if zeros else [codes, scales]
    path = tmp_path_factory.getbasetemp() / "parts"
    path.write_bytes(b"".join(part.tobytes() for part in parts))
    edges = np.cumsum([0, *(part.nbytes for part in parts)])
    source = Source(str(path), int(edges[-1]), "v")
    spans = tuple(Span(source, int(a), int(b)) for a, b in pairwise(edges))
    tensor = Tensor("w", "", shape, spans, Blocks("F8_E4M3", "F32", rows, columns, 8, zeros="I8" if zeros else ""))
    offsets = spread(points.astype(np.float32), shape, rows, columns) if zeros else np.float32(0)
    expected = (codes.astype(np.float32) - offsets) * spread(scales, shape, rows, columns)
    for first, stop in cut(tensor.elements, seed):
        assert same_bits(run_of(tensor, first, stop), expected.reshape(-1)[first:stop])


HOSTILE: list[Any] = [
    {"quant_method": ["fp8"], "weight_block_size": "128"},
    {"quant_method": "fp8", "weight_block_size": [1e9, True]},
    {"quant_method": "fp8", "weight_block_size": [2**80, 2**80]},
    {"quant_method": "fp8", "weight_block_size": [-128, 128]},
    {"quant_method": "fp8", "modules_to_not_convert": {"m": 1}},
    {"quant_method": "fp8", "modules_to_not_convert": [None, 7, ["m"], "", "*" * 300, "re:" + "(a*)*" * 40]},
    {"quant_method": "compressed-tensors", "config_groups": [1]},
    {"quant_method": "compressed-tensors", "config_groups": {"a": None, "b": {"weights": []}, "c": ["Linear"]}},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": 3, "weights": {"group_size": -1}}}},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"group_size": 2**70, "type": {}}}}},
    {"quant_method": "modelopt", "quant_algo": 8, "exclude_modules": 3},
]


@pytest.mark.parametrize("config", HOSTILE)
def test_a_hostile_configuration_changes_nothing(tmp_path: Path, config: Any) -> None:
    arrays = {"m.weight": codes_of((4, 8)), "m.weight_scale": scales_of((4, 1)), "n.weight": codes_of((4, 8))}
    checkpoint = opened(write(tmp_path, arrays, config))
    assert checkpoint.tensors["m.weight"].dtype == "fp8-channel"


@pytest.mark.parametrize(
    ("entries", "module", "expected"),
    [
        (["lm_head"], "lm_head", True),
        (["lm_head"], "model.lm_head", True),
        (["layers.1"], "layers.11.up", False),
        (["layers.1"], "layers.1.up", True),
        (["*experts*"], "layers.1.experts.2.up", True),
        ([r"re:.*mlp\.gate$"], "layers.1.mlp.gate", True),
        ([r"re:.*mlp\.gate$"], "layers.1.mlp.gate_proj", False),
        (["re:visual"], "visual.blocks.0", True),
        (["re:visual"], "model.visual", False),
        (["re:.+_proj"], "_proj", False),
        (["re:layers.[0-9]+.up"], "layers.1.up", None),
        (["re:(q|k)_proj", "up"], "layers.1.up", True),
        ("up", "up", None),
        ([], "up", False),
        (["*x*"] * (MOST_PATTERNS + 1), "up", None),
        (["up"] * (MOST_ENTRIES + 1), "up", None),
        (["up"], "up" + ".x" * MOST_PARTS, None),
    ],
)
def test_modules_are_listed_by_name_and_by_safe_patterns(entries: Any, module: str, expected: bool | None) -> None:
    assert Modules.of(entries).lists(module) is expected


def test_a_list_of_modules_is_taken_apart_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {f"m{i}.weight": codes_of((4, 8)) for i in range(50)}
    arrays |= {f"m{i}.weight_scale": scales_of((4, 1)) for i in range(50)}
    taken: list[object] = []
    of = Modules.of
    monkeypatch.setattr(Modules, "of", lambda entries: taken.append(entries) or of(entries))
    left_out = [f"k{i}" for i in range(1000)]
    write(tmp_path, arrays, {"quant_method": "fp8", "modules_to_not_convert": [*left_out, "m7"]})
    (warning,) = opened(tmp_path).warnings
    assert "not quantised" in warning
    assert "m7" in warning
    assert len(taken) == 1


def test_patterns_that_go_back_for_ever_elsewhere_end_here() -> None:
    declared = Declared("fp8", {"modules_to_not_convert": [f"re:{'.*a' * 80}b", "*a" * 120 + "b"] * 90}, "config.json")
    assert left_out(declared, "a" * 5000) is False
    assert has_codes(declared, "a" * 5000, "float")


MODULES = {"fp8", "int8", "mxfp4", "nvfp4"}
FINDERS = [one for one in SCHEMES if isinstance(one.find, Late) and one.find.name.partition(":")[0] in MODULES]
ODD_SHAPES = st.one_of(st.sampled_from([(2**40, 0), (0, 2**62)]), st.lists(st.integers(0, 40), max_size=5).map(tuple))
Part = tuple[str, tuple[int, ...]]


@st.composite
def parts_of_a_finder(draw: st.DrawFn) -> dict[str, Part]:
    """Codes that a finder asks about, and companions whose dtypes and shapes are often, but not always, plausible."""
    finder = draw(st.sampled_from(FINDERS))
    codes = draw(st.sampled_from([(), (8,), (4, 64), (3, 5), (2, 4, 2, 16), (2, 3, 64)]) | ODD_SHAPES)
    fitting = [
        (),
        (1,),
        codes[:-1],
        (*codes[:-1], 1),
        *((*codes[:-1], -(-codes[-1] // n)) for n in (8, 16, 32) if codes),
    ]
    shapes = st.sampled_from(fitting) | ODD_SHAPES
    dtypes = st.sampled_from(["U8", "F32", "F8_E8M0", "F8_E4M3", "I8"]) | st.sampled_from(sorted(BITS))
    parts = st.dictionaries(st.sampled_from(finder.parts[:3]), st.tuples(dtypes, shapes), max_size=3)
    suffix, dtype = draw(st.sampled_from(sorted(finder.suffixes))), draw(st.sampled_from(sorted(finder.dtypes)))
    return draw(parts) | {suffix: (dtype, codes)}


def plain(name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape) * BITS[dtype] // 8
    return Tensor(name, dtype, shape, (Span(Source("/m", 2**50, "v"), 1000, 1000 + size),))


@settings(max_examples=400)
@given(
    parts=parts_of_a_finder(),
    method=st.sampled_from(["", "fp8", "mxfp4", "compressed-tensors", "gptq"]),
    block=st.lists(st.integers(-2, 40), min_size=1, max_size=3),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_no_parts_of_any_dtype_and_shape_make_it_read_outside_of_them(
    parts: dict[str, Part], method: str, block: list[int], ends: tuple[float, float]
) -> None:
    tensors = {f"m{ending}": plain(f"m{ending}", dtype, shape) for ending, (dtype, shape) in parts.items()}
    declared = Declared(method, {"weight_block_size": block}, "config.json")
    found = logical(Checkpoint("/m", "safetensors", (), tensors), declared, {})
    for tensor in found.tensors.values():
        if tensor.scheme is None:
            continue
        first, stop = sorted(int(end * tensor.elements) for end in ends)
        ranges = tensor.ranges(first, stop)
        for part, whole in zip(ranges, tensor.spans, strict=True):
            assert whole.start <= part.start <= part.stop <= whole.stop
        out = np.empty(4 * (stop - first), np.uint8)
        if stop > first:
            buffers = [np.zeros(part.stop - part.start, np.uint8) for part in ranges]
            tensor.scheme.decode(tensor, buffers, first, stop, out)


@pytest.mark.parametrize("part", ["m.weight", "m.weight_scale"])
def test_parts_in_another_order_are_refused(part: str) -> None:
    tensors = {"m.weight": plain("m.weight", "I8", (4, 8)), "m.weight_scale": plain("m.weight_scale", "F32", (4, 1))}
    turned = tensors[part]
    strides = Strided(turned.dtype, (1, turned.shape[0]))
    tensors[part] = Tensor(part, turned.dtype, turned.shape, turned.spans, strides)
    found = logical(Checkpoint("/m", "torch", (), tensors), Declared(), {})
    assert not found.tensors
    assert found.unreadable["m.weight"].found == f"its part {part[2:]} is stored transposed or in pieces"
