"""The index of a sharded checkpoint: which file holds which tensor. Untrusted: it must not name other folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffai_dist.errors import BadIndex
from diffai_dist.formats.names import is_plain_file_name, quoted
from diffai_dist.formats.strict_json import NotStrict, parse

SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 256 * 1024 * 1024
MAX_FIELDS = 2_000_000  # one for each tensor
MAX_OBJECTS = 1000  # usually 3
MAX_SHARDS = 10_000  # the largest published checkpoints have a few hundred


@dataclass(frozen=True, slots=True)
class Index:
    """What an index promises; the headers of the shards are the truth."""

    weight_map: Mapping[str, str]
    total_size: object  # bytes, where it is a number; often wrong in the wild

    @property
    def shards(self) -> tuple[str, ...]:
        """The file names, in order."""
        return tuple(sorted(set(self.weight_map.values())))


def parse_index(text: bytes, where: str) -> Index:
    """Check an index without looking at any file; a shard name that could leave the folder refuses the whole index."""
    try:
        fields = parse(text, max_objects=MAX_OBJECTS, max_fields=MAX_FIELDS)
    except NotStrict as error:
        hint = "An index is one JSON object: fetch or write it again"
        raise BadIndex(where, f"index: {error}", hint=hint) from error
    weight_map = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not isinstance(weight_map, dict):
        raise BadIndex(where, "not an index", expected='an object with a "weight_map" of tensor to file name')
    if any(type(name) is not str for name in weight_map.values()):
        raise BadIndex(where, "weight_map maps a tensor to something else than a file name", expected="strings")
    metadata = fields.get("metadata")
    index = Index(weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None)
    _check_shards(index.shards, where)
    return index


def _check_shards(names: tuple[str, ...], where: str) -> None:
    if len(names) > MAX_SHARDS:
        raise BadIndex(where, f"{len(names):,} shards", expected=f"at most {MAX_SHARDS:,}")
    for name in names:
        if not is_plain_file_name(name):
            raise BadIndex(
                where,
                f"the shard name {quoted(name)} leaves the checkpoint or may be read as something else",
                expected="plain names of files beside the index",
                hint="Do not trust this index: nothing it names was opened",
            )
