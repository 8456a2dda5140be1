"""Mutated GGUF headers: refused with a CheckpointError or read as the library's reader does, on sparse files.

Seeded, so a failure comes back: `check(tmp_path, *mutant(Random(f"{seed}-{number}")))`.
"""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

import ggufs
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.errors import CheckpointError
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.containers import read_file
from diffai_dist.formats.gguf import TYPES
from diffai_dist.formats.gguf_header import SCALARS
from diffai_dist.formats.heads import Header
from diffai_dist.schemes.ggml import block_of
from diffai_dist.storage import Profile

SEEDS, MUTANTS = 10, 1000
HUGE = [2**16, 2**31, 2**32 - 1, 2**32, 2**40, 2**56, 2**62, 2**63, 2**64 - 1]
KEYS = ["general.architecture", "general.alignment", "llama.attention.head_count", "k", "", "\u00e9", "a" * 300]
NAMES = ["blk.0.attn_q.weight", "blk.0.attn_k.bias", "blk.1.ffn_up_exps.weight", "output.weight", "t", "w" * 100, ""]
MOST_BYTES = 16 * 2**20  # of memory that a header of some kilobytes may take

Field = tuple[str, int, bytes]
Entry = tuple[str, list[int], int, int]


def value(random: Random) -> tuple[int, bytes]:
    """A value of any type that the format has, in bytes."""
    kind = random.choice([*SCALARS, 8, 8, 9, 9])
    if kind == 8:
        return kind, ggufs.string(random.choice(["llama", "", "x" * 5000, "\u2581"]))
    if kind == 9:
        inner, count = random.choice([*SCALARS, 8, 8]), random.randrange(5)
        one = ggufs.string("abc") if inner == 8 else bytes(struct.calcsize(SCALARS[inner]))
        return kind, struct.pack("<IQ", inner, count) + one * count
    return kind, random.randbytes(struct.calcsize(SCALARS[kind]))


def sound(random: Random) -> tuple[list[Field], list[Entry], int]:
    """Keys, tensors and the bytes of their data, as the format allows them."""
    fields = [(key, *value(random)) for key in random.sample(KEYS, random.randrange(5)) if "." not in key]
    if random.random() < 0.5:
        fields.append(("general.architecture", 8, ggufs.string(random.choice(["llama", "qwen3moe", "gemma", "x", ""]))))
        fields.append(("llama.attention.head_count", 4, struct.pack("<I", random.choice([0, 1, 2, 3, 2**31]))))
    alignment = random.choice([32, 32, 64, 1])
    if alignment != 32:
        fields.append(("general.alignment", 4, struct.pack("<I", alignment)))
    entries: list[Entry] = []
    end = 0
    for number in range(random.choice([0, 1, 2, 3, 8])):
        kind = random.choice([*TYPES])
        elements, nbytes = block_of(TYPES[kind])
        dims = [random.choice([0, 1, 2, 3]) for _ in range(random.choice([0, 1, 2, 2, 3, 4]))]
        dims = [dims[0] * elements, *dims[1:]] if dims else [elements] if elements > 1 else []
        entries.append((random.choice(NAMES) + str(number) * (number > 2), dims, kind, end))
        end += math.prod(dims) // elements * nbytes
        end += -end % alignment
    return fields, entries, end


def number(random: Random, old: int, most: int) -> int:
    """Another number, near or far, that fits its field."""
    return min(max(random.choice([old - 1, old + 1, old * 2, 0, 1, 32, 255, *HUGE]), 0), most)


def mutate(random: Random, fields: list[Field], entries: list[Entry]) -> None:
    """One change of structure."""
    if fields and random.random() < 0.4:
        at = random.randrange(len(fields))
        key, kind, data = fields[at]
        match random.randrange(4):
            case 0:
                fields[at] = (random.choice(KEYS), kind, data)
            case 1:
                fields[at] = (key, number(random, kind, 2**32 - 1), data)
            case 2:
                fields[at] = (key, *value(random))
            case 3 if len(data) >= 8:
                fields[at] = (key, kind, data[:4] + struct.pack("<Q", number(random, 3, 2**64 - 1)) + data[12:])
    elif entries:
        at = random.randrange(len(entries))
        name, dims, kind, offset = entries[at]
        match random.randrange(4):
            case 0:
                name = random.choice(NAMES)
            case 1:
                place = random.randrange(len(dims) + 1)
                dims = [
                    *dims[:place],
                    number(random, dims[place] if dims[place:] else 1, 2**64 - 1),
                    *dims[place + 1 :],
                ]
            case 2:
                kind = number(random, kind, 2**32 - 1)
            case 3:
                offset = (
                    number(random, offset, 2**64 - 1)
                    if random.random() < 0.5
                    else max(offset + random.choice([-64, -32, 32, 64]), 0)
                )
        entries[at] = (name, dims, kind, offset % 2**64)


