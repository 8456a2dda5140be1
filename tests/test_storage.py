"""Storage without S3: URLs, local files, memory, web servers."""

from __future__ import annotations

import http.server
import itertools
import multiprocessing
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffai_dist import storage
from diffai_dist.errors import CheckpointError, ShortRead, SourceChanged, StoreError, Unreadable, UsageError
from diffai_dist.storage import (
    Profile,
    Read,
    Source,
    check_url,
    generic,
    is_remote,
    join,
    local,
    local_write,
    redact,
    retry,
    urls,
)
from diffai_dist.storage.pieces import pieces
from diffai_dist.storage.urls import PROTOCOLS

PROFILE = Profile()


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# URLs


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket/a b+c", "s3://bucket/a b+c"),
        ("s3a://bucket/key", "s3://bucket/key"),
        ("gcs://bucket/key", "gs://bucket/key"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("hf://org/model@main/model.safetensors", "hf://org/model@main/model.safetensors"),
        ("http://host:8080/dir/", "http://host:8080/dir/"),
        ("https://[::1]:8080/x".replace("::", "0:0"), "https://[0:01]:8080/x"),
        ("https://host/x?download=true", "https://host/x?download=true"),
        ("memory://a/b/", "memory://a/b"),
        ("file:///a/b%20c/../d", "/a/d"),
        ("/a//b/../c/", "/a/c"),
    ],
)
def test_a_url_has_one_canonical_form(url: str, canonical: str) -> None:
    assert check_url(url) == canonical
    assert check_url(canonical) == canonical


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_url("a/b") == str(tmp_path / "a" / "b")
    assert not is_remote(check_url("a/b"))
    assert is_remote("s3://a/b")
    assert is_remote("memory://a/b")


@pytest.mark.parametrize(
    "url",
    [
        "simplecache::s3://bucket/key",
        "zip://x.safetensors::s3://bucket/a.zip",
        "ftp://host/x",
        "github://org:repo@main/x",
        "data://x",
        "sftp://host/x",
        "",
        "a\0b",
        "s3://bucket/a\0b",
        "file:///a%00b",
        "file://otherhost/a",
        "s3://",
        "s3:///key",
        "http:///x",
    ],
)
def test_row_26_a_url_outside_of_the_allow_list_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        check_url(url)


SECRET = "canary-5f1c2d"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA123:{SECRET}@bucket/key",
        f"s3://AKIA123:{SECRET}/with/slashes@bucket/key",
        f"s3://AKIA123:{SECRET}/no/at",
        f"s3://{SECRET}@bucket/key",
        f"https://user:{SECRET}@host/x",
        f"https://user:{SECRET}@host:8080/x",
        f"https://{SECRET}@host/x",
        f"https://user:{SECRET}/x",
        f"abfss://container:{SECRET}@account.dfs.core.windows.net/x",
        f"https://bucket.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Signature={SECRET}",
        f"s3://bucket/k?x-amz-security-token={SECRET}",
        f"https://storage.googleapis.com/b/k?X-Goog-Signature={SECRET}",
        f"https://account.blob.core.windows.net/c/b?sv=2020&sig={SECRET}",
        f"az://container/blob?sig={SECRET}",
        f"https://host/x?Signature={SECRET}&Expires=1",
        f"https://host/x?a=1;token={SECRET}",
        f"https://host/x?access%5Ftoken={SECRET}",
        f"https://host/x#access_token={SECRET}",
        f"simplecache::s3://k:{SECRET}@bucket/key",
        f"ftp://user:{SECRET}@host/x",
    ],
)
def test_row_62_a_url_with_a_credential_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert SECRET not in str(caught.value)
    assert SECRET not in redact(url)


