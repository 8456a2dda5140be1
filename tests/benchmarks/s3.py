"""How fast a comparison reads from S3, against a plain loop over the same ranges that throws them away."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from diffai_dist.cluster import Place
from diffai_dist.comparison import Selection
from diffai_dist.pipeline import open_members, run_plan
from diffai_dist.plan import Plan, make_plan
from diffai_dist.storage import Profile, chunk_bytes
from servers.moto import serve_moto
from servers.s3server import S3Server
from servers.swift import serve_swift, why_not


def plain_loop(plan: Plan, endpoint: str) -> float:
    """Seconds for every range, one after the other, by s3fs alone."""
    import s3fs

    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint)
    start = time.perf_counter()
    for lane in plan.lanes:
        for tensor in filter(None, lane.tensors):
            (span,) = tensor.spans
            step = chunk_bytes(span.source)
            for first in range(span.start, span.stop, step):
                filesystem.cat_file(span.source.url, start=first, end=min(first + step, span.stop))
    return time.perf_counter() - start


def comparison(plan: Plan) -> float:
    """Seconds to read, measure and merge the same ranges."""
    start = time.perf_counter()
    run_plan(plan, Place())
    return time.perf_counter() - start


def rate_against_plain_loop(server: S3Server, pair: Sequence[Path], runs: int) -> float:
    """Median of the plain loop's time over ours, in turn, after a warm-up of each."""
    os.environ.update(server.storage_environment)
    server.bucket("bench")
    urls = [server.put(f"bench/{path.name}", path.read_bytes()) for path in pair]
    compared = open_members(urls, Profile()).comparison(Selection())
    assert compared is not None
    plan = make_plan(compared, Profile())
    rounds = [(plain_loop(plan, server.endpoint), comparison(plan)) for _ in range(runs + 1)]
    return statistics.median(loop / ours for loop, ours in rounds[1:])


def ratios(pair: Sequence[Path], runs: int) -> dict[str, float]:
    """The ratio on each server that runs here."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, serve_moto(Path(folder)) as server:
        found["moto"] = rate_against_plain_loop(server, pair, runs)
    with tempfile.TemporaryDirectory() as folder:
        if not why_not(Path(folder)):
            with serve_swift(Path(folder)) as server:
                found["Swift"] = rate_against_plain_loop(server, pair, runs)
    return found
