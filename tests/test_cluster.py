"""Places to run: every one gives all outcomes once, and a lost worker or scheduler loses nothing else."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diffai_dist import cluster
from diffai_dist.cluster import Place, Slurm, Tls, client, engine, fit, memory_bytes, pulse, units
from diffai_dist.errors import ClusterError, UsageError
from servers.s3server import S3Server


@dataclass(frozen=True)
class Job:
    index: int

    @property
    def key(self) -> str:
        return f"job-{self.index}"


def jobs(count: int) -> Iterator[Job]:
    return (Job(index) for index in range(count))


def number(job: Job) -> int:
    return job.index


def deadly(job: Job) -> int:
    if job.index == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return job.index


def always_deadly(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unhurried(job: Job) -> int:
    time.sleep(0.02)
    return job.index


def where(job: Job) -> str:
    time.sleep(0.02)
    return os.environ["WORKER"]


def broken(job: Job) -> int:
    if job.index == 5:
        raise KeyError("a bug")
    return job.index


def lost(job: Job, reason: str) -> tuple[str, int]:
    return "lost", job.index


def test_every_outcome_comes_once_across_windows() -> None:
    with engine(Place(threads=3), lost) as run:
        assert sorted(run(number, jobs(2500))) == list(range(2500))


def test_a_bug_in_a_unit_is_raised() -> None:
    with engine(Place(threads=2), lost) as run, pytest.raises(KeyError, match="a bug"):
        list(run(broken, jobs(50)))


def test_stopping_early_leaves_nothing_running() -> None:
    done = []

    def slow(job: Job) -> int:
        done.append(job.index)
        return job.index

    with engine(Place(threads=1), lost) as run:
        outcomes = run(slow, jobs(100_000))
        next(outcomes)
        outcomes.close()
    assert len(done) < 100_000


def test_outcomes_wait_for_a_slow_consumer_in_bounded_number() -> None:
    done = threading.Semaphore(0)
    count = itertools.count(1)

    def work(job: Job) -> int:
        next(count)
        done.release()
        return job.index

    with engine(Place(threads=2), lost) as run:
        outcomes = run(work, jobs(5000))
        next(outcomes)
        most = 1 + units.window(2) + 2  # taken, waiting, in the hands of two threads
        for _ in range(most):
            assert done.acquire(timeout=30)
        assert not done.acquire(timeout=0.5)
        assert 1 + sum(1 for _ in outcomes) == 5000
    assert next(count) == 5001


def test_an_error_of_the_consumer_ends_the_work() -> None:
    done = []

    def consume() -> None:
        with engine(Place(threads=2), lost) as run:
            for outcome in run(done.append, jobs(100_000)):
                raise KeyError(outcome)

    with pytest.raises(KeyError):
        consume()
    assert len(done) < 100_000
    assert not [thread for thread in threading.enumerate() if "_feed" in thread.name]


@pytest.mark.parametrize("place", [Place(threads=2), Place(workers=1)], ids=["here", "workers"])
def test_an_error_while_units_are_made_is_raised(place: Place) -> None:
    def made() -> Iterator[Job]:
        yield from jobs(10)
        raise KeyError("no plan")

    with engine(place, lost) as run, pytest.raises(KeyError, match="no plan"):
        list(run(number, made()))


def test_outcomes_that_end_early_are_an_error() -> None:
    def short(work: Callable[[Job], int], units: Any) -> Iterator[int]:
        yield from itertools.islice(map(work, list(units)), 7)

    with pytest.raises(ClusterError, match="7 of 10 units"):
        list(cluster._whole(short)(number, jobs(10)))


def test_51_a_unit_that_kills_its_workers_is_lost_and_no_other() -> None:
    import dask

    # Two deaths, then two more alone: dask's own limit is three more each time, at two seconds a worker.
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), engine(Place(workers=2), lost) as run:
        outcomes = list(run(deadly, jobs(30)))
    assert [one for one in outcomes if not isinstance(one, int)] == [("lost", 5)]
    assert sorted(one for one in outcomes if isinstance(one, int)) == [*range(5), *range(6, 30)]


def test_units_are_submitted_in_a_window() -> None:
    """A plan of a million units is neither one graph nor a flood: what is out is bounded, whatever the number."""
    made = done = furthest = 0

    def counted() -> Iterator[Job]:
        nonlocal made
        for job in jobs(500):
            made += 1
            yield job

    with engine(Place(workers=2), lost) as run:
        for _ in run(number, counted()):
            done += 1
            furthest = max(furthest, made - done)
    assert done == 500
    assert furthest <= 2 * 64


def test_a_unit_beyond_all_measure_of_deadly_ones_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose workers all die is given up after a bounded number of deaths."""
    import dask

    monkeypatch.setattr(units, "MOST_DEADLY", 3)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        engine(Place(workers=2), lost) as run,
        pytest.raises(ClusterError, match="4 units lost every worker"),
    ):
        list(run(always_deadly, jobs(1000)))