def test_what_is_shown_of_a_harmless_url_is_all_but_the_query() -> None:
    assert redact("s3://bucket/a b/c@d") == "s3://bucket/a b/c@d"
    assert redact("https://host:80/x?y=z#w") == "https://host:80/x"
    assert redact("/local/what?.bin") == "/local/what?.bin"
    assert redact("hf://org/model@main/x") == "hf://org/model@main/x"


@given(st.text(max_size=60), st.sampled_from([*PROTOCOLS, "", "x"]))
def test_any_text_is_canonical_after_one_check_or_refused(text: str, scheme: str) -> None:
    url = f"{scheme}://{text}" if scheme else text
    redact(url)
    try:
        canonical = check_url(url)
    except UsageError:
        return
    assert check_url(canonical) == canonical
    assert urls.protocol(canonical) in PROTOCOLS


def test_a_name_is_joined_inside_of_the_directory() -> None:
    assert join("s3://bucket/a", "b c") == "s3://bucket/a/b c"
    assert join("s3://bucket", "a/b") == "s3://bucket/a/b"
    assert join("/a", "b") == "/a/b"
    assert join("http://host/dir/?x=1", "a b?") == "http://host/dir/a%20b%3F"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a\0b", "a/"])
def test_row_26_a_name_never_leaves_the_directory(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name inside"):
        join("s3://bucket/a", name)


# Requests


@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    gaps=st.lists(st.integers(0, 2), max_size=12),
    size=st.integers(1, 50),
)
def test_requests_cover_what_is_wanted_once_and_nothing_else(lengths: list[int], gaps: list[int], size: int) -> None:
    data = bytes(range(256)) * 3
    source = Source("memory://x", len(data), "none")
    reads, position = [], 0
    for length, gap in itertools.zip_longest(lengths, gaps, fillvalue=0):
        reads.append(Read(source, position, memoryview(bytearray(length))))
        position += length + gap
    found = pieces(reads, size)
    assert all(piece.stop - piece.start <= size for piece in found)
    assert sum(piece.stop - piece.start for piece in found) == sum(lengths)
    for piece in found:
        at = piece.start
        for buffer in piece.buffers:
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)
        assert at == piece.stop
    assert all(read.buffer == data[read.start : read.start + read.wanted] for read in reads)


def test_neighbours_share_a_request() -> None:
    source = Source("memory://x", 100, "none")
    reads = [Read(source, start, memoryview(bytearray(10))) for start in (0, 10, 20, 31, 41)]
    assert [(piece.start, piece.stop) for piece in pieces(reads, 1000)] == [(0, 30), (31, 51)]


# Local files


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "model.bin"
    path.write_bytes(content(100_000))
    return str(path)


def age(path: str | Path) -> None:
    """Give it another time, as a later write does."""
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000))


def test_a_pin_tells_size_and_time(file: str) -> None:
    found = os.stat(file)
    assert storage.pin(file, PROFILE) == Source(file, 100_000, f"mtime:{found.st_mtime_ns}")
    assert storage.kind(file, PROFILE) == "file"
    assert storage.kind(os.path.dirname(file), PROFILE) == "directory"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 5000)), max_size=8))
def test_reads_of_a_file_fill_their_buffers(file: str, ranges: list[tuple[int, int]]) -> None:
    source, data = storage.pin(file, PROFILE), content(100_000)
    reads = [Read(source, start, np.zeros(min(size, 100_000 - start), np.uint8)) for start, size in ranges]
    storage.fill(reads, PROFILE)
    assert all(bytes(read.buffer) == data[read.start : read.start + read.wanted] for read in reads)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(content(100_000, seed=1)) and age(path),
        lambda path: path.write_bytes(content(50_000)),
        lambda path: path.write_bytes(content(100_001)),
        lambda path: os.truncate(path, 99_999),
        lambda path: path.unlink(),
        lambda path: (path.rename(f"{path}.old"), path.write_bytes(content(100_000, seed=1)), age(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["overwritten", "shortened", "grown", "truncated", "deleted", "replaced", "now a directory"],
)
@pytest.mark.parametrize("opened", [False, True])
def test_row_38_39_a_changed_file_is_an_error(file: str, change: object, opened: bool) -> None:
    source = storage.pin(file, PROFILE)
    if opened:
        storage.read(source, 0, 10, PROFILE)
    change(Path(file))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"changed during|deleted during|not a regular file") as caught:
        storage.read(source, 0, 10, PROFILE)
    assert caught.value.failure.object == file


