"""Whole processes, timed: what a user waits for."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_mb: float


def run(command: Sequence[str], **environment: str) -> Run:
    """One process: wall seconds and peak resident memory, as the operating system accounts for them."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment) as process:
        start = time.perf_counter()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Run(seconds, usage.ru_maxrss / 1000)


def ours(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "diffai_dist", *map(str, arguments)]


def compare(pair: Sequence[Path]) -> list[str]:
    return ours("compare", *pair, "--no-progress")


def in_turn(runs: int, *commands: Sequence[str]) -> list[list[Run]]:
    """A B A B ..., after one warm-up of each."""
    for command in commands:
        run(command)
    rounds = [[run(command) for command in commands] for _ in range(runs)]
    return [list(column) for column in zip(*rounds, strict=True)]


def median(runs: Sequence[Run]) -> float:
    return statistics.median(one.seconds for one in runs)


def ratio(first: Sequence[Run], second: Sequence[Run]) -> float:
    return statistics.median(a.seconds / b.seconds for a, b in zip(first, second, strict=True))


def warm(paths: Sequence[Path]) -> None:
    """Read the files into the page cache."""
    subprocess.run(["cat", *map(str, paths)], stdout=subprocess.DEVNULL, check=True)
