"""Local files: read by preadv straight into the caller's buffer, and never mapped, since a file that is truncated under
a mapping kills the process."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Literal

from diffai_dist.errors import ShortRead, SourceChanged, Unreadable
from diffai_dist.storage.hints import similar
from diffai_dist.storage.local_write import publish, reason, remedy, remove
from diffai_dist.storage.source import Profile, Read, Source
from diffai_dist.storage.traffic import count

__all__ = ["CHUNK_BYTES", "entries", "fetch", "fill", "folders", "kind", "listing", "pin", "publish", "remove"]

CHUNK_BYTES = 1 << 20  # 256 KiB to 4 MiB read at the same speed; this size stays in the L2 cache
OPEN_FILES = 64  # kept open between calls

_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def kind(url: str, profile: Profile) -> Literal["file", "directory"]:
    """Found by stat alone: a FIFO or device is refused without being opened."""
    found = _stat(url)
    if stat.S_ISDIR(found.st_mode):
        return "directory"
    _refuse_special(url, found)
    return "file"


def entries(url: str, profile: Profile) -> dict[str, int | None]:
    """Plain files of the directory, links to files included, with their sizes."""
    found: dict[str, int | None] = {}
    for entry in _scan(url):
        with contextlib.suppress(OSError):  # a dangling link, a loop, or gone since the listing
            about = entry.stat()
            if stat.S_ISREG(about.st_mode):
                found[entry.name] = about.st_size
    return dict(sorted(found.items()))


def folders(url: str, profile: Profile) -> list[str]:
    """Names of the directories in the directory."""
    found = []
    for entry in _scan(url):
        with contextlib.suppress(OSError):
            if entry.is_dir():
                found.append(entry.name)
    return sorted(found)


def listing(url: str, profile: Profile) -> dict[str, tuple[int, float | None]]:
    """All plain files below the directory, temporary ones too; links to directories are not followed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # gone since the folder above was listed, or never there
            raise _unreadable(os.fspath(error.filename or url), error) from error

    found: dict[str, tuple[int, float | None]] = {}
    for folder, _, names in os.walk(url, onerror=refuse):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                about = os.stat(path)
                if stat.S_ISREG(about.st_mode):
                    found[os.path.relpath(path, url)] = about.st_size, about.st_mtime
    return dict(sorted(found.items()))


def pin(url: str, profile: Profile) -> Source:
    """Size and modification time; device and inode differ between the nodes of a network file system."""
    found = _stat(url)
    _refuse_special(url, found)
    return Source(url, found.st_size, f"mtime:{found.st_mtime_ns}")


def fill(reads: Sequence[Read], profile: Profile) -> None:
    """Read everything; each run of reads of one file is checked against its pin before and after."""
    for source, group in itertools.groupby(reads, key=attrgetter("source")):
        _fill_from(source, group)


