"""Unit records: what a killed run need not measure again."""

from __future__ import annotations

import base64
import json
import logging
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from diffai_dist import storage
from diffai_dist.errors import StoreError
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.rows import Rows
from diffai_dist.storage import Profile
from diffai_dist.store import Publisher, ReportStore
from diffai_dist.store.units import DAMAGED, decode, encode

RUN = "00000000000000a1"


def rows(seed: int = 0, subtrees: int = 3, members: int = 2, gram: bool = False) -> Rows:
    generator = np.random.default_rng(seed)
    moments, shifts = empty(MOMENTS, (subtrees, members)), empty(SHIFT, (subtrees, 1))
    moments["mean"], shifts["d2"] = generator.standard_normal((subtrees, members)), generator.random((subtrees, 1))
    moments["absmax"] = 2**64 - 1
    return Rows(moments, shifts, generator.random((subtrees, 6, members, members)) if gram else None)


def equal(one: Rows, other: Rows) -> bool:
    pairs = [(one.moments, other.moments), (one.shifts, other.shifts)]
    if one.grams is not None and other.grams is not None:
        pairs.append((one.grams, other.grams))
    alike = (one.grams is None) == (other.grams is None)
    return alike and all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.fixture
def store(tmp_path: Path) -> ReportStore:
    return ReportStore(str(tmp_path), Profile())


def stumble(publisher: Publisher) -> None:
    publisher.add("a", rows())
    raise ZeroDivisionError


def batches(store: ReportStore) -> list[Path]:
    return sorted(Path(store.url).glob(f"runs/{RUN}/units/*"))


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("shape", [(3, 2), (0, 2), (1, 0)])
def test_what_was_published_is_found_again_to_the_bit(store: ReportStore, gram: bool, shape: tuple[int, int]) -> None:
    kept = {f"key{seed}": rows(seed, *shape, gram) for seed in range(5)}
    with store.publisher(RUN) as publisher:
        for key, one in kept.items():
            publisher.add(key, one)
    found = store.units(RUN)
    assert list(found) == list(kept)
    assert all(equal(found[key], kept[key]) for key in kept)


def test_a_run_without_units_has_none(store: ReportStore) -> None:
    with store.publisher(RUN):
        pass
    assert store.units(RUN) == {}
    assert batches(store) == []


