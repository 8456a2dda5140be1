"""What a scheme is recognised by: names, dtypes and shapes of stored tensors, and what is declared beside them."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diffai_dist.checkpoint import Tensor
from diffai_dist.errors import Failure
from diffai_dist.schemes.modules import Modules


class Undecodable(Exception):
    """The codes of one tensor have no values that are known: in a layout that is not read, or with parts missing."""

    def __init__(self, found: str, expected: str = "", hint: str = "--raw compares what is stored") -> None:
        super().__init__(found)
        self.found, self.expected, self.hint = found, expected, hint


class PartLost(Undecodable):
    """A part that is needed cannot be read; why is known."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.found, failure.expected, failure.hint)
        self.failure = failure


# The keys that list modules without codes, by who writes them: compressed-tensors and ModelOpt, transformers, ModelOpt.
LEFT_OUT = ("ignore", "modules_to_not_convert", "exclude_modules")


@dataclass(frozen=True)
class Declared:
    """What a file beside the weights says of their quantisation; nothing in it is trusted."""

    method: str = ""  # quant_method in lower case: gptq, fp8, compressed-tensors; "" where nothing is declared
    fields: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""  # its name, for messages
    model: str = ""  # model_type of the config.json beside it: gpt2

    @cached_property
    def left_out(self) -> tuple[Modules, ...]:
        """The lists of modules that have no codes."""
        return tuple(Modules.of(self.fields[key]) for key in LEFT_OUT if self.fields.get(key))

    def number(self, *keys: str) -> int | None:
        """The first of these fields that is an integer; a text or a float is none."""
        return next((self.fields[key] for key in keys if type(self.fields.get(key)) is int), None)


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of a checkpoint as they are stored, among which a scheme looks for its parts."""

    tensors: Mapping[str, Tensor]
    unreadable: Mapping[str, Failure] = field(default_factory=dict)
    content: Mapping[str, bytes] = field(default_factory=dict)  # of the tensors that a finder asked for, or its head
    declared: Declared = field(default_factory=Declared)

    def name(self, name: str) -> str:
        """Under which name a part is stored: those of a module that has none begin with no dot."""
        return name if self.has(name) else name.removeprefix(".")

    def has(self, name: str) -> bool:
        """Whether a tensor of exactly that name should be there, be it readable or not."""
        return name in self.tensors or name in self.unreadable

    def part(self, *names: str) -> Tensor | None:
        """The first of these that is there; PartLost where one should be and cannot be read."""
        for name in map(self.name, names):
            if name in self.unreadable:
                raise PartLost(self.unreadable[name])
            if name in self.tensors:
                return self.tensors[name]
        return None

    def needed(self, *names: str) -> Tensor:
        """The first of these that is there; Undecodable where none is."""
        found = self.part(*names)
        if found is None:
            raise Undecodable(f"its {' or '.join(name.rpartition('.')[2] for name in names)} is missing")
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """One logical tensor; what nobody declares of it and was settled by its parts, and what is declared otherwise."""

    tensor: Tensor
    remarks: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()


Find = Callable[[str, Tensor, Stored], Found | None]


@dataclass(frozen=True, slots=True)
class Late:
    """A function of this package, `module:function`, whose module is imported when the function is called."""

    name: str

    def __call__(self, prefix: str, codes: Tensor, stored: Stored) -> Found | None:
        find: Find = pkgutil.resolve_name(f"{__package__}.{self.name}")
        return find(prefix, codes, stored)


@dataclass(frozen=True, slots=True)
class Finder:
    """How a scheme is recognised.

    `find` gets the prefix, the codes and all that is stored, for each tensor of one of `dtypes` whose name ends with
    one of `suffixes`, which map to the ending of the logical name. It returns None where that is no part of its scheme,
    and raises Undecodable where it is one without known values. Either way the tensors that are called as the prefix
    and one of `parts` are not compared for themselves. `told` are endings of small tensors whose content is needed,
    `heads` those of large ones, of a few of which the first bytes are.
    """

    suffixes: Mapping[str, str]
    dtypes: frozenset[str]
    find: Find
    parts: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def prefix(self, tensor: Tensor) -> tuple[str, str] | None:
        """What comes before the suffix in the name of a tensor that may be its codes, and the logical name."""
        return self.of_name(tensor.name) if tensor.dtype in self.dtypes else None

    def of_name(self, name: str) -> tuple[str, str] | None:
        """The same of codes that cannot be read, whose dtype nobody knows.

        The prefix is empty, too, where a module has no name, and its tensors are `weight` and `weight_scale`.
        """
        for suffix, ending in self.suffixes.items():
            if f".{name}" == suffix:
                return "", ending.removeprefix(".")
            if name.endswith(suffix):
                prefix = name.removesuffix(suffix)
                return prefix, prefix + ending
        return None
