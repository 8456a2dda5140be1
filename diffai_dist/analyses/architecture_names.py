"""The tensors of a checkpoint in groups whose names differ in numbers only: some hundred, however deep the model is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from diffai_dist.analyses.roles import pattern, role

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape | None]  # None where only the name is known

# What stands beside a weight to decode it: bitsandbytes, GPTQ and AWQ, compressed-tensors, FP8.
_ENCODING = re.compile(
    r"\.(?:(?:nested_)?(?:absmax|quant_map)|quant_state\.\w+|SCB|weight_format|qzeros|scales|g_idx|weight_g_idx"
    r"|(?:weight|input|output|k|v)_scale(?:_inv|_2)?|weight_(?:zero_point|shape|global_scale))$"
)
_BUFFER = re.compile(
    r"(?:^|[./])(?:inv_freq|masked_bias|position_ids|token_type_ids|num_batches_tracked|running_mean|running_var"
    r"|relative_position_index|causal_mask)$"
)
_LORA = re.compile(r"[./]lora_(?:(?P<first>A|down|embedding_A)|(?:B|up|embedding_B))(?:[./][^./]+)??(?:[./]weight)?$")
FREQUENCIES = "inv_freq"  # of rotary embeddings: a buffer that tells the size of a head
_NF4 = ".quant_state.bitsandbytes__"
_EXPERT_NUMBER = re.compile(r"experts?[./]$")


@dataclass(frozen=True, slots=True)
class Stored:
    """A parameter as the model uses it: a decoded weight, the product of an adapter's two factors."""

    shape: Shape | None
    elements: int | None  # of the shape, or where only their number is known


@dataclass(frozen=True)
class Group:
    """Tensors of one pattern; the shape is that of most of them, `elements` of one of these."""

    pattern: str
    role: str
    numbers: tuple[frozenset[int], ...]  # found at each `#`
    count: int
    shape: Shape | None
    elements: int | None

    @cached_property
    def stack(self) -> str | None:
        """The path before the first number, which counts blocks; None without any."""
        return self.pattern.partition("#")[0].rstrip("./_") if self.numbers else None

    @cached_property
    def part(self) -> str:
        """The path inside the block, or the whole where there is none."""
        return self.pattern.partition("#")[2].strip("./") if self.numbers else self.pattern

    @property
    def blocks(self) -> frozenset[int]:
        """The blocks that have one."""
        return self.numbers[0] if self.numbers else frozenset()

    @cached_property
    def experts(self) -> int:
        """One more than the largest number of an expert; 0 without any."""
        pieces = self.pattern.split("#")[:-1]
        places = [i for i, piece in enumerate(pieces) if _EXPERT_NUMBER.search(piece)]
        return 1 + max(self.numbers[places[0]]) if places else 0

    @property
    def weight(self) -> bool:
        """Whether it may be a matrix, not a bias beside one."""
        return not self.pattern.endswith(("bias", "beta")) and (self.shape is None or len(self.shape) >= 2)


def groups_of(shapes: Shapes) -> list[Group]:
    """All parameters by pattern, in the order of their first names, and rotary frequencies; other buffers, and what
    only decodes others, are left out.

    >>> [(one.pattern, one.count, one.shape) for one in groups_of({"h.0.w": (2, 3), "h.1.w": (2, 3)})]
    [('h.#.w', 2, (2, 3))]
    """
    found: dict[str, list[tuple[str, tuple[int, ...], Stored]]] = {}
    for name, stored in _parameters(shapes).items():
        text, numbers = pattern(name)
        found.setdefault(text, []).append((name, numbers, stored))
    return [_group(text, members) for text, members in found.items()]


def _group(text: str, members: list[tuple[str, tuple[int, ...], Stored]]) -> Group:
    numbers = tuple(map(frozenset, zip(*(one for _, one, _ in members), strict=True)))
    known = Counter(stored for _, _, stored in members if stored.elements is not None)
    most = min(known, key=lambda one: (-known[one], str(one.shape))) if known else Stored(None, None)
    return Group(text, role(members[0][0]), numbers, len(members), most.shape, most.elements)


def _parameters(shapes: Shapes) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name, shape in shapes.items():
        if _ENCODING.search(name) or (is_buffer(name, shape) and not name.endswith(FREQUENCIES)):
            continue
        if factor := _LORA.search(name):
            module = f"{name[: factor.start()]}.weight"
            found[module] = _product(found.get(module), shape, first=factor["first"] is not None)
        elif name.endswith(".qweight"):
            found[f"{name[:-8]}.weight"] = Stored(None, None)
        else:
            found[name] = _decoded(name, shape, shapes)
    return found


def _decoded(name: str, shape: Shape | None, shapes: Shapes) -> Stored:
    if shape is None:
        return Stored(None, None)
    if any(f"{name}{_NF4}{kind}" in shapes for kind in ("nf4", "fp4")):  # two elements in each byte, in one column
        return Stored(None, 2 * math.prod(shape))
    return Stored(shape, math.prod(shape))


def _product(other: Stored | None, shape: Shape | None, first: bool) -> Stored:
    """[out, in] out of [rank, in] and [out, rank], once both are there: until then the size that does not come from it.

    Names come in any order, and either factor alone stands in its own place of a shape with a 0.
    """
    if shape is None or len(shape) != 2:
        return Stored(None, None)
    known = other.shape if other and other.shape else (0, 0)
    made = (known[0], shape[1]) if first else (shape[0], known[1])
    return Stored(made, math.prod(made))


def is_buffer(name: str, shape: Shape | None) -> bool:
    """Whether a tensor is no parameter: masks, positions, running statistics; GPT-2's `attn.bias` is a mask."""
    return bool(_BUFFER.search(name)) or (name.endswith("attn.bias") and shape is not None and len(shape) == 4)


def lora_ranks(shapes: Shapes) -> set[int]:
    """The ranks of an adapter: rows of the factors that come first."""
    return {shape[0] for name, shape in _first_factors(shapes) if shape}


def is_adapter(shapes: Shapes) -> bool:
    """Whether some tensors are low-rank factors."""
    return any(True for _ in _first_factors(shapes))


def _first_factors(shapes: Shapes) -> Iterator[tuple[str, Shape | None]]:
    for name, shape in shapes.items():
        if (found := _LORA.search(name)) and found["first"]:
            yield name, shape


def stored_elements(shapes: Shapes) -> int | None:
    """How many parameters there are, each as often as it is stored; None where a shape or an encoding is not known."""
    total = 0
    for name, shape in shapes.items():
        if is_buffer(name, shape) or _ENCODING.search(name):
            continue
        size = None if name.endswith(".qweight") else _decoded(name, shape, shapes).elements
        if size is None:
            return None
        total += size
    return total
