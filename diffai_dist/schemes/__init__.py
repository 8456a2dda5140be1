"""How codes become values. A scheme is one file: how it is recognised, which bytes a run of rows needs, the decoder."""

from __future__ import annotations

from diffai_dist.schemes import awq, bnb4, bnb8, fp8, gptq, int8, mxfp4, nvfp4, packed, refused
from diffai_dist.schemes.stored import Finder

# Asked in this order, each about tensors of its suffixes and dtypes; the first that knows one decides.
SCHEMES: tuple[Finder, ...] = (
    bnb4.FINDER,
    bnb4.LOST,
    bnb8.FINDER,
    packed.FINDER,
    fp8.FINDER,
    mxfp4.EXPERTS,
    int8.FINDER,
    mxfp4.PACKED,
    nvfp4.PACKED,
    nvfp4.FINDER,
    mxfp4.STACKED,
    mxfp4.ORIGINAL,
    fp8.PARAMETERS,
    int8.PARAMETERS,
    awq.FINDER,
    gptq.FINDER,
    *refused.FINDERS,
)
