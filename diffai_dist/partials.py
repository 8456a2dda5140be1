"""What a leaf tells about a member, a pair or the group: rows of numbers that merge. The kernels fill them.

Extremes are kept as keys, 64-bit integers in the order of the values, so that one merge serves floats and
64-bit integers alike: for floats the IEEE pattern of the float64 value, made monotonic; for integers the value
itself, with the sign bit flipped for signed ones. Magnitudes are the pattern of |x|, or |x| itself.
"""

from __future__ import annotations

import numpy as np

# Goes into every stored key: other bits for the same input need another version.
ALGORITHM = 2

BLOCK = 4096  # elements whose mean is taken before their squares; blocks start at fixed places of the leaf

# Moments of the finite values of one member (Chan, Golub, LeVeque 1979: count, mean, centred squares).
# COMPLEX: mean, m2, low, high are over the 2n real and imaginary parts, m2 halved so that rows merge without knowing
# their dtype; abs_sum, absmax are of the modulus.
MOMENTS = np.dtype(
    [
        ("count", np.int64),  # all elements
        ("finite", np.int64),
        ("nans", np.int64),
        ("posinfs", np.int64),
        ("neginfs", np.int64),
        ("zeros", np.int64),
        ("subnormals", np.int64),
        ("mean", np.float64),
        ("m2", np.float64),  # sum of squared distances from the mean
        ("abs_sum", np.float64),
        ("low", np.uint64),  # key of the smallest finite value; all ones where there is none
        ("high", np.uint64),  # key of the largest finite value; 0 where there is none
        ("absmax", np.uint64),  # magnitude of the finite value furthest from 0
        ("absmax_index", np.int64),  # its first flat index; -1 where there is none
    ]
)

# How the candidate b moved from the baseline a; d = b - a over the elements that are finite on both sides.
SHIFT = np.dtype(
    [
        ("count", np.int64),  # all elements
        ("both", np.int64),  # finite on both sides
        ("changed", np.int64),  # another value; +0 and -0 are one value, so are NaNs of any payload
        ("changed_nonfinite", np.int64),  # those among them that are not finite on both sides
        ("bits", np.int64),  # another bit pattern; only meaningful for equal dtypes
        ("flips", np.int64),  # negative on one side and positive on the other
        ("d2", np.float64),  # sum of d*d
        ("d1", np.float64),  # sum of |d|
        ("a1", np.float64),  # sum of |a|
        ("b1", np.float64),  # sum of |b|
        ("aa", np.float64),  # sum of a*a
        ("bb", np.float64),  # sum of b*b
        # Regression of d on a, merged like moments: d = slope*a + rest, rest orthogonal to a. The cosine comes from
        # `rest` without a difference of large sums, for b near a and for b near any multiple of a.
        ("slope", np.float64),
        ("rest", np.float64),  # sum of squares of rest
        ("max_abs", np.uint64),  # magnitude of the largest |d|
        ("max_abs_index", np.int64),  # its first flat index; -1 where nothing is finite on both sides
    ]
)

# How the members of a group moved from one of them, the anchor a: planes of float64 [members, members], which merge by
# addition. d_i = x_i - a, with 0 for what is not finite in a. Entry [i, j] is over the elements that are finite in i
# and j: where nothing is non-finite, aa is one number, along and norm depend on i alone. A piece without the anchor
# takes the first member it has instead; one with a member of 64-bit integers, complex numbers or bytes fills `differ`
# alone. Two members: |x_i - x_j|^2 = norm[i, j] + norm[j, i] - 2 dot[i, j],
# <x_i, x_j> = aa[i, j] + along[i, j] + along[j, i] + dot[i, j].
GRAM = (
    "count",  # those elements
    "differ",  # blocks in which the bytes of i and j differ, or their dtypes: 0 for equal bits; of any dtype
    "aa",  # sum of a*a
    "along",  # sum of a*d_i
    "norm",  # sum of d_i*d_i
    "dot",  # sum of d_i*d_j
)

