"""The command line over the file: dotted names, and the choices that one of them rules out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from diffai_dist.config.model import setting_paths
from diffai_dist.config.problems import Path, Problem, Rejected, unknown_key

# A choice of the command line that takes the place of others in the file, as `--workers 4` of `scheduler: env`. TLS
# outlives another scheduler: nothing switches it off by the way.
_RIVALS = {
    "cluster.workers": ("cluster.scheduler", "cluster.slurm", "cluster.tls"),
    "cluster.scheduler": ("cluster.workers", "cluster.slurm"),
    "cluster.slurm": ("cluster.workers", "cluster.scheduler", "cluster.threads", "cluster.memory_limit"),
}


def overridden(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value, with the overrides that are not None in their places; raises Rejected."""
    given = {name: value for name, value in overrides.items() if value is not None}
    for name, value in (*_outdone(given), *given.items()):
        _put(settings, name, value)
    return _without_none(settings)


def _outdone(given: Mapping[str, Any]) -> Iterator[tuple[str, None]]:
    """Settings of the file that mean nothing beside those given."""
    for choice, rivals in _RIVALS.items():
        if any(name == choice or name.startswith(f"{choice}.") for name in given):
            yield from ((rival, None) for rival in rivals)
    if given.get("pairs", "all") not in ("vs-baseline", "all"):
        yield "baseline", None
    if given.get("pairs", "all") != "all":
        yield "elementwise", None


def _put(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set what a dotted name leads to, to what JSON has of the value."""
    path = tuple(name.split("."))
    if path not in setting_paths():
        raise Rejected([unknown_key(path)])
    for section in path[:-1]:
        if not isinstance(settings.get(section), dict):
            settings[section] = {}
        settings = settings[section]
    settings[path[-1]] = _plain(path, value)


def _plain(path: Path, value: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    try:
        plain = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="constants")).dump_python(value, mode="json")
        json.dumps(plain, ensure_ascii=False).encode()
        if isinstance(plain, float) and not math.isfinite(plain):
            raise ValueError
    except ValueError as error:  # also of UTF-8: arguments of a command may be any bytes
        raise Rejected([Problem(path, f"{type(value).__name__} is no text, number or list of them")]) from error
    return plain


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has a value: in a file, a section without one would be there with its defaults."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None
    }
