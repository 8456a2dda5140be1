"""What a file is that is not read, by its first bytes, so that the refusal can name it."""

from __future__ import annotations

from diffai_dist.errors import UnknownFormat

_CONVERT = "Convert it to safetensors"
_CONVERT_PICKLE = "Convert it to safetensors where you trust its origin: loading it may run code"
# Nothing but tensors is loaded so, whatever the file asks for; that is the default since torch 2.6.
_SAVE_ZIP = (
    "Make it a zip archive with a new torch: from torch import load, save; save(load(path, weights_only=True), path)"
)
_DECOMPRESS = "Decompress it: compressed data have no byte ranges to read"
_DOWNLOAD = "Fetch the object itself: check the address and the permissions"

_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c

# First bytes, what they mean, what to do.
_MAGIC: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"PK\x05\x06",), "an empty zip archive", _DOWNLOAD),
    ((_BEFORE_ZIP,), "a torch file of the format before torch 1.6", _SAVE_ZIP),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle", _CONVERT_PICKLE),
    ((b"\x89HDF\r\n\x1a\n",), "an HDF5 file (.h5)", _CONVERT),
    ((b"\x1f\x8b",), "gzip data", _DECOMPRESS),
    ((b"\x28\xb5\x2f\xfd",), "zstd data", _DECOMPRESS),
    ((b"BZh",), "bzip2 data", _DECOMPRESS),
    ((b"\xfd7zXZ\x00",), "xz data", _DECOMPRESS),
)

# The same for texts, compared without byte-order mark, leading white space and case.
_TEXTS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"version https://git-lfs",), "a Git LFS pointer, not the file it points to", "Run `git lfs pull`"),
    ((b"<!doctype html", b"<html"), "an HTML page, perhaps of an error or a login", _DOWNLOAD),
    ((b"<?xml", b"<error"), "an XML text, perhaps the error message of an object store", _DOWNLOAD),
    ((b"{",), "a JSON text", "Give a *.index.json of shards, a folder or a weight file"),
)


def refuse_strangers(head: bytes, where: str) -> None:
    """Raise UnknownFormat when the first bytes are known to begin something that is not read.

    Not for bytes that may begin a safetensors file: a header of 640 bytes starts like a pickle.
    """
    text = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for data, kinds in ((head, _MAGIC), (text, _TEXTS)):
        for magic, what, advice in kinds:
            if data.startswith(magic):
                raise UnknownFormat(where, f"this is {what}", expected="a weight file", hint=advice)
