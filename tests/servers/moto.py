"""moto's S3: in memory, quick, and strict about conditional writes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from servers.s3server import S3Server, answers, free_ports, start, stop, wait_until


@contextlib.contextmanager
def serve_moto(folder: Path) -> Iterator[S3Server]:
    """moto_server on a free port, its log in `folder`."""
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    program = Path(sys.executable).with_name("moto_server")
    log = folder / "moto.log"
    process = start([sys.executable, str(program), "-H", "127.0.0.1", "-p", str(port)], log)
    try:
        if not wait_until(lambda: answers(f"{endpoint}/moto-api/"), [process]):
            raise RuntimeError(f"moto did not start:\n{log.read_text()[-2000:]}")
        yield S3Server(endpoint, "moto-key", "moto-secret")
    finally:
        stop([process])
