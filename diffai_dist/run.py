"""One run of a comparison: what was asked, what came out, and the identity that both decide."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from diffai_dist.cluster import Place
from diffai_dist.comparison import Selection
from diffai_dist.errors import CheckpointError, UsageError
from diffai_dist.partials import ALGORITHM
from diffai_dist.plan import Plan
from diffai_dist.records import Measurements, Result
from diffai_dist.storage import Profile


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a comparison but its members: what takes part, how it is judged, where it runs."""

    selection: Selection = field(default_factory=Selection)
    epsilon: float | None = None
    analyses: tuple[str, ...] = ()
    profile: Profile = field(default_factory=Profile)
    place: Place = field(default_factory=Place)
    unit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0 <= self.epsilon < math.inf:
            raise UsageError(f"epsilon is {self.epsilon}: it must be a finite number of at least 0")
        if self.unit_bytes is not None and self.unit_bytes < 1:
            raise UsageError(f"a unit of {self.unit_bytes} bytes cannot be read: give at least 1")

    def digest_part(self) -> dict[str, Any]:
        """What decides the result: not the place, not the size of units."""
        return {
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
            "ignore_keys_regex": self.selection.ignore,
            "epsilon": self.epsilon,
            "analyses": list(self.analyses),
            "algorithm": ALGORITHM,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A finished run; `plan` and `measurements` are None where a checkpoint could not be opened at all."""

    result: Result
    plan: Plan | None
    measurements: Measurements | None
    settings: Settings

    def __repr__(self) -> str:
        found = self.result
        return f"<Run {self.id}: {found.baseline} and {found.candidate}, {len(found.tensors)} tensors, {found.verdict}>"

    @property
    def id(self) -> str:
        """Digest of the pinned members and of the settings that decide the result."""
        members = self.plan.comparison.members if self.plan else ()
        pinned = [[(source.url, source.size, source.version) for source in member.sources] for member in members]
        described = [pinned, [self.result.baseline, self.result.candidate], self.settings.digest_part()]
        return hashlib.blake2b(json.dumps(described).encode(), digest_size=8).hexdigest()

    def exit_code(self, differences_count: bool = False) -> int:
        """0 done, 1 when something differs and that counts, 3 when something could not be read."""
        if differences_count and self.result.differs:
            return 1
        return 0 if self.result.complete else CheckpointError.exit_code
