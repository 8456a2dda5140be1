"""Fixtures of all tests.

swift, moto   running S3 servers (servers.s3server.S3Server), each started on first use, one per pytest-xdist worker:
              .endpoint, .storage_environment (AWS_* variables to set), .url("bucket/key"), .put("bucket/key", data),
              .get, .delete, .bucket("name"), .client (boto3)
s3            either of them in turn: the test runs twice, with the environment set
bucket        the name of a fresh bucket of `s3`
fault_proxy   fault_proxy(server) gives a proxy in front of it (servers.faultproxy.FaultProxy): .endpoint,
              .set(mode, n, skip), .log() of the ranged GETs with their .bytes; stopped after the test
pair          two checkpoint files, a model and the same a step later (models.model, models.perturbed)
use           use(server) or use(server.at(proxy.endpoint)) sets the environment so that s3:// URLs lead there
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

import models
from diffai_dist.storage import s3_connection
from servers.faultproxy import FaultProxy
from servers.moto import serve_moto
from servers.s3server import S3Server
from servers.swift import serve_swift, why_not

_numbers = itertools.count()

# No deadline: a busy machine is no fault of what is tested. A gate (CI is set) draws the same examples each time, so
# that it judges the change; everybody else draws new ones, and finds what is left to find.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("project")
Target = TypeVar("Target", S3Server, FaultProxy)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, arrays = tmp_path_factory.mktemp("pair"), models.model()
    return (
        models.write(folder / "a.safetensors", arrays),
        models.write(folder / "b.safetensors", models.perturbed(arrays)),
    )


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("swift")
    if reason := why_not(folder):
        pytest.skip(reason)
    with serve_swift(folder) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target], Target]:
    def lead_to(server: Target) -> Target:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.storage_environment.items():
            monkeypatch.setenv(name, value)
        # Connections keep the credentials they began with, and a proxy may get the port of an earlier one.
        monkeypatch.setattr(s3_connection, "_connections", {})
        return server

    return lead_to


@pytest.fixture(params=["moto", "swift"])
def s3(request: pytest.FixtureRequest, use: Callable[[S3Server], S3Server]) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return use(server)


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket(f"bucket-{next(_numbers)}")


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    proxies: list[FaultProxy] = []

    def before(server: S3Server, stall_seconds: float = 20.0) -> FaultProxy:
        proxy = FaultProxy(server.endpoint, stall_seconds)
        proxies.append(proxy)
        proxy.storage_environment = server.at(proxy.endpoint).storage_environment
        return proxy

    yield before
    for proxy in proxies:
        proxy.stop()
