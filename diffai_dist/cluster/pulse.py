"""Whether the scheduler lives and how many threads work for it, asked every second while units are under way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from diffai_dist.errors import ClusterError
from diffai_dist.terminal import duration

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

log = logging.getLogger(__name__)

BEAT = 1.0  # seconds from one question to the next
SILENT_SECONDS = 60.0  # without any answer: a scheduler that is merely busy takes seconds
NO_WORKERS_SECONDS = 300.0  # a pod on a new node takes minutes to start
TELL_SECONDS = 30.0  # from one line about missing workers to the next


def ask(client: Client, question: Callable[[], Awaitable[T]]) -> Future[T]:
    """The answer to a call of the client, to be waited for as long as one likes.

    Inside its own event loop a client's methods are coroutines; outside they wait without a limit.
    """

    async def asked() -> T:
        return await question()

    try:
        return asyncio.run_coroutine_threadsafe(asked(), client.loop.asyncio_loop)
    except RuntimeError as error:  # the loop was closed with the client
        raise lost(error) from error


def lost(error: BaseException | str) -> ClusterError:
    """The error of a scheduler that is gone."""
    return ClusterError(f"the scheduler was lost: {' '.join(str(error).split()) or type(error).__name__}")


class Pulse:
    """One question at a time, none of them waited for; `beat` says what the answers, or their absence, mean."""

    def __init__(self, client: Client, patience: float | None, renew: Callable[[], None] = lambda: None) -> None:
        """`patience`: seconds without workers, None for any; `renew` is called with every answer."""
        self.threads = 0
        self._client, self._patience, self._renew = client, patience, renew
        self._silence = 0.0
        self._deserted = self._told = self._next = time.monotonic()
        self._question: Future[dict[str, int]] | None = None

    def beat(self, waited: float = 0.0) -> None:
        """Call it often; `waited` are the seconds in which nothing came. ClusterError once there is no hope."""
        if self._question is None or self._question.done():
            self._silence = 0.0
        else:
            # Not by the clock: a client that was stopped for an hour has not listened for an hour.
            self._silence = self._silence + waited if waited else 0.0
            if self._silence >= SILENT_SECONDS:
                raise lost(f"it has not answered for {duration(self._silence)}")
            return
        if time.monotonic() < self._next:
            return
        if self._question is not None:
            self._hear(self._question)
        self._question = ask(self._client, lambda: self._client.nthreads())
        self._next = time.monotonic() + BEAT

    def wait_for_workers(self) -> None:
        """Return when the first one is there."""
        while not self.threads:
            self.beat(BEAT / 10)
            time.sleep(BEAT / 10)

    def _hear(self, answer: Future[dict[str, int]]) -> None:
        if self._client.status != "running":
            raise lost(f"the connection is {self._client.status}")
        try:
            self.threads = sum(answer.result().values())
        except Exception as error:
            raise lost(error) from error
        self._renew()
        now = time.monotonic()
        if self.threads:
            self._deserted = self._told = now
        elif self._patience is not None and now - self._deserted >= self._patience:
            raise ClusterError(
                f"no workers for {duration(now - self._deserted)}: look at their own logs, and at the queue"
            )
        elif now - self._told >= TELL_SECONDS:
            self._told = now
            log.warning("waiting for workers: none for %s", duration(now - self._deserted))
