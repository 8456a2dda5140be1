"""A map of names: what tensors are called in the baseline, and which are made of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from diffai_dist.config.problems import Problem, Rejected
from diffai_dist.errors import UsageError
from diffai_dist.matching import Fused, Rename


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMap:
    """What tensors of other checkpoints are called in the baseline, and which of any are made of others."""

    # As those of a configuration.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }
    MADE_OF: ClassVar[str] = "a map is made of `rename:` and `fused:`, each a list"

    rename: tuple[Rename, ...] = ()
    """Names of the baseline for those of all others; the first rule that a name matches counts."""
    fused: tuple[Fused, ...] = ()
    """Tensors that are compared as their parts, where a checkpoint has the parts; by the names that `rename` gives."""


def check_map(found: TensorMap) -> None:
    """Raise Rejected where a rule means nothing."""
    sections: dict[str, tuple[Rename | Fused, ...]] = {"rename": found.rename, "fused": found.fused}
    problems = []
    for section, rules in sections.items():
        for index, rule in enumerate(rules):
            try:
                rule.check()
            except UsageError as error:
                problems.append(Problem((section, index), str(error)))
    if problems:
        raise Rejected(problems)
