"""Scales and zero points of groups of inputs, as GPTQ and AWQ lay them beside the codes: [groups, outputs]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.errors import UnknownScheme
from diffai_dist.schemes.loops import floats
from diffai_dist.schemes.scales import in_order
from diffai_dist.schemes.stored import Declared, Undecodable
from diffai_dist.storage import redact

SCALES = ("F16", "BF16", "F32")
WORD = 32  # bits of what codes and zero points of GPTQ are packed in

# How zero points are stored: as they are; one less; or one less by subtracting from whole words, which borrows from the
# next zero point where one is 0. That is how GPTQModel writes and reads v1; AutoGPTQ wraps each by itself.
V2, V1, V1_WORDS = "v2", "v1", "v1-words"


@dataclass(frozen=True, slots=True)
class Whole:
    """A scheme of integers whose runs have no ranges: all of a tensor is read once, and runs are decoded from it."""

    values = "F32"
    whole = True
    digits = 0

    def spans(self, tensor: Tensor, first: int, stop: int) -> tuple[Span, ...]:
        """All of the tensor."""
        return tensor.spans


def sizes(tensor: Tensor, *dtypes: str) -> tuple[int, int]:
    """Rows and columns of a part; raises Undecodable where it is no plain matrix of one of these dtypes."""
    shape = tensor.shape
    if tensor.dtype not in dtypes or len(shape) != 2 or 0 in shape:
        part = tensor.name.rpartition(".")[2]
        raise Undecodable(f"its {part} is {tensor.dtype} of shape {list(shape)}", f"a matrix of {' or '.join(dtypes)}")
    in_order(tensor)
    return shape[0], shape[1]


def declared_group(inputs: int, groups: int, declared: Declared) -> int | None:
    """The group size that is declared, if it gives that many groups; -1 is one group of all inputs."""
    size = declared.number("group_size", "q_group_size")
    size = inputs if size == -1 else min(size or 0, inputs)
    return size if size > 0 and -(-inputs // size) == groups else None


def group_size(inputs: int, groups: int, declared: Declared) -> int:
    """How many inputs in a row share a scale: as declared, else the one size that gives so many groups.

    448 inputs in 4 groups may be groups of 112 or, the last one short, of 128: Undecodable if nothing says which.

    >>> group_size(4096, 32, Declared()), group_size(4000, 32, Declared(fields={"group_size": 128}))
    (128, 128)
    """
    if size := declared_group(inputs, groups, declared):
        return size
    short = 1 << (-(-inputs // groups) - 1).bit_length()  # a last group is short where the others are a power of two
    fits = {inputs // groups} if inputs % groups == 0 else set()
    fits |= {short} if groups > 1 and -(-inputs // short) == groups else set()
    if len(fits) == 1:
        return fits.pop()
    found = f"{groups:,} groups of {inputs:,} inputs are declared nowhere"
    raise Undecodable(
        f"{found}: their size is {' or '.join(map(str, sorted(fits)))}" if fits else f"{found}, and of no usual size",
        "a group_size that gives as many groups",
        "Say group_size in the quantization_config of its config.json",
    )


def scales_of(data: np.ndarray, dtype: str, outputs: int, low: int, high: int) -> np.ndarray:
    """float32 [groups, high - low]: the scales of outputs [low, high)."""
    width = DTYPES[dtype].bits // 8
    columns = np.ascontiguousarray(data.reshape(-1, outputs * width)[:, low * width : high * width])
    scales: np.ndarray = floats(columns.reshape(-1), dtype).reshape(-1, high - low)
    return scales


def groups_of(tensor: Tensor, parts: Sequence[np.ndarray], inputs: int, block: int, count: int) -> np.ndarray:
    """int32 [inputs]: the row of the scales, of which there are so many, for each input."""
    if len(parts) < 4:
        return np.arange(inputs, dtype=np.int32) // np.int32(block)
    groups = parts[3].view(np.int32)
    low, high = int(groups.min()), int(groups.max())
    if low < 0 or high >= count:
        where, found = redact(tensor.spans[3].source.url), f"a g_idx that names group {low if low < 0 else high:,}"
        raise UnknownScheme(where, found, expected=f"0 to {count - 1:,}", hint="Fetch or quantise it again")
    return groups


def zero_points(words: np.ndarray, bits: int, stored: str, low: int, high: int) -> np.ndarray:
    """float32 [groups, high - low]: those of outputs [low, high) in uint32 [groups, words].

    >>> zero_points(np.array([[0x777777F7]], np.uint32), 4, V1, 0, 3)
    array([[8., 0., 8.]], dtype=float32)
    >>> zero_points(np.array([[0x777777F7]], np.uint32), 4, V1_WORDS, 0, 3)
    array([[8., 0., 9.]], dtype=float32)
    """
    places = np.arange(low, high, dtype=np.int64) * bits
    # Not words[:, places], which NumPy lays out column by column: the loop over outputs took twice as long.
    near, far = words.take(places // WORD, axis=1), words.take((places + bits - 1) // WORD, axis=1)
    if stored == V1_WORDS:
        near = near + np.uint32(sum(1 << place for place in range(0, WORD, bits)))  # none of them in two words
    pairs = near.astype(np.uint64) | far.astype(np.uint64) << np.uint64(WORD)
    codes = pairs >> (places % WORD).astype(np.uint64)
    return (codes + np.uint64(stored == V1) & np.uint64(2**bits - 1)).astype(np.float32)