def test_a_hundred_thousand_units_are_some_1600_objects(store: ReportStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written, one = [], rows()
    monkeypatch.setattr(storage, "publish", lambda url, data, profile, exclusive=False: written.append(len(data)))
    monkeypatch.setattr("diffai_dist.store.units.encode", lambda key, rows: b"x" * 100)
    with Publisher(store, RUN, clock=lambda: 0.0) as publisher:
        for index in range(100_000):
            publisher.add(str(index), one)
    assert len(written) == -(-100_000 // 64)
    assert sum(written) == 100_000 * 100


def test_a_batch_is_published_when_its_first_record_is_ten_seconds_old(store: ReportStore) -> None:
    now = [0.0]
    publisher = Publisher(store, RUN, clock=lambda: now[0])
    published = []
    for second in (0, 3, 9.9, 10, 12, 19, 22.5):
        now[0] = second
        publisher.add(f"at {second}", rows())
        published.append(len(store.units(RUN)))
    assert published == [0, 0, 0, 4, 4, 4, 7]


def test_a_batch_is_at_most_16_megabytes(store: ReportStore) -> None:
    generator = np.random.default_rng(0)
    with Publisher(store, RUN, clock=lambda: 0.0) as publisher:
        for key in "abcde":
            one = rows()
            publisher.add(key, Rows(one.moments, one.shifts, generator.random((3, 6, 150, 150))))  # 3.2 MB each
    sizes = [path.stat().st_size for path in batches(store)]
    assert len(sizes) == 2
    assert max(sizes) < 16 * 2**20 < sum(sizes)
    assert sorted(store.units(RUN)) == list("abcde")


def test_an_error_publishes_what_is_there_and_goes_on(store: ReportStore) -> None:
    with pytest.raises(ZeroDivisionError), store.publisher(RUN) as publisher:
        stumble(publisher)
    assert list(store.units(RUN)) == ["a"]


def test_a_store_that_fails_does_not_hide_the_error_before_it(
    store: ReportStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> bool:
        raise StoreError("no space left")

    monkeypatch.setattr(storage, "publish", full)
    with pytest.raises(ZeroDivisionError), store.publisher(RUN) as publisher:
        stumble(publisher)
    assert "no space left" in caplog.text
    publisher = store.publisher(RUN)
    with pytest.raises(StoreError, match="no space left"), publisher:
        publisher.add("a", rows())
    monkeypatch.undo()
    publisher.flush()  # what could not be published is still at hand
    assert list(store.units(RUN)) == ["a"]


def test_every_damaged_line_is_set_aside(store: ReportStore, caplog: pytest.LogCaptureFixture) -> None:
    with store.publisher(RUN) as publisher:
        for key in "abc":
            publisher.add(key, rows(ord(key)))
    (path,) = batches(store)
    lines = path.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[1])
    other = json.loads(encode("b", rows(7)))
    damaged = [
        lines[1][:-20] + b"\n",
        b"\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"[]\n",
        b'{"key": "b"}\n',
        *(
            json.dumps(record | change).encode() + b"\n"
            for change in (
                {"key": "d"},
                {"key": ["b"]},
                {"algorithm": 0},
                {"data": other["data"]},
                {"data": "AAAA"},
                {"data": "no base64"},
                {"blake2b": "0"},
                {"shapes": record["shapes"] | {"moments": [-3, -2]}},
                {"shapes": record["shapes"] | {"moments": [10**9, 10**9]}},
                {"shapes": record["shapes"] | {"moments": "ab"}},
                {"shapes": {}},
            )
        ),
    ]
    for line in damaged:
        caplog.clear()
        path.write_bytes(lines[0] + line + lines[2])
        with caplog.at_level(logging.WARNING):
            assert list(store.units(RUN)) == ["a", "c"]
        assert f"{path.name}: line 2 is damaged" in caplog.text
    path.write_bytes(b"".join(lines)[:-20])
    assert list(store.units(RUN)) == ["a", "b"]


def test_ten_thousand_flipped_bits_are_all_found() -> None:
    kept = rows(subtrees=64)
    line = bytearray(encode("a", kept).rstrip())
    assert 8 * len(line) > 10_000
    for bit in np.random.default_rng(0).choice(8 * len(line), 10_000, replace=False).tolist():
        line[bit // 8] ^= 1 << bit % 8
        try:
            key, _, found = decode(bytes(line))
            assert (key, equal(found, kept)) == ("a", True)  # as in the unused bits at the end of base64
        except DAMAGED:
            pass
        line[bit // 8] ^= 1 << bit % 8
    assert equal(decode(bytes(line))[2], kept)


def test_a_bomb_is_not_unpacked(store: ReportStore) -> None:
    record = json.loads(encode("a", rows()))
    record["data"] = base64.b64encode(zlib.compress(bytes(2**26))).decode()
    path = Path(store.url) / f"runs/{RUN}/units/{'0' * 16}-1.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    tracemalloc.start()
    assert store.units(RUN) == {}
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_foreign_files_beside_the_batches_are_passed_over(store: ReportStore) -> None:
    with store.publisher(RUN) as publisher:
        publisher.add("a", rows())
    for name in ("notes.txt", ".0123456789abcdef.tmp", "x-1.jsonl"):
        (Path(store.url) / f"runs/{RUN}/units/{name}").write_text("foreign")
    assert list(store.units(RUN)) == ["a"]


def test_a_unit_measured_twice_is_harmless(store: ReportStore) -> None:
    for others in (["b"], ["c"], ["b"]):
        with store.publisher(RUN) as publisher:
            for key in ("a", *others):
                publisher.add(key, rows(ord(key)))
    assert len(batches(store)) == 2
    assert sorted(store.units(RUN)) == ["a", "b", "c"]


def test_other_numbers_for_the_same_unit_are_an_error_that_names_both_files(store: ReportStore) -> None:
    for seed in (1, 2):
        with store.publisher(RUN) as publisher:
            publisher.add("a", rows(seed))
    with pytest.raises(StoreError, match="non-deterministic result") as raised:
        store.units(RUN)
    assert all(path.name in str(raised.value) for path in batches(store))
