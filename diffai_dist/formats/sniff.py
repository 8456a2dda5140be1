"""What a file that is not safetensors is, by its first bytes, so that the refusal can name it."""

from __future__ import annotations

from diffai_dist.errors import UnknownFormat

_CONVERT = "Convert it to safetensors"
_CONVERT_PICKLE = "Convert it to safetensors where you trust its origin: loading it may run code"
_DECOMPRESS = "Decompress it: compressed data have no byte ranges to read"
_DOWNLOAD = "Fetch the object itself: check the address and the permissions"

# First bytes, what they mean, what to do.
_MAGIC: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"PK\x03\x04",), "a zip archive (torch .pt, .pth or .bin, .npz, .keras)", _CONVERT_PICKLE),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle", _CONVERT_PICKLE),
    ((b"GGUF",), "a GGUF file", _CONVERT),
    ((b"\x89HDF\r\n\x1a\n",), "an HDF5 file (.h5)", _CONVERT),
    ((b"\x93NUMPY",), "a NumPy .npy file", _CONVERT),
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
    ((b"{",), "a JSON text", "Give a *.safetensors.index.json, a folder or a weight file"),
)


def refuse_strangers(head: bytes, where: str) -> None:
    """Raise UnknownFormat when the first bytes are known to begin something else than safetensors.

    Not for bytes that may begin a safetensors file: a header of 640 bytes starts like a pickle.
    """
    text = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for data, kinds in ((head, _MAGIC), (text, _TEXTS)):
        for magic, what, advice in kinds:
            if data.startswith(magic):
                raise UnknownFormat(where, f"this is {what}", expected="a safetensors file", hint=advice)
