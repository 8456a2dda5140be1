"""A zip archive is a file of torch.save or an .npz; the names of its members tell."""

from __future__ import annotations

from diffai_dist.errors import UnknownFormat
from diffai_dist.formats import archive, npz, torch_zip
from diffai_dist.formats.heads import Head, Header
from diffai_dist.formats.names import listed
from diffai_dist.formats.ranges import Ranges
from diffai_dist.storage import Profile, redact


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
