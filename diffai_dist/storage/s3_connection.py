"""One connection per profile: an s3fs file system, its client, and fsspec's event loop to run it on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import Any

from diffai_dist.storage.source import Profile
from diffai_dist.storage.traffic import count

AT_ONCE = 6  # long reads of a process, short ones of a thread: a connection gives some 90 MB/s, a loop 400 to 900
LONG_BYTES = 1 << 20  # from here on a read takes bandwidth, below it waits: 16 threads may do that side by side
CONNECT_SECONDS = 5.0
SILENT_SECONDS = 15.0  # no byte for so long: the connection is given up

_connections: dict[tuple[Profile, str | None], Connection] = {}
_lock = threading.Lock()


class Connection:
    """Calls of the S3 API; holds no more credentials than botocore's own session does."""

    def __init__(self, profile: Profile, endpoint: str | None) -> None:
        import s3fs

        config: dict[str, Any] = {
            "max_pool_connections": 128,  # reads, and what the report store does beside them
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": SILENT_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": 1},  # retry.py does that
            # Checksum headers, the default since botocore 1.36, break other stores than AWS.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        if endpoint:
            config["s3"] = {"addressing_style": "path"}
        self.profile = profile
        self.gate = asyncio.Semaphore(AT_ONCE)  # for long reads
        self._counted: Any = None
        self.filesystem = s3fs.S3FileSystem(
            anon=profile.anon,
            profile=profile.name,
            endpoint_url=endpoint,
            client_kwargs={"region_name": _region(profile)},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """One API call by botocore's name for it, tried once; errors are botocore's own."""
        client = await self.filesystem.set_session()
        if client is not self._counted:
            self._counted = client
            client.meta.events.register("before-send.s3", _count_request)
        answer: dict[str, Any] = await getattr(client, operation)(**parameters)
        return answer

    async def credentials(self) -> str:
        """Where the credentials come from, in words; never what they are."""
        if self.profile.anon:
            return "anonymous access"
        session = self.filesystem.session
        found = await session.get_credentials() if session else None
        return _ORIGINS.get(found.method, f"credentials from {found.method}") if found else "no credentials"


def connection(profile: Profile) -> Connection:
    """The connection of a profile, made on first use."""
    endpoint = (
        profile.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    )
    with _lock:
        if (profile, endpoint) not in _connections:
            _connections[profile, endpoint] = Connection(profile, endpoint)
        return _connections[profile, endpoint]


def _count_request(**_: Any) -> None:
    count(requests=1)


def _region(profile: Profile) -> str:
    """The configured region. Servers other than AWS take any, and AWS redirects a wrong one."""
    import botocore.exceptions
    import botocore.session

    configured = os.environ.get("AWS_REGION")
    with contextlib.suppress(botocore.exceptions.ProfileNotFound):  # which the first call tells in words
        configured = configured or botocore.session.Session(profile=profile.name).get_config_variable("region")
    return configured or "us-east-1"


_ORIGINS = {
    "env": "credentials from the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "credentials from the shared credentials file",
    "config-file": "credentials from the AWS configuration file",
    "assume-role": "credentials of an assumed role",
    "assume-role-with-web-identity": "credentials of a web identity role",
    "sso": "credentials of single sign-on",
    "login": "credentials of a console login",
    "custom-process": "credentials from a credential process",
    "container-role": "credentials of the container role",
    "iam-role": "credentials of the instance role",
}
