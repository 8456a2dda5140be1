"""Workers as SLURM jobs: what their file may say, and runs on a real SLURM of one node where it is installed."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffai_dist.api import run as compare
from diffai_dist.cluster import Place, Slurm, engine, slurm
from diffai_dist.errors import ClusterError, UsageError
from diffai_dist.opening import pair_of
from diffai_dist.run import Settings
from servers.slurm import SlurmServer, serve_slurm, why_not

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")

JOB = {"cores": 1, "memory": "1GiB", "processes": 1, "walltime": "00:05:00", "interface": "lo"}


@dataclass(frozen=True)
class Job:
    index: int

    @property
    def key(self) -> str:
        return f"job-{self.index}"


def unhurried(job: Job) -> int:
    time.sleep(0.02)
    return job.index


def lost(job: Job, reason: str) -> tuple[str, int]:
    return "lost", job.index


def write(folder: Path, section: Any) -> str:
    path = folder / "jobs.yaml"
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm": section}}))
    return str(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmServer]:
    if reason := why_not():
        pytest.skip(reason)
    with serve_slurm(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def controller(server: SlurmServer, monkeypatch: pytest.MonkeyPatch) -> SlurmServer:
    """The server, to which the commands of this process lead."""
    monkeypatch.setenv("SLURM_CONF", str(server.config))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # jobs inherit it
    return server


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("01:30:00", 5400),
        ("2-12", 216_000),
        ("2-12:30", 217_800),
        ("1-00:00:01", 86_401),
        ("UNLIMITED", None),
    ],
)
def test_walltimes_are_read_as_slurm_reads_them(walltime: str, seconds: int | None) -> None:
    assert slurm.walltime_seconds(walltime) == seconds


@pytest.mark.parametrize("walltime", ["5 min", "", "1-", "1:2:3:4", "-5"])
def test_a_walltime_that_is_none_is_a_usage_error(walltime: str) -> None:
    with pytest.raises(UsageError, match="walltime"):
        slurm.walltime_seconds(walltime)


@pytest.mark.parametrize("walltime", ["2", "00:05:00", "00:30:00", "1-00:00:00"])
def test_workers_leave_before_slurm_ends_their_job(walltime: str) -> None:
    whole = slurm.walltime_seconds(walltime)
    _, latest, _, stagger = slurm.lifetime(walltime)
    assert whole is not None
    assert 0 < int(latest[:-1]) - int(stagger[:-1])
    assert int(latest[:-1]) + int(stagger[:-1]) < whole


@pytest.mark.filterwarnings("ignore:.*Cluster.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("section", "message"),
    [
        (JOB | {"qeue": "debug"}, "unknown key 'qeue'.*did you mean 'queue'"),
        (JOB | {"worker-extra-arg": []}, "did you mean 'worker-extra-args'"),
        (JOB | {"n_workers": 3}, "unknown key 'n_workers'"),
        (JOB | {"walltime": 1800}, None),
        (JOB | {"walltime": "soon"}, "walltime 'soon'"),
        ({"cores": 1}, "memory"),
        (JOB | {"memory": "much"}, "jobs.yaml"),
        ([1], "holds no keys"),
        (None, "holds no keys"),
    ],
    ids=str,
)
def test_a_file_that_makes_no_sense_is_a_usage_error(tmp_path: Path, section: Any, message: str | None) -> None:
    if message is None:  # minutes without quotes are a number in YAML, and fine
        slurm._cluster(Slurm(1, write(tmp_path, section)), None).close()
        return
    with pytest.raises(UsageError, match=message):
        slurm._cluster(Slurm(1, write(tmp_path, section)), None)
    gc.collect()  # dask-jobqueue leaves a cluster behind that it began to make, and warns of it


@pytest.mark.parametrize("text", ["", "cores: 1", "jobqueue: 3", "jobqueue: [", "- 1"])
def test_a_file_of_another_kind_is_a_usage_error_on_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"jobs\.yaml") as caught:
        slurm._cluster(Slurm(1, str(path)), None)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        slurm._cluster(Slurm(1, str(tmp_path / "nothing.yaml")), None)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(UsageError, match=r"pip install 'diffai-dist\[slurm\]'"):
        slurm._cluster(Slurm(1), None)


def test_dashes_and_the_name_of_the_job_are_as_in_the_files_of_dask_jobqueue(tmp_path: Path) -> None:
    ours = {"name": "nightly", "job-extra-directives": ["--nice=5"], "worker-extra-args": ["--lifetime", "60s"]}
    cluster = slurm._cluster(Slurm(1, write(tmp_path, JOB | ours)), None)
    script = cluster.job_script()
    cluster.close()
    assert "#SBATCH -J nightly" in script
    assert "#SBATCH --nice=5" in script
    assert script.count("--lifetime") == 1


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place = Place(slurm=Slurm(1, write(tmp_path, JOB)))
    with pytest.raises(ClusterError, match="sbatch"), engine(place, lost):
        pass


@pytest.mark.slow
def test_slurm_jobs_give_the_result_of_this_process(
    controller: SlurmServer, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    place = Place(slurm=Slurm(2, write(tmp_path, JOB | {"log-directory": str(tmp_path / "logs")})))
    group = pair_of(*map(str, pair))
    here = compare(group, Settings())
    there = compare(group, Settings(place=place, unit_bytes=100_000))
    assert there.records == here.records
    assert there.tensors.equals(here.tensors)
    controller.wait_for_end()
    assert controller.jobs("pending,running") == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_cancelled_jobs_are_replaced_and_lose_nothing(controller: SlurmServer, tmp_path: Path, processes: int) -> None:
    job = JOB | {"cores": processes, "processes": processes, "log-directory": str(tmp_path / "logs")}
    with engine(Place(slurm=Slurm(1, write(tmp_path, job))), lost) as run:
        outcomes = run(unhurried, (Job(index) for index in range(300)))
        found = [next(outcomes) for _ in range(20)]
        first = controller.jobs("running")
        controller.command("scancel", *first)
        found += outcomes
        second = controller.jobs("running")
    assert sorted(found) == list(range(300))
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.slow
def test_jobs_are_cancelled_when_the_run_fails(controller: SlurmServer, tmp_path: Path) -> None:
    place = Place(slurm=Slurm(2, write(tmp_path, JOB | {"log-directory": str(tmp_path / "logs")})))
    with pytest.raises(KeyError), engine(place, lost):  # noqa: PT012
        assert controller.jobs("pending,running") != []
        raise KeyError("a bug")
    controller.wait_for_end()
    assert controller.jobs("pending,running") == []


def test_jobs_that_slurm_refuses_are_a_cluster_error(controller: SlurmServer, tmp_path: Path) -> None:
    place = Place(slurm=Slurm(1, write(tmp_path, JOB | {"queue": "no-such-partition"})))
    with pytest.raises(ClusterError, match="invalid partition"), engine(place, lost):
        pass
    assert controller.jobs("pending,running") == []


def test_a_job_that_does_not_come_is_given_up_after_the_time_asked_for(controller: SlurmServer, tmp_path: Path) -> None:
    held = JOB | {"job-extra-directives": ["--begin=now+1hour"], "log-directory": str(tmp_path / "logs")}
    place = Place(slurm=Slurm(1, write(tmp_path, held), wait_seconds=3))
    with pytest.raises(ClusterError, match="no workers for"), engine(place, lost):
        pass
    controller.wait_for_end()
    assert controller.jobs("pending,running") == []
