"""One file of a checkpoint, read as what its first bytes say it is, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable

from diffai_dist.errors import UnknownFormat
from diffai_dist.formats import archive, gguf, gguf_header, npy, npz, safetensors, torch_zip
from diffai_dist.formats.heads import Head, Header
from diffai_dist.formats.names import listed
from diffai_dist.formats.ranges import Ranges
from diffai_dist.storage import Profile, pin, read, redact


def read_zip(head: Head, profile: Profile) -> Header:
    """A file of torch.save or an .npz; UnknownFormat for other zip archives."""
    source = head.source
    ranges = Ranges(source, profile, head.data)
    ranges.load([(max(source.size - archive.TAIL, 0), source.size)])
    found = archive.read_archive(ranges, 0, source.size)
    if any(name.endswith(torch_zip.PICKLE) for name in found.members):
        return torch_zip.read_torch(found)
    if any(name.endswith(npz.SUFFIX) for name in found.members):
        return npz.read_npz(head, found, profile)
    what = f"this is a zip archive of {listed(sorted(found.members)) or 'nothing'}"
    raise UnknownFormat(redact(source.url), what, expected="data.pkl, as torch.save writes it, or .npy files")


# First bytes and who reads what begins with them; the rest is safetensors, which begins with a number, or refused.
READERS: tuple[tuple[bytes, Callable[[Head, Profile], Header]], ...] = (
    (archive.MAGIC, read_zip),
    (gguf_header.MAGIC, gguf.read_gguf),
    (npy.MAGIC, npy.read_npy),
)


def read_file(url: str, profile: Profile) -> Header:
    """Pin an object and read what it holds: one request tells what it is, and of most safetensors files all."""
    source = pin(url, profile)
    size = min(source.size, safetensors.FIRST_READ)
    head = Head(source, read(source, 0, size, profile) if size else b"")
    return _reader(head.data)(head, profile)


def _reader(data: bytes) -> Callable[[Head, Profile], Header]:
    if not safetensors.may_begin_a_file(data):
        for magic, reader in READERS:
            if data.startswith(magic):
                return reader
    return safetensors.read_header