def test_row_39_a_file_that_shrinks_while_it_is_read_is_an_error(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = storage.pin(file, PROFILE)
    preadv = os.preadv

    def shrinking(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(file, 10)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrinking)
    with pytest.raises(ShortRead, match="ends at byte"):
        storage.read(source, 5, 50, PROFILE)


def test_row_38_a_file_replaced_while_it_is_read_is_an_error_even_with_equal_size_and_time(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = storage.pin(file, PROFILE)
    other = tmp_path / "other"
    other.write_bytes(content(100_000, seed=1))
    os.utime(other, ns=(0, int(source.version.removeprefix("mtime:"))))
    preadv = os.preadv

    def replacing(fd: int, buffers: list[memoryview], offset: int) -> int:
        if other.exists():
            os.replace(other, file)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", replacing)
    with pytest.raises(SourceChanged, match="another file took its place"):
        storage.read(source, 0, 10, PROFILE)


def test_short_reads_of_the_system_are_continued(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = storage.pin(file, PROFILE)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:7]], offset))
    assert storage.read(source, 100, 200, PROFILE) == content(100_000)[100:200]


def test_few_files_stay_open_however_many_are_read(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        assert storage.read(storage.pin(str(path), PROFILE), 0, 1, PROFILE) == b"x"
    assert len(os.listdir("/proc/self/fd")) - before <= local.OPEN_FILES


def test_a_thousand_reads_of_a_file_look_at_it_as_often_as_one(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = storage.pin(file, PROFILE)
    looks: list[object] = []
    look = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: looks.append(fd) or look(fd))
    storage.read(source, 0, 1, PROFILE)
    looks.clear()
    storage.fill([Read(source, start, np.zeros(10, np.uint8)) for start in range(0, 100_000, 100)], PROFILE)
    assert len(looks) == 1


def test_threads_read_one_file_at_once(file: str) -> None:
    source, data = storage.pin(file, PROFILE), content(100_000)
    failed: list[int] = []

    def work(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 99_000, 200).tolist():
            if storage.read(source, start, start + 1000, PROFILE) != data[start : start + 1000]:
                failed.append(start)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (99_999, 100_001), (100_000, 100_001)])
def test_a_range_outside_of_the_file_is_refused(file: str, start: int, stop: int) -> None:
    with pytest.raises(ShortRead, match="100,000 bytes"):
        storage.read(storage.pin(file, PROFILE), start, stop, PROFILE)


def test_row_25_what_is_not_a_regular_file_is_refused_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        special = {
            str(tmp_path / "fifo"): "a FIFO",
            str(tmp_path / "link"): "a FIFO",
            str(tmp_path / "socket"): "a socket",
            "/dev/zero": "a character device",
            "/proc/self/status": "a file of the kernel",
        }
        for path, what in special.items():
            with pytest.raises(Unreadable, match=f"not a regular file but {what}"):
                storage.pin(path, PROFILE)
            with pytest.raises(Unreadable, match=f"not a regular file but {what}"):
                storage.kind(path, PROFILE)
        assert storage.entries(str(tmp_path), PROFILE) == {}
        with pytest.raises(StoreError, match="not a regular file"):
            storage.fetch(str(tmp_path / "fifo"), PROFILE)


def test_row_25_a_directory_is_not_a_file_and_a_loop_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="not a regular file but a directory"):
        storage.pin(str(tmp_path), PROFILE)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(Unreadable, match="loop of symbolic links"):
        storage.kind(str(tmp_path / "loop"), PROFILE)
    assert storage.entries(str(tmp_path), PROFILE) == {}