@dataclass
class Processes:
    """A scheduler and its workers as processes of their own; the scheduler file tells where."""

    folder: Path
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.file = self.folder / "scheduler.json"
        self.log = (self.folder / "log").open("wb")
        self.all: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0")

    @property
    def address(self) -> str:
        address: str = json.loads(self.file.read_text())["address"]
        return address

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "dask", *arguments, "--scheduler-file", str(self.file)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | variables
        command += ["--no-dashboard", *self.options]
        self.all.append(subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment))
        return self.all[-1]

    def worker(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        return self.start("worker", "--host", "127.0.0.1", "--no-nanny", *arguments, **variables)

    def wait(self) -> None:
        """Until the file says where: for a moment it is there and empty."""
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            with contextlib.suppress(OSError, ValueError):
                if self.address:
                    return
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self.all:
            process.kill()
            process.wait()
        self.log.close()


@contextmanager
def processes(folder: Path, *options: str) -> Iterator[Processes]:
    """A scheduler without workers."""
    started = Processes(folder, options)
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Processes]:
    """A scheduler without workers."""
    with processes(tmp_path) as started:
        yield started


@pytest.fixture
def doomed(bare: Processes) -> Processes:
    """A scheduler and two workers of one thread each, for a test that ends some of them."""
    for _ in range(2):
        bare.worker("--nthreads", "1")
    return bare


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A scheduler and two workers of one thread each, for all tests that leave them as they are."""
    with processes(tmp_path_factory.mktemp("running")) as started:
        for _ in range(2):
            started.worker("--nthreads", "1")
        yield started


def test_a_running_scheduler_is_joined_by_file_address_or_environment(
    running: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", running.address)
    for scheduler in (str(running.file), running.address, "env"):
        with engine(Place(scheduler=scheduler), lost) as run:
            assert sorted(run(number, jobs(20))) == list(range(20))


@dataclass(frozen=True)
class Salted(Job):
    """A job of the same key as another's, and of another place in another plan."""

    salt: str


def salt(job: Salted) -> str:
    time.sleep(0.05)
    return job.salt


def test_two_runs_on_one_scheduler_do_not_get_each_others_outcomes(running: Processes) -> None:
    place = Place(scheduler=running.address)
    with engine(place, lost) as run, engine(place, lost) as run_too:
        ours = run(salt, (Salted(index, "ours") for index in range(20)))
        first = next(ours)  # all are submitted by now
        theirs = list(run_too(salt, (Salted(index, "theirs") for index in range(20))))
        assert set(theirs) == {"theirs"}
        assert {first, *ours} == {"ours"}


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_52_a_lost_scheduler_is_a_cluster_error(
    doomed: Processes, way: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pulse, "SILENT_SECONDS", 3)
    with (  # noqa: PT012
        pytest.raises(ClusterError, match="scheduler was lost"),
        engine(Place(scheduler=doomed.address), lost) as run,
    ):
        outcomes = run(number, jobs(100_000))
        next(outcomes)
        doomed.scheduler.send_signal(way)
        list(outcomes)
    assert "Traceback" not in capfd.readouterr().err


def test_52_a_scheduler_lost_between_two_runs_is_a_cluster_error(
    doomed: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 2)
    with engine(Place(scheduler=doomed.address), lost) as run:
        assert len(list(run(number, jobs(10)))) == 10
        doomed.scheduler.kill()
        doomed.scheduler.wait()
        time.sleep(1)
        with pytest.raises(ClusterError, match="scheduler was lost"):
            list(run(number, jobs(10)))
        time.sleep(3)  # dask gives up connecting again: now already the first unit cannot be submitted
        with pytest.raises(ClusterError, match="scheduler was lost"):
            list(run(number, jobs(10)))


def test_50_a_killed_worker_loses_nothing(doomed: Processes) -> None:
    with engine(Place(scheduler=doomed.address), lost) as run:
        outcomes = run(unhurried, jobs(200))
        first = [next(outcomes) for _ in range(20)]
        doomed.all[1].kill()
        assert sorted([*first, *outcomes]) == list(range(200))


