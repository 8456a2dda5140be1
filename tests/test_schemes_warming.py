"""An image that was warmed has compiled every loop of every scheme."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil
from diffai_dist import schemes
from diffai_dist.schemes.loops import Loop
from diffai_dist.schemes.warming import warm

modules = [importlib.import_module(f"{schemes.__name__}.{one.name}") for one in pkgutil.iter_modules(schemes.__path__)]
named = {f"{one.__name__}.{name}": found for one in modules for name, found in vars(one).items()}
loops = {name: found for name, found in named.items() if isinstance(found, Loop)}
assert len(loops) > 15
warm()
assert [name for name, loop in loops.items() if len(loop.signatures) != 1] == []
"""


def test_warming_compiles_every_loop() -> None:
    """In a process of its own: what other tests decode is compiled, too."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
