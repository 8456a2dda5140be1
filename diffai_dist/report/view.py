"""How a result is shown, whatever the format: which tensors, in which order, on how wide a screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffai_dist.analyses.sort_by_change import sort_by_change
from diffai_dist.records import Result, Severity, Sweep, TensorRecord


@dataclass(frozen=True)
class View:
    """What the reader asked to see. `width` None means no terminal: nothing is cut or wrapped."""

    show_identical: bool = False
    sort_by: str | None = None  # out of sort_by_change.KEYS; None keeps the order of names
    show_tensors: bool = False  # of a sweep: the tensors of each pair, not only those that moved most; as does verbose
    width: int | None = None
    colour: bool = False
    verbose: bool = False
    previous: Sweep | None = None  # last night's run, for the first lines of a sweep
    notes: tuple[str, ...] = ()  # what was reused, for the same lines
    failing: Severity = "medium"  # from which on a finding fails its case of JUnit


def shown(result: Result, view: View) -> Sequence[TensorRecord]:
    """The tensors to show, in order; those that failed are told by their failures instead."""
    hidden = ("failed",) if view.show_identical else ("failed", "identical")
    records = [record for record in result.tensors if record.status not in hidden]
    return sort_by_change(records, view.sort_by) if view.sort_by else records
