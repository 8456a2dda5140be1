"""Differential fuzz: mutated headers against the safetensors crate, on sparse files, since it judges by headers alone.

What we accept the crate accepts and reads the same; dtypes it does not know aside. Seeded, so a failure comes back:
`check(tmp_path, *mutant(Random(f"{seed}-{number}")))`.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from safetensors import SafetensorError, deserialize, safe_open

from diffai_dist.dtypes import BITS
from diffai_dist.errors import BadHeader
from diffai_dist.formats.safetensors import parse_header
from diffai_dist.storage import Source

SEEDS, MUTANTS = 10, 1000

# Every message of the crate's header check, by the name of its variant.
VARIANTS = {
    "HeaderTooSmall": "header too small",
    "HeaderTooLarge": "header too large",
    "InvalidHeaderLength": "invalid header length",
    "InvalidHeader": "invalid UTF-8 in header",
    "InvalidHeaderDeserialization": "invalid JSON in header",
    "InvalidOffset": "invalid offset for tensor",
    "MetadataIncompleteBuffer": "incomplete metadata, file not fully covered",
    "ValidationOverflow": "overflow computing buffer size",
    "MisalignedSlice": "does not end up at a byte boundary",
    "TensorInvalidInfo": "invalid shape, data type, or offset for tensor",
}

NUMBERS = [
    "-0", "0", "1", "2", "7", "-1", "1.0", "1e0", "1E2", "01", "1e999", "9" * 400,
    str(2**32), str(2**53 + 1), str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64),
]  # fmt: skip
ATOMS = [*NUMBERS, "true", "null", "NaN", "Infinity", '"F32"', '""', "[]", "{}", "[[]]", "[0,4]"]
DTYPES = [json.dumps(name) for name in [*BITS, "F3", "f32", "U4", ""]]
SHAPES = ["[]", "[0]", "[3]", "[1,3]", "[2,2]", f"[{2**40},{2**40}]", f"[{2**40},{2**40},0]", f"[0,{2**40},{2**40}]"]
NAMES = ["w", "__metadata__", "", "dtype", "w ", "\u00e9", r"\ud83d\ude00", r"\ud800", r"\u0000", r"\u0077", r"\n"]
BYTES = [
    b" ", b"\n", b"\t", b"\0", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"{", b"}", b",", b":", b"-", b"0", b'"', b"\\", b"", b"",
]  # fmt: skip

# A header as a list of (key, value) with JSON texts as leaves, so that keys can repeat.
Fields = list[tuple[str, object]]


def rendered(value: object) -> str:
    if isinstance(value, list):
        return "{" + ",".join(f'"{key}":{rendered(inner)}' for key, inner in value) + "}"
    return str(value)


def sound(random: Random) -> tuple[Fields, int]:
    """A header that the format allows, in any order, and the bytes of its data."""
    fields: Fields = []
    end = 0
    for number in range(random.choice([0, 1, 1, 2, 3, 5])):
        dtype = random.choice([*BITS, "F32", "F4", "BF16"])
        shape = [random.choice([0, 1, 2, 3, 4, 8]) for _ in range(random.choice([0, 1, 1, 2, 3]))]
        if math.prod(shape) * BITS[dtype] % 8:
            shape.append(8)
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entry = [("dtype", f'"{dtype}"'), ("shape", json.dumps(shape)), ("data_offsets", f"[{begin},{end}]")]
        fields.append((f"t{number}", random.sample(entry, 3)))
    if random.random() < 0.4:
        fields.append(("__metadata__", random.choice(["null", [], [("format", '"pt"')], [("a", '"1"'), ("b", '""')]])))
    random.shuffle(fields)
    return fields, end


def mutate(random: Random, fields: Fields) -> None:
    """One change of structure: a key or a value replaced, removed or repeated, here or one level below."""
    inner = [value for _, value in fields if isinstance(value, list)]
    target = random.choice(inner) if inner and random.random() < 0.8 else fields
    target.append((random.choice(NAMES), random.choice(ATOMS)))
    if len(target) == 1 or random.random() < 0.1:
        return
    target.pop()
    at = random.randrange(len(target))
    key, value = target[at]
    match random.randrange(8):
        case 0:
            del target[at]
        case 1:
            target.insert(random.randrange(len(target) + 1), (key, value))
        case 2:
            target[at] = (random.choice(NAMES), value)
        case 3:
            target[at] = (key, random.choice(ATOMS))
        case _:
            target[at] = (key, likely(random, key, value))


def likely(random: Random, key: str, value: object) -> object:
    """Another value of the right kind for the field."""
    if key == "dtype":
        return random.choice(DTYPES)
    if key == "shape" and random.random() < 0.5:
        return random.choice(SHAPES)
    if key not in ("shape", "data_offsets"):
        return random.choice(ATOMS)
    numbers = str(value).strip("[]").split(",")
    at = random.randrange(len(numbers))
    near = [str(int(numbers[at]) + step) for step in (-4, -1, 1, 4)] if numbers[at].strip().isdecimal() else []
    same = [f"-{numbers[at]}", f"{numbers[at]}.0", f"{numbers[at]}e0"]  # the same number to some parsers
    numbers[at] = random.choice([*near, *same, random.choice(NUMBERS)])
    return f"[{','.join(numbers)}]"


def mutant(random: Random) -> tuple[bytes, int]:
    """The first 8+N bytes, or fewer, and the size of the file. One in four is left sound."""
    fields, buffer = sound(random)
    kind = random.choice(["none", "structure", "structure", "structure", "bytes", "buffer", "length", "both"])
    for _ in range(random.choice([1, 1, 2]) if kind in ("structure", "both") else 0):
        mutate(random, fields)
    text = rendered(fields).encode() + random.choice([b"", b"", b" ", b"   ", b"\n"])
    for _ in range(random.choice([1, 1, 2, 4]) if kind in ("bytes", "both") else 0):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(BYTES) + text[at + random.randrange(2) :]
    length = len(text)
    if kind == "length":
        length = random.choice([0, 1, length - 1, length + 1, 99_999_999, 100_000_000, 100_000_001, 2**63, 2**64 - 1])
    head = struct.pack("<Q", length) + text
    if kind == "length" and random.random() < 0.2:
        return head[: random.randrange(9)], random.randrange(9)
    if kind == "buffer":
        buffer = max(buffer + random.choice([-9, -4, -1, 1, 4, 1000]), 0)
    return head, len(head) + buffer


def ours(head: bytes, size: int):
    """Our reading, or None; whatever is raised besides BadHeader fails the test."""
    try:
        return parse_header(head[:size], size, Source("/x", size, "v"))
    except BadHeader:
        return None


def crates(path: Path, head: bytes, size: int) -> tuple[str, dict[str, tuple[str, list[int]]], dict[str, str]]:
    """How the crate judges the file: "accepted" or the name of the variant, with what it read."""
    with path.open("wb") as file:
        file.write(head[:size])
        file.truncate(size)
    try:
        with safe_open(path, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
            return "accepted", found, opened.metadata() or {}
    except SafetensorError as error:
        (variant,) = (name for name, message in VARIANTS.items() if message in str(error))
        return variant, {}, {}


def with_known_dtypes(head: bytes, tensors: dict) -> bytes:
    """The same header with U8 for each dtype that the crate does not know."""
    fields = json.loads(head[8:])
    start = len(head)
    for name, tensor in tensors.items():
        if tensor.dtype not in BITS:
            (span,) = tensor.spans
            fields[name] = {
                "dtype": "U8",
                "shape": [tensor.nbytes],
                "data_offsets": [span.start - start, span.stop - start],
            }
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


def check(folder: Path, head: bytes, size: int) -> tuple[bool, str]:
    """Hold our reading of one file against the crate's."""
    path = folder / "fuzzed.safetensors"
    mine = ours(head, size)
    verdict, found, metadata = crates(path, head, size)
    if mine is None:
        return False, verdict
    tensors, my_metadata = mine
    if any(tensor.dtype not in BITS for tensor in tensors.values()):
        known = with_known_dtypes(head, tensors)
        assert crates(path, known, size - len(head) + len(known))[0] == "accepted"
        return True, verdict
    assert verdict == "accepted"
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()} == found
    assert my_metadata == metadata
    check_places(head, size, tensors)
    return True, verdict


def check_places(head: bytes, size: int, tensors: dict) -> None:
    """Each tensor's span must hold the bytes that the crate gives out for it."""
    data = Random(0).randbytes(size - len(head))
    file = head + data
    for name, tensor in deserialize(file):
        (span,) = tensors[name].spans
        assert file[span.start : span.stop] == bytes(tensor["data"])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_we_accept_the_crate_accepts_and_reads_the_same(tmp_path: Path, seed: int) -> None:
    verdicts = Counter(check(tmp_path, *mutant(Random(f"{seed}-{number}"))) for number in range(MUTANTS))
    assert sum(count for (_, crate), count in verdicts.items() if crate == "accepted") * SEEDS >= 1000
    assert sum(count for (accepted, _), count in verdicts.items() if accepted) * SEEDS >= 1000
    assert {crate for _, crate in verdicts} == {"accepted", *VARIANTS}