def mutant(random: Random) -> tuple[bytes, int]:
    """The bytes of a header and the size of its file. One in five is left sound."""
    fields, entries, buffer = sound(random)
    kind = random.choice(["none", "structure", "structure", "structure", "bytes", "counts", "cut", "buffer"])
    for _ in range(random.choice([1, 1, 2]) if kind == "structure" else 0):
        mutate(random, fields, entries)
    counts = {"tensor_count": len(entries), "key_count": len(fields)}
    if kind == "counts":
        which = random.choice(["tensor_count", "key_count"])
        counts[which] = number(random, counts[which], 2**64 - 1)
    version = (
        random.choice([1, 4, 0, 3 << 24, 2**32 - 1])
        if kind == "bytes" and random.random() < 0.1
        else random.choice([2, 3])
    )
    head = ggufs.header(
        [ggufs.field(*one) for one in fields], [ggufs.entry(*one) for one in entries], version, **counts
    )
    for _ in range(random.choice([1, 1, 2, 4]) if kind == "bytes" else 0):
        at = random.randrange(4, len(head) + 1)
        head = (
            head[:at]
            + random.choice([b"", b"\0", b"\xff", b"\x01", random.randbytes(1)])
            + head[at + random.randrange(2) :]
        )
    if kind == "cut":
        return head, random.randrange(len(head) + buffer + 1)
    slack = random.choice([-1, -32, 1, 1000, 2**20, 2**40]) if kind == "buffer" else 0
    return head, max(len(head) + buffer + 64 + slack, 0)  # 64: of alignments above 32


def ours(path: Path) -> Header | None:
    """Our reading, or None; whatever is raised besides CheckpointError fails the test."""
    try:
        return read_file(str(path), Profile())
    except CheckpointError:
        return None


def check(folder: Path, head: bytes, size: int) -> str:
    """Hold our reading of one file against the library's."""
    path = folder / "fuzzed.gguf"
    with path.open("wb") as file:
        file.write(head[:size])
        file.truncate(size)
    mine = ours(path)
    if mine is None:
        return "refused"
    check_model(open_checkpoint(str(path), Profile()), size)
    if mine.unreadable or any(one.dtype == "BF16" and not one.shape for one in mine.tensors.values()):
        return "beyond the library"  # a type that it does not know, and a scalar that it falls over
    check_same(mine, GGUFReader(path))
    return "accepted"


def check_model(checkpoint: Checkpoint, size: int) -> None:
    """Each tensor has its bytes in the file, and its first values can be decoded."""
    for tensor in checkpoint.tensors.values():
        assert all(0 <= span.start <= span.stop <= size for span in tensor.spans)
        stop = min(tensor.elements, 300)
        if tensor.scheme and stop and tensor.nbytes < 2**20:
            parts = [np.zeros(span.stop - span.start, np.uint8) for span in tensor.ranges(0, stop)]
            tensor.scheme.decode(tensor, parts, 0, stop, np.empty(stop * tensor.decoder.bits // 8, np.uint8))


def check_same(mine: Header, reader: GGUFReader) -> None:
    """The same tensors in the same places, and the same values of keys."""
    assert mine.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        found = mine.tensors[tensor.name]
        (span,) = found.spans
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert GGMLQuantizationType[found.dtype] == tensor.tensor_type
        assert span.stop - span.start == tensor.n_bytes
        assert span.start == tensor.data_offset
    fields = {name: one for name, one in reader.fields.items() if not name.startswith("GGUF.")}
    assert mine.metadata.keys() == {name for name in fields if not name.startswith("split.")}
    for name, text in mine.metadata.items():
        if fields[name].types[0] not in (GGUFValueType.ARRAY, GGUFValueType.STRING, GGUFValueType.FLOAT32):
            assert text == str(fields[name].contents())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_header_does_harm_and_what_is_read_is_read_as_the_library_does(tmp_path: Path, seed: int) -> None:
    verdicts = Counter(check(tmp_path, *mutant(Random(f"{seed}-{number}"))) for number in range(MUTANTS))
    assert verdicts["accepted"] * SEEDS >= 2000
    assert verdicts["refused"] * SEEDS >= 3000
    assert verdicts["beyond the library"] > 0


def test_no_header_takes_more_memory_than_its_size_asks_for(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        for number in range(300):
            head, size = mutant(Random(f"memory-{number}"))
            path = tmp_path / "fuzzed.gguf"
            path.write_bytes(head[:size])
            ours(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
