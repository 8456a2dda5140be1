"""A policy: rules that limit numbers of tensors, and waivers of findings, each with its reason and its end."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

from diffai_dist.analyses.roles import ROLES
from diffai_dist.config.problems import Path, Problem, Rejected, did_you_mean, quoted
from diffai_dist.dtypes import BITS
from diffai_dist.errors import UsageError
from diffai_dist.records import Change, Severity, Side, Status

Op = Literal[">", ">=", "<", "<=", "==", "!="]
_POSITIVE: Mapping[str, int] = MappingProxyType({"ge": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSelect:
    """Which tensors of which pairs a rule is about."""

    tensor: str = "*"
    """Glob on whole names of tensors."""
    dtype: str | None = None
    """Dtype of the candidate, or of the baseline where the candidate lacks the tensor."""
    role: str | None = None
    """What the tensor is for, read from its name: q, k, v, o, up, down, embed, head, norm, expert..."""
    pair: str = "*"
    """Glob on the pair as `BASELINE -> CANDIDATE`, by the names of members that reports give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a tensor must not be."""

    name: str
    """Name of the rule, which its findings bear."""
    select: TensorSelect = field(default_factory=TensorSelect)
    """Which tensors of which pairs the rule is about."""
    metric: str
    """A number of the tensor's record: rel_l2 or change.rel_l2, baseline.std, candidate.nans...; or status."""
    op: Op
    """How the metric and the threshold stand to each other where the rule is broken."""
    threshold: int | float | str | tuple[int, ...]
    """What the metric is held against. A metric that is not defined breaks the rule, whatever this is."""
    severity: Severity = "high"
    """Severity of the findings."""
    min_count: int = field(default=1, metadata=_POSITIVE)
    """How many tensors of a pair must break the rule before any of them counts."""
    reason: str | None = None
    """Why the rule may be broken until `expires`: a waiver of all its findings."""
    expires: str | None = None
    """Last day (UTC) on which it may, as 2027-03-01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """Findings that do not count, of analyses and of rules."""

    rule: str = "*"
    """Glob on the rule of a finding: that of an analysis, such as non-finite-appeared, or the name of a rule here."""
    tensor: str | None = None
    """Glob on the tensor of a finding. Default: any, and findings that name none."""
    pair: str = "*"
    """Glob on the pair of a finding as `BASELINE -> CANDIDATE`."""
    reason: str
    """Why."""
    expires: str
    """Last day (UTC) on which the waiver holds, as 2027-03-01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What checkpoints are held to: rules on the numbers of tensors, and waivers of findings."""

    # As those of a configuration.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "allow_inf_nan": False,
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }
    MADE_OF: ClassVar[str] = "a policy is made of `rules:` and `waivers:`, each a list"

    rules: tuple[Rule, ...] = ()
    """Limits on numbers of tensors."""
    waivers: tuple[Waiver, ...] = ()
    """Findings that do not count."""


@functools.cache
def metrics() -> dict[str, tuple[str, str]]:
    """What a rule may limit, as part of the record and field there; a number of the change needs no `change.`."""
    changes = [one.name for one in dataclasses.fields(Change)]
    sides = [(side, one.name) for side in ("baseline", "candidate") for one in dataclasses.fields(Side)]
    found = {name: ("change", name) for name in changes} | {f"change.{name}": ("change", name) for name in changes}
    return {"status": ("", "status")} | found | {f"{side}.{name}": (side, name) for side, name in sides}


def check_policy(policy: Policy) -> None:
    """Raise Rejected where a rule or a waiver means nothing, or could never be right."""
    doubled = [name for name, number in Counter(rule.name for rule in policy.rules).items() if number > 1]
    problems = [
        Problem(("rules", index, "name"), f"two rules are named {quoted(rule.name)}: findings could not be told apart")
        for index, rule in enumerate(policy.rules)
        if rule.name in doubled
    ]
    if not (policy.rules or policy.waivers):
        problems.append(Problem((), f"neither a rule nor a waiver: {Policy.MADE_OF}"))
    for index, rule in enumerate(policy.rules):
        problems += _rule(rule, ("rules", index))
    for index, waiver in enumerate(policy.waivers):
        if waiver.rule == "*" and waiver.tensor is None:
            message = "a waiver of everything: give rule or tensor, the globs of what it is about"
            problems.append(Problem(("waivers", index), message))
        problems += _until(waiver.expires, ("waivers", index, "expires"))
    if problems:
        raise Rejected(problems)


def _rule(rule: Rule, path: Path) -> Iterator[Problem]:
    if rule.metric not in metrics():
        hint = did_you_mean(rule.metric, metrics()) or "there are status, rel_l2, candidate.nans and their like"
        yield Problem((*path, "metric"), f"unknown metric {quoted(rule.metric)} ({hint})")
    else:
        yield from _limit(rule, path)
    if rule.select.role is not None and rule.select.role not in ROLES:
        hint = did_you_mean(rule.select.role, ROLES) or f"there are {', '.join(ROLES)}"
        yield Problem((*path, "select", "role"), f"unknown role {quoted(rule.select.role)} ({hint})")
    if rule.select.dtype is not None:
        yield from _dtype(rule.select.dtype, (*path, "select", "dtype"))
    if (rule.reason is None) != (rule.expires is None):
        yield Problem((*path, "name"), f"the rule {quoted(rule.name)} has one of reason and expires: give both or none")
    if rule.expires is not None:
        yield from _until(rule.expires, (*path, "expires"))


_KINDS: Mapping[str, tuple[Any, str]] = {
    "status": (str, "text"),
    "dtype": (str, "text"),
    "shape": (tuple, "a list of whole numbers"),
}


def _limit(rule: Rule, path: Path) -> Iterator[Problem]:
    """Text is equal or not; a number is less or more than a number."""
    part, name = metrics()[rule.metric]
    wanted, kind = _KINDS.get(name, (int | float, "a number"))
    if not isinstance(rule.threshold, wanted):
        yield Problem((*path, "threshold"), f"threshold wants {kind}, as {rule.metric} is")
    elif name in _KINDS and rule.op not in ("==", "!="):
        yield Problem((*path, "op"), f"op wants == or !=, since {rule.metric} is {kind}, found {quoted(rule.op)}")
    elif name == "dtype":
        yield from _dtype(str(rule.threshold), (*path, "threshold"))
    elif not part and rule.threshold not in get_args(Status):
        hint = did_you_mean(str(rule.threshold), get_args(Status)) or f"there are {', '.join(get_args(Status))}"
        yield Problem((*path, "threshold"), f"unknown status {quoted(rule.threshold)} ({hint})")


def _dtype(name: str, path: Path) -> Iterator[Problem]:
    if name not in BITS:
        hint = did_you_mean(name.upper(), BITS) or f"there are {', '.join(BITS)}"
        yield Problem(path, f"unknown dtype {quoted(name)} ({hint})")


def _until(text: str, path: Path) -> Iterator[Problem]:
    try:
        day(text)
    except UsageError as error:
        yield Problem(path, str(error))


def day(text: str) -> date:
    """The day that YYYY-MM-DD names; UsageError for anything else."""
    try:
        if len(text) == len("2027-03-01"):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise UsageError(f"expires wants a date such as 2027-03-01, found {quoted(text)}")
