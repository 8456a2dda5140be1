"""Workers as SLURM jobs, through dask-jobqueue; jobs that end are replaced as long as the run goes on."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffai_dist.cluster.client import connected, security, warn_if_open
from diffai_dist.cluster.place import Slurm, Tls
from diffai_dist.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from distributed import Client

# Parameters that are ours to set; the last two SLURMCluster wants in scheduler-options.
OURS = set("scheduler job_cls scheduler_cls n_workers asynchronous loop silence_logs config_name".split())
OURS |= {"dashboard_address", "host"}


@contextmanager
def slurm_client(slurm: Slurm, tls: Tls | None) -> Iterator[tuple[Client, Callable[[], None]]]:
    """A client of a scheduler in this process and of workers in SLURM jobs, and what replaces jobs that ended.

    Jobs are cancelled at the end, whatever the end is; those of a killed process end by themselves, as their
    scheduler is gone.
    """
    cluster = _cluster(slurm, tls)
    with cluster:
        _try_to_submit(cluster.job_script())
        cluster.scale(jobs=slurm.jobs)
        with connected({"address": cluster}, "the scheduler of the SLURM jobs") as client:
            warn_if_open(cluster.scheduler_address)
            yield client, _Jobs(cluster, slurm.jobs).replace_lost


def _cluster(slurm: Slurm, tls: Tls | None) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ModuleNotFoundError as error:
        raise UsageError("SLURM needs dask-jobqueue: pip install 'diffai-dist[slurm]'") from error
    import dask

    site = dask.config.get("jobqueue.slurm")
    options = _options(slurm.config, _parameters(SLURMCluster)) if slurm.config else {}
    walltime = options.get("walltime") or site.get("walltime")
    arguments = list(options.get("worker_extra_args", site.get("worker-extra-args")) or ())
    dashboard = {"dashboard_address": "127.0.0.1:0"}  # any free port: the default one may be taken
    scheduler = {**dashboard, **(options.get("scheduler_options", site.get("scheduler-options")) or {})}
    if walltime and "--lifetime" not in " ".join(map(str, arguments)):
        arguments += lifetime(str(walltime))
    if tls:
        options["security"] = security(tls)
    try:
        return SLURMCluster(**{**options, "worker_extra_args": arguments, "scheduler_options": scheduler})
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{slurm.config or 'jobqueue.slurm of the dask configuration'}: {reason}") from error


def _parameters(cluster: Any) -> set[str]:
    """What the classes that read the options take."""
    kinds = (cluster, cluster.job_cls, *cluster.job_cls.__bases__)
    names = {name: one.kind for kind in kinds for name, one in inspect.signature(kind).parameters.items()}
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name for name, kind in names.items() if kind not in variadic} - OURS


def _options(path: str, known: set[str]) -> dict[str, Any]:
    """The section `jobqueue.slurm` of the file, by the names of SLURMCluster's parameters."""
    import dask

    if not os.access(path, os.R_OK) or os.path.isdir(path):
        raise UsageError(f"{path}: there is no such file, or it cannot be read")
    try:
        config: dict[str, Any] = next(iter(dask.config.collect_yaml([path])), {})
        section = config["jobqueue"]["slurm"]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: holds no section `jobqueue: slurm:`, as dask-jobqueue's own files do") from error
    except ValueError as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(section, dict):
        raise UsageError(f"{path}: the section `jobqueue: slurm:` holds no keys")
    return {_known(path, str(key), known): value for key, value in section.items() if value is not None}


def _known(path: str, key: str, known: set[str]) -> str:
    name = key.replace("-", "_")
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0].replace('_', '-')!r}?" if close else f"known are {', '.join(sorted(known))}"
        raise UsageError(f"{path}: unknown key {key!r} in `jobqueue: slurm:`: {hint}")
    return "job_name" if name == "name" else name  # dask-jobqueue's files call it so, and its cluster something else


def lifetime(walltime: str) -> list[str]:
    """Let workers leave in order before SLURM ends their job, not all of them at once.

    >>> lifetime("00:30:00")
    ['--lifetime', '1440s', '--lifetime-stagger', '180s']
    """
    seconds = walltime_seconds(walltime)
    if seconds is None:
        return []
    margin = min(300, seconds // 10)
    return ["--lifetime", f"{seconds - 2 * margin}s", "--lifetime-stagger", f"{margin}s"]


def walltime_seconds(walltime: str) -> int | None:
    """Seconds of SLURM's time format, None for one without a limit.

    M, M:S, H:M:S, D-H, D-H:M and D-H:M:S, says sbatch(1).

    >>> walltime_seconds("90"), walltime_seconds("1-0:30")
    (5400, 88200)
    """
    if walltime.upper() in ("UNLIMITED", "INFINITE"):
        return None
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", walltime):
        raise UsageError(f"walltime {walltime!r} is not a time such as 00:30:00 or 1-12:00:00; quote it in YAML")
    days, dash, clock = walltime.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _try_to_submit(script: str) -> None:
    """Ask SLURM whether it would take the job: dask-jobqueue only logs it when it does not."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            # sbatch is found on the PATH, as dask-jobqueue finds it.
            done = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True)  # noqa: S603, S607
        except OSError as error:
            raise ClusterError(f"this machine does not submit to SLURM: sbatch: {error.strerror}") from error
    if done.returncode:
        raise ClusterError(f"SLURM refuses the jobs: {' '.join(done.stderr.split())}")


class _Jobs:
    """Submits a new job for each that was there and is gone: cancelled, at its walltime, or with its node."""

    def __init__(self, cluster: Any, jobs: int) -> None:
        self.cluster, self.jobs = cluster, jobs
        self.seen: set[str] = set()

    def replace_lost(self) -> None:
        """Call it now and then. A job still in the queue has never been seen and is left alone."""
        present = self.present(self.cluster.scheduler_info["workers"])
        if lost := self.seen - present:
            self.cluster.sync(self.cluster.scale_down, lost)
            self.cluster.scale(jobs=self.jobs)
        self.seen = present

    def present(self, workers: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Names of the jobs that have a worker; a job of several processes has as many workers."""
        suffixed = {str(worker["name"]) for worker in workers.values()}
        return {
            name
            for name, spec in self.cluster.worker_spec.items()
            if suffixed & {f"{name}{suffix}" for suffix in spec.get("group", ("",))}
        }
