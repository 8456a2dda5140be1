"""A real SLURM of one node on this machine: munged, slurmctld and slurmd in one folder, on ports of their own.

Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge. The daemons want to be root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from servers.s3server import free_ports, start, stop, wait_until

# The node claims four processors whatever the machine has, so that several small jobs run at once.
CONFIG = """ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class SlurmServer:
    """A running SLURM; its commands find it through SLURM_CONF."""

    config: Path

    def command(self, *arguments: str) -> str:
        """What a command of SLURM prints."""
        environment = os.environ | {"SLURM_CONF": str(self.config)}
        return subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout

    def jobs(self, state: str = "all") -> list[str]:
        """Ids of the jobs that are in that state."""
        return self.command("squeue", "--noheader", "--format=%i", f"--states={state}").split()

    def wait_for_end(self, seconds: float = 30) -> None:
        """Return once no job waits or runs any more."""
        limit = time.monotonic() + seconds
        while self.jobs("pending,running,completing") and time.monotonic() < limit:
            time.sleep(0.1)


def why_not() -> str:
    """Why SLURM cannot run here, "" if it can."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if missing:
        return f"SLURM is not installed: no {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "the daemons of SLURM want to be root"


@contextlib.contextmanager
def serve_slurm(folder: Path) -> Iterator[SlurmServer]:
    """SLURM under `folder`, on free ports."""
    config = _configure(folder)
    server = SlurmServer(config)
    munge = folder / "munge"
    options = (f"--{name}={munge}/{name}" for name in ("key-file", "socket", "pid-file", "seed-file", "log-file"))
    host = socket.gethostname().partition(".")[0]
    commands = {
        "munged": ("--foreground", "--force", *options),
        "slurmctld": ("-D", "-f", str(config)),
        "slurmd": ("-D", "-f", str(config), "-N", host),
    }
    processes = []
    try:
        for name, arguments in commands.items():
            processes.append(start([name, *arguments], folder / f"{name}.log"))
            wait_until((munge / "socket").exists, processes)
        if not wait_until(lambda: _idle(server), processes):
            logs = "\n".join(f"{name}:\n{(folder / f'{name}.log').read_text()[-2000:]}" for name in commands)
            raise RuntimeError(f"SLURM did not start:\n{logs}")
        yield server
        server.command("scancel", "--user", "root")
        server.wait_for_end()
    finally:
        stop(processes[::-1])


def _configure(folder: Path) -> Path:
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir()
    (folder / "munge").chmod(0o700)
    key = folder / "munge" / "key-file"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    control, node = free_ports(2)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(host=host, folder=folder, control=control, node=node))
    return config


def _idle(server: SlurmServer) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return "idle" in server.command("sinfo", "--noheader", "--format=%t")
    return False
