"""A fact of an architecture and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Origin = Literal["shape", "name", "config", "assumed"]


@dataclass(frozen=True, slots=True)
class Fact:
    """`value` is None where it is not known, and `note` may say why."""

    value: Any
    source: Origin | None
    note: str | None = None


NOTHING = Fact(None, None)
