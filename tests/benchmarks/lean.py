"""A lean S3 server: files of a folder of folders, each answer so many milliseconds late.

It knows HEAD and ranged GET of /bucket/key, takes any signature, and spends next to nothing on either, so that what is
measured is the client; over HTTP it serves the same. A process of its own runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serve_lean(folder: Path, milliseconds: int = 0) -> Iterator[str]:
    """The endpoint of a server over the folder."""
    command = [sys.executable, __file__, str(folder), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def _serve(folder: Path, milliseconds: int) -> None:
    server = await asyncio.start_server(functools.partial(_answer_all, folder, milliseconds / 1000), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def _answer_all(folder: Path, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests of one connection, one after the other."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await asyncio.sleep(seconds)
            await _answer(folder, head, writer)


async def _answer(folder: Path, head: str, writer: asyncio.StreamWriter) -> None:
    method, target, _ = head.split(" ", 2)
    path = folder / target.partition("?")[0].lstrip("/")
    if not path.is_file():
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    about = path.stat()
    first, last, status = 0, about.st_size - 1, "200 OK"
    if asked := re.search(r"\r\nrange: bytes=(\d+)-(\d+)\r\n", head, re.IGNORECASE):
        first, last = int(asked[1]), int(asked[2])
        status = f"206 Partial Content\r\nContent-Range: bytes {first}-{last}/{about.st_size}"
    size = last + 1 - first
    writer.write(f'HTTP/1.1 {status}\r\nContent-Length: {size}\r\nETag: "{about.st_ino:032x}"\r\n\r\n'.encode())
    if method == "GET":
        with path.open("rb") as file:
            await asyncio.get_running_loop().sendfile(writer.transport, file, first, size)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
