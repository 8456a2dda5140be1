"""The config.json beside the weights, where there is one: what the model's library was told about it. Untrusted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from diffai_dist.errors import CheckpointError
from diffai_dist.formats.strict_json import NotStrict, parse
from diffai_dist.storage import Profile, join, pin, read

NAME = "config.json"
MAX_BYTES = 4 * 1024 * 1024  # the largest published ones list every quantised module: some 100 kB
MAX_FIELDS = 100_000
MAX_OBJECTS = 20_000


def read_config(
    folder: str, files: Collection[str] | None, profile: Profile, name: str = NAME
) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """The configuration in a folder whose `files` are known, or None; a warning where it cannot be used."""
    if files is None or name not in files:
        return None, ()
    try:
        source = pin(join(folder, name), profile)
        if source.size > MAX_BYTES:
            return None, (f"{name} was not used: {source.size:,} bytes, expected at most {MAX_BYTES:,}",)
        return parse_config(read(source, 0, source.size, profile)), ()
    except NotStrict as error:
        return None, (f"{name} was not used: {error}",)
    except CheckpointError as error:
        return None, (f"{name} was not used: {error.failure.found}",)


def parse_config(text: bytes) -> Mapping[str, Any]:
    """The fields of a configuration; raises NotStrict for anything but one JSON object.

    >>> parse_config(b'{"num_hidden_layers": 12}')
    {'num_hidden_layers': 12}
    """
    fields = parse(text, max_objects=MAX_OBJECTS, max_fields=MAX_FIELDS)
    if not isinstance(fields, dict):
        raise NotStrict("not a JSON object")
    return fields
