"""Rows about many threads, many workers, many units."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from calls import in_turn, measure_all
from data import write_pair, write_series
from diffai_dist import execute
from diffai_dist.cluster import Place, engine
from diffai_dist.plan import LARGEST_UNIT
from lean import CREDENTIALS, serve_lean
from plans import all_pairs, one_pair
from processes import run, warm

UNITS = 100_000


def two_workers(data: Path, runs: int) -> str:
    """Units that compute more than they read, on a LocalCluster; both clusters stay up, so that rounds alternate.

    They are as large as those of large checkpoints, and as the plan cuts these: driver and scheduler take a core, too.
    """
    series = write_series(data / "series-f32", 500_000_000, 8, "F32")
    warm(series)
    urls, rows = [str(path) for path in series], []
    with engine(Place(workers=1), execute.lost) as one, engine(Place(workers=2), execute.lost) as two:
        for size, bar in ((LARGEST_UNIT, "at least 1.7"), (None, "")):
            units = list(all_pairs(urls, True, size).units())
            times = in_turn(runs, partial(measure_all, one, units), partial(measure_all, two, units))
            ratio = statistics.median(alone / both for alone, both in times)
            what = f"8 × 500 MB F32, `all --elementwise` in {len(units)} units"
            rows.append(f"{what}, LocalCluster: 2 workers over 1 | {ratio:.2f} | {bar}")
    return "\n".join(rows)


def late_store(data: Path, runs: int) -> str:
    """Time per unit, each a small range of either side, by one thread and by 16."""
    pair = write_pair(data / "late" / "pair", 320 * 65536, 320, "F32")
    with serve_lean(data / "late", 50) as endpoint:
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
        rows = []
        for name, base in (("S3", "s3:/"), ("HTTP", endpoint)):
            units = list(one_pair([f"{base}/pair/{path.name}" for path in pair], 1).units())
            few = units[: len(units) // 8]
            with engine(Place(threads=1), execute.lost) as one, engine(Place(threads=16), execute.lost) as many:
                times = in_turn(runs, partial(measure_all, one, few), partial(measure_all, many, units))
            ratio = statistics.median(alone / len(few) / (both / len(units)) for alone, both in times)
            rows.append(
                f"{name} that is 50 ms late, units of 2 × 64 KB: 16 threads over one | {ratio:.1f} | at least 12"
            )
    return "\n".join(rows)


def many_units(data: Path, runs: int) -> str:
    """One run, however many are asked for, on a scheduler and two workers in processes of their own.

    Any warning of the driver is an error, that of a large graph too.
    """
    pair = write_pair(data / "many", UNITS * 1024, UNITS, "F32")
    with tempfile.TemporaryDirectory() as folder, _cluster(Path(folder)) as (scheduler, file):
        store = Path(folder) / "store"
        place = ["--scheduler", str(file), "--unit-size", "1", "--store", str(store), "--no-progress"]
        driver = run([sys.executable, "-W", "error", "-m", "diffai_dist", "sweep", *map(str, pair), *place])
        objects = sum(1 for _ in store.glob("runs/*/units/*"))
        peak = _peak_mb(scheduler)
    each, most = driver.seconds / UNITS * 1e3, -(-UNITS // 64)
    return (
        f"{UNITS:,} units of a tensor each, 2 workers, a whole sweep: time per unit | {each:.1f} ms |\n"
        f"the same: peak memory of driver and scheduler | {driver.peak_mb:.0f} and {peak:.0f} MB | below 2 GB\n"
        f"the same: objects that hold unit records | {objects:,} | about {most:,}"
    )


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A scheduler with two workers, and the file that says where it is."""
    file = folder / "scheduler.json"
    local = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    programs = ["scheduler", "--port", "0"], ["worker", "--nthreads", "1", "--nworkers", "2"]
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "dask"]
        started = [subprocess.Popen([*command, *one, *local], stderr=log, cwd=folder) for one in programs]
        try:
            yield started[0], file
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def _peak_mb(process: subprocess.Popen[bytes]) -> float:
    """Peak resident memory of a process that still runs."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))
