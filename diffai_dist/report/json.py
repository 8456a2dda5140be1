"""The result as one strict JSON array, a record per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from diffai_dist.records import Sweep
from diffai_dist.report.array import as_records, strict
from diffai_dist.report.view import View


def render(sweep: Sweep, view: View) -> Iterator[str]:
    """Keys in a fixed order, numbers unrounded, all but ASCII escaped: the same result has the same bytes."""
    encode = json.JSONEncoder(allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode
    separator = "[\n"
    for record in as_records(sweep, view):
        try:
            line = encode(record)
        except (ValueError, TypeError):  # an infinity, or a mapping that is not a dict: rare, so tried first without
            line = encode(strict(record))
        yield f"{separator}{line}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"
