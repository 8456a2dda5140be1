"""Writing local files so that no reader ever sees a part of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets

from diffai_dist.errors import Unreadable
from diffai_dist.storage.source import Profile

_REMEDIES = {
    errno.EACCES: "Check the permissions of the file and of the folders above it",
    errno.EPERM: "Check the permissions of the file and of the folders above it",
    errno.ENOSPC: "Free some space and resume",
    errno.EDQUOT: "Free some of the quota and resume",
    errno.EROFS: "Choose a folder that can be written to",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Raise the limit of open files of the system",
    errno.ESTALE: "The network file system lost the file: run again",
    errno.EIO: "The disk or the network file system failed: check it",
}


def reason(error: OSError) -> str:
    """The words of the system, without the path, which is named anyway."""
    return error.strerror or type(error).__name__


def remedy(error: OSError) -> str:
    """What to do about it, where something can be done."""
    return _REMEDIES.get(error.errno or 0, "")


def publish(url: str, data: bytes, profile: Profile, *, exclusive: bool = False) -> bool:
    """Write beside the target, flush to the disk, then move into place, so that no reader ever sees a part."""
    folder = os.path.dirname(url)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        try:
            _write(temporary, data)
            placed = _place(temporary, url, exclusive)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _flush_folder(folder)
    except OSError as error:
        raise Unreadable(url, f"cannot be written: {reason(error)}", hint=remedy(error)) from error
    return placed


def remove(url: str, profile: Profile) -> None:
    """Delete the file; one that is not there is fine."""
    try:
        os.unlink(url)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unreadable(url, f"cannot be removed: {reason(error)}") from error


def _write(path: str, data: bytes) -> None:
    """A new file of the usual permissions, on the disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _place(temporary: str, url: str, exclusive: bool) -> bool:
    if not exclusive:
        os.replace(temporary, url)
        return True
    try:
        os.link(temporary, url)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here (exFAT, some FUSE mounts): looking first is the best there is, and content-addressed
        # names make a lost race harmless.
        if os.path.lexists(url):
            return False
        os.replace(temporary, url)
    return True


def _flush_folder(folder: str) -> None:
    """A new name survives a power cut only when its folder reached the disk too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):  # file systems that cannot
            raise
    finally:
        os.close(fd)
