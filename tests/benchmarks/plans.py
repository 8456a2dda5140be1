"""Plans as the commands make them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diffai_dist.comparison import Pair, Selection
from diffai_dist.opening import Group, open_group
from diffai_dist.plan import Plan, make_plan
from diffai_dist.records import Member
from diffai_dist.storage import Profile


def one_pair(urls: Sequence[str], unit_bytes: int | None = None) -> Plan:
    """`compare`."""
    return _plan(urls, [Pair(0, 1)], None, unit_bytes)


def consecutive(urls: Sequence[str], unit_bytes: int | None = None) -> Plan:
    """`sweep --pairs consecutive`."""
    return _plan(urls, [Pair(index, index + 1) for index in range(len(urls) - 1)], None, unit_bytes)


def all_pairs(urls: Sequence[str], elementwise: bool = False, unit_bytes: int | None = None) -> Plan:
    """`sweep --pairs all`: products around the first, and elements only where asked for."""
    pairs = [Pair(*pair) for pair in itertools.combinations(range(len(urls)), 2)]
    return _plan(urls, pairs, 0, unit_bytes, elementwise)


def _plan(
    urls: Sequence[str], pairs: Sequence[Pair], anchor: int | None, unit_bytes: int | None, elementwise: bool = True
) -> Plan:
    members = tuple(Member(url, url) for url in urls)
    group = Group(members, tuple(urls), tuple(pairs), "list", None, anchor, elementwise)
    comparison = open_group(group, Profile()).comparison(Selection())
    assert comparison is not None
    return make_plan(comparison, Profile(), unit_bytes)
