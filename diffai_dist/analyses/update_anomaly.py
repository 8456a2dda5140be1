"""Updates out of line: a layer, or the model, that suddenly moves far more than before, or back where it came from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.records import AnalysisRecord, Finding, Severity

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.series import Series
    from diffai_dist.analyses.updates import Updates

_SIBLINGS = 3  # blocks, from which on the others say what is ordinary
_PUBLISHED = "Iglewicz and Hoaglin 1993"


@dataclass(frozen=True)
class Event:
    """A jump of one block, or of all (None), from one update to the next."""

    block: str | None
    interval: int
    z: float
    ratio: float  # of the update to the one before, beyond what the others and the steps between members explain
    share: float | None
    share_before: float | None
    recovered: bool | None


@dataclass(frozen=True)
class UpdateAnomaly:
    """Updates of single layers, or of the whole model, that jump out of their series.

    u is ‖x_t+1 - x_t‖ / ‖x_t‖ of a block. Its jumps, the differences of log u from one update to the next, are compared
    with its own other jumps and, from three blocks on, taken relative to the median block's: a schedule moves all of
    them. A jump counts if its robust z is beyond `medium` and its ratio beyond `least_ratio`. The spread behind z is at
    least that of the median block, for ten jumps tell a spread badly. What steps of unequal length explain (u grows
    like their root or like themselves) is taken off. A jump back within two updates belongs to the first. Jumps of all
    blocks count only upward and not at the first update: rates warm up, and decay. Tensors that are stale, or hold new
    non-finite values, take no part in the updates that this explains; jumps lead over those.
    """

    name: ClassVar[str] = "update_anomaly"
    flag: ClassVar[str] = "--update-anomaly"
    kind: ClassVar[Kind] = "N"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "updates": "steps from one member to the next",
        "blocks": "blocks whose updates were looked at",
        "left_out": "updates of single tensors that take no part: stale_or_non_finite, not_measured",
        "spikes": "block (null for all), baseline and candidate of the update, z = 0.6745 (x - median) / MAD of the"
        " jump of log u, ratio of the update to the one before beyond what others and steps explain, the block's share"
        " of ‖u‖² and share_before, recovered: whether the next update undoes it",
        "reversed": "block, baseline, candidate, cosine_to_last: of its update with the one before, which it undoes",
        "reason": "why nothing could be measured; only there where it could not",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "update-jump": "|z| of a jump above `medium` and its ratio beyond `least_ratio`: medium; above `high`: high",
        "update-reversed": "an update of one block alone has a cosine below `back` with the one before: medium",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "robust z and 3.5: Iglewicz and Hoaglin 1993 (published); its fallback where MAD is 0, 1.253 × mean absolute"
        " deviation: judgement",
        "7, ratios, cosines: judgement. Layers of 72 small networks, trained under six schedules by Adam and by"
        " gradient descent, reached a ratio of 2.7 by themselves (measured)",
    )

    medium: float = threshold(3.5, "robust z of a jump, above which it counts", _PUBLISHED)
    high: float = threshold(7.0, "robust z of a jump, above which it is severe")
    least_ratio: float = threshold(4.0, "of an update to the one before, beyond which a jump counts")
    back: float = threshold(-0.5, "cosine of an update with the one before, below which it undoes that")
    outward: float = threshold(-0.2, "median cosine of successive updates, above which a block is not going to and fro")

    def __call__(self, series: Series) -> AnalysisRecord:
        """A row and a finding for each spike, and for each update of one block alone that undoes the one before."""
        from diffai_dist.analyses.updates import Updates

        updates = Updates(series)
        events = list(self._events(updates)) if updates.measurable else []
        reversals = list(self._reversals(updates, events)) if updates.measurable else []
        result: dict[str, Any] = {
            "updates": len(series.intervals),
            "blocks": len(updates.blocks),
            "left_out": updates.left_out,
            "spikes": [_row(series, one) for one in events],
            "reversed": [_reversal_row(series, *one) for one in reversals],
        }
        if not updates.measurable:
            result["reason"] = updates.reason
        findings = (
            *(self._finding(series, one) for one in events),
            *(self._reversal_finding(series, *one) for one in reversals),
        )
        return AnalysisRecord(self.name, result, findings)

    def _events(self, updates: Updates) -> Iterator[Event]:
        found = [*self._of_blocks(updates), *self._of_all(updates)]
        found.sort(key=lambda one: (one.interval, one.block is not None))
        yield from found

    def _of_blocks(self, updates: Updates) -> Iterator[Event]:
        import numpy as np

        if len(updates.blocks) < _SIBLINGS:
            return
        from diffai_dist.analyses.robust import spread

        relative = updates.jumps - updates.common
        widths = [spread(row[np.isfinite(row)]) for row in relative]
        least = float(np.median(widths))
        for name, own, aside in zip(updates.blocks, updates.jumps, relative, strict=True):
            scores = _scores(aside, least)
            for jump in self._jumps(scores, np.where(np.abs(own) < np.abs(aside), own, aside)):
                yield self._event(updates, name, jump, float(scores[jump]), float(aside[jump]))

    def _of_all(self, updates: Updates) -> Iterator[Event]:
        siblings = len(updates.blocks) >= _SIBLINGS
        jumps = updates.common if siblings else updates.whole
        scores = _scores(jumps, 0.0)
        for jump in self._jumps(scores, jumps):
            if jump > 0 and jumps[jump] > 0.0:
                yield self._event(updates, None, jump, float(scores[jump]), float(jumps[jump]))

    def _jumps(self, scores: np.ndarray, jumps: np.ndarray) -> Iterator[int]:
        """Which jumps are large in both ways, without those that lead back."""
        last: tuple[int, float] | None = None
        for jump, (score, size) in enumerate(zip(scores.tolist(), jumps.tolist(), strict=True)):
            if abs(score) > self.medium and abs(size) > math.log(self.least_ratio) and score * size > 0.0:
                if last is None or jump - last[0] > 2 or last[1] * size > 0.0:
                    last = jump, size
                    yield jump

    def _finding(self, series: Series, one: Event) -> Finding:
        severity: Severity = "high" if abs(one.z) > self.high else "medium"
        sides = series.names[one.interval], series.names[one.interval + 1]
        found = finding(self, "update-jump", severity, one.block, one.z, severity, *sides)
        undone = ", undone by the next update" if one.recovered else ""
        source = f"robust z of the jump of log u, {found.source}; by a factor of {one.ratio:.3g}{undone}"
        return replace(found, source=source)

    def _reversal_finding(self, series: Series, name: str, interval: int, cosine: float) -> Finding:
        sides = series.names[interval], series.names[interval + 1]
        found = finding(self, "update-reversed", "medium", name, cosine, "back", *sides)
        return replace(found, source=f"cosine with the update before, in this block alone; {found.source}")

    def _event(self, updates: Updates, name: str | None, jump: int, z: float, size: float) -> Event:
        """The jump to update `jump` + 1 with its surroundings; whether it was undone is a question of rises alone."""
        groups = list(updates.groups.values()) if name is None else [updates.groups[name]]
        tensors = [tensor for group in groups for tensor in group]
        after, before = (None if name is None else updates.share(tensors, t) for t in (jump + 1, jump))
        turn = updates.turn(tensors, jump + 1) if size > 0.0 else None
        return Event(name, jump + 1, z, math.exp(size), after, before, None if turn is None else turn < self.back)

    def _reversals(self, updates: Updates, events: Sequence[Event]) -> Iterator[tuple[str, int, float]]:
        """Updates of one block that undo its last one while all other blocks go on; not those around a spike."""
        if len(updates.blocks) < _SIBLINGS:
            return
        told = {(one.block, one.interval + after) for one in events for after in range(3)}
        inner = updates.series.intervals[:-1]
        rows = {name: [updates.turn(group, t) for t in inner] for name, group in updates.groups.items()}
        columns = zip(*rows.values(), strict=True)
        alone = [sum(turn is None or turn <= self.outward for turn in turns) == 1 for turns in columns]
        for name, turns in rows.items():
            outward = statistics.median([one for one in turns if one is not None] or [0.0]) > self.outward
            for t, turn in enumerate(turns):
                if turn is not None and turn < self.back and alone[t] and outward and (name, t + 1) not in told:
                    yield name, t + 1, turn


def _scores(jumps: np.ndarray, least: float) -> np.ndarray:
    """Robust z of what is known, 0 for the rest."""
    import numpy as np

    from diffai_dist.analyses.robust import robust_z

    known = np.isfinite(jumps)
    scores = np.zeros(jumps.shape)
    scores[known] = robust_z(jumps[known], least)
    return scores


def _row(series: Series, one: Event) -> dict[str, Any]:
    return {
        "block": one.block,
        "baseline": series.names[one.interval],
        "candidate": series.names[one.interval + 1],
        "z": one.z,
        "ratio": one.ratio,
        "share": one.share,
        "share_before": one.share_before,
        "recovered": one.recovered,
    }


def _reversal_row(series: Series, name: str, interval: int, cosine: float) -> dict[str, Any]:
    names = {"baseline": series.names[interval], "candidate": series.names[interval + 1]}
    return {"block": name, **names, "cosine_to_last": cosine}
