"""One pair in a line: what its tensors add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffai_dist.analyses.sums import cosine_distance, exact, relative, rolled_up, share, shifts_of
from diffai_dist.comparison import Pair
from diffai_dist.gram import gram_changes, grams_of_two, squared_norms, whole
from diffai_dist.judging import comes_from_gram
from diffai_dist.partials import GRAM
from diffai_dist.records import Change, ErrorBound, Measurements, TensorRecord
from diffai_dist.statistics import sound


def whole_change(
    measured: Measurements, pair_index: int, records: Sequence[TensorRecord]
) -> tuple[Change | None, ErrorBound | None]:
    """The change of all compared values together; indices, bits and signs have no whole, bytes are in none.

    Where a tensor's numbers come from the Gram, so do those of the whole, with the bound of their error.
    """
    compared = {record.name for record in records if record.change is not None}
    tensors = [i for i, one in enumerate(measured.comparison.aligned) if one.name in compared]
    products = [i for i in tensors if comes_from_gram(measured, i, pair_index)]
    if products:
        return _from_gram(measured, pair_index, products, sorted(set(tensors) - set(products)))
    rows = shifts_of(measured, pair_index, records)
    if not rows:
        return None, None
    rolled = rolled_up(rows)
    sizes = exact(size for row in rows for size in (row.a1, row.b1))
    summed = {row.name for row in rows}
    changes = [record.change for record in records if record.change and record.name in summed]
    largest = [change.max_abs for change in changes if change.max_abs is not None]
    return Change(
        l2=rolled["l2"],
        rel_l2=relative(rows),
        rel_l1=share(exact(row.d1 for row in rows), sizes),
        max_abs=max(largest, default=None),
        max_abs_index=None,
        mean_abs=None,
        cosine_distance=cosine_distance(rows),
        changed_fraction=rolled["changed_fraction"],
        bits_changed_fraction=None,
        sign_flip_fraction=None,
    ), None


def _from_gram(
    measured: Measurements, pair_index: int, products: Sequence[int], elements: Sequence[int]
) -> tuple[Change, ErrorBound | None]:
    """Sums of the Grams of tensors, whatever the anchor of each: distance and angle are linear in every plane."""
    if measured.grams is None:
        raise ValueError("no Gram was measured")
    pair = measured.comparison.pairs[pair_index]
    sides = (pair.baseline, pair.candidate)
    own = measured.grams[np.ix_(list(products), range(len(GRAM)), sides, sides)]
    rows = measured.shifts[list(elements), pair_index]
    shifts = {name: rows[name] for name in ("both", "max_abs", "aa", "d2")} | {"along": rows["slope"] * rows["aa"]}
    grams = np.concatenate([own, grams_of_two(shifts)])
    known = squared_norms(measured.grams[products], measured.moments[products], pair)
    norms_of = [np.where(sound(rows[two], rows[one]), rows[two], np.nan) for two, one in (("aa", "a1"), ("bb", "b1"))]
    norms = np.array([[math.fsum(side) for side in np.concatenate([known, np.stack(norms_of, axis=1)]).T.tolist()]])
    columns = gram_changes(whole(grams), Pair(0, 1), norms)
    l2, rel_l2, distance, error, angle, relative_error = (
        columns[name][0] for name in ("l2", "rel_l2", "cosine_distance", "l2_error", "cosine_error", "rel_l2_error")
    )
    change = Change(l2, rel_l2, None, None, None, None, distance, None, None, None)
    return change, None if error is None else ErrorBound(error, angle, relative_error)
