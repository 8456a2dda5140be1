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
_requests = _bytes = _retries = 0


def traffic() -> Traffic:
    """The counts of this process since it started."""
    with _lock:
        return Traffic(_requests, _bytes, _retries)


def count(*, requests: int = 0, size: int = 0, retries: int = 0) -> None:
    """Add to the counts, from any thread."""
    global _requests, _bytes, _retries
    with _lock:
        _requests += requests
        _bytes += size
        _retries += retries
