"""Rows about sweeps of eight checkpoints of 500 MB: what the pairs cost beyond the reading."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from data import write_series
from processes import compare, ours, run, warm

Row = Callable[[Path, int], str]


def sweep(series: Sequence[Path], pairs: str) -> list[str]:
    return ours("sweep", series[0].parent / "step-*.safetensors", "--pairs", pairs, "--no-progress")


def from_s3(server: str, dtype: str) -> Row:
    def row(data: Path, runs: int) -> str:
        from s3 import lean_sweep, swift_sweep

        series = write_series(data / f"series-{dtype.lower()}", 500_000_000, 8, dtype)
        found = {"lean": lean_sweep, "Swift": swift_sweep}[server](series, runs)
        return "\n".join(
            f"S3 ({server}), 8 × 500 MB {dtype}, `{mode}` against reading all once | {ratio:.2f} | at most {bound}"
            for mode, ratio, bound in zip(("consecutive", "all"), found, (1.3, 1.8), strict=True)
        )

    return row


def from_page_cache(dtype: str) -> Row:
    def row(data: Path, runs: int) -> str:
        series = write_series(data / f"series-{dtype.lower()}", 500_000_000, 8, dtype)
        small = write_series(data / f"series-{dtype.lower()}-small", 8192, 8, dtype)
        warm(series)
        found = [_round(series, small) for _ in range(runs + 1)][1:]
        against_seven, against_consecutive, faster = (statistics.median(column) for column in zip(*found, strict=True))
        what = f"8 × 500 MB {dtype}"
        return (
            f"{what}, `consecutive`, steady state against the sum of seven of `compare` "
            f"| {against_seven:.2f} | at most 0.7\n"
            f"{what}, `all`, steady state against `consecutive` | {against_consecutive:.2f} | at most 1.5\n"
            f"{what}, 28 × `compare`, wall, against `all` | {faster:.1f} | at least 8"
        )

    return row


def _round(series: Sequence[Path], small: Sequence[Path]) -> tuple[float, float, float]:
    """Every command once; the steady state of one is its time less that of the same with 8 KB."""
    pairs = {pair: run(compare(pair)).seconds for pair in itertools.combinations(series, 2)}
    wall = {mode: run(sweep(series, mode)).seconds for mode in ("consecutive", "all")}
    steady = {mode: seconds - run(sweep(small, mode)).seconds for mode, seconds in wall.items()}
    seven = sum(pairs[pair] - run(compare(small[:2])).seconds for pair in itertools.pairwise(series))
    return steady["consecutive"] / seven, steady["all"] / steady["consecutive"], sum(pairs.values()) / wall["all"]
