"""Words of help for names that are not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def similar(name: str, names: Iterable[str]) -> str:
    """ "Similar there: 'a', 'b'." for the three closest names, or nothing."""
    close = difflib.get_close_matches(name[:256], sorted(other[:256] for other in names)[:2000], n=3, cutoff=0.6)
    return f"Similar names there: {', '.join(map(repr, close))}" if close else ""