def test_row_25_a_fifo_that_takes_the_place_of_a_file_never_blocks(file: str) -> None:
    source = storage.pin(file, PROFILE)
    os.unlink(file)
    os.mkfifo(file)
    with pytest.raises(Unreadable, match="a FIFO"):
        storage.read(source, 0, 1, PROFILE)


def test_a_missing_file_is_told_with_what_is_like_it_or_nearest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(Unreadable, match=r"no such file.*'model\.safetensors'"):
        storage.kind(str(tmp_path / "model.safetensor"), PROFILE)
    with pytest.raises(Unreadable, match=f"nearest folder that exists is {re.escape(str(tmp_path))}$|{tmp_path} "):
        storage.pin(str(tmp_path / "no" / "such" / "file"), PROFILE)
    with pytest.raises(Unreadable, match="no such file"):
        storage.entries(str(tmp_path / "missing"), PROFILE)


def test_a_forbidden_file_is_told_with_the_remedy(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = storage.pin(file, PROFILE)

    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(Unreadable, match=r"permission denied.*Check the permissions"):
        storage.read(source, 0, 1, PROFILE)


def test_entries_are_plain_files_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"123")
    snapshot = tmp_path / "snapshot"
    (snapshot / "deep").mkdir(parents=True)
    (snapshot / "model").symlink_to("../blobs/1")
    (snapshot / "gone").symlink_to("../blobs/2")
    (snapshot / "ü +").write_bytes(b"12")
    assert storage.entries(str(snapshot), PROFILE) == {"model": 3, "ü +": 2}
    assert storage.folders(str(snapshot), PROFILE) == ["deep"]


# Publishing


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "file" else f"memory://{tmp_path.name}-{os.getpid()}"


def test_what_was_published_is_fetched_whole(folder: str) -> None:
    url = join(folder, "runs/1/plan.json")
    assert storage.fetch(url, PROFILE) is None
    assert storage.publish(url, b"one", PROFILE)
    assert storage.publish(url, b"two", PROFILE)
    assert storage.fetch(url, PROFILE) == b"two"
    assert storage.entries(join(folder, "runs/1"), PROFILE) == {"plan.json": 3}
    assert storage.folders(folder, PROFILE) == ["runs"]
    storage.remove(url, PROFILE)
    storage.remove(url, PROFILE)
    assert storage.fetch(url, PROFILE) is None


def test_an_exclusive_publication_never_overwrites(folder: str) -> None:
    url = join(folder, "lock")
    assert storage.publish(url, b"first", PROFILE, exclusive=True)
    assert not storage.publish(url, b"second", PROFILE, exclusive=True)
    assert storage.fetch(url, PROFILE) == b"first"


def test_a_race_for_a_file_has_one_winner(tmp_path: Path) -> None:
    for number in range(20):
        url, won = str(tmp_path / str(number)), []
        rivals = [
            threading.Thread(
                target=lambda who, url=url, won=won: (
                    storage.publish(url, b"%d" % who, PROFILE, exclusive=True) and won.append(who)
                ),
                args=(who,),
            )
            for who in range(6)
        ]
        for thread in rivals:
            thread.start()
        for thread in rivals:
            thread.join()
        assert len(won) == 1
        assert storage.fetch(url, PROFILE) == b"%d" % won[0]
    assert len(os.listdir(tmp_path)) == 20


def test_row_49_no_reader_sees_a_part(tmp_path: Path) -> None:
    url, texts = str(tmp_path / "doc"), [b"a" * 300_000, b"b" * 200_000]
    storage.publish(url, texts[0], PROFILE)
    writer = threading.Thread(target=lambda: [storage.publish(url, texts[n % 2], PROFILE) for n in range(40)])
    writer.start()
    while writer.is_alive():
        assert storage.fetch(url, PROFILE) in texts
    writer.join()
    assert os.listdir(tmp_path) == ["doc"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "link"])