def test_a_scheduler_without_workers_is_a_cluster_error(
    bare: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pulse, "TELL_SECONDS", 1)
    monkeypatch.setattr(pulse, "NO_WORKERS_SECONDS", 3)
    with pytest.raises(ClusterError, match="no workers for"), engine(Place(scheduler=bare.address), lost):
        pass
    assert "waiting for workers" in caplog.text


def test_workers_that_leave_for_good_are_a_cluster_error(bare: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bare.worker()
    with engine(Place(scheduler=bare.address), lost) as run:
        monkeypatch.setattr(pulse, "NO_WORKERS_SECONDS", 3)
        outcomes = run(unhurried, jobs(10_000))
        next(outcomes)
        worker.terminate()
        with pytest.raises(ClusterError, match="no workers for"):
            list(outcomes)


def test_the_window_follows_the_number_of_threads(bare: Processes) -> None:
    made = done = furthest = 0

    def counted() -> Iterator[Job]:
        nonlocal made
        for job in jobs(100_000):
            made += 1
            yield job

    bare.worker("--nthreads", "1")
    with engine(Place(scheduler=bare.address), lost) as run:
        outcomes = run(unhurried, counted())
        for _ in outcomes:
            done += 1
            furthest = max(furthest, made - done)
            if done == 10:
                assert furthest <= 64
                bare.worker("--nthreads", "40")
            if furthest > 64:
                break
        outcomes.close()
    assert 64 < furthest <= 4 * 41


@pytest.mark.slow
def test_60_many_units_leave_nothing_behind(running: Processes) -> None:
    """Neither large-graph warnings nor tasks that pile up in the scheduler."""
    from distributed import Client

    most = done = 0
    with (
        warnings.catch_warnings(),
        Client(running.address, set_as_default=False) as observer,
        engine(Place(scheduler=running.address), lost) as run,
    ):
        warnings.simplefilter("error")
        for _ in run(number, jobs(5000)):
            done += 1
            if done % 500 == 0:
                most = max(most, observer.run_on_scheduler(_tasks))
    assert done == 5000
    assert most <= 2 * 64


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def test_an_error_of_the_consumer_leaves_the_cluster_quietly(
    running: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError), engine(Place(scheduler=running.address), lost) as run:  # noqa: PT012
        outcomes = run(unhurried, jobs(10_000))
        next(outcomes)
        raise KeyError("consumer")
    outcomes.close()
    assert "Traceback" not in capfd.readouterr().err
    with engine(Place(scheduler=running.address), lost) as run:  # the scheduler is free for the next one
        assert sorted(run(number, jobs(20))) == list(range(20))


@pytest.fixture
def other_versions(tmp_path: Path) -> Path:
    """What makes a process another version of this package."""
    path = tmp_path / "other_versions.py"
    path.write_text("from diffai_dist.cluster import fit\nfit.versions = lambda: {'diffai-dist': '0.0.1'}\n")
    return path


def test_57_workers_of_other_versions_are_refused_at_the_start(bare: Processes, other_versions: Path) -> None:
    bare.worker("--preload", str(other_versions))
    with (
        pytest.raises(ClusterError, match=r"runs diffai-dist 0\.0\.1, .*this client diffai-dist"),
        engine(Place(scheduler=bare.address), lost),
    ):
        pass


def test_57_a_late_worker_of_other_versions_computes_nothing(bare: Processes, other_versions: Path) -> None:
    bare.worker("--nthreads", "1", WORKER="fit")
    seen = set()
    with engine(Place(scheduler=bare.address), lost) as run:
        outcomes = run(where, jobs(10_000))
        seen.add(next(outcomes))
        bare.worker("--nthreads", "1", "--preload", str(other_versions), WORKER="unfit")
        with pytest.raises(ClusterError, match=r"runs diffai-dist 0\.0\.1"):
            seen.update(outcomes)
    assert seen == {"fit"}


def test_57_a_worker_without_the_package_is_refused(running: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise AssertionError("pickled by name only")

    missing.__module__, missing.__qualname__ = "no_such_package", "versions"
    monkeypatch.setitem(sys.modules, "no_such_package", type(sys)("no_such_package"))
    monkeypatch.setattr(sys.modules["no_such_package"], "versions", missing, raising=False)
    monkeypatch.setattr(fit, "versions", missing)
    with (
        pytest.raises(ClusterError, match=r"cannot run diffai-dist: .*ModuleNotFoundError"),
        engine(Place(scheduler=running.address), lost),
    ):
        pass


class Authority:
    """Makes certificates, as `openssl` would."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        folder.mkdir()
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.ca_file = self.write("ca.pem", self.certificate(self.key.public_key(), "authority", True))

    def certificate(self, public: Any, name: str, authority: bool) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named("authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def tls(self, name: str) -> Tls:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = self.certificate(key.public_key(), name, False)
        return Tls(self.ca_file, self.write(f"{name}.pem", certificate), self.write(f"{name}.key", plain))


def test_59_a_scheduler_with_tls_takes_those_with_its_certificates_only(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs").tls("stranger")
    server = ours.tls("cluster")
    files = ("--tls-ca-file", server.ca_file, "--tls-cert", server.cert_file, "--tls-key", server.key_file)
    with processes(tmp_path, *files) as started:
        started.worker()
        address = started.address
        assert address.startswith("tls://")
        with engine(Place(scheduler=address, tls=ours.tls("client")), lost) as run:
            assert sorted(run(number, jobs(20))) == list(range(20))
        with pytest.raises(ClusterError, match="certificate"), engine(Place(scheduler=address, tls=theirs), lost):
            pass
        with pytest.raises(ClusterError, match="--tls-ca-file"), engine(Place(scheduler=address), lost):
            pass


def test_tls_files_that_are_missing_are_a_usage_error() -> None:
    tls = Tls("/no/ca.pem", "/no/cert.pem", "/no/key.pem")
    with pytest.raises(UsageError, match=r"/no/ca\.pem"), engine(Place(scheduler="tls://127.0.0.1:1", tls=tls), lost):
        pass


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        ("tcp://10.1.2.3:8786", True),
        ("ws://scheduler:8786", True),
        ("tcp://[2001:db8::1]:8786", True),
        ("tcp://127.0.0.1:8786", False),
        ("tcp://[::1]:8786", False),
        ("tcp://localhost:8786", False),
        ("tls://10.1.2.3:8786", False),
    ],
)
def test_59_an_open_scheduler_is_warned_of(address: str, is_open: bool, caplog: pytest.LogCaptureFixture) -> None:
    client.warn_if_open(address)
    assert [record.levelno for record in caplog.records] == ([logging.WARNING] if is_open else [])
    assert ("--tls-ca-file" in caplog.text) == is_open


def test_62_tasks_carry_no_credentials(
    moto: S3Server, use: Callable[[S3Server], S3Server], pair: tuple[Path, Path]
) -> None:
    """Workers find credentials where they run; what is sent to them holds those of nobody."""
    from diffai_dist.comparison import Selection
    from diffai_dist.execute import measure
    from diffai_dist.opening import open_group, pair_of
    from diffai_dist.plan import make_plan
    from diffai_dist.storage import Profile

    canary = S3Server(moto.endpoint, "CANARYKEY", "CANARYSECRET")
    use(canary)
    urls = [canary.put(f"canary/{path.name}", path.read_bytes()) for path in pair]
    comparison = open_group(pair_of(*urls), Profile()).comparison(Selection())
    assert comparison is not None
    plan = make_plan(comparison, Profile())
    work = functools.partial(fit.run_if_fit, fit.versions(), measure)
    sent = b"".join(pickle.dumps((work, unit, unit.key)) for unit in plan.units())
    assert b"canary/a.safetensors" in sent
    assert b"CANARY" not in sent


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 2, "scheduler": "env"},
        {"workers": 2, "slurm": Slurm(1)},
        {"workers": 0},
        {"threads": 0},
        {"slurm": Slurm(1), "threads": 2},
        {"slurm": Slurm(1), "memory_limit": "4GB"},
        {"workers": 2, "tls": Tls("a", "b", "c")},
        {"scheduler": "tcp://127.0.0.1:1", "tls": Tls("a", "b", "c")},
    ],
    ids=str,
)
def test_places_that_make_no_sense_are_usage_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Place(**wrong)


def test_no_scheduler_address_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="DASK_SCHEDULER_ADDRESS"), engine(Place(scheduler="env"), lost):
        pass


@pytest.mark.parametrize(("text", "size"), [(None, None), ("auto", None), ("4GB", 4 * 10**9), ("512MiB", 2**29)])
def test_sizes_are_read_as_people_write_them(text: str | None, size: int | None) -> None:
    assert memory_bytes(text) == size


def test_a_size_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="4GB"):
        memory_bytes("much")
