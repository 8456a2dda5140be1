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


def empty(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Rows that are neutral in every merge."""
    rows = np.zeros(shape, dtype)
    if dtype == MOMENTS:
        rows["low"] = np.iinfo(np.uint64).max
        rows["absmax_index"] = -1
    else:
        rows["max_abs_index"] = -1
    return rows


def empty_gram(rows: int, members: int) -> np.ndarray:
    """Zeros [rows, planes of GRAM, members, members], to which blocks and other such rows are added."""
    return np.zeros((rows, len(GRAM), members, members))
