"""Torch files that were tampered with: each is read, or refused by a CheckpointError; nothing is run, nothing hangs.

Seeded, so a failure comes back: `mutant(Random(f"{seed}-{number}"))`.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest

from diffai_dist.checkpoint import Checkpoint
from diffai_dist.errors import CheckpointError
from diffai_dist.formats import open_checkpoint
from diffai_dist.storage import Profile

SEEDS, MUTANTS = 20, 500
SECONDS = 20  # in which any file is read or refused; most take a hundredth

TORCH = Path(__file__).parent / "fixtures" / "torch"
SOUND = {name: (TORCH / name).read_bytes() for name in ("dtypes.pt", "views.pt", "trainer.pt", "module.pt", "odd.pt")}
METADATA = (TORCH / "pieces" / ".metadata").read_bytes()
PIECES = {path.name: path.read_bytes() for path in (TORCH / "pieces").glob("*.distcp")}

CANARY = Path("/nowhere")  # what a payload would make; the test puts a folder of its own here


class Payload:
    """Makes the canary when a real unpickler loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


OPCODES = bytes(range(0x80, 0x99)) + b"().0123FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x42\x43"
NUMBERS = [
    b"\xff\xff\xff\xff",
    b"\xff" * 8,
    b"\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"\0" * 4,
    b"\x01\0\0\0",
    b"\xff",
    b"\0",
]
TEXTS = [
    (b"torch._utils", b"os"), (b"_rebuild_tensor_v2", b"system"), (b"torch FloatStorage", b"torch QInt8Storage"),
    (b"torch\nFloatStorage", b"posix\nsystem"), (b"FloatStorage", b"UntypedStorage"), (b"storage", b"module"),
    (b"little", b"big"), (b"data.pkl", b"data.pk1"), (b"data/0", b"data/1"), (b"collections\n", b"builtins\n"),
]  # fmt: skip


def rezipped(file: bytes, pickled: bytes, random: Random) -> bytes:
    """The file with another pickle, and sometimes with members that are compressed, missing, twice there or renamed."""
    out = io.BytesIO()
    method = random.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(out, "w", method) as new:
        for member in old.infolist():
            name, data = member.filename, old.read(member)
            if random.random() < 0.02:
                continue
            if random.random() < 0.02:
                name = random.choice(["archive/data.pkl", "archive/data/0", "../../x", "/x", "x/data.pkl", "a\0b"])
            with warnings.catch_warnings(action="ignore"):  # of a name that is there already
                new.writestr(name, pickled if member.filename.endswith("data.pkl") else data)
    return out.getvalue()


def pickle_of(file: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return archive.read("archive/data.pkl") if "archive/data.pkl" in archive.namelist() else b""


def mutated(random: Random, data: bytes) -> bytes:
    """One to four changes: bytes, opcodes, numbers, names, pieces moved, doubled or cut away."""
    for _ in range(random.choice([1, 1, 2, 4])):
        at, to = sorted(random.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + random.choice([1, 4, 40, 400]))
        match random.randrange(8):
            case 0:
                data = data[:at] + random.randbytes(1) + data[at + 1 :]
            case 1 | 2:
                data = data[:at] + bytes([random.choice(OPCODES)]) + data[at + random.randrange(2) :]
            case 3:
                number = random.choice(NUMBERS)
                data = data[:at] + number + data[at + len(number) :]
            case 4:
                old, new = random.choice(TEXTS)
                data = data.replace(old, new, random.choice([1, -1]))
            case 5:
                data = data[:at] + data[to:]
            case 6:
                data = data[:at] + data[at:to] * random.choice([2, 2, 50]) + data[to:]
            case _:
                data = data[:at] if random.random() < 0.2 else data[:at] + bytes(to - at) + data[to:]
    return data


def poisoned(random: Random, pickled: bytes) -> bytes:
    """A pickle in which something is called that makes the canary."""
    payload = pickle.dumps(Payload(CANARY), random.choice([0, 1, 2, 4]))
    body = payload[2:-1] if payload[:1] == b"\x80" else payload[:-1]
    return random.choice([payload, pickled[:-1] + body + b".", pickled[:2] + body + b"0" + pickled[2:]])


def directory(random: Random, file: bytes) -> bytes:
    """The file with a number of its directory or of a local header changed."""
    starts = [at for at in range(len(file) - 4) if file[at : at + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\7\x08")]
    for _ in range(random.choice([1, 1, 2])):
        number = random.choice(NUMBERS)
        at = random.choice(starts) + random.randrange(60)
        file = file[:at] + number + file[at + len(number) :]
    return file


def mutant(random: Random) -> dict[str, bytes]:
    """A file of torch.save, or the files of a folder of pieces, by name."""
    kind = random.choice(["pickle", "pickle", "poison", "directory", "directory", "bytes", "metadata", "pieces"])
    if kind == "metadata":
        return {".metadata": random.choice([mutated, poisoned])(random, METADATA), **PIECES}
    if kind == "pieces":
        return {".metadata": METADATA, **{name: directory(random, file) for name, file in PIECES.items()}}
    file = random.choice(list(SOUND.values()))
    if kind == "directory":
        return {"x.pt": directory(random, file)}
    if kind == "bytes":
        return {"x.pt": mutated(random, file)}
    change = mutated if kind == "pickle" else poisoned
    return {"x.pt": rezipped(file, change(random, pickle_of(file)), random)}


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def decoded(checkpoint: Checkpoint) -> None:
    """All values of all tensors, through the ranges that a run of them asks for."""
    for tensor in checkpoint.tensors.values():
        size = tensor.decoder.bits // 8
        assert tensor.counted * size < 2**24
        for span in tensor.spans:
            assert 0 <= span.start <= span.stop <= span.source.size
        for first in range(0, tensor.counted, max(tensor.counted // 2, 1)):
            stop = min(first + max(tensor.counted // 2, 1), tensor.counted)
            parts = [
                np.frombuffer(Path(span.source.url).read_bytes()[span.start : span.stop], np.uint8)
                for span in tensor.ranges(first, stop)
            ]
            if tensor.scheme:
                tensor.scheme.decode(tensor, parts, first, stop, np.empty((stop - first) * size, np.uint8))
            else:
                assert parts[0].size == (stop - first) * size


def verdict(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        with within(SECONDS):
            checkpoint = open_checkpoint(str(folder / name if len(files) == 1 else folder), Profile(), raw=True)
            decoded(checkpoint)
    except CheckpointError as error:
        shown, found = [error.failure.sentence()], "code" if "to run" in error.failure.found else "refused"
    else:
        shown = [*checkpoint.warnings, *(failure.sentence() for failure in checkpoint.unreadable.values())]
        found = "unreadable" if checkpoint.unreadable else "read"
    assert all(map(str.isprintable, shown))
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_file_that_was_tampered_with_is_read_or_refused(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    monkeypatch.setitem(globals(), "CANARY", canary)
    folders = {True: tmp_path / "file", False: tmp_path / "folder"}
    for folder in folders.values():
        folder.mkdir()
    verdicts: Counter[str] = Counter()
    for number in range(MUTANTS):
        files = mutant(Random(f"{seed}-{number}"))
        verdicts[verdict(folders[len(files) == 1], files)] += 1
    assert not canary.exists()
    assert min(verdicts[one] for one in ("read", "unreadable", "refused", "code")) >= MUTANTS // 50, verdicts


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
