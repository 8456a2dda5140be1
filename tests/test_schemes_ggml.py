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
from diffai_dist.schemes.ggml import BLOCKS, LOOPS, Ggml, block_of, check_decodable
from diffai_dist.schemes.stored import Undecodable
from diffai_dist.storage import Source

SOURCE = Source("/m.gguf", 2**50, "v")
DECODED = sorted(BLOCKS.keys() - {"Q1_0"})
# Where the F16 scales of a type lie in its blocks, for random bytes with scales that are numbers.
HALVES = {name: places for name, (_, places) in LOOPS.items()} | {
    "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,),
    "TQ1_0": (52,), "TQ2_0": (64,), "IQ1_M": (), "NVFP4": (),
}  # fmt: skip


def blocks_of(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, uint8 [count, bytes], whose scales are finite."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (count, BLOCKS[kind].nbytes), dtype=np.uint8)
    for place in HALVES[kind]:
        scales = generator.standard_normal(count).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(count, 2)
    if kind == "MXFP4":
        blocks[:, 0] = np.minimum(blocks[:, 0], 250)
    if kind == "IQ1_M":  # its scale is spread over the high nibbles of four words; 0x3... is below 2
        blocks[:, 55] = blocks[:, 55] & 0x0F | 0x30
    return blocks


def reference(kind: str, blocks: np.ndarray) -> np.ndarray:
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


@pytest.mark.parametrize("kind", DECODED)
def test_blocks_are_decoded_as_the_library_does(kind: str) -> None:
    blocks = blocks_of(kind, 700)
    tensor = tensor_of(kind, (7, 100 * BLOCKS[kind].elements))
    found = run(tensor, blocks.tobytes(), 0, tensor.elements)
    expected = reference(kind, blocks)
    assert np.isfinite(expected).all()
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", sorted(LOOPS))
def test_bytes_that_make_scales_infinite_or_no_number_are_decoded_alike(kind: str) -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (4000, BLOCKS[kind].nbytes), dtype=np.uint8)
    tensor = tensor_of(kind, (*blocks.shape[:1], BLOCKS[kind].elements))
    found = run(tensor, blocks.tobytes(), 0, tensor.elements).view(np.float32)
    expected = reference(kind, blocks)
    assert np.isnan(expected).any() == np.isnan(found).any() == (kind != "MXFP4")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_1", "MXFP4"])
def test_all_codes_and_scales_of_small_blocks(kind: str) -> None:
    nbytes = BLOCKS[kind].nbytes
    codes = np.tile(np.arange(256, dtype=np.uint8)[:, None], nbytes)
    scale = 1 if kind == "MXFP4" else 2
    codes[:, :scale] = 120 if kind == "MXFP4" else np.float16([0.5]).view(np.uint8)
    scales = np.tile(np.arange(256, dtype=np.uint8)[:, None], nbytes)
    blocks = np.concatenate([codes, scales]) if kind == "MXFP4" else codes
    tensor = tensor_of(kind, (len(blocks), 32))
    assert run(tensor, blocks.tobytes(), 0, tensor.elements).tobytes() == reference(kind, blocks).tobytes()


@pytest.mark.parametrize(
    ("kind", "block", "expected"),
    [
        ("Q8_0", np.float16([0.25]).tobytes() + b"\xfd" + bytes(31), {0: -0.75}),
        ("Q4_0", np.float16([0.5]).tobytes() + b"\x91" + bytes(15), {0: -3.5, 16: 0.5}),
        ("MXFP4", b"\x7f\xa3" + bytes(15), {0: 1.5, 16: -1.0}),
        ("Q4_K", np.float16([1, 0]).tobytes() + b"\x02" + bytes(11) + b"\x53" + bytes(127), {0: 6.0, 32: 0.0}),
        ("Q6_K", bytes(192) + b"\x02" + bytes(15) + np.float16([0.5]).tobytes(), {0: -32.0, 16: 0.0}),
    ],
)  # fmt: skip
def test_worked_examples(kind: str, block: bytes, expected: dict[int, float]) -> None:
    values = run(tensor_of(kind, (BLOCKS[kind].elements,)), block, 0, BLOCKS[kind].elements).view(np.float32)
    assert {place: float(values[place]) for place in expected} == expected


@given(data=st.data(), kind=st.sampled_from(DECODED), heads=st.sampled_from([0, 1, 3]))
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
    with pytest.raises(Undecodable, match="Q1_0"):
        check_decodable("Q1_0")
    check_decodable("IQ2_XS")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as on a worker without it
    with pytest.raises(UnknownScheme, match=r"IQ2_XS blocks need the package gguf.*diffai-dist\[gguf\]"):
        run(tensor_of("IQ2_XS", (256,)), blocks_of("IQ2_XS", 1).tobytes(), 0, 256)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Undecodable) as caught:
        check_decodable("IQ2_XS")
    assert "diffai-dist[gguf]" in caught.value.hint
    check_decodable("Q4_K")
