"""One run of a comparison: what was asked, what came out, and the identity that the question decides."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffai_dist.analyses import EVERY
from diffai_dist.analyses.expectations import Expectations
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.cluster import Place
from diffai_dist.comparison import Selection
from diffai_dist.errors import CheckpointError, StoreError, UsageError
from diffai_dist.matching import Matching
from diffai_dist.opening import Opened
from diffai_dist.partials import ALGORITHM
from diffai_dist.plan import Plan
from diffai_dist.records import SCHEMA_VERSION, Measurements, Member, Sweep
from diffai_dist.storage import Profile


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a comparison but its members: what takes part, how it is judged, where it runs."""

    selection: Selection = field(default_factory=Selection)
    epsilon: float | None = None
    analyses: tuple[str, ...] = ()
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by analysis, those that were set
    profile: Profile = field(default_factory=Profile)
    place: Place = field(default_factory=Place)
    unit_bytes: int | None = None
    expect: Expectations = field(default_factory=Expectations)
    matching: Matching = field(default_factory=Matching)
    raw: bool = False  # codes of quantised weights as they are stored

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0 <= self.epsilon < math.inf:
            raise UsageError(f"epsilon is {self.epsilon}: it must be a finite number of at least 0")
        if self.unit_bytes is not None and self.unit_bytes < 1:
            raise UsageError(f"a unit of {self.unit_bytes} bytes cannot be read: give at least 1")

    def analysis(self, name: str) -> Any:
        """The analysis of that name, with the thresholds that were set."""
        return EVERY[name](**self.thresholds.get(name, {}))

    def digest_part(self) -> dict[str, Any]:
        """What decides the result: not the place, not the size of units."""
        return {
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
            "ignore_keys_regex": self.selection.ignore,
            "epsilon": self.epsilon,
            "analyses": list(self.analyses),
            "thresholds": {name: dict(values) for name, values in self.thresholds.items()},
            "expect": {
                "frozen": list(self.expect.frozen),
                "changed": list(self.expect.changed),
                "cast": self.expect.cast,
            },
            "matching": self.matching.document(),
            "raw": self.raw,
            "algorithm": ALGORITHM,
        }


def described(member: Member) -> dict[str, Any]:
    """A member as the documents of a run name it."""
    objects = [{"url": one.url, "size": one.size, "version": one.version} for one in member.objects]
    return {"name": member.name, "url": member.url, "step": member.step, "date": member.date} | {
        "format": member.format,
        "objects": objects,
    }


def comparison_document(opened: Opened) -> dict[str, Any]:
    """Members with their pinned objects, and the pairs among them; with the settings it decides every number."""
    group = opened.group
    # An index is none of the objects that are pinned, nor is config.json; what they tell is part of the result.
    told = [
        {"problems": [*(failure.sentence() for failure in failures), *(_told_of(one) if one else ())]}
        | ({"config": _digest(one.config)} if one and one.config is not None else {})
        | ({"coded": _digest(one.coded)} if one and one.coded else {})
        for failures, one in zip(opened.failures, opened.checkpoints, strict=True)
    ]
    return {
        "mode": group.mode,
        "name": group.name,
        "anchor": group.anchor,
        "elementwise": group.elementwise,
        "members": [described(member) | beside for member, beside in zip(opened.members, told, strict=True)],
        "pairs": [[pair.baseline, pair.candidate] for pair in group.pairs],
    }


def _told_of(checkpoint: Checkpoint) -> list[str]:
    violations = (f"{one.rule}: {one.object}: {one.found} {list(one.names)}" for one in checkpoint.violations)
    return [*checkpoint.warnings, *violations]


def run_id(comparison: Mapping[str, Any], settings: Settings) -> str:
    """Digest of the pinned members, the pairs, and the settings that decide the result."""
    return _digest([comparison, settings.digest_part()])


def _digest(document: Any) -> str:
    return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=8).hexdigest()


def plan_document(opened: Opened, settings: Settings, plan: Plan | None, started: str) -> dict[str, Any]:
    """What is frozen before anything is measured: enough to take the run up again."""
    comparison = comparison_document(opened)
    profile = settings.profile
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run_id(comparison, settings),
        "started": started,
        "comparison": comparison,
        "settings": settings.digest_part(),
        "storage": {"endpoint_url": profile.endpoint_url, "anon": profile.anon, "profile": profile.name},
        "unit_bytes": plan.unit_bytes if plan else None,
        "units": sum(1 for _ in plan.units()) if plan else 0,
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """What a run read, and what it did not have to; it may differ between runs of equal results."""

    nbytes: int = 0  # of tensors, read in this run
    shared_bytes: int = 0  # not read because an object of equal content was
    stored_bytes: int = 0  # not read because the store had what they tell
    requests: int = 0
    retries: int = 0
    notes: tuple[str, ...] = ()  # what was reused, for people


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A finished run; `plan` and `measurements` are None where nothing was measured, or the store had it all."""

    id: str
    sweep: Sweep
    settings: Settings
    plan: Plan | None = None
    measurements: Measurements | None = None
    reading: Reading = field(default_factory=Reading)
    store_error: StoreError | None = None  # why it could not be kept: that does not cost the result

    def __repr__(self) -> str:
        sweep = self.sweep
        verdict = "incomplete" if not sweep.complete else "different" if sweep.differs else "identical"
        return f"<Run {self.id}: {len(sweep.members)} checkpoints, {len(sweep.pairs)} pairs, {verdict}>"

    def exit_code(self, differences_count: bool = False) -> int:
        """0 done, 1 when something differs and that counts, 3 when something could not be read."""
        if differences_count and self.sweep.differs:
            return 1
        return 0 if self.sweep.complete else CheckpointError.exit_code
