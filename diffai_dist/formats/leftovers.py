"""What else lies beside the files of a checkpoint: parts of another save that some loader takes for this one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from posixpath import splitext

from diffai_dist.checkpoint import Checkpoint, Tensor, Violation
from diffai_dist.formats.assembly import read_shards
from diffai_dist.formats.folder import FAMILIES
from diffai_dist.formats.heads import Header
from diffai_dist.formats.names import is_plain_file_name, listed, quoted
from diffai_dist.storage import Profile
from diffai_dist.storage.urls import basename

MAX_HEADERS = 64  # of leftover files, which are rare: enough for the shards of the largest sets but a few

_FORMATS = FAMILIES[:-1]  # arrays of NumPy may hold anything
_NUMBER = re.compile(r"[-_.]?[0-9]+(?:-of-[0-9]+)?$")


def leftovers_of(
    checkpoint: Checkpoint, folder: str, files: Collection[str], profile: Profile
) -> tuple[Violation, ...]:
    """Weight files of `folder` that the checkpoint does not read, by how likely they are taken for a part of it."""
    used = {basename(source.url) for source in checkpoint.sources}
    used |= {basename(one.object) for one in checkpoint.failures}
    rest = sorted(name for one in _FORMATS for name in one.files(files) if name not in used)
    return tuple(_violations(checkpoint, folder, used, rest, profile)) if rest else ()


def _violations(
    checkpoint: Checkpoint, folder: str, used: Collection[str], rest: list[str], profile: Profile
) -> Iterator[Violation]:
    stems = {_stem(name): _is_numbered(name) for one in _FORMATS for name in one.files(used)}
    shards = [name for name in rest if stems.get(_stem(name)) is True and _is_numbered(name)]
    layouts = [name for name in rest if _stem(name) in stems and name not in shards]
    others = [name for name in rest if name not in shards and name not in layouts]
    first, more = min(used), f" and {len(used) - 1:,} more" if len(used) > 1 else ""
    read = f"{quoted(first)}{more} were read"
    if shards:
        found = (
            f"{len(shards):,} numbered files of another save; {read}{_contents(checkpoint, folder, shards, profile)}"
        )
        yield Violation("leftover-shard", checkpoint.url, found, tuple(shards))
    if layouts:
        found = f"{len(layouts):,} files of the same name, as one file and as shards; {read}"
        yield Violation("second-layout", checkpoint.url, found, tuple(layouts))
    if others:
        found = f"{len(others):,} weight files of other names or formats; {read}"
        yield Violation("other-weights", checkpoint.url, found, tuple(others))


def _stem(name: str) -> tuple[str, str]:
    """What the names of one save have in common.

    >>> _stem("model-00001-of-00002.safetensors"), _stem("pytorch_model.bin"), _stem("7.safetensors")
    (('model', '.safetensors'), ('pytorch_model', '.bin'), ('', '.safetensors'))
    """
    stem, suffix = splitext(name)
    return _NUMBER.sub("", stem), suffix


def _is_numbered(name: str) -> bool:
    return bool(_NUMBER.search(splitext(name)[0]))


def _contents(checkpoint: Checkpoint, folder: str, names: list[str], profile: Profile) -> str:
    """Which tensors of the checkpoint the files hold again, and in which dtypes, as far as headers can be read."""
    chosen = [name for name in names if is_plain_file_name(name)][:MAX_HEADERS]
    headers = [one for one in read_shards(folder, chosen, None, profile).values() if isinstance(one, Header)]
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    again = [name for name in tensors if name in checkpoint.tensors]
    if not again:
        return f"; {len(tensors):,} tensors, none of them of the checkpoint" if tensors else ""
    there, here = _dtypes(tensors), _dtypes(checkpoint.tensors)
    mixed = f"; dtypes there {there}, here {here}" if there != here else ""
    return f"{mixed}; {len(again):,} of their {len(tensors):,} tensors are in the checkpoint, too: {listed(again)}"


def _dtypes(tensors: Mapping[str, Tensor]) -> str:
    return listed(sorted({tensor.dtype for tensor in tensors.values()}))
