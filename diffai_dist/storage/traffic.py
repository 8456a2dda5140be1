"""What this process asked of storage so far, for progress displays and for tests that count."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests sent (retries included), bytes read, and how many of the requests were retries."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0


_lock = threading.Lock()
_total = Traffic()


def traffic() -> Traffic:
    """The counts of this process since it started."""
    return _total


def count(*, requests: int = 0, size: int = 0, retries: int = 0) -> None:
    """Add to the counts, from any thread."""
    global _total
    with _lock:
        _total = Traffic(_total.requests + requests, _total.bytes + size, _total.retries + retries)
