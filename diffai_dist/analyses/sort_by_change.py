"""Which tensors changed the most: the order that `--sort-by-change-magnitude` and the top movers use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffai_dist.records import TensorRecord

# Behind the changed tensors, which come by size: what has no size of change, the most telling first.
_PLACES = {"changed": 0, "incomparable": 1, "added": 2, "removed": 3, "failed": 4, "identical": 5}


KEYS = ("rel_l2", "l2", "max_abs", "mean_abs", "cosine_distance", "changed_fraction", "rel_l1")


def sort_by_change(records: Iterable[TensorRecord], key: str = KEYS[0]) -> list[TensorRecord]:
    """Changed tensors by descending size of their change, then incomparable, added, removed, failed, identical ones.

    A change of a baseline that is all zeros has an infinite rel_l2 and comes first; one that has no size (dtypes
    without a decoder, nothing finite) comes last among the changed. Ties go by name, in natural order.
    """
    from diffai_dist.comparison import natural

    return sorted(records, key=lambda record: (_PLACES[record.status], -magnitude(record, key), natural(record.name)))


def magnitude(record: TensorRecord, key: str = KEYS[0]) -> float:
    """One of KEYS as a number that sorts: -1 where it is not defined, infinite for rel_l2 of what was 0 and changed.

    What --epsilon calls identical keeps its size, so that `=` lines sort as well.
    """
    change = record.change
    size = getattr(change, key) if change else None
    if size is not None:
        return float(size)
    return math.inf if key == "rel_l2" and change and change.l2 else -1.0