# What only some analyses need, and a comparison measures when one of them is asked for (`Comparison.details`).
# Words are a dtype's bit patterns, widened to 32 bits (F32 patterns of 8- and 16-bit floats and integers) or 64.
DETAILS = (
    "content",  # CONTENT of each member
    "bitwise",  # BITWISE of each pair
    "rows",  # ROW of each row of each member, ROW_SHIFT of each row of each pair: grid.row_elements
    "columns",  # COLUMN and COLUMN_SHIFT likewise: grid.column_count
    "histogram",  # HISTOGRAM of each member
    "codes",  # the same of tensors of 8 bits alone, whose bins are their codes
)

# What the bytes of a member are like.
CONTENT = np.dtype(
    [
        ("count", np.int64),  # all elements
        ("ored", np.uint64),  # OR of all words: low bits that are 0 everywhere hold nothing
        ("digest", np.uint64),  # sum over blocks of a keyed hash of their words; equal bits have equal ones
        ("zero_run", np.int64),  # the longest run of words without a bit (+0, not -0), in elements
        ("zero_run_start", np.int64),  # where it begins, from the first element of the row; -1 without any
        ("zero_head", np.int64),  # zeros before the first value that is none
        ("zero_tail", np.int64),  # zeros behind the last
    ]
)

# How the bits of a pair differ. Distances are counted in units in the last place: representable numbers apart (+0 and
# -0 are one), of equal dtypes alone; `miscast` and what follows is of a float candidate of another dtype alone.
BITWISE = np.dtype(
    [
        ("count", np.int64),  # elements of which the fields of equal dtypes speak; 0 for others
        ("first", np.int64),  # flat index of the first element with other bits; -1 for none
        ("ulps1", np.int64),  # elements at least so many representable numbers apart, both of them finite
        ("ulps2", np.int64),
        ("ulps4", np.int64),
        ("ulps8", np.int64),
        ("ulps16", np.int64),
        ("ulps256", np.int64),
        ("ulps65536", np.int64),
        ("furthest", np.uint64),  # the largest distance
        ("visible", np.int64),  # |b - a| > 2^-10 max(|a|, |b|), of any dtypes, both finite
        ("exponents", np.int64),  # another exponent, of equal float dtypes
        ("flips", np.int64),  # one bit differs, and that is of the exponent
        ("flip_size", np.float64),  # the largest magnitude on either side of a flip; infinite for what is not finite
        ("flip_index", np.int64),  # its first flat index; -1 for none
        ("cast", np.int64),  # elements that were compared with the baseline's value rounded to the candidate's dtype
        ("miscast", np.int64),  # those that are not that value, bit for bit; any NaN for a NaN
        ("miscast_index", np.int64),  # the first of them; -1 for none
        ("overflowed", np.int64),  # finite in the baseline, not in the candidate
        ("underflowed", np.int64),  # 0 in the candidate alone
    ]
)

# One row of a member, over its finite values, and of a pair, over what is finite on both sides.
ROW = np.dtype(
    [
        ("finite", np.int32),
        ("zeros", np.int32),
        ("sum", np.float64),
        ("squares", np.float64),
        ("absmax", np.float64),
    ]
)
ROW_SHIFT = np.dtype(
    [
        ("both", np.int32),
        ("changed", np.int32),  # another value
        ("d2", np.float64),  # sum of d*d
        ("along", np.float64),  # sum of a*d
    ]
)
COLUMN = np.dtype([("squares", np.float64)])
COLUMN_SHIFT = np.dtype([("d2", np.float64)])

# How many finite values have which upper half of their F32 pattern (sign, exponent, 7 bits): a bin is exact for BF16,
# narrower than 2^-7 of the value else. Sparse, by bin.
HISTOGRAM = np.dtype([("bin", np.uint32), ("count", np.int64)])


def empty(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Rows that are neutral in every merge."""
    rows = np.zeros(shape, dtype)
    for field in _NOWHERE.intersection(dtype.names or ()):
        rows[field] = -1
    if dtype == MOMENTS:
        rows["low"] = np.iinfo(np.uint64).max
    return rows


_NOWHERE = {"absmax_index", "max_abs_index", "zero_run_start", "first", "flip_index", "miscast_index"}


def empty_gram(rows: int, members: int) -> np.ndarray:
    """Zeros [rows, planes of GRAM, members, members], to which blocks and other such rows are added."""
    return np.zeros((rows, len(GRAM), members, members))
