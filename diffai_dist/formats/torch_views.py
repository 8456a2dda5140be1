"""What a pickle says of one tensor: its storage, and where in that its elements lie. Checked, since files say it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from diffai_dist.dtypes import BITS
from diffai_dist.formats.names import quoted, shown
from diffai_dist.formats.safetensors import MAX_DIMENSIONS, MAX_ELEMENTS
from diffai_dist.formats.unpickling import Made, Pairs, Persistent

MAX_WRAPPED = 8  # a parameter of a parameter ...

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "complex64": "C64", "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
ODD_BYTES = {"C128": 16, "F4": 1}  # of an element as torch counts it: of float4_e2m1fn_x2, two values

# Classes of tensors that are as they lie; others compute what they are.
PLAIN = frozenset(
    f"torch.{name}" for name in ("Tensor", "_tensor.Tensor", "nn.parameter.Parameter", "nn.parameter.Buffer")
)


class Unusable(Exception):
    """Why one tensor cannot be read, and whether that is because the file is broken."""

    def __init__(self, found: str, expected: str = "", *, broken: bool = False) -> None:
        super().__init__(found)
        self.found, self.expected, self.broken = found, expected, broken


@dataclass(frozen=True, slots=True)
class View:
    """A tensor in a storage: elements of `dtype` from `offset` on, at `strides`, as torch counts elements."""

    dtype: str
    key: str  # of the storage
    storage_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return _item_bytes(self.dtype)

    @property
    def reach(self) -> int:
        """Elements of the storage from its first element to its last."""
        if not math.prod(self.shape):
            return 0
        return sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)) + 1

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie one after the other in the order of the shape; axes of one element do not count."""
        wanted = 1
        for size, step in zip(self.shape[::-1], self.strides[::-1], strict=True):
            if size > 1 and step != wanted:
                return not math.prod(self.shape)
            wanted *= size
        return True


def _item_bytes(dtype: str) -> int:
    return ODD_BYTES.get(dtype) or BITS[dtype] // 8


def view_of(value: object) -> View:
    """Where a tensor lies, of what would have made it; Unusable if it is none that is read."""
    for _ in range(MAX_WRAPPED):
        if not isinstance(value, Made) or not isinstance(value.arguments, tuple):
            break
        arguments, name = value.arguments, value.path.rpartition(".")[2]
        match name:
            case "_rebuild_tensor" | "_rebuild_tensor_v2" if len(arguments) >= 4:
                return _view(arguments[:4], _element_type(arguments[0]), arguments[6:7])
            case "_rebuild_tensor_v3" if len(arguments) >= 7:
                return _view(arguments[:4], _name_of(arguments[6]), arguments[7:8])
            case "_rebuild_parameter" | "_rebuild_parameter_with_state" if arguments:
                value = arguments[0]
            case "_rebuild_from_type" | "_rebuild_from_type_v2" if len(arguments) >= 3:
                if getattr(arguments[1], "path", "") not in PLAIN:
                    raise Unusable(f"a tensor subclass, {_shown_name(arguments[1])}, whose layout is not read")
                value = Made(arguments[0], arguments[2])
            case _:
                raise Unusable(f"a tensor that {quoted(value.path)} makes, whose layout is not read")
    raise Unusable("a tensor that is described in a way that torch does not write", broken=True)


def _shown_name(value: object) -> str:
    path = getattr(value, "path", "")
    return quoted(path if isinstance(path, str) else "")


def _name_of(dtype: object) -> str:
    path = getattr(dtype, "path", "")
    return path.removeprefix("torch.") if isinstance(path, str) else ""


def _storage_of(value: object) -> tuple[str, str, int]:
    """The class of a storage, its key, and how many elements it has."""
    id = value.id if isinstance(value, Persistent) else None
    if type(id) is tuple and len(id) >= 5 and id[0] == "storage":
        _, kind, key, _, count = id[:5]
        name = getattr(kind, "path", "")
        if isinstance(name, str) and name.startswith("torch.") and type(key) is str and _is_count(count):
            return name.rpartition(".")[2], key, count
    raise Unusable("a tensor without a storage", broken=True)


def _element_type(storage: object) -> str:
    kind = _storage_of(storage)[0]
    if kind not in STORAGES:
        raise Unusable(f"elements of a {quoted(kind)}, whose layout is not read")
    return STORAGES[kind]


def _view(arguments: tuple[object, ...], element: str, extra: tuple[object, ...]) -> View:
    storage, offset, size, strides = arguments
    kind, key, count = _storage_of(storage)
    if element not in DTYPES:
        raise Unusable(f"elements of {quoted(element)}, whose layout is not read")
    if extra and isinstance(extra[0], Pairs) and any(value for _, value in extra[0].pairs):
        raise Unusable("a view that is conjugated or negated when it is used: not the values that are stored")
    if not _is_count(offset):
        raise Unusable("an offset into its storage that is no number", broken=True)
    dtype = DTYPES[element]
    unit = _item_bytes(DTYPES[STORAGES.get(kind, "uint8")])
    view = View(dtype, key, count * unit, counts(size), counts(strides), offset)
    _check(view)
    return view


def _check(view: View) -> None:
    """Nothing outside of the storage: sizes, strides and offset come from the file."""
    if len(view.shape) != len(view.strides) or math.prod(filter(None, view.shape)) > MAX_ELEMENTS:
        raise Unusable(f"a shape {shown(list(view.shape))} with strides {shown(list(view.strides))}", broken=True)
    if view.reach and (view.offset + view.reach) * view.item > view.storage_bytes:
        raise Unusable(
            f"its elements end at byte {(view.offset + view.reach) * view.item:,} of its storage",
            f"at most {view.storage_bytes:,}",
            broken=True,
        )


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def counts(value: object) -> tuple[int, ...]:
    """The numbers of a torch.Size, a tuple or a list; Unusable unless they are counts."""
    if isinstance(value, Made) and value.path == "torch.Size" and type(value.arguments) is tuple:
        value = value.arguments[0] if value.arguments else ()
    if isinstance(value, tuple | list) and len(value) <= MAX_DIMENSIONS:
        numbers = tuple(number for number in value if _is_count(number))
        if len(numbers) == len(value):
            return numbers
    raise Unusable("a shape or strides that are no list of counts", broken=True)
