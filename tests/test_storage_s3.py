"""S3 against two servers that disagree in places, moto and a real OpenStack Swift, also through a proxy that spoils."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import itertools
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_dist import storage
from diffai_dist.errors import CheckpointError, ShortRead, SourceChanged, StoreError, Unreadable, UsageError
from diffai_dist.storage import Profile, Read, retry, s3_connection
from servers.faultproxy import FaultProxy
from servers.s3server import S3Server, free_ports

pytestmark = pytest.mark.s3

PROFILE = Profile()
SIZE = 1_000_000
Spoil = Callable[..., FaultProxy]


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def spoiled(s3: S3Server, bucket: str, use: Callable[..., object], fault_proxy: Spoil) -> tuple[FaultProxy, str, bytes]:
    """A proxy that the environment leads to, and an object behind it."""
    data = content(SIZE)
    proxy = fault_proxy(s3)
    url = s3.put(f"{bucket}/weights.bin", data)
    use(proxy)
    return proxy, url, data


# What is there


KEYS = [
    "plain",
    "with space",
    "plus+plus",
    "per%20cent",
    "ü-日本",
    "quote'\"",
    "a&b=c",
    "what?",
    "hash#",
    "a:b",
    "~",
    "*[x]",
]


@pytest.mark.parametrize("name", KEYS)
def test_row_45_any_key_can_be_found_pinned_and_read(s3: S3Server, bucket: str, name: str) -> None:
    url = s3.put(f"{bucket}/{name} dir/{name}", content(100))
    assert storage.kind(url, PROFILE) == "file"
    assert storage.entries(f"s3://{bucket}/{name} dir", PROFILE) == {name: 100}
    assert storage.read(storage.pin(url, PROFILE), 10, 90, PROFILE) == content(100)[10:90]


def test_row_45_listings_go_beyond_one_page_and_are_never_stale(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(25):
        s3.client.put_object(Bucket=bucket, Key=f"many/{number:04}", Body=b"x" * (number % 3))
    names = {f"{number:04}": number % 3 for number in range(25)}
    call = s3_connection.Connection.call

    async def in_small_pages(self: s3_connection.Connection, operation: str, **parameters: Any) -> dict[str, Any]:
        return await call(self, operation, **({"MaxKeys": 4} if operation == "list_objects_v2" else {}), **parameters)

    monkeypatch.setattr(s3_connection.Connection, "call", in_small_pages)
    assert storage.entries(f"s3://{bucket}/many", PROFILE) == names
    s3.delete(f"{bucket}/many/0005")
    s3.put(f"{bucket}/many/new", b"1")
    names.pop("0005")
    assert storage.entries(f"s3://{bucket}/many", PROFILE) == {**names, "new": 1}


def test_row_45_listings_go_beyond_a_thousand_keys(moto: S3Server, use: Callable[..., S3Server]) -> None:
    use(moto)
    moto.bucket("thousand")
    put = functools.partial(moto.client.put_object, Bucket="thousand", Body=b"")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: put(Key=f"many/{number:04}"), range(1003)))
    assert len(storage.entries("s3://thousand/many", PROFILE)) == 1003


def test_row_45_a_directory_marker_is_neither_a_file_nor_an_entry(s3: S3Server, bucket: str) -> None:
    s3.put(f"{bucket}/run/", b"")
    s3.put(f"{bucket}/run/a", b"1")
    s3.put(f"{bucket}/run/deep/b", b"2")
    s3.put(f"{bucket}/flat", b"")
    s3.put(f"{bucket}/flat/c", b"3")
    assert storage.kind(f"s3://{bucket}/run", PROFILE) == "directory"
    assert storage.kind(f"s3://{bucket}/flat", PROFILE) == "directory"
    assert storage.kind(f"s3://{bucket}", PROFILE) == "directory"
    assert storage.entries(f"s3://{bucket}/run", PROFILE) == {"a": 1}
    assert storage.folders(f"s3://{bucket}/run", PROFILE) == ["deep"]


def test_a_missing_object_is_told_with_the_names_that_are_like_it(s3: S3Server, bucket: str) -> None:
    s3.put(f"{bucket}/models/model.safetensors", b"1")
    for ask in (storage.kind, storage.pin):
        with pytest.raises(Unreadable, match=r"no such object.*'model\.safetensors'"):
            ask(f"s3://{bucket}/models/model.safetensor", PROFILE)
    with pytest.raises(Unreadable, match="no such object"):
        storage.entries(f"s3://{bucket}/nothing", PROFILE)


def test_row_44_a_missing_bucket_is_called_that(s3: S3Server) -> None:
    for ask in (storage.kind, storage.pin, storage.entries):
        with pytest.raises(Unreadable, match="no such bucket"):
            ask("s3://there-is-no-such-bucket/key", PROFILE)


# Reading


def test_the_bytes_of_any_range_are_those_of_the_object(s3: S3Server, bucket: str) -> None:
    data = content(20_000_000)
    source = storage.pin(s3.put(f"{bucket}/big", data), PROFILE)
    assert source.size == len(data)
    for start, stop in [(0, 1), (0, len(data)), (len(data) - 1, len(data)), (5, 17_000_003), (7, 7)]:
        assert storage.read(source, start, stop, PROFILE) == data[start:stop]


def test_many_reads_fill_their_own_buffers_and_ask_for_each_byte_once(
    spoiled: tuple[FaultProxy, str, bytes],
) -> None:
    proxy, url, data = spoiled
    source = storage.pin(url, PROFILE)
    into = np.zeros(SIZE, np.uint8)
    cuts = [0, 10, 10, 500, 40_000, 300_000, SIZE]
    proxy.set()
    storage.fill([Read(source, a, into[a:b]) for a, b in itertools.pairwise(cuts)], PROFILE)
    assert into.tobytes() == data
    assert [request.bytes for request in proxy.log()] == [(0, SIZE)]


def test_the_counts_of_traffic_are_those_of_the_server(spoiled: tuple[FaultProxy, str, bytes]) -> None:
    proxy, url, _ = spoiled
    before = storage.traffic()
    proxy.set("e500", 2)
    source = storage.pin(url, PROFILE)
    storage.read(source, 0, SIZE, PROFILE)
    after = storage.traffic()
    assert after.requests - before.requests == len(proxy.requests()) == 4
    assert after.retries - before.retries == 2
    assert after.bytes - before.bytes == SIZE


def test_threads_share_a_connection(s3: S3Server, bucket: str) -> None:
    data = content(3_000_000)
    source = storage.pin(s3.put(f"{bucket}/shared", data), PROFILE)
    into = np.zeros((8, len(data)), np.uint8)
    threads = [
        threading.Thread(target=storage.fill, args=([Read(source, 0, into[number])], PROFILE)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(row.tobytes() == data for row in into)


def test_a_range_outside_of_the_object_is_refused_without_a_request(spoiled: tuple[FaultProxy, str, bytes]) -> None:
    proxy, url, _ = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set()
    with pytest.raises(ShortRead, match="1,000,000 bytes"):
        storage.read(source, SIZE - 1, SIZE + 1, PROFILE)
    assert proxy.requests() == []


def test_the_multipart_etag_is_a_pin_like_any_other(s3: S3Server, bucket: str) -> None:
    data = content(11 << 20)
    upload = s3.client.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(data), 5 << 20), 1):
        body = data[start : start + (5 << 20)]
        etag = s3.client.upload_part(Bucket=bucket, Key="parts", PartNumber=number, UploadId=upload, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    s3.client.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload={"Parts": parts})
    source = storage.pin(f"s3://{bucket}/parts", PROFILE)
    assert source.version.endswith("-3")
    assert storage.read(source, 5_000_000, 11_000_000, PROFILE) == data[5_000_000:11_000_000]


# Pinned


def test_row_38_an_overwritten_object_is_an_error_that_names_both_versions(s3: S3Server, bucket: str) -> None:
    url = s3.put(f"{bucket}/model", content(1000))
    source = storage.pin(url, PROFILE)
    s3.put(f"{bucket}/model", content(1000, seed=1))
    new = hashlib.md5(content(1000, seed=1)).hexdigest()
    with pytest.raises(SourceChanged, match=f"now 1,000 bytes, etag:{new}, expected 1,000 bytes, {source.version}"):
        storage.read(source, 0, 10, PROFILE)


@pytest.mark.parametrize("start", [0, 900])
def test_row_39_a_shorter_object_is_an_error_and_no_tail_of_zeros(s3: S3Server, bucket: str, start: int) -> None:
    url = s3.put(f"{bucket}/model", content(1000))
    source = storage.pin(url, PROFILE)
    s3.put(f"{bucket}/model", content(500))
    with pytest.raises(SourceChanged, match="now 500 bytes"):
        storage.read(source, start, 1000, PROFILE)


def test_row_39_a_deleted_object_is_an_error(s3: S3Server, bucket: str) -> None:
    source = storage.pin(s3.put(f"{bucket}/model", content(1000)), PROFILE)
    s3.delete(f"{bucket}/model")
    with pytest.raises(SourceChanged, match="deleted"):
        storage.read(source, 0, 10, PROFILE)


def test_a_versioned_bucket_still_gives_the_pinned_version_after_overwrite_and_deletion(
    s3: S3Server, bucket: str
) -> None:
    s3.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    source = storage.pin(s3.put(f"{bucket}/model", content(1000)), PROFILE)
    assert source.version.startswith("version:")
    s3.put(f"{bucket}/model", content(2000, seed=1))
    s3.delete(f"{bucket}/model")
    assert storage.read(source, 100, 1000, PROFILE) == content(1000)[100:]


def test_overwriting_in_a_race_gives_one_version_or_an_error_never_a_mixture(s3: S3Server, bucket: str) -> None:
    size, versions = 300_000, [bytes([value]) * 300_000 for value in (1, 2)]
    url = s3.put(f"{bucket}/race", versions[0])
    stop = threading.Event()

    def overwrite() -> None:
        for data in itertools.cycle(versions):
            if stop.is_set():
                return
            s3.client.put_object(Bucket=bucket, Key="race", Body=data)

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        for _ in range(25):
            source = storage.pin(url, PROFILE)
            into = np.zeros(size, np.uint8)
            parts = [into[a : a + 1000] for a in range(0, size, 50_000)]
            try:
                storage.fill([Read(source, i * 50_000, part) for i, part in enumerate(parts)], PROFILE)
            except SourceChanged:
                continue
            assert len({part.tobytes() for part in parts}) == 1
    finally:
        stop.set()
        writer.join()


# Spoiled


HEALED = ["slowdown", "e500", "e503", "html503", "rst", "trunc", "short", "badrange"]
LASTING = [
    ("slowdown", Unreadable, 9),
    ("e500", Unreadable, 9),
    ("e503", Unreadable, 9),
    ("html503", Unreadable, 9),
    ("rst", Unreadable, 8),  # four tries, each repeated once by aiohttp
    ("trunc", Unreadable, 9),
    ("short", ShortRead, 9),
    ("badrange", ShortRead, 9),
    ("e403", Unreadable, 1),
]


@pytest.mark.parametrize("mode", HEALED)
def test_row_40_42_43_a_passing_fault_leaves_no_trace(spoiled: tuple[FaultProxy, str, bytes], mode: str) -> None:
    proxy, url, data = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set(mode, 2)
    assert storage.read(source, 1000, SIZE, PROFILE) == data[1000:]
    assert [request.mode for request in proxy.log()] == [mode, mode, "ok"]


@pytest.mark.parametrize("mode", ["stall", "stallbody"])
def test_row_43_silence_is_given_up_and_asked_again(
    spoiled: tuple[FaultProxy, str, bytes], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(s3_connection, "SILENT_SECONDS", 0.5)
    proxy, url, data = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set(mode, 1)
    assert storage.read(source, 0, SIZE, PROFILE) == data
    assert [request.mode for request in proxy.log()] == [mode, "ok"]


@pytest.mark.parametrize(("mode", "kind", "requests"), LASTING)
def test_row_40_42_43_44_a_lasting_fault_ends_in_an_error_after_few_requests(
    spoiled: tuple[FaultProxy, str, bytes], mode: str, kind: type[CheckpointError], requests: int
) -> None:
    proxy, url, _ = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set(mode)
    with pytest.raises(kind) as caught:
        storage.read(source, 0, SIZE, PROFILE)
    assert caught.value.failure.object == url
    assert len(proxy.log()) == requests


def test_row_43_a_trickle_ends_at_the_deadline(
    spoiled: tuple[FaultProxy, str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(retry, "SLOWEST", SIZE)
    proxy, url, _ = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set("trickle")
    with pytest.raises(Unreadable, match="did not arrive within 2 s"):
        storage.read(source, 0, SIZE, PROFILE)


def test_row_41_a_flipped_bit_passes_unnoticed_as_no_digest_covers_a_range(
    spoiled: tuple[FaultProxy, str, bytes],
) -> None:
    proxy, url, data = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set("flip")
    assert storage.read(source, 0, SIZE, PROFILE) == bytes([data[0] ^ 1]) + data[1:]


def test_after_a_failure_no_request_goes_on(spoiled: tuple[FaultProxy, str, bytes]) -> None:
    proxy, url, _ = spoiled
    source = storage.pin(url, PROFILE)
    into = np.zeros(SIZE, np.uint8)
    reads = [Read(source, start, into[start : start + 1000]) for start in range(0, SIZE, 2000)]
    proxy.set("e403")
    with pytest.raises(Unreadable):
        storage.fill(reads, PROFILE)
    storage.kind(url, PROFILE)  # what was on the wire when the first one failed has arrived by now
    seen = len(proxy.log())
    assert seen <= 3 * s3_connection.AT_ONCE < len(reads)
    storage.kind(url, PROFILE)  # the loop had time to go on, had there been anything
    assert len(proxy.log()) == seen


@pytest.mark.parametrize("mode", ["slowdown", "html503", "rst"])
def test_listing_pinning_and_publishing_survive_faults_too(
    spoiled: tuple[FaultProxy, str, bytes], bucket: str, mode: str
) -> None:
    proxy, url, _ = spoiled
    for number, ask in enumerate((storage.pin, storage.kind, storage.fetch)):
        proxy.set(mode, 2, every=True)
        ask(url, PROFILE)
        assert len(proxy.requests()) == 3, number
    proxy.set(mode, 2, every=True)
    assert storage.publish(f"s3://{bucket}/new", b"1", PROFILE)
    proxy.set(mode, 2, every=True)
    assert set(storage.entries(f"s3://{bucket}", PROFILE)) == {"weights.bin", "new"}


def test_a_server_that_is_not_there_is_an_error(use: Callable[..., S3Server]) -> None:
    use(S3Server(f"http://127.0.0.1:{free_ports(1)[0]}", "key", "secret"))
    with pytest.raises(Unreadable, match="cannot be reached"):
        storage.pin("s3://bucket/key", PROFILE)


# Access


CANARY = "canary-5f1c2d"


def test_row_62_a_refused_credential_names_its_source_and_never_its_value(
    swift: S3Server, use: Callable[..., S3Server], fault_proxy: Spoil
) -> None:
    url = swift.put("private/model", b"1")
    use(replace(swift.at(fault_proxy(swift).endpoint), secret=CANARY))
    with pytest.raises(Unreadable, match="environment") as caught:
        storage.pin(url, PROFILE)
    link = s3_connection.connection(PROFILE)
    shown = [str(caught.value), repr(caught.value), repr(caught.value.failure), repr(link), repr(PROFILE)]
    assert not any(CANARY in text for text in shown)
    assert CANARY.encode() not in pickle.dumps((caught.value, PROFILE))


def test_row_44_an_expired_token_is_called_that(spoiled: tuple[FaultProxy, str, bytes]) -> None:
    proxy, url, _ = spoiled
    source = storage.pin(url, PROFILE)
    proxy.set("e403")
    with pytest.raises(Unreadable, match=r"expired.*from the environment"):
        storage.read(source, 0, 1, PROFILE)


def test_without_credentials_the_error_says_how_to_give_some(
    moto: S3Server, use: Callable[..., S3Server], fault_proxy: Spoil, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(moto.at(fault_proxy(moto).endpoint))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    with pytest.raises(Unreadable, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        storage.pin("s3://bucket/key", PROFILE)


def test_a_profile_that_is_not_configured_is_called_that(moto: S3Server, use: Callable[..., S3Server]) -> None:
    use(moto)
    with pytest.raises(Unreadable, match=r"credentials could not be loaded.*AWS_PROFILE"):
        storage.pin("s3://bucket/key", Profile(name="no-such-profile"))


def test_a_named_profile_gives_the_credentials(
    swift: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = swift.put("named/model", content(10))
    config = tmp_path / "config"
    config.write_text(f"[profile sweep]\naws_access_key_id={swift.key}\naws_secret_access_key={swift.secret}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    profile = Profile(endpoint_url=swift.endpoint, name="sweep")
    assert storage.read(storage.pin(url, profile), 0, 10, profile) == content(10)


def test_a_public_bucket_is_read_without_credentials(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = moto.put("public/model", content(1000))
    moto.client.put_object_acl(Bucket="public", Key="model", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    profile = Profile(endpoint_url=moto.endpoint, anon=True)
    assert storage.read(storage.pin(url, profile), 1, 1000, profile) == content(1000)[1:]


@pytest.mark.parametrize(
    "endpoint", [f"http://key:{CANARY}@host", f"https://host/?token={CANARY}", "s3://host", "host"]
)
def test_row_62_a_profile_holds_no_secret(endpoint: str) -> None:
    with pytest.raises(UsageError, match="endpoint_url") as caught:
        Profile(endpoint_url=endpoint)
    assert CANARY not in str(caught.value)


# Publishing


def test_what_was_published_is_fetched_whole(s3: S3Server, bucket: str) -> None:
    url = f"s3://{bucket}/runs/1/plan.json"
    assert storage.fetch(url, PROFILE) is None
    assert storage.publish(url, b"one", PROFILE)
    assert storage.publish(url, b"two", PROFILE)
    assert storage.fetch(url, PROFILE) == b"two"
    storage.remove(url, PROFILE)
    storage.remove(url, PROFILE)
    assert storage.fetch(url, PROFILE) is None


def test_an_exclusive_publication_never_overwrites(s3: S3Server, bucket: str) -> None:
    url = f"s3://{bucket}/lock"
    assert storage.publish(url, b"first", PROFILE, exclusive=True)
    assert not storage.publish(url, b"second", PROFILE, exclusive=True)
    assert storage.fetch(url, PROFILE) == b"first"


def test_an_exclusive_publication_whose_answer_was_lost_is_known_as_ones_own(
    spoiled: tuple[FaultProxy, str, bytes], bucket: str, s3: S3Server
) -> None:
    proxy, _, _ = spoiled
    proxy.set("lost", 1, every=True)
    assert storage.publish(f"s3://{bucket}/mine", b"1", PROFILE, exclusive=True)
    assert s3.get(f"{bucket}/mine") == b"1"
    proxy.set("lost", 1, every=True)
    assert not storage.publish(f"s3://{bucket}/mine", b"1", PROFILE, exclusive=True)


def test_row_46_a_race_for_a_name_has_one_winner_where_the_server_is_atomic(
    moto: S3Server, use: Callable[..., S3Server]
) -> None:
    use(moto)
    moto.bucket("races")
    for number in range(5):
        won: list[int] = []

        def rival(who: int, number: int = number, won: list[int] = won) -> None:
            if storage.publish(f"s3://races/{number}", b"%d" % who, PROFILE, exclusive=True):
                won.append(who)

        rivals = [threading.Thread(target=rival, args=(who,)) for who in range(6)]
        for thread in rivals:
            thread.start()
        for thread in rivals:
            thread.join()
        assert len(won) == 1
        assert storage.fetch(f"s3://races/{number}", PROFILE) == b"%d" % won[0]


def test_row_46_a_server_without_conditional_writes_gets_plain_ones(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    call = s3_connection.Connection.call

    async def without(self: s3_connection.Connection, operation: str, **parameters: object) -> dict[str, object]:
        if "IfNoneMatch" in parameters:
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, "PutObject")  # type: ignore[arg-type]
        return await call(self, operation, **parameters)

    monkeypatch.setattr(s3_connection.Connection, "call", without)
    assert storage.publish(f"s3://{bucket}/x", b"1", PROFILE, exclusive=True)
    assert not storage.publish(f"s3://{bucket}/x", b"2", PROFILE, exclusive=True)
    assert storage.fetch(f"s3://{bucket}/x", PROFILE) == b"1"


def test_a_store_that_cannot_be_written_is_a_store_error(s3: S3Server) -> None:
    with pytest.raises(StoreError, match="no such bucket"):
        storage.publish("s3://there-is-no-such-bucket/x", b"1", PROFILE)
    with pytest.raises(StoreError, match="no such bucket"):
        storage.fetch("s3://there-is-no-such-bucket/x", PROFILE)


# The names of s3fs that this stands on


def test_the_names_of_s3fs_that_are_used_still_mean_the_same(s3: S3Server, bucket: str) -> None:
    async def look() -> tuple[list[str], object]:
        link = s3_connection.connection(PROFILE)
        client = await link.filesystem.set_session()
        assert client is await link.filesystem.set_session()
        credentials = await link.filesystem.session.get_credentials()
        return [client.meta.endpoint_url, credentials.method], client.meta.config

    from diffai_dist.storage.loop import run

    (endpoint, method), config = run(look())
    assert (endpoint, method) == (s3.endpoint, "env")
    assert config.max_pool_connections == 128  # type: ignore[attr-defined]
    assert config.retries == {"mode": "standard", "total_max_attempts": 1}  # type: ignore[attr-defined]
    assert config.s3["addressing_style"] == "path"  # type: ignore[attr-defined]
    assert config.region_name == "us-east-1"  # type: ignore[attr-defined]
