"""The result as YAML: the same array as JSON, for people who read it and tools that load it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffai_dist.records import Sweep
from diffai_dist.report.array import as_records, strict
from diffai_dist.report.view import View


def render(sweep: Sweep, view: View) -> Iterator[str]:
    """A block sequence, one record at a time; loads through any YAML 1.1 safe loader as the JSON array does."""
    fast, exact = _dumpers()
    empty = True
    for record in as_records(sweep, view):
        empty = False
        try:
            yield _dump(record, fast)
        except UnicodeEncodeError:  # libyaml cannot hold a lone surrogate, PyYAML's own emitter escapes it
            yield _dump(record, exact)
    if empty:
        yield "[]\n"


def _dump(record: dict[str, Any], dumper: type) -> str:
    import yaml

    text: str = yaml.dump([strict(record)], Dumper=dumper, sort_keys=False, width=2**31 - 1, default_flow_style=False)
    return text


def _dumpers() -> tuple[type, type]:
    """The fast dumper and one that takes any string, neither writing anchors."""
    import yaml

    fast = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    without_anchors = {"ignore_aliases": lambda self, data: True}
    return type("Fast", (fast,), without_anchors), type("Exact", (yaml.SafeDumper,), without_anchors)