def test_row_48_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    url = str(tmp_path / "doc")
    storage.publish(url, b"old", PROFILE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*(os, step, full) if step != "write" else (local_write, "_write", full))
    with pytest.raises(StoreError, match=r"No space left.*Free some space"):
        storage.publish(url, b"new", PROFILE, exclusive=step == "link")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["doc"]
    assert storage.fetch(url, PROFILE) == b"old"


def test_exclusive_publication_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    url = str(tmp_path / "doc")
    assert storage.publish(url, b"1", PROFILE, exclusive=True)
    assert not storage.publish(url, b"2", PROFILE, exclusive=True)
    assert storage.fetch(url, PROFILE) == b"1"
    assert os.listdir(tmp_path) == ["doc"]


def test_a_published_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    storage.publish(str(tmp_path / "doc"), b"1", PROFILE)
    assert stat.S_IMODE(os.stat(tmp_path / "doc").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


def test_a_store_that_is_no_folder_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        storage.publish(str(tmp_path / "file" / "x"), b"1", PROFILE)


# Memory


def test_objects_in_memory_are_pinned_and_read(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/model"
    storage.publish(url, content(1000), PROFILE)
    assert storage.kind(url, PROFILE) == "file"
    assert storage.kind(f"memory://{tmp_path.name}", PROFILE) == "directory"
    source = storage.pin(url, PROFILE)
    assert storage.read(source, 10, 990, PROFILE) == content(1000)[10:990]
    storage.publish(url, content(1000, seed=1), PROFILE)
    with pytest.raises(SourceChanged):
        storage.read(source, 10, 990, PROFILE)
    storage.remove(url, PROFILE)
    with pytest.raises(SourceChanged):
        storage.read(source, 10, 990, PROFILE)
    with pytest.raises(Unreadable):
        storage.kind(url, PROFILE)


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://b/x", "gcs"), ("az://c/x", "azure"), ("abfs://c/x", "azure"), ("hf://o/m/x", "hf")]
)
def test_a_missing_package_is_named_with_its_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcsfs", "adlfs", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    generic._connect.cache_clear()
    with pytest.raises(UsageError, match=rf"pip install 'diffai-dist\[{extra}\]'"):
        storage.kind(url, PROFILE)


# Web servers


class Web(http.server.ThreadingHTTPServer):
    """A web server of one object whose behaviour a test chooses."""

    data = content(50_000)
    etag: str | None = '"one"'
    ranges = True
    encoding: str | None = None
    shift = 0
    cut = 0
    failures = 0
    status = 0
    head = True
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(b"" if self.server.head else None)

    def do_GET(self) -> None:
        self.answer(self.server.data)

    def answer(self, data: bytes | None) -> None:
        web = self.server
        web.requests += 1
        status = 405 if data is None else web.status
        if web.failures:
            web.failures -= 1
            status = 503
        if status or self.path != "/model.bin":
            self.send_error(status or 404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if web.ranges else None
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(web.data) - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first + web.shift}-{last + web.shift}/{len(web.data)}")
        if web.etag:
            self.send_header("ETag", web.etag)
        if web.encoding:
            self.send_header("Content-Encoding", web.encoding)
        body = web.data[first : last + 1 - web.cut]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if data:
            self.wfile.write(body)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(retry, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.01)
    with Web(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_web_object_is_pinned_and_read(web: Web) -> None:
    assert storage.kind(web.url, PROFILE) == "file"
    source = storage.pin(web.url, PROFILE)
    assert (source.size, source.version) == (50_000, "etag:one")
    assert storage.read(source, 1000, 50_000, PROFILE) == web.data[1000:]
    assert storage.fetch(web.url, PROFILE) == web.data
    assert storage.fetch(f"{web.url}x", PROFILE) is None
    with pytest.raises(Unreadable, match=r"no such object \(404\)"):
        storage.kind(f"{web.url}x", PROFILE)


def test_a_web_server_without_head_is_asked_for_one_byte(web: Web) -> None:
    web.head = False
    assert storage.pin(web.url, PROFILE) == Source(web.url, 50_000, "etag:one")


@pytest.mark.parametrize(
    ("setting", "kind", "words"),
    [
        ({"ranges": False}, Unreadable, "does not serve ranges"),
        ({"encoding": "gzip"}, Unreadable, "compresses its answers"),
        ({"shift": 1}, ShortRead, "the range 'bytes 11-21/50000' came back"),
        ({"cut": 3}, ShortRead, "7 bytes came back"),
        ({"etag": '"two"'}, SourceChanged, "another version came back: etag:two"),
        ({"etag": None}, SourceChanged, "another version came back: none"),
        ({"status": 404}, SourceChanged, "gone or shorter"),
        ({"status": 416}, SourceChanged, "gone or shorter"),
        ({"status": 403}, Unreadable, "access denied"),
        ({"status": 500}, Unreadable, "answered 500"),
        ({"data": b"x" * 40_000}, ShortRead, "the range"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_row_40_a_spoiled_web_answer_is_an_error_and_never_wrong_bytes(
    web: Web, setting: dict[str, object], kind: type[CheckpointError], words: str
) -> None:
    source = storage.pin(web.url, PROFILE)
    for name, value in setting.items():
        setattr(web, name, value)
    web.requests = 0
    with pytest.raises(kind, match=re.escape(words)):
        storage.read(source, 10, 20 + ("shift" in setting), PROFILE)
    assert web.requests <= retry.REQUESTS


def test_row_42_a_busy_web_server_is_asked_again(web: Web) -> None:
    web.failures = 2
    source = storage.pin(web.url, PROFILE)
    web.failures = 2
    assert storage.read(source, 10, 20, PROFILE) == web.data[10:20]


def test_a_web_object_without_any_identity_is_held_to_its_size(web: Web) -> None:
    web.etag = None
    source = storage.pin(web.url, PROFILE)
    assert source.version == "none"
    assert storage.read(source, 10, 20, PROFILE) == web.data[10:20]
    web.data = web.data[:40_000]
    with pytest.raises(CheckpointError):
        storage.read(source, 10, 20, PROFILE)


def test_a_web_server_that_is_not_there_is_an_error(web: Web) -> None:
    url = "http://127.0.0.1:9/model"  # the discard port, where nobody listens
    with pytest.raises(Unreadable, match="the connection failed"):
        storage.pin(url, PROFILE)


# The package


def test_importing_storage_imports_nothing_heavy() -> None:
    code = (
        "import sys, diffai_dist.storage as s; p = s.Profile(); s.kind('/', p); s.entries('/', p)\n"
        "print({'numpy', 'asyncio', 'fsspec', 's3fs', 'botocore', 'aiohttp'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_every_protocol_of_the_allow_list_has_a_backend() -> None:
    assert set(storage.BACKENDS) == set(PROTOCOLS)
    assert sorted(storage.__all__) == storage.__all__


def test_errors_and_pins_cross_processes() -> None:
    error = SourceChanged("s3://b/k", "changed", expected="x", hint="y")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.failure, str(again)) == (SourceChanged, error.failure, str(error))
    source = Source("s3://b/k", 1, "etag:x")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(pickle.loads, (pickle.dumps((source, PROFILE)),)) == (source, PROFILE)


def test_traffic_counts_local_reads(file: str) -> None:
    before = storage.traffic()
    source = storage.pin(file, PROFILE)
    storage.fill([Read(source, 0, np.zeros(10, np.uint8)), Read(source, 50, np.zeros(7, np.uint8))], PROFILE)
    after = storage.traffic()
    assert (after.requests - before.requests, after.bytes - before.bytes) == (2, 17)
