"""Loops over codes, and the numbers that codes are looked up in; nothing is compiled before a scheme decodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Generic, ParamSpec

import numpy as np

Parameters = ParamSpec("Parameters")


class Loop(Generic[Parameters]):
    """A function that numba compiles when it is first called: opening a checkpoint needs no compiler."""

    def __init__(self, function: Callable[Parameters, None]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._compiled: Any = None

    @property
    def signatures(self) -> list[Any]:
        """The types of arguments that it is compiled for."""
        return list(self._compiled.signatures) if self._compiled else []

    def __call__(self, *values: Parameters.args, **named: Parameters.kwargs) -> None:
        if self._compiled is None:
            from diffai_dist.kernels.compiled import entry

            self._compiled = entry(self.function)
        self._compiled(*values, **named)


@cache
def table(dtype: str) -> np.ndarray:
    """float32 [256]: the value of each code of a dtype of 8 bits, or of 4, in the low nibble."""
    from diffai_dist.kernels.tables import SMALL_FLOATS

    if dtype in ("I8", "U8"):
        return np.arange(256, dtype=np.uint8).view(np.int8 if dtype == "I8" else np.uint8).astype(np.float32)
    return np.array([SMALL_FLOATS[dtype](code) for code in range(256)], np.float32)


def floats(data: np.ndarray, dtype: str) -> Any:
    """Bytes of scales, uint8, as float32: exact, but for F64, which is rounded."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype in WIDE:
        with np.errstate(over="ignore", invalid="ignore"):  # of F64: infinite, as a cast makes it
            return data.view(WIDE[dtype]).astype(np.float32)
    return table(dtype)[data]


WIDE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I32": np.int32}  # dtypes that NumPy has itself
SCALES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0"})
