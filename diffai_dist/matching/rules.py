"""What a map declares: other names, and tensors that are made of others. Checked here, read from YAML elsewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffai_dist.errors import UsageError
from diffai_dist.formats.names import listed, quoted
from diffai_dist.matching.parts import Fusion, fusion
from diffai_dist.matching.view import View
from diffai_dist.schemes.strided import MOST_BYTES, transposed

COUNTER = "{}"  # in the name of a part: 0, 1, ... in turn


@dataclass(frozen=True, slots=True)
class Rename:
    """The baseline's name for tensors of other checkpoints whose whole name matches: a glob, and a name with as many
    `*`; or a regular expression, and a name with its groups."""

    old: str
    """Glob on the whole name: each * is any text. With regex a regular expression of the whole name."""
    new: str
    """The name under which it is compared, with as many *, which stand for the same texts; with regex \\1 or
    \\g<name> for groups."""
    regex: bool = False
    """Whether they are that."""
    transposed: bool = False
    """Whether these are matrices that are stored the other way round, and are compared as their transposes."""

    def check(self) -> None:
        """Raise UsageError where there is no new name for an old one."""
        if not self.regex:
            _check_stars(self.old, self.new)
            return
        try:
            re.compile(self.old).sub(self.new, "")
        except (re.error, IndexError, RecursionError, OverflowError) as error:
            raise UsageError(f"{quoted(self.old)} to {quoted(self.new)} is no replacement: {error}") from error

    def __str__(self) -> str:
        return f"{quoted(self.old)} to {quoted(self.new)}"

    def renamed(self, name: str) -> str | None:
        """The new name; None where the old one is none of these.

        >>> Rename("h.*.c_attn.*", "layers.*.qkv.*").renamed("h.3.c_attn.bias")
        'layers.3.qkv.bias'
        >>> Rename(r"(\\w+)\\.(\\d+)\\.w", r"h.\\2.\\1", regex=True).renamed("q.0.w")
        'h.0.q'
        """
        found = (re.compile(self.old) if self.regex else _glob(self.old)).fullmatch(name)
        if found is None:
            return None
        return found.expand(self.new) if self.regex else _filled(self.new, found.groups())


@dataclass(frozen=True, slots=True)
class Fused:
    """Tensors whose whole name matches a glob are made of others along their first axes; each `*` of the name stands
    in the parts as well. With `{}` in the parts there are as many of each as the first axis is long. `interleaved`
    is how many times the parts alternate, a share of each at a time: the heads of GPT-NeoX, the groups of Falcon.
    """

    name: str
    """Glob on the whole name of the fused tensor."""
    parts: tuple[str, ...]
    """Names of its parts in the order in which they lie in it, with as many *, and {} for 0, 1, ... if it is stacked of
    them."""
    interleaved: int = 1
    """How many times the parts alternate in it, an equal share of each at a time."""

    def check(self) -> None:
        """Raise UsageError where it is made of nothing, or in two ways."""
        for part in self.parts:
            _check_stars(self.name, part)
        if not self.parts or self.interleaved < 1:
            raise UsageError(f"{quoted(self.name)} is made of nothing: name its parts, and interleave 1 group at least")
        if self.interleaved > 1 and any(COUNTER in part for part in self.parts):
            raise UsageError(f"the parts of {quoted(self.name)} are counted with {COUNTER}, or alternate: not both")

    def __str__(self) -> str:
        return f"{quoted(self.name)} of {listed(self.parts)}"

    def fusions(self, views: Sequence[View]) -> Iterator[Fusion | None]:
        """One for each tensor it is about; None where no member has the parts. Raises UsageError where they do not
        make it, or a member cannot be cut."""
        pattern = _glob(self.name)
        for name in dict.fromkeys(name for view in views for name in view.tensors):
            if found := pattern.fullmatch(name):
                yield self._fusion(name, found.groups(), views)

    def _fusion(self, name: str, groups: Sequence[str], views: Sequence[View]) -> Fusion | None:
        shape = next(view.tensors[name].shape for view in views if name in view.tensors)
        counted = any(COUNTER in part for part in self.parts)
        numbers = range(shape[0] if counted and shape else 1)
        names = [_filled(part, groups).replace(COUNTER, str(number)) for number in numbers for part in self.parts]
        view = next((view for view in views if all(part in view.tensors for part in names)), None)
        if view is None:
            there = [part for part in names if any(part in view.tensors for view in views)]
            if there:
                raise UsageError(f"--map: no checkpoint has all parts of {quoted(name)}, some have {listed(there)}")
            return None
        made = fusion(name, shape, [(part, view.tensors[part].shape) for part in names], self.interleaved)
        if isinstance(made, str):
            raise UsageError(f"--map: {quoted(name)} is not made of {listed(names)}: {made}")
        for view in views:
            if reason := made.obstacle(view):
                raise UsageError(f"--map: {quoted(name)} cannot be cut into {listed(names)}: {reason}")
        return made


def rename_all(views: Sequence[View], reference: int, rules: Sequence[Rename]) -> None:
    """Give the tensors of all but the reference the names that the first rule for each says. Raises UsageError where
    two would get one name, and for a rule that is about no tensor."""
    used: set[Rename] = set()
    for member, view in enumerate(views):
        if member != reference:
            found = {name: _rule_for(name, rules) for name in (*view.tensors, *view.unreadable)}
            used.update(rule for rule, _ in found.values() if rule)
            names = {old: new for old, (rule, new) in found.items() if new != old or (rule and rule.transposed)}
            _check_apart(names, found.keys() - names.keys())
            view.rename({old: (new, "declared") for old, new in names.items()})
            _turn(view, [new for rule, new in found.values() if rule and rule.transposed])
    for rule in rules:
        if rule not in used:
            raise UsageError(f"--map: {rule} is about no tensor of any checkpoint but the baseline, whose names stay")


def _rule_for(name: str, rules: Sequence[Rename]) -> tuple[Rename | None, str]:
    """The first rule that is about the name, and the new name."""
    return next(((rule, new) for rule in rules if (new := rule.renamed(name)) is not None), (None, name))


def _turn(view: View, names: Iterable[str]) -> None:
    """Put transposes in the place of tensors that can be read; what cannot be fails under its name anyway."""
    for name in names:
        if (tensor := view.tensors.get(name)) is not None:
            turned = transposed(tensor)
            if turned is None:
                reason = f"it is no matrix of whole bytes, or larger than {MOST_BYTES:,} bytes"
                if tensor.quantised:
                    reason = f"it is quantised ({tensor.dtype}), and only values that are stored as they are can be"
                raise UsageError(f"--map: {quoted(tensor.name)} cannot be transposed: {reason}")
            view.tensors[name] = turned


def _check_apart(names: Mapping[str, str], kept: Iterable[str]) -> None:
    taken = set(kept)
    for old, new in names.items():
        if new in taken:
            raise UsageError(f"--map: {quoted(old)} becomes {quoted(new)}, but so is another tensor called")
        taken.add(new)


def cut_all(views: Sequence[View], rules: Sequence[Fused]) -> None:
    """Cut what the rules are about, in every member. Raises UsageError, also for a rule that is about no tensor."""
    for rule in rules:
        found = list(rule.fusions(views))
        if not found:
            raise UsageError(f"--map: {rule} is about no tensor of any checkpoint; names match as a whole")
        for one in filter(None, found):
            for view in views:
                one.apply(view, "declared")


def _check_stars(old: str, new: str) -> None:
    if old.count("*") != new.count("*"):
        raise UsageError(f"{quoted(old)} and {quoted(new)} do not have as many * as each other")


@functools.lru_cache
def _glob(text: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(map(re.escape, text.split("*"))), re.DOTALL)


def _filled(text: str, groups: Sequence[str]) -> str:
    first, *rest = text.split("*")
    return first + "".join(group + part for group, part in zip(groups, rest, strict=True))
