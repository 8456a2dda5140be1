"""Which block of a weight each scale beside it is for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.declared import blocks, has_codes, refuse_rotated
from diffai_dist.schemes.stored import Declared, Stored, Undecodable

Block = tuple[int, int]

TILE = 128, 128  # rows and columns where nothing is declared: what all published models have
MX = 1, 32  # of microscaling formats, OCP v1.0
OR_PLAINLY = ".scale"  # what scales are called, too
GROUP_TAKEN = "no group size is declared: the only power of two that fits the scales was taken"


def in_order(*parts: Tensor) -> None:
    """Raise Undecodable where a part is not one run of plain elements: transposed, or cut in pieces."""
    for part in parts:
        if part.scheme or len(part.spans) != 1 or part.nbytes * 8 != part.elements * part.decoder.bits:
            raise Undecodable(f"its part {part.name.rpartition('.')[2]} is stored transposed or in pieces")


def scale_beside(prefix: str, endings: Sequence[str], stored: Stored) -> Tensor | None:
    """The scales of a module's weight; Undecodable where several tensors may be them.

    A `.scale` is a parameter of the module for itself where one of the others is there.
    """
    scale = stored.part(*(prefix + ending for ending in (*endings, OR_PLAINLY)))
    if several := [one for one in endings if stored.name(prefix + one) in stored.tensors][1:]:
        beside = scale.name.rpartition(".")[2] if scale else ""
        raise Undecodable(f"{', '.join(several)} lie beside its {beside}", "one of them")
    return scale


def scale_of_weight(
    prefix: str, codes: Tensor, kind: Literal["float", "int"], endings: Sequence[str], stored: Stored
) -> Tensor | None:
    """The scales of a module's weight, None where nothing scales it; Undecodable where they are lost or not alone."""
    scale = scale_beside(prefix, endings, stored)
    if scale is not None:
        refuse_undone(prefix, stored)
    elif len(codes.shape) > 1 and has_codes(stored.declared, prefix, kind):
        names = " or ".join(ending.removeprefix(".") for ending in (*endings, OR_PLAINLY))
        raise Undecodable(f"its {names} is missing, and {stored.declared.file} declares it as quantised")
    return scale


def refuse_undone(prefix: str, stored: Stored) -> None:
    """Raise Undecodable where decoded weights would not be in the order, or the basis, of the unquantised ones."""
    refuse_rotated(stored.declared)
    if stored.part(f"{prefix}.weight_g_idx"):
        raise Undecodable("its columns lie in the order of weight_g_idx, which is not undone")
    if stored.part(f"{prefix}.pre_quant_scale"):
        raise Undecodable("its columns are scaled for activations (pre_quant_scale), which is not undone")


def block_of(shape: Sequence[int], scale: Tensor, declared: Declared, usual: Iterable[Block] = ()) -> Block:
    """Rows and columns of a weight that one scale is for: what fits the shape of the scales.

    Channels are tried first, then all blocks that are declared, and only where none is, the usual ones. A block is
    never derived by division: 448 rows over 4 scales are 3.5 tiles of 128, not 4 of 112. Raises Undecodable where no
    block fits, or several do.
    """
    *stack, height, width = (*(1,) * (2 - len(shape)), *shape)
    tall, wide = max(height, 1), max(width, 1)  # blocks of an empty weight are not empty
    if scale.elements == 1:
        return math.prod(filter(None, stack)) * tall, wide
    known = blocks(declared)
    for tried in ([(tall, wide), (1, wide)], known or usual):
        fitting = {
            (min(rows, tall), min(columns, wide))
            for rows, columns in tried
            if _trimmed(scale.shape) == _trimmed((*stack, -(-height // rows), -(-width // columns)))
        }
        if len(fitting) > 1:
            choice = " and ".join(f"{rows}x{columns}" for rows, columns in sorted(fitting))
            raise Undecodable(f"its scales fit blocks of {choice}, which are both declared")
        if fitting:
            return fitting.pop()
    shapes = " or ".join(str(list(one)) for one in _shapes(stack, height, width, [(1, wide), *(known or usual)]))
    meant = f", as {'x'.join(map(str, known[0]))} is declared" if len(known) == 1 else ""
    raise Undecodable(f"its scales have shape {list(scale.shape)}", shapes + meant)


def power_of_two(shape: Sequence[int], scale: Tensor) -> Block | None:
    """The only group of 2^k columns that fits the scales; None where none does.

    >>> power_of_two((8, 448), Tensor("s", "F32", (8, 4), ()))
    (1, 128)
    """
    if len(shape) < 2 or len(scale.shape) != len(shape) or scale.shape[:-1] != shape[:-1]:
        return None
    groups, width = scale.shape[-1], shape[-1]
    size = 1 << max(-(-width // groups) - 1, 0).bit_length() if groups else 0
    return (1, size) if size and -(-width // size) == groups else None


def groups_of(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """The shape of scales that are each for so many numbers, or bytes, of a row; the last of a row may be for fewer.

    >>> groups_of((2, 40), 16), groups_of((), 16)
    ((2, 3), ())
    """
    return (*shape[:-1], *(-(-width // size) for width in shape[-1:]))


def kind(shape: Sequence[int], block: Block) -> str:
    """What a block is called: tensor, channel, group or block."""
    height, width = (1, 1, *shape)[-2:]
    if block[0] >= height and block[1] >= width:
        return "tensor"
    if block[0] == 1:
        return "channel" if block[1] >= width else "group"
    return "block"


def _trimmed(shape: Sequence[int]) -> list[int]:
    """The shape without the ones at its end: [rows] and [rows, 1] are both a scale for each row."""
    trimmed = list(shape)
    while trimmed and trimmed[-1] == 1:
        trimmed.pop()
    return trimmed


def _shapes(stack: Sequence[int], height: int, width: int, tried: Iterable[Block]) -> Iterable[list[int]]:
    """The shapes that scales of such blocks have; a few of them tell enough."""
    shapes = [[*stack, -(-height // rows), -(-width // columns)] for rows, columns in tried]
    return [one for i, one in enumerate(shapes[:4]) if one not in shapes[:i]]
