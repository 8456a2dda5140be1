"""Where to run, as a value: checked when it is made, and nothing is started yet."""

from __future__ import annotations

import os
from dataclasses import dataclass

from diffai_dist.errors import UsageError


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files with which this client and a `tls://` scheduler prove to each other who they are."""

    ca_file: str
    cert_file: str
    key_file: str


@dataclass(frozen=True, slots=True)
class Slurm:
    """Workers as SLURM jobs; what a job is stands in a file of dask-jobqueue (`jobqueue.slurm`)."""

    jobs: int
    config: str | None = None  # a file; without one, that of the site (~/.config/dask/jobqueue.yaml)
    wait_seconds: float | None = None  # for a job to run; a queue may be long, so by default as long as it takes

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}: give at least 1")
        if self.wait_seconds is not None and not self.wait_seconds > 0:
            raise UsageError(f"wait_seconds is {self.wait_seconds}: give more than 0, or none for no limit")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to run: neither workers, scheduler nor slurm means threads of this process."""

    workers: int | None = None
    scheduler: str | None = None  # an address, `env` for DASK_SCHEDULER_ADDRESS, or a scheduler file
    threads: int | None = None  # per process
    memory_limit: str | None = None  # of this process, or of each worker of a LocalCluster
    verbose: bool = False  # workers log their units to their own stderr
    tls: Tls | None = None  # without it, what dask's own configuration says
    slurm: Slurm | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.workers, self.scheduler, self.slurm)) > 1:
            raise UsageError("workers and slurm start a cluster, scheduler joins one: give one of them")
        for name, number in (("workers", self.workers), ("threads", self.threads)):
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}: give at least 1")
        if self.slurm and (self.threads or self.memory_limit):
            raise UsageError("threads and memory of SLURM jobs are cores, processes and memory in their config file")
        if self.tls and not (self.scheduler or self.slurm):
            raise UsageError("TLS is for a scheduler or SLURM jobs; what runs on this machine needs none")
        if self.tls and (self.scheduler or "").startswith(("tcp://", "ws://")):
            raise UsageError(f"TLS needs a tls:// scheduler, not {self.scheduler!r}")

    @property
    def is_here(self) -> bool:
        """Whether the units run in threads of this process."""
        return self.workers is None and self.scheduler is None and self.slurm is None

    @property
    def threads_each(self) -> int:
        """Threads of a process: those asked for, else one of a worker, and of this process one per processor."""
        return self.threads or (len(os.sched_getaffinity(0)) if self.is_here else 1)


def memory_bytes(text: str | None, option: str = "--memory-limit") -> int | None:
    """A size such as `4GB` or `512MiB` in bytes; None for none and for `auto`."""
    if text is None or text == "auto":
        return None
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a size such as 4GB") from error
