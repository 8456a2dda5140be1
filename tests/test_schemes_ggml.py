"""The block types of GGUF: every type against gguf.quants bit for bit, at any run; permuted rows, and norms plus 1."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.errors import UnknownScheme
from diffai_dist.schemes.ggml import BLOCKS, Ggml, block_of, check_decodable
from diffai_dist.schemes.ggml_iq import GRIDS, tables
from diffai_dist.schemes.stored import Undecodable
from diffai_dist.schemes.warming import examples
from diffai_dist.storage import Source

SOURCE = Source("/m.gguf", 2**50, "v")
# Where the F16 scales of a type lie in its blocks, for random bytes with scales that are numbers.
HALVES = dict.fromkeys(BLOCKS, (0,)) | {
    "Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "TQ1_0": (52,), "TQ2_0": (64,), "IQ1_M": (), "MXFP4": (), "NVFP4": (),
}  # fmt: skip
# Bytes that are masked, so that all scales within a block are the same; the words of IQ1_M are then an F16 of 1.
EVEN_SCALES = {
    "IQ2_XXS": [(slice(9, None, 8), 0x0F, 0)],
    "IQ2_XS": [(slice(66, None), 0, 0)],
    "IQ2_S": [(slice(74, None), 0, 0)],
    "IQ3_XXS": [(slice(69, None, 4), 0x0F, 0)],
    "IQ3_S": [(slice(106, None), 0, 0)],
    "IQ1_S": [(slice(35, None, 2), 0x8F, 0)],
    "IQ1_M": [(slice(48, None), 0, 0), (slice(53, 54), 0, 0xC0), (slice(55, 56), 0, 0x30)],
}


def random_blocks(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, uint8 [count, bytes]."""
    return np.random.default_rng(seed).integers(0, 256, (count, BLOCKS[kind].nbytes), dtype=np.uint8)


