"""The .npz format of NumPy: a zip archive of .npy members. Only those that are not compressed have byte ranges."""

from __future__ import annotations

import dataclasses

from diffai_dist.checkpoint import Tensor
from diffai_dist.errors import CheckpointError, Failure, UnknownFormat
from diffai_dist.formats.archive import Archive, Member
from diffai_dist.formats.heads import Head, Header
from diffai_dist.formats.names import listed
from diffai_dist.formats.npy import PREFIX, array_of, describe, header_stop
from diffai_dist.storage import Profile, redact

SUFFIX = ".npy"
USUAL = 512  # bytes that hold the headers of a member, that of the archive and that of NumPy
STORE = "Save it with numpy.savez: compressed members have no byte ranges to read"


def read_npz(head: Head, archive: Archive, profile: Profile) -> Header:
    """The arrays of an archive, called as its members without .npy; those that are compressed are unreadable."""
    where = redact(head.source.url)
    members = [member for name, member in archive.members.items() if name.endswith(SUFFIX)]
    stored = [member for member in members if not member.method]
    if members and not stored:
        raise UnknownFormat(where, f"this is a .npz file of {len(members):,} compressed arrays", hint=STORE)
    unreadable = {_name(one): _compressed(one, where) for one in members if one.method}
    archive.ranges.load([(one.at, min(one.at + USUAL, one.limit)) for one in stored])
    tensors: dict[str, Tensor] = {}
    warnings: list[str] = []
    for member in stored:
        name = _name(member)
        try:
            tensors[name], told = _array(name, member, archive)
            warnings += told
        except CheckpointError as error:
            unreadable[name] = dataclasses.replace(error.failure, tensor=name)
    others = [name for name in archive.members if not name.endswith(SUFFIX)]
    if others:
        warnings.append(f"{len(others):,} members of the archive are no arrays: {listed(others)}")
    return Header(head.source, tensors, {}, "npz", unreadable, tuple(warnings))


def _array(name: str, member: Member, archive: Archive) -> tuple[Tensor, tuple[str, ...]]:
    span, where = archive.locate(member.name), redact(archive.ranges.source.url)
    begin = archive.ranges.get(span.start, min(span.start + PREFIX, span.stop))
    text = archive.ranges.get(span.start, min(span.start + header_stop(begin, where), span.stop))
    return array_of(name, describe(text, where), span)


def _name(member: Member) -> str:
    return member.name.removesuffix(SUFFIX)


def _compressed(member: Member, where: str) -> Failure:
    return UnknownFormat(where, "this member is compressed", hint=STORE, tensor=_name(member)).failure
