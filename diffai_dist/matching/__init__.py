"""Which tensor of one member is which of another, where their names do not say so.

    rules    what a map declares
    names    a name without wrappers, and in the words that families share
    pairing  which names are one, surest first
    parts    fused tensors, and what they are made of
    view     a member under the names by which it is compared

The names are those of the reference: the anchor, or else the baseline of the first pair. A map renames tensors of all
others; these are matched with it, one by one; fused tensors, on whichever side, are compared as their parts. The
selection is by these names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_dist.checkpoint import Checkpoint
from diffai_dist.comparison import Comparison, Confidence, Pair, Selection, compare_members
from diffai_dist.matching.pairing import paired
from diffai_dist.matching.parts import recognised
from diffai_dist.matching.rules import Fused, Rename, cut_all, rename_all
from diffai_dist.matching.view import View

__all__ = ["Fused", "Matching", "Rename", "match_members"]


@dataclass(frozen=True, slots=True)
class Matching:
    """What is matched beside equal names: what a map declares, and, with `names`, what names and shapes tell."""

    names: bool = False
    renames: tuple[Rename, ...] = ()
    fused: tuple[Fused, ...] = ()

    def document(self) -> dict[str, Any]:
        """The matching as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Matching:
        """The matching that a document tells."""
        renames = tuple(Rename(**one) for one in document["renames"])
        fused = tuple(Fused(one["name"], tuple(one["parts"]), one["interleaved"]) for one in document["fused"])
        return cls(document["names"], renames, fused)


def match_members(
    members: Iterable[Checkpoint],
    pairs: Iterable[Pair],
    selection: Selection | None = None,
    matching: Matching | None = None,
    anchor: int | None = None,
) -> Comparison:
    """Align the members' tensors as `compare_members` does, those first renamed and cut that are matched.

    Raises UsageError where a map does not fit the members.
    """
    members, pairs, matching = tuple(members), tuple(pairs), matching or Matching()
    if matching == Matching() or not pairs:
        return compare_members(members, pairs, selection)
    views = [View.of(member) for member in members]
    reference = pairs[0].baseline if anchor is None else anchor
    rename_all(views, reference, matching.renames)
    cut_all(views, matching.fused)
    ambiguous: tuple[tuple[int, tuple[str, ...]], ...] = ()
    if matching.names:
        ambiguous = tuple(_pair_names(views, reference))
        _recognise(views, reference)
    compared = compare_members(map(View.checkpoint, views, members), pairs, selection)
    matches = {one.name: _sure(views, one.name) for one in compared.aligned if any(one.name in v.sure for v in views)}
    return dataclasses.replace(compared, members=members, matches=matches, ambiguous=ambiguous)


def _sure(views: Sequence[View], name: str) -> tuple[Confidence, ...]:
    return tuple(view.sure.get(name, "exact") for view in views)


def _pair_names(views: Sequence[View], reference: int) -> Iterable[tuple[int, tuple[str, ...]]]:
    """Give each member's tensors the names of the reference; what is ambiguous in which member."""
    shapes = views[reference].shapes
    for member, view in enumerate(views):
        if member != reference:
            found = paired(shapes, view.shapes)
            view.rename(found.found)
            yield from ((member, names) for names in found.ambiguous)


def _recognise(views: Sequence[View], reference: int) -> None:
    """Cut what is fused on one side and not on the other, if all members can be cut so."""
    first = views[reference]
    for view in views:
        ours = {name: tensor.shape for name, tensor in first.tensors.items() if name not in view}
        theirs = {name: tensor.shape for name, tensor in view.tensors.items() if name not in first}
        for one in (*recognised(theirs, ours), *recognised(ours, theirs)):
            if not any(map(one.obstacle, views)):
                for cut in views:
                    one.apply(cut, "role")
