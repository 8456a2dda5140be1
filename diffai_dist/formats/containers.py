"""One file of a checkpoint, read as what its first bytes say it is, whatever it is called."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping

from diffai_dist.formats import safetensors
from diffai_dist.formats.heads import Head, Header
from diffai_dist.storage import Profile, pin, read

Reader = Callable[[Head, Profile], Header]

# First bytes, and who reads what begins with them: loaded for such a file, since most are safetensors, which begins
# with a number. What begins with nothing of this is that, or refused.
READERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "zips:read_zip",
    b"GGUF": "gguf:read_gguf",
    b"\x93NUMPY": "npy:read_npy",
}


def read_file(url: str, profile: Profile) -> Header:
    """Pin an object and read what it holds: one request tells what it is, and of most safetensors files all."""
    source = pin(url, profile)
    size = min(source.size, safetensors.FIRST_READ)
    head = Head(source, read(source, 0, size, profile) if size else b"")
    return _reader(head.data)(head, profile)


def _reader(data: bytes) -> Reader:
    if not safetensors.may_begin_a_file(data):
        for magic, name in READERS.items():
            if data.startswith(magic):
                reader: Reader = pkgutil.resolve_name(f"{__package__}.{name}")
                return reader
    return safetensors.read_header