def scaled(kind: str, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The blocks with these F16 as their scales, in turn."""
    for place in HALVES[kind]:
        blocks[:, place : place + 2] = np.resize(scales, len(blocks)).view(np.uint8).reshape(-1, 2)
    if kind == "IQ1_M":  # spread over the high nibbles of four words
        words = blocks[:, 48:].view(np.uint16)
        nibbles = np.resize(scales, len(blocks)).view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16)
        words[:] = words & 0x0FFF | nibbles << 12
    return blocks


def blocks_of(kind: str, count: int) -> np.ndarray:
    """Blocks of random bytes whose scales are finite."""
    scales = np.random.default_rng(1).standard_normal(count).astype(np.float16)
    blocks = scaled(kind, random_blocks(kind, count), scales)
    if kind == "MXFP4":
        blocks[:, 0] = np.minimum(blocks[:, 0], 250)
    return blocks


def reference(kind: str, blocks: np.ndarray) -> np.ndarray:
    if kind == "Q1_0":  # which the library does not decode; dequantize_row_q1_0 of ggml-quants.c
        d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
        return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), d, -d).reshape(-1)
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks.reshape(-1), GGMLQuantizationType[kind]).reshape(-1)


def tensor_of(kind: str, shape: tuple[int, ...], heads: int = 0, added: int = 0) -> Tensor:
    elements, nbytes = block_of(kind)
    size = int(np.prod(shape)) // elements * nbytes
    return Tensor("w", kind, shape, (Span(SOURCE, 64, 64 + size),), Ggml(kind, heads, added))


def run(tensor: Tensor, data: bytes, first: int, stop: int) -> np.ndarray:
    """The values of a run, out of the ranges that it asks for."""
    spans = tensor.ranges(first, stop)
    parts = [np.frombuffer(data[span.start - 64 : span.stop - 64], np.uint8) for span in spans]
    out = np.full((stop - first) * tensor.decoder.bits // 8, 0xA5, np.uint8)
    tensor.scheme.decode(tensor, parts, first, stop, out)
    return out


def test_the_table_is_that_of_the_library() -> None:
    names = {one.name: GGML_QUANT_SIZES[one] for one in GGMLQuantizationType}
    assert {name: block[:2] for name, block in BLOCKS.items()}.items() <= names.items()
    plain = {"F32", "F16", "F64", "BF16", "I8", "I16", "I32", "I64"}
    assert names.keys() - BLOCKS.keys() == plain | {"Q8_1", "Q8_K"}  # the last two are never stored
    assert {name: block_of(name) for name in plain} == {name: names[name] for name in plain}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_decoded_as_the_library_does(kind: str) -> None:
    blocks = blocks_of(kind, 700)
    tensor = tensor_of(kind, (7, 100 * BLOCKS[kind].elements))
    found = run(tensor, blocks.tobytes(), 0, tensor.elements)
    expected = reference(kind, blocks)
    assert np.isfinite(expected).all()
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", BLOCKS)
def test_bytes_that_make_scales_infinite_or_no_number_are_decoded_alike(kind: str) -> None:
    extremes = np.float16([np.inf, -np.inf, np.nan, 2**-24, -(2**-24), 1023 * 2**-24, 65504, 0, -0.0])
    blocks = np.concatenate([random_blocks(kind, 4000, 1), scaled(kind, random_blocks(kind, 900, 2), extremes)])
    blocks[0] = 0xFF if kind == "MXFP4" else blocks[0]
    tensor = tensor_of(kind, (*blocks.shape[:1], BLOCKS[kind].elements))
    found = run(tensor, blocks.tobytes(), 0, tensor.elements).view(np.float32)
    expected = reference(kind, blocks)
    number = ~np.isnan(expected)
    assert number.all() == (kind in ("MXFP4", "NVFP4"))
    np.testing.assert_array_equal(np.isnan(found), ~number)
    assert found[number].tobytes() == expected[number].tobytes()


@pytest.mark.parametrize(
    ("kind", "scales"), [("Q4_0", 2), ("Q8_0", 2), ("Q5_1", 2), ("MXFP4", 1), ("NVFP4", 4), ("Q1_0", 2)]
)
def test_all_codes_and_scales_of_small_blocks(kind: str, scales: int) -> None:
    blocks = np.tile(np.arange(256, dtype=np.uint8)[:, None], (2, BLOCKS[kind].nbytes))
    blocks[:256, :scales] = np.float16([0.5]).view(np.uint8) if scales == 2 else 120
    blocks = blocks if scales != 2 else blocks[:256]
    tensor = tensor_of(kind, (len(blocks), BLOCKS[kind].elements))
    assert run(tensor, blocks.tobytes(), 0, tensor.elements).tobytes() == reference(kind, blocks).tobytes()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_all_bytes_of_ternary_blocks_at_all_places(kind: str) -> None:
    bytes_ = np.tile(np.arange(256, dtype=np.uint8)[:, None], BLOCKS[kind].nbytes)
    blocks = scaled(kind, bytes_, np.float16([0.5]))
    found = run(tensor_of(kind, (256, 256)), blocks.tobytes(), 0, 256 * 256)
    assert found.tobytes() == reference(kind, blocks).tobytes()
    assert set(found.view(np.float32)) == ({-0.5, 0, 0.5} if kind == "TQ1_0" else {-0.5, 0, 0.5, 1})


@pytest.mark.parametrize("kind", sorted(GRIDS))
def test_every_point_of_a_grid_and_every_pattern_of_signs(kind: str) -> None:
    blocks = scaled(kind, random_blocks(kind, 4000), np.float16([1]))
    for place, kept, added in EVEN_SCALES[kind]:
        blocks[:, place] = blocks[:, place] & kept | added
    expected = reference(kind, blocks)
    found = run(tensor_of(kind, (len(blocks), 256)), blocks.tobytes(), 0, expected.size)
    assert found.tobytes() == expected.tobytes()
    points, *signs = tables(kind)
    count, width = points.shape
    if not signs:  # IQ1, of which each point may be shifted up or down
        assert len(distinct(expected, width)) == 2 * count == 4096
        return
    assert len(distinct(abs(expected), width)) == count == getattr(quants, kind).grid_shape[0]
    assert len(distinct(np.signbit(expected), 8)) == len(signs[0]) == (128 if "X" in kind else 256)


def distinct(values: np.ndarray, width: int) -> set[bytes]:
    return {row.tobytes() for row in values.reshape(-1, width)}


def test_tables_are_the_same_for_all_threads() -> None:
    for kind in GRIDS:
        assert tables(kind) is tables(kind)
        assert not any(one.flags.writeable for one in tables(kind))


HALF, ONE = (np.float16([value]).tobytes() for value in (0.5, 1))


@pytest.mark.parametrize(
    ("kind", "block", "expected"),
    [
        ("Q8_0", np.float16([0.25]).tobytes() + b"\xfd" + bytes(31), {0: -0.75}),
        ("Q4_0", HALF + b"\x91" + bytes(15), {0: -3.5, 16: 0.5}),
        ("MXFP4", b"\x7f\xa3" + bytes(15), {0: 1.5, 16: -1.0}),
        ("NVFP4", b"\x38\x40\x38\x38\xa3" + bytes(7) + b"\x07" + bytes(23), {0: 1.5, 8: -1.0, 16: 12.0}),
        ("Q4_K", np.float16([1, 0]).tobytes() + b"\x02" + bytes(11) + b"\x53" + bytes(127), {0: 6.0, 32: 0.0}),
        ("Q6_K", bytes(192) + b"\x02" + bytes(15) + HALF, {0: -32.0, 16: 0.0}),
        ("Q1_0", HALF + b"\x05\x80" + bytes(14), {0: 0.5, 1: -0.5, 2: 0.5, 14: -0.5, 15: 0.5}),
        ("TQ2_0", b"\x24" + bytes(63) + HALF, {0: -0.5, 32: 0.0, 64: 0.5, 96: -0.5}),
        ("TQ1_0", b"\xb5" + bytes(51) + HALF, {0: 0.5, 32: -0.5, 64: 0.0, 96: -0.5, 128: -0.5}),
        ("IQ2_XXS", ONE + bytes(4) + b"\x01\0\0\x10" + bytes(56), {0: -3.0, 1: 3.0, 7: -3.0, 32: 1.0}),
        ("IQ3_S", ONE + bytes(72) + b"\x02" + bytes(31) + b"\x10" + bytes(3), {0: 1.0, 1: -1.0, 32: 3.0}),
        ("IQ1_S", ONE + bytes(33) + b"\x90" + bytes(14), {0: -3.375, 31: -3.375, 32: -0.875}),
    ],
)
def test_worked_examples(kind: str, block: bytes, expected: dict[int, float]) -> None:
    values = run(tensor_of(kind, (BLOCKS[kind].elements,)), block, 0, BLOCKS[kind].elements).view(np.float32)
    assert {place: float(values[place]) for place in expected} == expected


@given(data=st.data(), kind=st.sampled_from(sorted(BLOCKS)), heads=st.sampled_from([0, 1, 3]))
def test_any_run_is_that_of_the_whole(data: st.DataObject, kind: str, heads: int) -> None:
    rows, across = (heads or 1) * data.draw(st.sampled_from([2, 4, 6])), data.draw(st.integers(1, 3))
    width = across * BLOCKS[kind].elements
    tensor, blocks = tensor_of(kind, (rows, width), heads), blocks_of(kind, rows * across)
    first, stop = sorted(data.draw(st.tuples(*[st.integers(0, rows * width)] * 2)))
    expected = reference(kind, blocks).reshape(rows, width)
    if heads:
        expected = expected.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2)
    assert run(tensor, blocks.tobytes(), first, stop).tobytes() == expected.reshape(-1)[first:stop].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(24, 5), (24,)])
def test_rows_of_plain_values_are_put_in_order_and_stay_what_they_are(dtype: type, shape: tuple[int, ...]) -> None:
    model = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    heads, name = 3, {np.float32: "F32", np.float16: "F16"}.get(dtype, "BF16")
    stored = model.reshape(heads, 2, 24 // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)  # LlamaModel.permute
    tensor = tensor_of(name, shape, heads)
    assert (tensor.decoder.name, tensor.scheme.bits, tensor.scheme.whole) == (name, 0, True)
    for first, stop in ((0, model.size), (3, model.size - 2), (7, 8)):
        assert run(tensor, stored.tobytes(), first, stop).tobytes() == model.reshape(-1)[first:stop].tobytes()


def test_what_the_converter_added_is_taken_off() -> None:
    weights = np.linspace(-0.9, 3, 300, dtype=np.float32)
    found = run(tensor_of("F32", (300,), added=1), (weights + np.float32(1)).tobytes(), 10, 290).view(np.float32)
    np.testing.assert_allclose(found, weights[10:290], rtol=0, atol=2.0**-23)


def test_only_the_blocks_of_a_run_are_asked_for() -> None:
    tensor = tensor_of("Q4_K", (8, 512))
    (span,) = tensor.ranges(255, 513)
    assert (span.start - 64, span.stop - 64) == (0, 3 * 144)
    assert tensor_of("Q4_K", (8, 512), heads=2).ranges(0, 1) == tensor.spans


def test_what_analyses_ask_of_a_type() -> None:
    assert [Ggml(one).bits for one in ("Q4_K", "IQ3_S", "F16", "BF16")] == [4, 3, 0, 0]
    assert [Ggml(one).block for one in ("Q4_K", "Q6_K", "NVFP4", "F32")] == [32, 16, 16, 0]
    assert [Ggml(one).digits for one in ("MXFP4", "NVFP4", "Q4_0")] == [2, 2, 0]


def test_types_of_the_package_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_decodable("IQ2_XS")
    tables.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)  # as on a worker without it
    with pytest.raises(UnknownScheme, match=r"IQ2_XS blocks need the package gguf.*diffai-dist\[gguf\]"):
        run(tensor_of("IQ2_XS", (256,)), blocks_of("IQ2_XS", 1).tobytes(), 0, 256)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Undecodable) as caught:
        check_decodable("IQ2_XS")
    assert "diffai-dist[gguf]" in caught.value.hint
    for kind in BLOCKS.keys() - GRIDS:
        check_decodable(kind)
    warmed = {scheme.type for scheme, *_ in examples() if isinstance(scheme, Ggml)}
    assert warmed == BLOCKS.keys() - GRIDS