def fetch(url: str, profile: Profile) -> bytes | None:
    """The whole file, None if there is none."""
    try:
        if not stat.S_ISREG(os.stat(url).st_mode):
            raise Unreadable(url, "not a regular file")
        with open(url, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(url, error) from error


# Reading


class _OpenFile:
    """A descriptor that is closed with its last user, so that dropping it from the cache never closes it in use."""

    __slots__ = ("close", "fd", "place")

    def __init__(self, path: str) -> None:
        self.close = os.close  # held here: at the end of the interpreter modules are emptied first
        # O_NONBLOCK: should a FIFO have taken the name since it was looked at, opening it must not hang.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        found = os.fstat(self.fd)
        self.place = (found.st_dev, found.st_ino)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close(self.fd)


_files: dict[str, _OpenFile] = {}
_files_lock = threading.Lock()


def _fill_from(source: Source, reads: Iterable[Read]) -> None:
    done = size = 0
    try:
        file = _opened(source)
        for read in reads:
            size += _fill_one(file.fd, read)
            done += 1
        _check(source, file, os.fstat(file.fd), _stat(source.url, pinned=True))
    except OSError as error:
        _forget(source.url)
        raise _unreadable(source.url, error) from error
    finally:
        count(requests=done, size=size)


def _fill_one(fd: int, read: Read) -> int:
    rest = read.buffer
    wanted = len(rest)
    got = os.preadv(fd, [rest], read.start) if wanted else 0
    while got < wanted:  # Linux reads at most 2 GiB at once, network file systems sometimes less than asked for
        more = os.preadv(fd, [rest[got:]], read.start + got)
        if not more:
            raise ShortRead(
                read.source.url,
                f"the file ends at byte {read.start + got:,}",
                expected=f"{wanted:,} bytes from {read.start:,} on",
                hint="It was truncated while being read: run again when it is complete",
            )
        got += more
    return got


def _opened(source: Source) -> _OpenFile:
    """An open file that is the pinned one; what the path names is looked at each time, so a replacement is noticed."""
    found = _stat(source.url, pinned=True)
    _refuse_special(source.url, found)
    with _files_lock:
        file = _files.pop(source.url, None)
        if file is not None:
            _files[source.url] = file  # the dictionary is in order of use
    if file is None or file.place != (found.st_dev, found.st_ino):
        file = _OpenFile(source.url)
    _check(source, file, found)
    with _files_lock:
        _files[source.url] = file
        if len(_files) > OPEN_FILES:
            del _files[next(iter(_files))]
    return file


def _check(source: Source, file: _OpenFile, *looks: os.stat_result) -> None:
    """All looks, the last of them at the path, must show the pinned file, and the path must name the open one."""
    for found in looks:
        if found.st_size != source.size or f"mtime:{found.st_mtime_ns}" != source.version:
            _forget(source.url)
            raise _changed(source, f"now {found.st_size:,} bytes, mtime:{found.st_mtime_ns}")
    if file.place != (looks[-1].st_dev, looks[-1].st_ino):
        _forget(source.url)
        raise _changed(source, "another file took its place")


def _forget(url: str) -> None:
    with _files_lock:
        _files.pop(url, None)


def _changed(source: Source, found: str) -> SourceChanged:
    return SourceChanged(
        source.url,
        f"changed during the comparison: {found}",
        expected=f"{source.size:,} bytes, {source.version}",
        hint="Run again when nothing writes to it",
    )


# Looking


def _stat(url: str, *, pinned: bool = False) -> os.stat_result:
    try:
        return os.stat(url)
    except OSError as error:
        if pinned and error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise SourceChanged(
                url, "deleted during the comparison", hint="Run again when nothing writes to it"
            ) from error
        raise _unreadable(url, error) from error


def _refuse_special(url: str, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode) and found.st_dev not in _kernel_devices():
        return
    what = _SPECIAL.get(stat.S_IFMT(found.st_mode))
    what = what or ("a directory" if stat.S_ISDIR(found.st_mode) else "a file of the kernel")
    raise Unreadable(url, f"not a regular file but {what}", hint="Copy its content to a file first")


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """The devices of /proc and /sys, whose files call themselves regular, have no size and may block."""
    return frozenset(os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.ismount(path))


def _scan(url: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(url) as found:
            yield from found
    except OSError as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: OSError) -> Unreadable:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Unreadable(url, "no such file or directory", hint=_what_is_there(url))
    if error.errno == errno.ELOOP:
        return Unreadable(url, "a loop of symbolic links", hint="Name the file itself")
    found = "permission denied" if isinstance(error, PermissionError) else reason(error)
    return Unreadable(url, found, hint=remedy(error))


def _what_is_there(url: str) -> str:
    """Similar names in the folder, or the nearest folder that exists."""
    folder, name = os.path.split(url)
    if not os.path.isdir(folder):
        while folder != os.path.dirname(folder) and not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return f"The nearest folder that exists is {folder}"
    with contextlib.suppress(Unreadable):
        return similar(name, itertools.islice((entry.name for entry in _scan(folder)), 10_000))
    return ""
