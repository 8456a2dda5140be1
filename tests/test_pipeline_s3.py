"""The whole path against real S3 servers: the same bits as local files, and nothing mixed when objects change."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import models
from diffai_dist.api import Report, compare, run
from diffai_dist.cluster import Place
from diffai_dist.opening import open_group, pair_of
from diffai_dist.report import RENDERERS, View
from diffai_dist.run import Settings
from test_pipeline import spoil_before

pytestmark = pytest.mark.s3


def output(report: Report) -> str:
    return "".join(RENDERERS["json"](report.sweep, View(show_identical=True)))


@pytest.fixture
def urls(s3: Any, bucket: str, pair: tuple[Path, Path]) -> tuple[str, str]:
    for path in pair:
        s3.put(f"{bucket}/{path.name}", path.read_bytes())
    return tuple(f"s3://{bucket}/{path.name}" for path in pair)  # type: ignore[return-value]


def test_a_bucket_gives_the_bits_of_local_files(urls: tuple[str, str], pair: tuple[Path, Path]) -> None:
    assert output(compare(*urls)) == output(compare(*map(str, pair)))
    assert output(compare(urls[0], str(pair[1]))) == output(compare(*map(str, pair)))


def test_shards_in_a_bucket_give_the_bits_of_one_local_file(
    s3: Any, bucket: str, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    folder = models.write_sharded(tmp_path / "b", models.perturbed(models.model()), 3)
    for path in folder.iterdir():
        s3.put(f"{bucket}/step 1+2/{path.name}", path.read_bytes())
    assert output(compare(str(pair[0]), f"s3://{bucket}/step 1+2")) == output(compare(*map(str, pair)))


@pytest.mark.parametrize(
    "scheme", ["fp8/block", "nvfp4/modelopt", "mxfp4/gpt-oss", "gptq/v1", "awq/gemm", "int8/group"]
)
def test_a_quantised_checkpoint_in_a_bucket_has_its_values(s3: Any, bucket: str, scheme: str) -> None:
    folder = Path(__file__).parent / "fixtures" / scheme
    values = folder.with_name(f"{folder.name}.values.safetensors")
    for path in folder.iterdir():
        s3.put(f"{bucket}/{scheme}/{path.name}", path.read_bytes())
    near, far = (compare(str(values), url) for url in (str(folder), f"s3://{bucket}/{scheme}"))
    assert output(near) == output(far)
    same = [one for one in far.result.tensors if one.candidate and one.status in ("changed", "identical")]
    assert same
    assert {one.change.max_abs for one in same if one.change} <= {0.0, None}


def test_a_cluster_reads_the_bucket_with_credentials_of_its_own(urls: tuple[str, str], pair: tuple[Path, Path]) -> None:
    assert output(compare(*urls, workers=2, unit_bytes=2_000_000)) == output(compare(*map(str, pair)))


def test_every_byte_is_asked_for_once(
    s3: Any, use: Any, bucket: str, urls: tuple[str, str], pair: tuple[Path, Path], fault_proxy: Any
) -> None:
    proxy = fault_proxy(s3)
    use(s3.at(proxy.endpoint))
    compare(*urls)
    asked: dict[str, list[tuple[int, int]]] = {}
    for request in proxy.log():
        asked.setdefault(request.target.split("?")[0].rsplit("/", 1)[-1], []).append(request.bytes)
    for path in pair:
        header, *weights = sorted(asked[path.name])
        assert header[0] == 0
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(weights))
        begin = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert sum(stop - start for start, stop in weights) <= path.stat().st_size - begin


def spoil(s3: Any, key: str, how: str) -> None:
    data = s3.get(key)
    if how == "deleted":
        s3.delete(key)
    else:
        s3.put(key, bytes(len(data)) if how == "overwritten" else data[: len(data) // 2])


@pytest.mark.parametrize("how", ["overwritten", "truncated", "deleted"])
@pytest.mark.parametrize("after", [0, 2])
def test_an_object_that_changes_under_way_is_reported_and_never_mixed(
    s3: Any, bucket: str, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch, how: str, after: int
) -> None:
    expected = {record.name: record for record in compare(*urls).result.tensors}
    spoil_before(monkeypatch, after, lambda: spoil(s3, f"{bucket}/b.safetensors", how))
    report = run(pair_of(*urls), Settings(place=Place(threads=1), unit_bytes=1))
    assert report.exit_code() == 3
    failed = [record for record in report.result.tensors if record.status == "failed"]
    assert failed
    for record in report.result.tensors:
        assert record.status == "failed" or record == expected[record.name]
    assert {failure.code for failure in report.failures} == {"E1102"}


def test_a_worker_killed_in_the_middle_of_a_unit_changes_nothing(
    moto: Any, use: Any, fault_proxy: Any, pair: tuple[Path, Path]
) -> None:
    """The proxy holds back the answer to a read of weights; the log says which process waits for it."""
    use(moto)
    name = moto.bucket("killed")
    for path in pair:
        moto.put(f"{name}/{path.name}", path.read_bytes())
    proxy = fault_proxy(moto)
    proxy.set("stall", 1, 2)  # after the two headers
    command = [sys.executable, "-m", "diffai_dist", "compare", *(f"s3://{name}/{path.name}" for path in pair)]
    command += ["--endpoint-url", proxy.endpoint, "--workers", "2", "--unit-size", "2MB", "-vv"]
    command += ["-o", "json", "--show-identical"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun: dict[str, str] = {}
        killed = ""
        for line in process.stderr:
            if found := re.search(r"unit (\d+) starts in process (\d+)", line):
                begun[found[1]] = found[2]
            elif found := re.search(r"unit (\d+) done", line):
                begun.pop(found[1], None)
            stalled = [request for request in proxy.log() if request.mode == "stall"]
            if stalled and begun and not killed:
                # Units of the other worker end; the one that waits does not. Both are still listed at worst: then
                # the unit that has been under way for longest is the one that waits.
                killed, pid = next(iter(begun.items()))
                os.kill(int(pid), signal.SIGKILL)
        stdout = process.stdout.read() if process.stdout else ""
    assert killed
    assert process.returncode == 0
    assert json.loads(stdout)
    assert stdout == output(compare(*map(str, pair)))


def test_secrets_are_in_no_output_and_no_task(
    moto: Any, use: Any, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    from diffai_dist.comparison import Selection
    from diffai_dist.plan import make_plan
    from diffai_dist.storage import Profile

    use(moto)
    canary = "canary-5f1c-secret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    monkeypatch.setenv("AWS_SESSION_TOKEN", canary)
    name = moto.bucket("secrets")
    for path in pair:
        moto.put(f"{name}/{path.name}", path.read_bytes())
    urls = [f"s3://{name}/{path.name}" for path in pair]
    report = compare(*urls, store=str(tmp_path / "store"))
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    comparison = open_group(pair_of(*urls), Profile()).comparison(Selection())
    assert comparison is not None
    tasks = pickle.dumps(list(make_plan(comparison, Profile()).units()))
    assert canary.encode() not in written + tasks + output(report).encode() + repr(report).encode()
