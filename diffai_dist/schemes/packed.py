"""compressed-tensors pack-quantized: what shapes tell of bits and groups, checked against what is declared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from diffai_dist.checkpoint import Tensor
from diffai_dist.schemes.declared import ZEROS_APPLIED, refuse_rotated, weights
from diffai_dist.schemes.modules import Modules
from diffai_dist.schemes.scales import GROUP_TAKEN, Block, in_order, kind, power_of_two
from diffai_dist.schemes.stored import Found, Stored, Undecodable
from diffai_dist.schemes.words import Packed, packed_words

FLOATS = ("BF16", "F16", "F32")
MOST_GROUPS = 256  # of a config that are looked at, for each weight: published ones have one to three
DENSE_SINCE = (0, 17)  # compressed-tensors 3f01c782: before, no code lay in two words


class _Layout(NamedTuple):
    bits: int
    dense: bool
    rows: int  # of a block with one scale
    columns: int


class _Declared(NamedTuple):
    """What a group of the config says of the weights it is for, as far as that is of the right types."""

    bits: Any = None
    block: Block | None = None
    symmetric: bool = True
    ordered: bool = False
    targets: Any = None


_Fit = tuple[_Layout, _Declared | None]


def find(prefix: str, codes: Tensor, stored: Stored) -> Found | None:
    """The weight, in the layout that shapes and config say together; Undecodable where they leave a choice or none."""
    if stored.part(f"{prefix}.scale_packed", f"{prefix}.meta"):
        raise Undecodable("it is in the layout marlin-24 of compressed-tensors, which is not read")
    refuse_rotated(stored.declared)
    scale = stored.needed(f"{prefix}.weight_scale")
    if scale.dtype not in FLOATS:
        raise Undecodable(f"its weight_scale is {scale.dtype}", " or ".join(FLOATS))
    shape = _shape(codes, stored.needed(f"{prefix}.weight_shape"), stored)
    zero = stored.part(f"{prefix}.weight_zero_point")
    layout, declared = _layout(prefix, codes, shape, scale, zero, stored)
    if declared and not declared.symmetric:
        stored.needed(f"{prefix}.weight_zero_point")
    order = _order(prefix, shape, layout, declared, stored)
    parts = [part for part in (codes, scale, zero, order) if part]
    in_order(*parts)
    scheme = Packed(*layout[:2], scale.dtype, *layout[2:], zero.dtype if zero else "", order is not None)
    name = f"int{layout.bits}-{kind(shape, (layout.rows, layout.columns))}"
    spans = tuple(part.spans[0] for part in parts)
    otherwise = (stored.declared.file + ZEROS_APPLIED,) if zero and declared and declared.symmetric else ()
    remarks = (GROUP_TAKEN,) if declared is None and name.endswith("group") else ()
    return Found(Tensor(f"{prefix}.weight", name, shape, spans, scheme), remarks, otherwise)


def _shape(codes: Tensor, told: Tensor, stored: Stored) -> tuple[int, ...]:
    """The shape that is stored beside the codes, if it is one of so many rows."""
    kinds = {"I64": np.int64, "I32": np.int32}
    if len(codes.shape) < 2 or told.dtype not in kinds or told.shape != (len(codes.shape),):
        raise Undecodable(f"its weight_shape is {told.dtype} {list(told.shape)}", f"I64 [{len(codes.shape)}]")
    shape = tuple(int(one) for one in np.frombuffer(stored.content.get(told.name, b""), kinds[told.dtype]))
    if shape[:-1] != codes.shape[:-1] or min(shape) < 1:
        raise Undecodable(f"its weight_shape is {list(shape)}", f"the rows of weight_packed, {list(codes.shape[:-1])}")
    return shape


def _layout(
    prefix: str, codes: Tensor, shape: tuple[int, ...], scale: Tensor, zero: Tensor | None, stored: Stored
) -> _Fit:
    """The one layout that codes, scales and zero points fit, and what declares it, if anything is declared."""
    declared = _groups(shape, stored)
    fits = list(_fitting(declared, codes, shape, scale, zero))
    fits = [one for one in fits if one[1] and one[1].symmetric == (zero is None)] or fits
    if _choices(fits) > 1:
        fits = [one for one in fits if one[1] and Modules.of(one[1].targets).lists(prefix)] or fits
        fits = [one for one in fits if one[0].dense == _is_dense(stored)] or fits
    if _choices(fits) != 1:
        parts = ", ".join(f"{part.name.rpartition('.')[2]} {list(part.shape)}" for part in (codes, scale, zero) if part)
        found = f"{'more than one' if fits else 'no'} layout of a weight {list(shape)} has {parts}"
        texts = {f"{one.bits!s:.9} bits in blocks of {list(one.block or ())}" for one in declared}
        raise Undecodable(found, " or ".join(sorted(texts)[:3]))
    return fits[0]


def _choices(fits: Sequence[_Fit]) -> int:
    return len({layout for layout, _ in fits})


def _fitting(
    declared: Sequence[_Declared], codes: Tensor, shape: tuple[int, ...], scale: Tensor, zero: Tensor | None
) -> Iterator[_Fit]:
    """All layouts that are of these shapes, among those that are declared where any are."""
    words = codes.shape[-1]
    one_word = words == 1 and (zero is None or zero.dtype != "I32")  # all codes in it: both layouts are the same
    widths = [
        (bits, dense)
        for bits in range(1, 9)
        for dense in (True, False)
        if packed_words(shape[-1], bits, dense) == words and (dense or (32 % bits and not one_word))
    ]
    for one in declared or (None,):
        for block in _usual(shape, scale) if one is None else (one.block,):
            for bits, dense in widths:
                if block and (one is None or one.bits == bits):
                    layout = _Layout(bits, dense, *block)
                    if _covers(scale.shape, shape, layout) and _has_zeros(zero, shape, layout):
                        yield layout, one


def _groups(shape: tuple[int, ...], stored: Stored) -> list[_Declared]:
    """What the groups of the config declare of integer weights."""
    found = []
    for one, targets in islice(weights(stored.declared), MOST_GROUPS):
        if one.get("type", "int") == "int":
            symmetric = one.get("symmetric", True) is not False
            ordered = one.get("actorder") in ("group", "dynamic", True)
            found.append(_Declared(one.get("num_bits", 8), _block(one, shape), symmetric, ordered, targets))
    return found


def _block(fields: Mapping[str, Any], shape: tuple[int, ...]) -> Block | None:
    """Rows and columns that share a scale, as declared; a strategy that is not named follows from the group size."""
    *_, height, width = shape
    size, structure = fields.get("group_size"), fields.get("block_structure")
    strategy = fields.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
    if strategy == "tensor":
        return height, width
    if strategy == "channel":
        return 1, width
    if strategy in ("group", "tensor_group") and type(size) is int and size > 0:
        return 1, min(size, width)
    if strategy == "block" and isinstance(structure, list) and [type(one) for one in structure] == [int, int]:
        return (min(structure[0], height), min(structure[1], width)) if min(structure) > 0 else None
    return None


def _usual(shape: tuple[int, ...], scale: Tensor) -> set[Block]:
    """What scales of that shape are for where nothing is declared; compressed-tensors cuts no group short."""
    *_, height, width = shape
    group = power_of_two(shape, scale)
    return {(height, width), (1, width)} | ({group} if group and width % group[1] == 0 else set())


def _covers(scales: tuple[int, ...], shape: tuple[int, ...], layout: _Layout) -> bool:
    """Whether scales of that shape are one for each block; of a matrix the axes of length 1 may be left out."""
    *stack, height, width = shape
    grid = -(-height // layout.rows), -(-width // layout.columns)
    if scales == (*stack, *grid):
        return True
    return not stack and grid[1] == 1 and scales in ([(), (1,)] if grid[0] == 1 else [(grid[0],)])


def _has_zeros(zero: Tensor | None, shape: tuple[int, ...], layout: _Layout) -> bool:
    """Whether zero points are one for each scale: as bytes, or packed down the rows if each row has its own."""
    if zero is None or zero.dtype == "I8":
        return zero is None or _covers(zero.shape, shape, layout)
    *stack, height, width = shape
    packed = (*stack, packed_words(height, layout.bits, layout.dense), -(-width // layout.columns))
    return zero.dtype == "I32" and layout.rows == 1 and zero.shape == packed


def _is_dense(stored: Stored) -> bool | None:
    """Which of the two layouts the version that wrote the checkpoint has; None where it is not told."""
    version = stored.declared.fields.get("version")
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    return tuple(int(one) for one in found.groups()) >= DENSE_SINCE if found else None


def _order(
    prefix: str, shape: tuple[int, ...], layout: _Layout, declared: _Declared | None, stored: Stored
) -> Tensor | None:
    """The group of each column, where columns are not in the order of their groups."""
    name = f"{prefix}.weight_g_idx"
    order = stored.needed(name) if declared and declared.ordered else stored.part(name)
    if order is None or layout.columns == shape[-1]:
        return None
    if order.dtype != "I32" or order.shape != shape[1:] or layout.rows != 1:
        raise Undecodable(f"its weight_g_idx is {order.dtype} {list(order.shape)}", f"I32 [{shape[-1]}]")
    return order
