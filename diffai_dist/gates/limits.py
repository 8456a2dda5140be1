"""The rules of a policy, held against the tensors of a pair."""

from __future__ import annotations

import fnmatch
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffai_dist.analyses.roles import role
from diffai_dist.config import Rule
from diffai_dist.config.policy import metrics
from diffai_dist.records import Finding, Result, TensorRecord

NOT_DEFINED = "not defined"
Pair = tuple[str | None, str | None]  # baseline and candidate; without names in a comparison of two

_OPS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule found in one pair."""

    tensors: int  # those that the rule is about
    broken: int  # of these; undefined ones are among them
    undefined: int
    findings: tuple[Finding, ...]


def held(rule: Rule, result: Result, pair: Pair) -> Outcome | None:
    """The rule held against the tensors of a pair, which its findings name; None where it is about other pairs.

    What is not defined breaks every rule, since a comparison with NaN would be false either way.
    """
    if not fnmatch.fnmatchcase(pair_text(result.baseline, result.candidate), rule.select.pair):
        return None
    chosen = list(_chosen(rule, result))
    broken = [(record, value) for record in chosen if _breaks(rule, value := _value(rule, record))]
    undefined = sum(value is None for _, value in broken)
    counts = len(chosen), len(broken), undefined
    return Outcome(*counts, tuple(_findings(rule, broken, pair)) if len(broken) >= rule.min_count else ())


def pair_text(baseline: str | None, candidate: str | None) -> str:
    """A pair as globs of a policy see it, and as reports show it.

    >>> pair_text("step-1", "step-2"), pair_text(None, "step-2")
    ('step-1 -> step-2', 'step-2')
    """
    return " -> ".join(name for name in (baseline, candidate) if name is not None)


def _chosen(rule: Rule, result: Result) -> Iterator[TensorRecord]:
    select, matches = rule.select, re.compile(fnmatch.translate(rule.select.tensor)).match
    for record in result.tensors:
        side = record.candidate or record.baseline
        if (
            matches(record.name)
            and (select.dtype is None or (side is not None and side.dtype == select.dtype))
            and (select.role is None or _role(record.name) == select.role)
        ):
            yield record


_role = functools.lru_cache(1 << 17)(role)  # rules and pairs ask for the same names again


def _value(rule: Rule, record: TensorRecord) -> Any:
    """What the rule limits; None where it is not defined."""
    part, name = metrics()[rule.metric]
    holder = getattr(record, part) if part else record
    value = getattr(holder, name) if holder is not None else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _breaks(rule: Rule, value: Any) -> bool:
    return value is None or _OPS[rule.op](value, rule.threshold)


def _findings(rule: Rule, broken: list[tuple[TensorRecord, Any]], pair: Pair) -> Iterator[Finding]:
    limit = _plain(rule.threshold)
    source = f"policy: broken by {rule.metric} {rule.op} {limit}"
    for record, value in broken:
        why = f"{source}; {record.reason}" if value is None and record.reason else source
        shown = NOT_DEFINED if value is None else _plain(value)
        yield Finding(rule.name, rule.severity, record.name, shown, limit, why, *pair)


def _plain(value: Any) -> Any:
    return str(list(value)) if isinstance(value, tuple) else value
