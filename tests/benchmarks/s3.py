"""How fast S3 is read: by a comparison against a plain loop, and by a sweep against reading without measuring."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from calls import in_turn, measure_all
from diffai_dist import execute
from diffai_dist.chunks import Chunk
from diffai_dist.cluster import Place, engine
from diffai_dist.pipeline import run_plan
from diffai_dist.plan import Plan
from diffai_dist.storage import chunk_bytes
from lean import CREDENTIALS, serve_lean
from plans import all_pairs, consecutive, one_pair
from processes import warm
from servers.moto import serve_moto
from servers.s3server import S3Server
from servers.swift import serve_swift, why_not


def running() -> Iterator[tuple[str, S3Server]]:
    """Each server that runs here, one after the other, with the environment set."""
    for name, serve in (("moto", serve_moto), ("Swift", serve_swift)):
        with tempfile.TemporaryDirectory() as folder:
            if name == "moto" or not why_not(Path(folder)):
                with serve(Path(folder)) as server:
                    os.environ.update(server.storage_environment)
                    yield name, server


def upload(server: S3Server, paths: Sequence[Path]) -> list[str]:
    server.bucket("bench")
    return [server.put(f"bench/{path.name}", path.read_bytes()) for path in paths]


def plain_loop(plan: Plan, endpoint: str) -> None:
    """Every range, one after the other, by s3fs alone."""
    import s3fs

    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint)
    for lane in plan.lanes:
        for tensor in filter(None, lane.tensors):
            (span,) = tensor.spans
            step = chunk_bytes(span.source)
            for first in range(span.start, span.stop, step):
                filesystem.cat_file(span.source.url, start=first, end=min(first + step, span.stop))


def reading(plan: Plan) -> None:
    """Every range through the same storage layer, in the same threads, into the same buffers; nothing is measured."""
    with mock.patch.object(Chunk, "measure"), engine(Place(), execute.lost) as run:
        measure_all(run, plan.units())


def measuring(plan: Plan) -> None:
    """Read, measure and merge all units."""
    run_plan(plan, Place())


def against_plain_loop(pair: Sequence[Path], runs: int) -> dict[str, float]:
    """By server, the median of the plain loop's time over ours."""
    found = {}
    for name, server in running():
        plan = one_pair(upload(server, pair))
        times = in_turn(runs, partial(plain_loop, plan, server.endpoint), partial(measuring, plan))
        found[name] = statistics.median(loop / ours for loop, ours in times)
    return found


def lean_sweep(series: Sequence[Path], runs: int) -> tuple[float, float]:
    """The medians of the times of `consecutive` and `all` over that of reading all members once.

    Not on moto, which copies a whole object to answer with a part of it.
    """
    warm(series)
    with serve_lean(series[0].parents[1]) as endpoint:
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
        return _over_reading([f"s3://{path.parent.name}/{path.name}" for path in series], runs)


def swift_sweep(series: Sequence[Path], runs: int) -> tuple[float, float]:
    """The same on Swift."""
    with tempfile.TemporaryDirectory() as folder:
        if reason := why_not(Path(folder)):
            raise SystemExit(reason)
        with serve_swift(Path(folder)) as server:
            os.environ.update(server.storage_environment)
            return _over_reading(upload(server, series), runs)


def _over_reading(urls: Sequence[str], runs: int) -> tuple[float, float]:
    pairs, group = consecutive(urls), all_pairs(urls)
    times = in_turn(runs, partial(reading, pairs), partial(measuring, pairs), partial(measuring, group))
    one, other = (statistics.median(row[index] / row[0] for row in times) for index in (1, 2))
    return one, other
