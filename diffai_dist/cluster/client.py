"""A dask client of each kind of cluster: processes of this machine, a running scheduler, SLURM jobs."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffai_dist.cluster.place import Place, Tls
from diffai_dist.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15  # in which a scheduler answers
CLOSE_SECONDS = 5  # for a scheduler that may be gone to take leave
ENCRYPTED, PLAIN = ("tls", "wss"), ("tcp", "ws")


@contextmanager
def local_client(place: Place) -> Iterator[Client]:
    """A client of a new LocalCluster, which listens on 127.0.0.1 only."""
    from distributed import LocalCluster

    try:
        cluster = LocalCluster(
            n_workers=place.workers,
            threads_per_worker=place.threads_each,
            processes=True,
            memory_limit=place.memory_limit or "auto",
            dashboard_address="127.0.0.1:0",  # any free port: the default one may be taken by another cluster
            silence_logs=logging.ERROR,
        )
    except (RuntimeError, OSError) as error:
        hint = 'A script that starts workers must do so under `if __name__ == "__main__":`'
        raise ClusterError(f"{place.workers} worker processes could not be started: {error}. {hint}") from error
    with cluster, connected({"address": cluster}, "the cluster of this machine") as client:
        yield client


@contextmanager
def scheduler_client(scheduler: str, tls: Tls | None) -> Iterator[Client]:
    """A client of the scheduler that was named."""
    with connected({**_address(scheduler), "security": security(tls)}, scheduler) as client:
        warn_if_open(client.scheduler.address)
        yield client


@contextmanager
def connected(arguments: dict[str, Any], name: str) -> Iterator[Client]:
    """A client with these arguments; taking leave of a scheduler that is gone is neither an error nor a long wait."""
    from distributed import Client

    with _quiet("distributed.client", "distributed.scheduler"):
        try:
            client = Client(**arguments, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise ClusterError(f"no scheduler answers at {name}: {_reason(error)}") from error
        try:
            yield client
        finally:
            with contextlib.suppress(OSError, RuntimeError):  # TimeoutError is an OSError
                client.close(timeout=CLOSE_SECONDS)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without these logs: dask prints tracebacks of connections it gives up, and errors it recovers from.

    What matters of that becomes an error of ours.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def security(tls: Tls | None) -> Security | None:
    """The certificates for every role; None leaves it to dask's own configuration."""
    if tls is None:
        return None
    from distributed.security import Security

    for option, path in (("CA", tls.ca_file), ("certificate", tls.cert_file), ("key", tls.key_file)):
        if not os.access(path, os.R_OK):
            raise UsageError(f"the TLS {option} file {path!r} cannot be read")
    pair = {
        f"tls_{role}_{part}": path
        for role in ("client", "scheduler", "worker")
        for part, path in (("cert", tls.cert_file), ("key", tls.key_file))
    }
    return Security(require_encryption=True, tls_ca_file=tls.ca_file, **pair)


def warn_if_open(address: str) -> None:
    """Warn of a scheduler that anybody on its network may talk to."""
    protocol, _, rest = address.partition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if protocol in PLAIN and not _is_loopback(host):
        log.warning(
            "whoever reaches the scheduler at %s can run code on it, its workers and this client: "
            "keep it on a private network, or use tls:// (--tls-ca-file, --tls-cert-file, --tls-key-file)",
            address,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(scheduler: str) -> dict[str, str]:
    if scheduler == "env":
        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        if not address:
            raise UsageError("--scheduler env needs the environment variable DASK_SCHEDULER_ADDRESS")
        return {"address": address}
    protocol, separator, _ = scheduler.partition("://")
    if separator and protocol not in PLAIN + ENCRYPTED:
        raise UsageError(f"--scheduler {scheduler!r}: the protocol is none of {', '.join(PLAIN + ENCRYPTED)}")
    if not separator and not os.path.isfile(scheduler):
        raise ClusterError(f"--scheduler {scheduler!r}: there is no such scheduler file, and it is no tcp:// address")
    return {"address": scheduler} if separator else {"scheduler_file": scheduler}


def _reason(error: BaseException) -> str:
    """What went wrong in one line; a certificate's fault lies deep in the chain of causes."""
    told, chain = error, error
    while chain := chain.__cause__ or chain.__context__:  # type: ignore[assignment]
        if isinstance(chain, ssl.SSLError):
            told = chain
    line = " ".join(str(told).split()) or type(told).__name__
    if isinstance(told, ssl.SSLError):
        return f"its certificate or ours was refused ({line}). Check the CA, certificate and key files"
    if "ssl_context" in line:
        return "tls:// needs certificates: give --tls-ca-file, --tls-cert-file and --tls-key-file, or configure dask's"
    return line
