"""How often something is tried, and how long it rests in between. Both libraries below are told not to repeat anything:
nested retries multiply, and s3fs over botocore at their defaults make 25 requests of one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from diffai_dist.storage.traffic import count

T = TypeVar("T")

REQUESTS = 9  # for one range at most; with 30 % of requests failing, one range in 50,000 fails
PAUSE_SECONDS = 0.25  # the longest before the first repetition; doubled for each further one
LONGEST_PAUSE_SECONDS = 5.0
GRACE_SECONDS = 60.0  # a range may take this long, repetitions included
SLOWEST = 128 << 10  # and a second more for each so many bytes of it

_jitter = random.SystemRandom()  # workers that were seeded alike must not come back together


async def patiently(action: Callable[[], Awaitable[T]], price: Callable[[Exception], int]) -> T:
    """The action's result or its last error. `price` is how many requests an error stands for, 0 for one that would
    come again."""
    spent, longest = 0, PAUSE_SECONDS
    while True:
        try:
            return await action()
        except Exception as error:
            cost = price(error)
            spent += cost
            if not cost or spent + cost > REQUESTS:
                raise
        count(retries=1)
        await asyncio.sleep(_jitter.uniform(0, longest))
        longest = min(2 * longest, LONGEST_PAUSE_SECONDS)


def seconds_for(size: int) -> float:
    """How long a range of this many bytes may take."""
    return GRACE_SECONDS + size / SLOWEST
