"""The members of a comparison as they are opened: headers read side by side, objects pinned, equal objects found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from diffai_dist import storage
from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.comparison import Comparison, Pair, Selection
from diffai_dist.errors import CheckpointError, Failure
from diffai_dist.formats import open_checkpoint
from diffai_dist.matching import Matching, match_members
from diffai_dist.records import Member
from diffai_dist.storage import Profile, Source

OPEN_AT_ONCE = 16  # headers under way: each costs a round trip or two and next to no work


@dataclass(frozen=True, slots=True)
class Group:
    """What is to be compared with what, before anything is opened; pairs and anchor are indices of `members`."""

    members: tuple[Member, ...]
    urls: tuple[str, ...]  # canonical, as storage takes them
    pairs: tuple[Pair, ...]
    mode: str | None = None  # how the pairs were chosen; None for a comparison of two
    name: str | None = None
    anchor: int | None = None
    elementwise: bool = True
    details: tuple[str, ...] = ()  # partials that the analyses ask for, out of partials.DETAILS
    with_config: bool = False  # whether an analysis reads the config.json of its members
    raw: bool = False  # whether codes of quantised weights are compared, not the values that they stand for


def pair_of(baseline: str, candidate: str) -> Group:
    """A comparison of two, whose members are named by their URLs."""
    urls = tuple(map(storage.check_url, (baseline, candidate)))
    return Group(tuple(Member(storage.redact(url), storage.redact(url)) for url in urls), urls, (Pair(0, 1),))


def one_alone(checkpoint: str, raw: bool = False) -> Group:
    """One checkpoint, compared with nothing."""
    url = storage.check_url(checkpoint)
    return Group((Member(storage.redact(url), storage.redact(url)),), (url,), (), raw=raw)


@dataclass(frozen=True, slots=True)
class Opened:
    """The members as far as they could be opened, and what is wrong with each of them."""

    group: Group
    checkpoints: tuple[Checkpoint | None, ...]
    failures: tuple[tuple[Failure, ...], ...]  # by member

    @property
    def present(self) -> tuple[int, ...]:
        """The members that could be opened; a comparison numbers these alone."""
        return tuple(index for index, one in enumerate(self.checkpoints) if one is not None)

    @property
    def all_failures(self) -> tuple[Failure, ...]:
        """What is wrong with any member."""
        return tuple(failure for failures in self.failures for failure in failures)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members with what their headers told."""
        return tuple(map(_described, self.group.members, self.checkpoints))

    def comparison(self, selection: Selection, matching: Matching | None = None) -> Comparison | None:
        """The pairs both of whose sides are there; None where no pair is left."""
        place = {member: index for index, member in enumerate(self.present)}
        pairs = [
            Pair(place[pair.baseline], place[pair.candidate])
            for pair in self.group.pairs
            if pair.baseline in place and pair.candidate in place
        ]
        if not pairs:
            return None
        checkpoints = _share_equal([one for one in self.checkpoints if one is not None])
        anchor = self.group.anchor
        if anchor is not None:
            anchor = place.get(anchor, 0)
        compared = match_members(checkpoints, pairs, selection, matching, anchor)
        return dataclasses.replace(
            compared, anchor=anchor, elementwise=self.group.elementwise, details=self.group.details
        )


def _described(member: Member, checkpoint: Checkpoint | None) -> Member:
    if checkpoint is None:
        return member
    return dataclasses.replace(
        member,
        format=checkpoint.format,
        objects=tuple(dataclasses.replace(one, url=storage.redact(one.url)) for one in checkpoint.sources),
        tensors=len(checkpoint.tensors),
        nbytes=checkpoint.nbytes,
    )


def open_group(group: Group, profile: Profile) -> Opened:
    """Read the headers of all members, side by side; a bad one does not hide what is wrong with the others."""

    def attempt(url: str) -> Checkpoint | CheckpointError:
        try:
            return open_checkpoint(url, profile, group.with_config, group.raw)
        except CheckpointError as error:
            return error

    found = side_by_side(attempt, group.urls, OPEN_AT_ONCE)
    failures = tuple((one.failure,) if isinstance(one, CheckpointError) else one.failures for one in found)
    return Opened(group, tuple(None if isinstance(one, CheckpointError) else one for one in found), failures)


T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """`map` in threads; a signal does not wait for a server that does not answer."""
    pool = ThreadPoolExecutor(max(1, min(threads, len(items))))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _share_equal(members: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The members with one source in place of several of equal content, so that its bytes are read once."""
    first: dict[object, Source] = {}
    same = {source: first.setdefault(storage.content(source), source) for one in members for source in one.sources}
    if all(source is other for source, other in same.items()):
        return list(members)
    return [dataclasses.replace(one, tensors=_reading_from(same, one.tensors)) for one in members]


def _reading_from(same: Mapping[Source, Source], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: dataclasses.replace(
            tensor,
            spans=tuple(dataclasses.replace(span, source=same.get(span.source, span.source)) for span in tensor.spans),
        )
        for name, tensor in tensors.items()
    }
