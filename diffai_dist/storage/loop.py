"""The event loop of fsspec, which lives in a thread of its own, used from any other thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; an interrupted caller leaves nothing running."""
    import fsspec.asyn

    future = asyncio.run_coroutine_threadsafe(work, fsspec.asyn.get_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def all_of(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first failure ends the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
