"""Whether a process may compute: other versions give other bits, or cannot read a task at all."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from diffai_dist.cluster.pulse import ask
from diffai_dist.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")

CHECK_SECONDS = 60  # in which every worker says its versions


@functools.cache
def versions() -> dict[str, str]:
    """Versions that decide the bits of a result, or whether a task can be read at all."""
    from importlib.metadata import version

    return {name: version(name) for name in ("diffai-dist", "numpy", "numba")}


def check_fit(client: Client) -> None:
    """ClusterError unless the scheduler, which reads every task, and all workers run this client's versions."""
    try:
        found = ask(client, lambda: client.run(versions)).result(CHECK_SECONDS)
        found["the scheduler"] = ask(client, lambda: client.run_on_scheduler(versions)).result(CHECK_SECONDS)
    except TimeoutError as error:
        raise ClusterError(f"not every worker told its versions within {CHECK_SECONDS} s: does one hang?") from error
    except Exception as error:
        raise ClusterError(
            f"the cluster cannot run diffai-dist: {_line(error)}. Install the same version there"
        ) from error
    for process, theirs in found.items():
        if misfit := _misfit(process, theirs, versions()):
            raise misfit


def run_if_fit(expected: Mapping[str, str], work: Callable[[T], R], unit: T) -> R:
    """Run a unit, on a worker; one that joined after the check refuses what it would compute with other versions."""
    if misfit := _misfit(socket.gethostname(), versions(), expected):
        raise misfit
    return work(unit)


def _misfit(process: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> ClusterError | None:
    other = [name for name in ours if theirs.get(name) != ours[name]]
    if not other:
        return None
    found, expected = (", ".join(f"{name} {side.get(name)}" for name in other) for side in (theirs, ours))
    return ClusterError(f"{process} runs {found}, this client {expected}. Install the same versions there")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
