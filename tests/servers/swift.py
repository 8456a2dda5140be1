"""OpenStack Swift with its S3 API on one machine: a real object store, which checks signatures and keeps versions.

Four processes and no memcached; everything lies in one folder, which needs user extended attributes (ext4, xfs, btrfs).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from servers.s3server import S3Server, answers, free_ports, listens, start, stop, wait_until

STORES = ("object", "container", "account")
BIN = Path(sys.executable).parent

SWIFT = """[swift-hash]
swift_hash_path_prefix = diffai
swift_hash_path_suffix = dist

[storage-policy:0]
name = gold
default = yes
"""

COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = WARNING
log_address = {folder}/no-syslog
"""

STORE = """
[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

# Object versioning (versioned_writes) needs symlink to its right; the cache filter, and with it memcached, is left out.
FILTERS = """catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo versioned_writes
symlink""".split()
OPTIONS = {
    "s3api": "location = us-east-1\ns3_acl = false\ncheck_bucket_owner = false\nforce_swift_request_proxy_log = false",
    "tempauth": "user_test_tester = testing .admin .reseller_admin",
    "versioned_writes": "allow_object_versioning = true",
}


@contextlib.contextmanager
def serve_swift(folder: Path) -> Iterator[S3Server]:
    """Swift under `folder`, on free ports."""
    for _ in range(3):  # a port may be taken between choosing and using it
        ports = dict(zip(("proxy", *STORES), free_ports(4), strict=True))
        _configure(folder, ports)
        processes = [
            start([sys.executable, str(BIN / f"swift-{kind}-server"), f"{folder}/{kind}.conf"], folder / f"{kind}.log")
            for kind in ports
        ]
        try:
            if wait_until(lambda ports=ports: _healthy(ports), processes):  # type: ignore[misc]
                yield S3Server(f"http://127.0.0.1:{ports['proxy']}", "test:tester", "testing")
                return
        finally:
            stop(processes)
    logs = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"Swift did not start:\n{logs}")


def why_not(folder: Path) -> str:
    """Why Swift cannot run here, "" if it can."""
    if not (BIN / "swift-proxy-server").exists():
        return "the package swift is not installed"
    try:
        os.setxattr(folder, "user.diffai", b"1")
    except OSError as error:
        return f"no user extended attributes on {folder}: {error.strerror}"
    return ""


def _healthy(ports: Mapping[str, int]) -> bool:
    return all(map(listens, ports.values())) and answers(f"http://127.0.0.1:{ports['proxy']}/healthcheck")


def _configure(folder: Path, ports: Mapping[str, int]) -> None:
    (folder / "devices" / "d1").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(SWIFT)
    for kind, port in ports.items():
        head = COMMON.format(port=port, user=getpass.getuser(), folder=folder)
        body = _proxy() if kind == "proxy" else STORE.format(kind=kind)
        (folder / f"{kind}.conf").write_text(head + body)
    for kind in STORES:
        _build_ring(folder, kind, ports[kind])


def _proxy() -> str:
    sections = [f"[filter:{name}]\nuse = egg:swift#{name}\n{OPTIONS.get(name, '')}\n" for name in FILTERS]
    return (
        f"\n[pipeline:main]\npipeline = {' '.join(FILTERS)} proxy-server\n\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n\n"
        + "\n".join(sections)
    )


def _build_ring(folder: Path, kind: str, port: int) -> None:
    """One device that holds all sixteen partitions."""
    ring = folder / f"{kind}.builder"
    for old in (ring, folder / f"{kind}.ring.gz"):
        old.unlink(missing_ok=True)
    device = f"--region 1 --zone 1 --ip 127.0.0.1 --port {port} --device d1 --weight 1"
    for step in ("create 4 1 0", f"add {device}", "rebalance"):
        command = [sys.executable, str(BIN / "swift-ring-builder"), str(ring), *step.split()]
        subprocess.run(command, check=True, capture_output=True)
