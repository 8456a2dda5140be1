"""A zip archive by range: its directory, and where the stored bytes of its members lie. Nothing is unpacked."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffai_dist.checkpoint import Span
from diffai_dist.errors import BadHeader
from diffai_dist.formats.names import quoted
from diffai_dist.formats.ranges import Ranges
from diffai_dist.storage import redact

if TYPE_CHECKING:
    from zipfile import ZipInfo

MAGIC = b"PK\x03\x04"
TAIL = 64 * 1024  # holds the directory of some 700 members
MAX_DIRECTORY_BYTES = 16 * 1024 * 1024  # of some 180,000 members
SAVE_AGAIN = "Save the file again"

_LOCAL = struct.Struct("<4s2xHH8xIIHH")  # magic, flags, method, stored size, size, length of the name, of the extra
_ENCRYPTED, _SIZE_FOLLOWS, _UTF8 = 1, 8, 0x800
_ELSEWHERE = 0xFFFFFFFF  # the size stands in an extra field


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the directory; `at` is where its own header begins, `limit` what its bytes must end before."""

    name: str
    at: int
    size: int
    stored: int  # bytes in the archive
    method: int  # 0 is stored as it is
    flags: int
    limit: int


@dataclass(frozen=True, slots=True)
class Archive:
    """Bytes [base, stop) of an object, as a zip archive."""

    ranges: Ranges
    base: int
    stop: int
    members: Mapping[str, Member]

    def preload(self, names: Iterable[str]) -> None:
        """Read the headers of these members, as far as they are not there yet, in as few requests as possible."""
        self.ranges.load(_head(self.members[name]) for name in names)

    def locate(self, name: str) -> Span:
        """Where the bytes of a member lie, by its own header; BadHeader unless that is as the directory says.

        How long the header is only it tells: torch pads it, so that data begin at multiples of 64.
        """
        member = self.members[name]
        self._check_stored(member)
        return self._span(member, self.ranges.get(*_head(member)))

    def read(self, name: str) -> bytes:
        """The bytes of a small member."""
        span = self.locate(name)
        return self.ranges.get(span.start, span.stop)

    def _check_stored(self, member: Member) -> None:
        if member.flags & _ENCRYPTED:
            raise self._bad(member, "is encrypted")
        if member.method or member.size != member.stored:
            raise self._bad(member, "is compressed, so that it has no byte ranges to read")

    def _span(self, member: Member, head: bytes) -> Span:
        name = _encoded(member)
        magic, flags, method, stored, size, length, extra = _LOCAL.unpack_from(head)
        later = flags & _SIZE_FOLLOWS and stored == size == 0
        sizes_fit = later or {stored, size} <= {member.size, _ELSEWHERE}
        start = member.at + _LOCAL.size + length + extra
        if magic != MAGIC or head[_LOCAL.size :] != name or length != len(name) or not sizes_fit:
            raise self._bad(member, "is not where, or not what, the directory says")
        if method or flags & _ENCRYPTED:
            raise self._bad(member, "is compressed or encrypted, other than the directory says")
        if start + member.size > member.limit:
            raise self._bad(member, "overlaps what follows it")
        return Span(self.ranges.source, start, start + member.size)

    def _bad(self, member: Member, what: str) -> BadHeader:
        return BadHeader(redact(self.ranges.source.url), f"member {quoted(member.name)} {what}", hint=SAVE_AGAIN)


def _encoded(member: Member) -> bytes:
    return member.name.encode("utf-8" if member.flags & _UTF8 else "cp437")


def _head(member: Member) -> tuple[int, int]:
    """Where its header lies, without the padding."""
    return member.at, member.at + _LOCAL.size + len(_encoded(member))


def read_archive(ranges: Ranges, base: int, stop: int) -> Archive:
    """The directory of the archive at bytes [base, stop); BadHeader unless its members lie there one after the other.

    What is not in `ranges` yet is read; a reader who knows that there is a directory loads the last TAIL bytes first.
    """
    import zipfile

    where = redact(ranges.source.url)
    try:
        found = zipfile.ZipFile(_File(ranges, base, stop, where))
        entries, end = found.infolist(), found.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError, OverflowError) as error:
        hint = "Incomplete upload or download? Fetch it again"
        raise BadHeader(where, "a zip archive without a directory that can be read", hint=hint) from error
    return Archive(ranges, base, stop, _members(entries, base, base + end, where))


def _members(entries: list[ZipInfo], base: int, end: int, where: str) -> dict[str, Member]:
    entries = sorted(entries, key=lambda entry: entry.header_offset)
    if entries and entries[0].header_offset:
        hint = "Of a folder of .distcp files name the folder"
        raise BadHeader(where, "several zip archives, or something else before one", expected="one archive", hint=hint)
    limits = [*(base + entry.header_offset for entry in entries[1:]), end]
    members: dict[str, Member] = {}
    for entry, limit in zip(entries, limits, strict=True):
        member = Member(
            entry.filename,
            base + entry.header_offset,
            entry.file_size,
            entry.compress_size,
            entry.compress_type,
            entry.flag_bits,
            limit,
        )
        if member.name in members or entry.orig_filename != member.name:
            raise BadHeader(where, f"two members of a zip archive are called {quoted(member.name)}", hint=SAVE_AGAIN)
        if _head(member)[1] + member.stored > limit:
            raise BadHeader(where, f"member {quoted(member.name)} overlaps what follows it", hint=SAVE_AGAIN)
        members[member.name] = member
    return members


class _File(io.RawIOBase):
    """The archive as the standard library reads its directory: through ranges, and never much of it."""

    def __init__(self, ranges: Ranges, base: int, stop: int, where: str) -> None:
        self._ranges, self._base, self._size, self._where = ranges, base, stop - base, where
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError("before the first byte")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if stop - self._at > MAX_DIRECTORY_BYTES:
            expected = f"at most {MAX_DIRECTORY_BYTES:,}"
            raise BadHeader(self._where, f"a zip directory of {stop - self._at:,} bytes", expected=expected)
        data = self._ranges.get(self._base + self._at, self._base + stop)
        self._at = max(stop, self._at)
        return data
