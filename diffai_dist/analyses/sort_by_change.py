"""Which tensors changed the most: the order that `--sort-by-change-magnitude` and the top movers use."""

from __future__ import annotations

import math
from collections.abc import Iterable

from diffai_dist.comparison import natural
from diffai_dist.records import TensorRecord

# Behind the changed tensors, which come by size: what has no size of change, the most telling first.
_PLACES = {"changed": 0, "incomparable": 1, "added": 2, "removed": 3, "failed": 4, "identical": 5}


def sort_by_change(records: Iterable[TensorRecord]) -> list[TensorRecord]:
    """Changed tensors by descending rel_l2, then incomparable, added, removed, failed and identical ones.

    A change of a baseline that is all zeros is infinite and comes first; a change that has no size (dtypes without
    a decoder, nothing finite) comes last among the changed. Ties go by name, in natural order.
    """
    return sorted(records, key=lambda record: (_PLACES[record.status], -magnitude(record), natural(record.name)))


def magnitude(record: TensorRecord) -> float:
    """rel_l2 as a number that sorts: infinite for a baseline of norm 0 that changed, -1 where nothing is defined.

    What --epsilon calls identical keeps its size, so that `=` lines sort as well.
    """
    change = record.change
    if change is None:
        return -1.0
    if change.rel_l2 is not None:
        return float(change.rel_l2)
    return math.inf if change.l2 else -1.0
