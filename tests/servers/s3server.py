"""What tests ask of a running S3 server, whichever it is."""

from __future__ import annotations

import functools
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class S3Server:
    """An endpoint with its credentials, and a client of its own that the code under test knows nothing about."""

    endpoint: str
    key: str
    secret: str

    @property
    def storage_environment(self) -> dict[str, str]:
        """The variables with which any S3 client reaches it."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def at(self, endpoint: str) -> S3Server:
        """The same server behind a proxy."""
        return S3Server(endpoint, self.key, self.secret)

    @functools.cached_property
    def client(self) -> Any:
        """A boto3 client, for what the helpers below do not cover."""
        import boto3
        from botocore.config import Config

        config = Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=config,
        )

    def url(self, name: str) -> str:
        """The URL of "bucket/key"."""
        return f"s3://{name}"

    def bucket(self, name: str) -> str:
        """Make sure that the bucket is there."""
        if name not in {bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]}:
            self.client.create_bucket(Bucket=name)
        return name

    def put(self, name: str, data: bytes) -> str:
        """Write "bucket/key" and give its URL; the bucket is made if need be."""
        bucket, _, key = name.partition("/")
        self.client.put_object(Bucket=self.bucket(bucket), Key=key, Body=data)
        return self.url(name)

    def get(self, name: str) -> bytes:
        """Read "bucket/key"."""
        bucket, _, key = name.partition("/")
        body: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def delete(self, name: str) -> None:
        """Delete "bucket/key"."""
        bucket, _, key = name.partition("/")
        self.client.delete_object(Bucket=bucket, Key=key)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A server of its own session, so that Ctrl-C in the terminal reaches the tests only."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End exactly these processes."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(ready: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], seconds: float = 60) -> bool:
    """Whether it became ready before any of the processes ended."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and all(process.poll() is None for process in processes):
        if ready():
            return True
        time.sleep(0.05)
    return False


def answers(url: str) -> bool:
    """Whether a plain GET is answered with 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
