"""The tensors of a checkpoint in groups whose names differ in numbers only: some hundred, however deep the model is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
_NARROWED = re.compile(r"\.weight_(?:packed|scale_2|shape|global_scale)$")  # beside or in place of packed integers
_EXPERT_NUMBER = re.compile(r"experts?[./]$")

Tensors = Sequence[tuple[str, tuple[int, ...], Shape | None]]  # name, the numbers in it, shape
Named = Mapping[str, Tensors]  # by pattern


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


def named(shapes: Shapes) -> Named:
    """Names and shapes by pattern, in the order of their first names.

    >>> named({"h.0.w": (2, 3), "h.1.w": None})
    {'h.#.w': [('h.0.w', (0,), (2, 3)), ('h.1.w', (1,), None)]}
    """
    found: dict[str, list[tuple[str, tuple[int, ...], Shape | None]]] = {}
    for name, shape in shapes.items():
        text, numbers = pattern(name)
        found.setdefault(text, []).append((name, numbers, shape))
    return found


def groups_of(names: Named) -> list[Group]:
    """Parameters as a model uses them, and rotary frequencies: a decoded weight, the product of an adapter's factors.

    Other buffers, and what only decodes others, are left out.
    """
    last = {text[: found.start()]: text for text in names if (found := _LORA.search(text)) and not found["first"]}
    return [group for text in names if (group := _group(text, names, last)) is not None]


def _group(text: str, names: Named, last: Mapping[str, str]) -> Group | None:
    """`last` has the factors that come last, by the module they belong to."""
    shape = _commonest(names[text])
    if _ENCODING.search(text) or (is_buffer(text, shape) and not text.endswith(FREQUENCIES)):
        return None
    if factor := _LORA.search(text):
        module = text[: factor.start()]
        after = _commonest(names[last[module]]) if module in last else None
        product = _product(shape, after)
        size = math.prod(product) if product else None
        return _made(f"{module}.weight", names[text], product, size) if factor["first"] else None
    if text.endswith(".qweight"):
        return _made(f"{text[:-8]}.weight", names[text], None, None)
    if _is_packed(text, names):
        return _made(text, names[text], None, None if shape is None else 2 * math.prod(shape))
    return _made(text, names[text], shape, None if shape is None else math.prod(shape))


def _made(text: str, members: Tensors, shape: Shape | None, elements: int | None) -> Group:
    numbers = tuple(map(frozenset, zip(*(one for _, one, _ in members), strict=True)))
    return Group(text, role(members[0][0]), numbers, len(members), shape, elements)


def _commonest(members: Tensors) -> Shape | None:
    known = Counter(shape for _, _, shape in members if shape is not None)
    return min(known, key=lambda one: (-known[one], one), default=None)


def _is_packed(text: str, names: Named) -> bool:
    """Whether bitsandbytes keeps two elements in each byte, all in one column."""
    return f"{text}{_NF4}nf4" in names or f"{text}{_NF4}fp4" in names


def _product(first: Shape | None, last: Shape | None) -> Shape | None:
    """[out, in] out of [rank, in] and [out, rank]."""
    if first is None or last is None or not len(first) == len(last) == 2:
        return None
    return last[0], first[1]


def is_buffer(name: str, shape: Shape | None) -> bool:
    """Whether a tensor is no parameter: masks, positions, running statistics; GPT-2's `attn.bias` is a mask."""
    return bool(_BUFFER.search(name)) or (name.endswith("attn.bias") and shape is not None and len(shape) == 4)


def is_narrowed(names: Named) -> bool:
    """Whether weights are stored with several elements in each column, which shapes then do not count."""
    return any(map(_NARROWED.search, names))


def lora_ranks(names: Named) -> set[int] | None:
    """The ranks of an adapter, rows of the factors that come first; None where there are no such factors."""
    first = [text for text in names if (found := _LORA.search(text)) and found["first"]]
    return {shape[0] for text in first for _, _, shape in names[text] if shape} if first else None


def stored_elements(names: Named) -> int | None:
    """How many parameters there are, each as often as it is stored; None where a shape or an encoding is not known."""
    total = 0
    for text, members in names.items():
        if _ENCODING.search(text) or is_buffer(text, _commonest(members)):
            continue
        shapes = [shape for _, _, shape in members]
        if text.endswith(".qweight") or None in shapes:
            return None
        total += (1 + _is_packed(text, names)) * sum(math.prod(shape) for shape in shapes if shape is not None)
    return total
