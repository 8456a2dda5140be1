"""What a comparison need not measure because the store has it: members and pairs of earlier runs, by content."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from diffai_dist.checkpoint import Checkpoint
from diffai_dist.comparison import Aligned, Comparison, Pair
from diffai_dist.opening import side_by_side
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.records import Details, Measurements
from diffai_dist.run import Settings
from diffai_dist.storage import redact
from diffai_dist.store import ReportStore
from diffai_dist.store.details import FIXED, TABLES, put_tables

FETCH_AT_ONCE = 16

Rows = Mapping[str, np.void]  # by tensor name
Tables = Mapping[str, Mapping[str, np.ndarray]]  # likewise, then by field of Details
Role = Literal["member", "pair"]


@dataclass(frozen=True, slots=True)
class Reuse:
    """Rows of MOMENTS by member and of SHIFT by pair, by index in the comparison; a pair's members are there, too.

    Of a comparison that asks for details, theirs as well, likewise.
    """

    members: Mapping[int, Rows] = field(default_factory=dict)
    pairs: Mapping[int, Rows] = field(default_factory=dict)
    details: Mapping[tuple[Role, int], Tables] = field(default_factory=dict)

    def document(self) -> dict[str, list[int]]:
        """Which they are, for the plan."""
        return {"members": sorted(self.members), "pairs": sorted(self.pairs)}

    def only(self, document: Mapping[str, list[int]]) -> Reuse:
        """Those of them that the document names: a run that is taken up again sticks to what it began with."""
        return Reuse(
            {index: self.members[index] for index in document["members"] if index in self.members},
            {index: self.pairs[index] for index in document["pairs"] if index in self.pairs},
            self.details,
        )

    def places(self, comparison: Comparison) -> tuple[list[int], list[int]]:
        """The members and pairs that are still to be measured, by index."""
        pairs = [index for index in range(len(comparison.pairs)) if index not in self.pairs]
        sides = {side for index in pairs for side in _sides(comparison.pairs[index])}
        return sorted(sides), pairs

    def remaining(self, comparison: Comparison) -> Comparison:
        """The part of the comparison that is still to be measured; its tensors keep their places."""
        members, pairs = self.places(comparison)
        place = {member: index for index, member in enumerate(members)}
        return dataclasses.replace(
            comparison,
            members=tuple(comparison.members[member] for member in members),
            pairs=tuple(Pair(*(place[side] for side in _sides(comparison.pairs[index]))) for index in pairs),
            aligned=tuple(_part(one, members) for one in comparison.aligned),
        )

    def combined(self, comparison: Comparison, measured: Measurements) -> Measurements:
        """What was measured of `remaining`, put together with what was there."""
        if not self.members:
            return dataclasses.replace(measured, comparison=comparison)
        members, pairs = self.places(comparison)
        tensors = len(comparison.aligned)
        moments = empty(MOMENTS, (tensors, len(comparison.members)))
        shifts = empty(SHIFT, (tensors, len(comparison.pairs)))
        for table, found in ((moments, self.members), (shifts, self.pairs)):
            for column, rows in found.items():
                for i, one in enumerate(comparison.aligned):
                    if one.name in rows:
                        table[i, column] = rows[one.name]
        # Of a member that is there, less may have been measured than is there: what others lack is not looked at.
        fresh = [place for place, member in enumerate(members) if member not in self.members]
        moments[:, [members[place] for place in fresh]] = measured.moments[:, fresh]
        shifts[:, pairs] = measured.shifts
        failures = {
            (tensor, members[place]): why
            for (tensor, place), why in measured.failures.items()
            if place in fresh or why.object in _objects(comparison.members[members[place]])
        }
        return Measurements(comparison, moments, shifts, failures, None, self._details(comparison, measured.details))

    def _details(self, comparison: Comparison, measured: Details) -> Details:
        """Those of `remaining` at their places, and those that were there."""
        members, pairs = self.places(comparison)
        tensors = len(comparison.aligned)
        tables: dict[str, Any] = {}
        for role, places, kept in (("member", members, self.members), ("pair", pairs, {})):
            width = len(comparison.members if role == "member" else comparison.pairs)
            for name, dtype in FIXED[role].items():
                if (fresh := getattr(measured, name)) is not None:
                    tables[name] = empty(dtype, (tensors, width))
                    tables[name][:, places] = fresh
            for name in TABLES[role]:
                fresh = getattr(measured, name)
                tables[name] = {
                    (t, places[index]): table for (t, index), table in fresh.items() if places[index] not in kept
                }
        found = Details(**tables)
        for (role, index), known in self.details.items():
            if index in (self.members if role == "member" else self.pairs):
                for t, one in enumerate(comparison.aligned):
                    put_tables(found, role, t, index, known.get(one.name, {}))
        return found


def _objects(member: Checkpoint) -> set[str]:
    """How failures name the member's objects; other failures are its partner's, for which it was not read."""
    return {redact(source.url) for source in member.sources}


def find_reuse(comparison: Comparison, settings: Settings, store: ReportStore) -> Reuse:
    """What the store has of the comparison. Products, and names that were matched, are of one group alone."""
    if comparison.anchor is not None or comparison.matches:
        return Reuse()
    members = _fetch(store, [store.member_key(one, settings) for one in comparison.members])
    whole = {index: rows for index, rows in members.items() if _covers_member(rows, comparison, index)}
    known = _fetch_details(comparison, settings, store, "member", sorted(whole))
    likely = [
        i
        for i, pair in enumerate(comparison.pairs)
        if all(_known(known, whole, comparison, side) for side in _sides(pair))
    ]
    found = _fetch(store, [_pair_key(comparison, comparison.pairs[i], settings, store) for i in likely])
    pairs = {
        likely[i]: rows for i, rows in found.items() if _covers_pair(rows, comparison, comparison.pairs[likely[i]])
    }
    known |= _fetch_details(comparison, settings, store, "pair", sorted(pairs))
    pairs = {index: rows for index, rows in pairs.items() if not comparison.details or ("pair", index) in known}
    return Reuse({index: whole[index] for i in pairs for index in _sides(comparison.pairs[i])}, pairs, known)


def _known(
    details: Mapping[tuple[Role, int], Tables], whole: Mapping[int, Rows], comparison: Comparison, member: int
) -> bool:
    return member in whole and (not comparison.details or ("member", member) in details)


def _fetch_details(
    comparison: Comparison, settings: Settings, store: ReportStore, role: Role, places: list[int]
) -> dict[tuple[Role, int], Tables]:
    if not comparison.details:
        return {}
    groups = [
        [comparison.members[side] for side in ([place] if role == "member" else _sides(comparison.pairs[place]))]
        for place in places
    ]
    keys = [store.details_key(role, members, settings, comparison.details) for members in groups]
    found = side_by_side(lambda key: store.load_details(key, role), keys, FETCH_AT_ONCE)
    return {(role, place): tables for place, tables in zip(places, found, strict=True) if tables is not None}


def _pair_key(comparison: Comparison, pair: Pair, settings: Settings, store: ReportStore) -> str:
    return store.pair_key(comparison.members[pair.baseline], comparison.members[pair.candidate], settings)


def _fetch(store: ReportStore, keys: list[str]) -> dict[int, Rows]:
    found = side_by_side(store.load_rows, keys, FETCH_AT_ONCE)
    return {index: rows for index, rows in enumerate(found) if rows is not None}


def _covers_member(rows: Rows, comparison: Comparison, member: int) -> bool:
    tensors = [one.tensors[member] for one in comparison.aligned]
    if any(one.unreadable[member] for one in comparison.aligned):
        return False
    return all(_counts(rows, tensor.name, tensor.counted) for tensor in tensors if tensor)


def _covers_pair(rows: Rows, comparison: Comparison, pair: Pair) -> bool:
    both = [one for one in comparison.aligned if all(one.tensors[side] for side in _sides(pair))]
    comparable = [one for one in both if not one.incomparable(pair)]
    sizes = {one.name: tensor.counted for one in comparable if (tensor := one.tensors[pair.baseline])}
    return all(_counts(rows, name, size) for name, size in sizes.items())


def _counts(rows: Rows, name: str, size: int) -> bool:
    return size == 0 or (name in rows and int(rows[name]["count"]) == size)


def _sides(pair: Pair) -> tuple[int, int]:
    return pair.baseline, pair.candidate


def _part(one: Aligned, members: Iterable[int]) -> Aligned:
    chosen = list(members)
    return Aligned(
        one.name, tuple(one.tensors[member] for member in chosen), tuple(one.unreadable[member] for member in chosen)
    )


def saved_bytes(comparison: Comparison, reuse: Reuse) -> int:
    """Bytes of members that need not be read at all."""
    members, _ = reuse.places(comparison)
    read = set(members)
    return sum(
        tensor.nbytes
        for one in comparison.aligned
        for member, tensor in enumerate(one.tensors)
        if tensor and member not in read
    )
