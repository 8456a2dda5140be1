"""Speed of the kernels on one core, against reading the same arrays with `np.max`.

    python tests/benchmarks/bench_kernels.py [dtype ...]

Per dtype: pairs of elements per second with all statistics of both sides and of the pair, bytes per second, and the
ratio to `max` over the same bytes as float32 (the speed of reading memory). Then the same with details, and bins alone,
as multiples of that; the anchored Gram of a group, which holds all its pairs, against its consecutive pairs; the cost
of one tiny tensor, of one call, and of compiling. Times are this thread's CPU time, the best of several runs, so that
a busy machine matters less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from diffai_dist.dtypes import dtype_of
from diffai_dist.kernels import DetailRows, count_bins, measure, measure_details, warm
from diffai_dist.partials import (
    BITWISE,
    COLUMN,
    COLUMN_SHIFT,
    CONTENT,
    MOMENTS,
    ROW,
    ROW_SHIFT,
    SHIFT,
    empty,
    empty_gram,
)

ELEMENTS = 2**24  # per side: F32 sides do not fit the caches
PIECE = 2**18  # elements
FLOATS = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
FLOATS |= {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
DEFAULT = ["F32", "BF16", "F16", "F8_E4M3", "F4", "I8", "I16", "F64", "I32", "I64", "C64"]


def sides(name: str, count: int) -> bytes:
    """Weights of a layer and the same after a small step; random codes where a dtype holds no such floats."""
    generator = np.random.default_rng(0)
    if name in FLOATS:
        before = generator.standard_normal(count, np.float32) * np.float32(0.02)
        after = before + np.float32(1e-3) * generator.standard_normal(count, np.float32)
        return before.astype(FLOATS[name]).tobytes() + after.astype(FLOATS[name]).tobytes()
    return generator.integers(1, 100, 2 * count * dtype_of(name).bits // 8, np.uint8).tobytes()


def pair(name: str, pieces: int, size: int) -> tuple[Callable[[], None], np.ndarray]:
    """A call that measures a pair of tensors as so many pieces, one row each; and the bytes it reads."""
    dtype, arena = dtype_of(name), np.frombuffer(sides(name, pieces * size), np.uint8).copy()
    starts = np.arange(pieces, dtype=np.int64)
    bits = starts[:, None] * size * dtype.bits + np.array([0, arena.size * 4])
    codes, count = np.full((pieces, 2), dtype.code), np.full(pieces, size)
    moments, shifts = empty(MOMENTS, (pieces, 2)), empty(SHIFT, (pieces, 1))
    members = np.array([[0, 1]])
    return lambda: measure(arena, starts, starts * 0, count, bits, codes, members, moments, shifts), arena


def details(name: str, pieces: int, size: int, width: int) -> dict[str, Callable[[], None]]:
    """Calls that measure details of the same pair, in rows of so many elements: all that a pass may take, and bins."""
    dtype, arena = dtype_of(name), np.frombuffer(sides(name, pieces * size), np.uint8).copy()
    starts, rows = np.arange(pieces, dtype=np.int64), pieces * size // width
    bits = starts[:, None] * size * dtype.bits + np.array([0, arena.size * 4])
    tables = empty(MOMENTS, (pieces, 2)), empty(SHIFT, (pieces, 1)), -1, None
    place = np.full((pieces, 2), dtype.code), np.array([[0, 1]]), *tables
    lines = starts * size // width, starts * 0 + width, starts * 0
    columns = np.zeros((width, 2), COLUMN, order="F"), np.zeros((width, 1), COLUMN_SHIFT, order="F")
    out = empty(CONTENT, (pieces, 2)), empty(BITWISE, (pieces, 1)), empty(ROW, (rows, 2)), empty(ROW_SHIFT, (rows, 1))
    bins = np.zeros((2, 2**16), np.int64)
    return {
        "all with details": lambda: measure_details(
            arena, starts, starts * size, np.full(pieces, size), bits, *place, *lines, DetailRows(*out, *columns)
        ),
        "bins": lambda: count_bins(arena, pieces * size, bits[0], place[0][0], bins),
    }


def group(members: int, size: int = 2**17) -> tuple[Callable[[], None], Callable[[], None]]:
    """Calls that measure so many F32 tensors of together `size` elements, 512 KiB, which an L2 cache holds: one with
    the consecutive pairs, one with the Gram."""
    count = size // members
    generator = np.random.default_rng(0)
    walk = np.cumsum(generator.standard_normal((members, count)) * 1e-3, axis=0) + generator.standard_normal(count)
    arena, one = walk.astype(np.float32).reshape(-1).view(np.uint8), np.zeros(1, np.int64)
    place = (arena, one, one, one + count, np.arange(members)[None] * count * 32, np.zeros((1, members), np.int64))
    pairs, none = np.stack([np.arange(members - 1), np.arange(1, members)], axis=1), np.zeros((0, 2), np.int64)
    moments, grams = empty(MOMENTS, (1, members)), empty_gram(1, members)
    shifts, empties = empty(SHIFT, (1, members - 1)), empty(SHIFT, (1, 0))
    return (
        lambda: measure(*place, pairs, moments, shifts),
        lambda: measure(*place, none, moments, empties, 0, grams),
    )


def best(call: Callable[[], object], repeats: int = 7) -> float:
    """CPU seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def main(names: list[str]) -> None:
    start = time.perf_counter()
    warm()
    print(f"compiling or loading: {time.perf_counter() - start:.2f} s")
    for name in names or DEFAULT:
        call, arena = pair(name, ELEMENTS // PIECE, PIECE)
        seconds, reading = best(call), best(arena.view(np.float32).max)
        rates = f"{ELEMENTS / seconds / 1e9:5.2f} G pairs/s  {arena.size / seconds / 1e9:5.2f} GB/s"
        print(f"{name:9} {rates}  {reading / seconds:.2f} of reading")
    for name in ("F32", "BF16"):
        base = best(pair(name, ELEMENTS // PIECE, PIECE)[0])
        for width in (4096, 64):
            for what, call in details(name, ELEMENTS // PIECE, PIECE, width).items():
                print(f"{name:9} {what}, rows of {width}: {best(call) / base:.2f} of the above")
    for members in (3, 8, 20):
        shifts, gram = (best(call, 300) / 2**17 * 1e9 for call in group(members))
        rates = f"consecutive pairs {shifts:.2f}, Gram {gram:.2f} ns per element"
        print(f"F32 x {members:<3} {rates}  {gram / shifts:.2f} of the pairs")
    for name in ("F32", "BF16"):
        call, _ = pair(name, 20_000, 256)
        print(f"{name:9} {best(call) / 20_000 * 1e9:5.0f} ns per pair of tensors of 256 elements")
    call, _ = pair("F32", 1, 16)
    print(f"{best(lambda: [call() for _ in range(1000)]) * 1e3:.1f} µs per call")


if __name__ == "__main__":
    main(sys.argv[1:])
