"""How codes become values. A scheme is one file: how it is recognised, which bytes a run of rows needs, the decoder."""

from __future__ import annotations

from diffai_dist.schemes.stored import Finder

# Asked in this order, each about tensors of its suffixes and dtypes; the first that knows one decides.
SCHEMES: tuple[Finder, ...] = ()
