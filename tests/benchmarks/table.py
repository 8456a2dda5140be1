"""The benchmark table of the README: ratios taken in one run, medians of five, files in the page cache.

    python tests/benchmarks/table.py [--rows ROW,...] [--runs 5] [--data DIR]

Every figure is a whole process, start-up included, unless the row says otherwise; the two sides of a ratio run in turn.
The peer is diffai-python 0.5.2 (`pip install diffai-python==0.5.2`).
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data import write_pair, write_quantised
from processes import Run, compare, in_turn, median, ours, ratio, run, warm
from scale import late_store, many_units, two_workers
from sweep import from_page_cache, from_s3

HERE = Path(__file__).parent
PEER = "import sys, diffai; print(len(diffai.diff_paths(sys.argv[1], sys.argv[2])))"


Row = Callable[[Path, int], str]


def against_peer(nbytes: int, bound: str) -> Row:
    def row(data: Path, runs: int) -> str:
        pair = write_pair(data / f"f32-{nbytes}", nbytes, 8, "F32")
        warm(pair)
        peer = [sys.executable, "-c", PEER, *map(str, pair)]
        mine, theirs = in_turn(runs, compare(pair), peer)
        found = f"{ratio(mine, theirs):.2f}"
        return f"2 × {nbytes / 1e9:.0f} GB F32, wall, against diffai-python 0.5.2 | {found} | at most {bound}"

    return row


def against_script(data: Path, runs: int) -> str:
    pair = write_pair(data / "f32-1000000000", 1_000_000_000, 8, "F32")
    warm(pair)
    mine, script = in_turn(runs, compare(pair), [sys.executable, str(HERE / "plain_script.py"), *map(str, pair)])
    return f"2 × 1 GB F32, wall, against the plain script | {ratio(mine, script):.3f} |"


def against_cat(dtype: str, bound: str) -> Row:
    def row(data: Path, runs: int) -> str:
        pair = write_pair(data / f"{dtype.lower()}-1000000000", 1_000_000_000, 8, dtype)
        small = write_pair(data / f"{dtype.lower()}-small", 8192, 8, dtype)
        warm(pair)
        mine, start, cat = in_turn(runs, compare(pair), compare(small), ["cat", *map(str, pair)])
        steady = [Run(a.seconds - b.seconds, 0) for a, b in zip(mine, start, strict=True)]
        return (
            f"2 × 1 GB {dtype}, steady state: rate over that of `cat A B > /dev/null` "
            f"| {1 / ratio(steady, cat):.2f} | at least {bound}"
        )

    return row


def peak_memory(nbytes: int) -> Row:
    def row(data: Path, runs: int) -> str:
        pair = write_pair(data / f"one-{nbytes}", nbytes, 1, "F32")
        peak = max(run(compare(pair)).peak_mb for _ in range(2))
        return f"2 × one tensor of {nbytes / 1e9:.0f} GB, peak memory | {peak:.0f} MB | at most 600 MB"

    return row


def quantised(data: Path, runs: int) -> str:
    """One tensor each; then eight, timed against the same bytes compared without a scale."""
    one = write_quantised(data / "fp8-one", 4_000_000_000, 1)
    peak = max(run([*compare(one), "--quantization-analysis"]).peak_mb for _ in range(2))
    pair = write_quantised(data / "fp8", 1_000_000_000, 8)
    warm(pair)
    values, codes = in_turn(runs, compare(pair), [*compare(pair), "--raw"])
    return (
        f"one tensor of 4 GB BF16 and as FP8 in tiles, `--quantization-analysis`, peak memory | {peak:.0f} MB | "
        "at most 600 MB\n"
        f"1 GB BF16 and as FP8 in tiles: values, wall, over `--raw` | {ratio(values, codes):.2f} |"
    )


def start_up(data: Path, runs: int) -> str:
    pair = write_pair(data / "mb-1", 1_000_000, 8, "F32")
    help_, small = in_turn(runs, ours("--help"), compare(pair))
    return (
        f"`--help`, wall | {median(help_):.2f} s | at most 0.3 s\n"
        f"2 × 1 MB, wall, second run | {median(small):.2f} s | at most 1.2 s"
    )


def everything(data: Path, runs: int) -> str:
    pair = write_pair(data / "bf16-1000000000", 1_000_000_000, 8, "BF16")
    warm(pair)
    every, alone = in_turn(runs, [*compare(pair), "--all"], compare(pair))
    return f"2 × 1 GB BF16, `--all`, wall, against no analysis | {ratio(every, alone):.2f} | at most 2"


def many_tensors(data: Path, runs: int) -> str:
    pair = write_pair(data / "many", 100_000 * 1024, 100_000, "F32")
    mine, script = in_turn(runs, compare(pair), [sys.executable, str(HERE / "plain_script.py"), *map(str, pair)])
    return f"100,000 tensors of 1 KB, wall, against the plain script | {ratio(mine, script):.2f} | at most 1.5"


def s3(data: Path, runs: int) -> str:
    from s3 import against_plain_loop

    pair = write_pair(data / "s3", 256_000_000, 4, "F32")
    return "\n".join(
        f"S3 ({server}), 2 × 256 MB: rate over that of a plain s3fs loop | {ratio:.2f} | at least 0.85"
        for server, ratio in against_plain_loop(pair, runs).items()
    )


ROWS: dict[str, Row] = {
    "peer-1gb": against_peer(1_000_000_000, "0.33"),
    "peer-4gb": against_peer(4_000_000_000, "0.17"),
    "script": against_script,
    "cat-f32": against_cat("F32", "0.4"),
    "cat-bf16": against_cat("BF16", "0.25"),
    "memory-1gb": peak_memory(1_000_000_000),
    "memory-8gb": peak_memory(8_000_000_000),
    "s3": s3,
    "start": start_up,
    "many": many_tensors,
    "all": everything,
    "quantised": quantised,
    "sweep-f32": from_page_cache("F32"),
    "sweep-bf16": from_page_cache("BF16"),
    "sweep-s3-f32": from_s3("lean", "F32"),
    "sweep-s3-bf16": from_s3("lean", "BF16"),
    "sweep-swift-f32": from_s3("Swift", "F32"),
    "workers": two_workers,
    "late": late_store,
    "units": many_units,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command")
    parser.add_argument("--data", type=Path, help="where the checkpoints are written and kept (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        print(
            f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, ", end=""
        )
        print(f"NumPy {np.__version__}, {datetime.date.today()}, {options.runs} runs\n")
        print("measured | result | bar\n--- | --- | ---")
        for name in options.rows.split(","):
            print(ROWS[name](data, options.runs), flush=True)


if __name__ == "__main__":
    main()
