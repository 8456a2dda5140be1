"""Compare ML model checkpoints: exact numbers, local or in a bucket, on one machine or a dask cluster.

>>> import diffai_dist
>>> report = diffai_dist.compare("old.safetensors", "new.safetensors")  # doctest: +SKIP
>>> report.to_pandas().nlargest(10, "rel_l2")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffai_dist.api import Report, compare, sweep
    from diffai_dist.errors import DiffaiError

__all__ = ["DiffaiError", "Report", "compare", "sweep"]

_HOMES = {name: "diffai_dist.api" for name in ("Report", "compare", "sweep")} | {"DiffaiError": "diffai_dist.errors"}


def __getattr__(name: str) -> Any:
    """Import on first use: `import diffai_dist` alone stays instant."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
