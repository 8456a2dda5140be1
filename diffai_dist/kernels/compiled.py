"""How the kernels are compiled: strict IEEE, without the GIL, kept on disk where the disk allows it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

# Kernels are typed by numba from their arguments: widths and signs matter there, and Python's types have none.
Word = Any  # an integer of a fixed width, an address, or a zero that stands for its type
Real = Any  # a float64
Flag = Any

Function = TypeVar("Function", bound=Callable[..., Any])

# Kernels allocate nothing: without reference counts a view of an array costs no atomic operation.
_OPTIONS = {"nogil": True, "fastmath": False, "error_model": "numpy", "_nrt": False}


@functools.cache
def sources(folder: Path) -> str:
    """Digest of all that is compiled in: numba's own stamp covers one file, and callees lie in its neighbours."""
    package = Path(__file__).parents[1]
    files = [*sorted(folder.glob("*.py")), package / "partials.py", package / "dtypes.py"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


class SourceCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, keyed by all sources; a disk that fails costs a compilation, not the run."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), sources(Path(self._py_func.__code__.co_filename).parent))

    # Any exception: that is what unpickling and linking damaged bytes may raise, and a file cut short by a full disk
    # would otherwise end every run to come.

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            with contextlib.suppress(OSError):  # without an index all is compiled and written anew
                os.remove(self._cache_file._index_path)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:
            self.disable()


def jit(function: Function) -> Function:
    """A part of a kernel: compiled into the entry points that call it, on the first call."""
    compiled: Function = numba.njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def entry(function: Function) -> Function:
    """A kernel that Python calls. It holds the code of all its parts, so it alone is kept on disk."""
    compiled: Any = numba.njit(**_OPTIONS)(function)
    try:
        compiled._cache = SourceCache(function)
    except (RuntimeError, OSError):  # no directory can be written: compile in memory
        return compiled  # type: ignore[no-any-return]
    return compiled  # type: ignore[no-any-return]
