"""An image that was warmed has compiled every loop of every scheme."""

from __future__ import annotations

import importlib
import pkgutil

from diffai_dist import schemes
from diffai_dist.schemes.loops import Loop
from diffai_dist.schemes.warming import warm


def test_warming_compiles_every_loop() -> None:
    modules = [
        importlib.import_module(f"{schemes.__name__}.{one.name}") for one in pkgutil.iter_modules(schemes.__path__)
    ]
    loops = {
        f"{one.__name__}.{name}": loop for one in modules for name, loop in vars(one).items() if isinstance(loop, Loop)
    }
    assert len(loops) > 15
    warm()
    assert [name for name, loop in loops.items() if len(loop.signatures) != 1] == []
