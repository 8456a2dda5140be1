"""What is known of gradients: from an optimizer's state, from saved gradients, or else only how far weights moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.optimizer_state import Moments, Signal, States
    from diffai_dist.analyses.series import Series

_ROWS = 20  # of a table: members and updates the latest, blocks those with the largest gradients


@dataclass(frozen=True)
class GradientAnalysis:
    """Signal and noise of gradients, from Adam's state or saved gradients; else displacement alone.

    mode=optimizer where parameters have exp_avg (m) and exp_avg_sq (v): with m̂ = m / (1 - β1^t), v̂ = v / (1 - β2^t),
    M = Σ m̂² and V = Σ v̂, snr is M / V. Gradients that are noise alone have snr ρ = (1 - β1) / (1 + β1) for large t, so
    the noise of one batch to its signal is (V - M) / (M - ρV), if gradients were stationary while the averages formed.
    mode=grads where gradients were saved: their norms. mode=displacement otherwise: weights tell no gradient. In each
    mode the update-to-weight ratio ‖x_t+1 - x_t‖ / ‖x_t‖ per step is a lower bound of a single step's, for paths bend.
    What needs m and v of one element together, such as the RMS of m̂ / (√v̂ + ε), is in no sum of either, and not told.
    """

    name: ClassVar[str] = "gradient_analysis"
    flag: ClassVar[str] = "--gradient-analysis"
    kind: ClassVar[Kind] = "1"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = False
    result: ClassVar[Mapping[str, str]] = {
        "mode": "optimizer, grads or displacement: what the numbers come from",
        "parameters": "parameters with such a state, or with saved gradients",
        "checkpoint": "the last checkpoint that has them, of which these numbers are; only there where one has",
        "step": "steps t of its optimizer; null where nothing tells; only there in mode optimizer",
        "step_source": "tensor, metadata, or name of the checkpoint; only there in mode optimizer",
        "snr": "Σ m̂² / Σ v̂ over all parameters; only there in mode optimizer",
        "noise_to_signal": "(V - M) / (M - ρV) of a batch; null where it cannot be told; only there in mode optimizer",
        "noise_scale": "noise_to_signal × `batch_size`, in its unit; null without; only there in mode optimizer",
        "zero_grad": "share of elements with v = 0, or a saved gradient of 0; only there where known",
        "elements": "elements that these numbers are of, the sample size; only there where known",
        "norm": "of all saved gradients together, √Σ g²; only there in mode grads",
        "largest": "largest magnitude of a saved gradient; only there in mode grads",
        "over_clip": "norm / `clip_norm`; null without; only there in mode grads",
        "ratio": "‖x_t+1 - x_t‖ / ‖x_t‖ per step over all weights, of the last update; null where steps are not known",
        "reason": "why a number is null, or why the mode is displacement; only there where one is",
        "members": "the same numbers of each checkpoint that has them, the latest 20",
        "members_of": "how many there are",
        "layers": "the same numbers of each block of `checkpoint`, and its share of Σ v̂ or Σ g²; the 20 largest",
        "layers_of": "how many there are",
        "updates": "baseline, candidate, steps between them, update = ‖x_t+1 - x_t‖ / ‖x_t‖ and ratio per step; the"
        " latest 20",
        "updates_of": "how many there are",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "non-finite-state": "a tensor of the state, or a saved gradient, holds NaN or infinities: critical",
        "non-finite-states": "the same, counted where there are more than `listed`: critical",
        "negative-square": "an average of squares is below 0, which none can be; the first `listed`: critical",
        "no-gradient": "the average of squares is 0 throughout, without any gradient; the first `listed`: info",
        "large-update": "the ratio per step of an update is above `per_step`; the largest such: info",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "bias corrections: Kingma and Ba 1412.6980 (published); ρ with its correction for small t, and noise to signal:"
        " derived from independent gradients of one mean",
        "noise scale as batch size times noise to signal: McCandlish et al. 1812.06162 (published)",
        "unidentifiable unless M > ρV (1 + 2/√n): derived from the spread of a sum of n squares; 2: judgement",
        "1e-3 per step: CS231n notes (published rule of thumb); fine-tuning is far below it",
    )

    beta1: float = threshold(0.9, "decay of the average gradient", "default of torch.optim.Adam")
    beta2: float = threshold(0.999, "decay of the average square", "default of torch.optim.Adam")
    margin: float = threshold(2.0, "standard errors by which signal must exceed noise")
    batch_size: int | None = threshold(None, "samples, or tokens, of one batch: the unit of the noise scale")
    clip_norm: float | None = threshold(None, "norm to which the training clips gradients")
    per_step: float = threshold(1e-3, "ratio of an update to weights per step, above which it is told", "CS231n notes")
    listed: int = threshold(20, "findings of one rule, beyond which they are counted")

    def __call__(self, series: Series) -> AnalysisRecord:
        """The mode, the numbers of the last checkpoint that has any, and what is not finite."""
        from diffai_dist.analyses.optimizer_state import States  # brings NumPy, which --help does not need

        states = States(series)
        updates = list(_updates(states))
        result = self._result(states) | {
            "ratio": updates[-1]["ratio"] if updates else None,
            "updates": updates[-_ROWS:],
            "updates_of": len(updates),
        }
        findings = *self._broken(states), *self._idle(states), *self._large(updates)
        return AnalysisRecord(self.name, result, findings)

    def _result(self, states: States) -> dict[str, Any]:
        rows, blocks = self._of_state(states) if states.slots else self._of_gradients(states)
        kept = sorted(sorted(blocks, key=lambda row: -(row["share"] or 0.0))[:_ROWS], key=blocks.index)
        tables = {"members": rows[-_ROWS:], "members_of": len(rows), "layers": kept, "layers_of": len(blocks)}
        mode = "optimizer" if states.slots else "grads" if states.gradients else "displacement"
        why = (
            {} if rows else {"reason": "neither exp_avg with exp_avg_sq nor saved gradients by their names, or unread"}
        )
        number = len(states.slots or states.gradients)
        return {"mode": mode, "parameters": number, **(rows[-1] if rows else why), **tables}

    def _of_state(self, states: States) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        holders = _holders(states, [slot.second for slot in states.slots])
        rows = [self._state(states, member) for member in holders]
        return rows, self._layers_of_state(states, holders[-1]) if holders else []

    def _of_gradients(self, states: States) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        holders = _holders(states, list(states.gradients))
        rows = [self._saved(states, member) for member in holders]
        return rows, _layers_of_gradients(states, holders[-1]) if holders else []

    def _state(self, states: States, member: int) -> dict[str, Any]:
        step, source = states.step(member)
        numbers = self._numbers(states.moments(member, (self.beta1, self.beta2)).of(range(len(states.slots))))
        if source is None and not numbers["elements"]:
            numbers["reason"] = "the optimizer's step is told neither by a tensor nor the metadata nor the name"
        return {"checkpoint": states.series.names[member], "step": step, "step_source": source, **numbers}

    def _numbers(self, signal: Signal) -> dict[str, Any]:
        noise = signal.noise_to_signal(self.margin)
        found = {
            "snr": signal.snr,
            "noise_to_signal": noise,
            "noise_scale": None if noise is None or self.batch_size is None else noise * self.batch_size,
            "zero_grad": signal.zeros / signal.elements if signal.elements else None,
            "elements": signal.elements,
        }
        return found | ({"reason": signal.why_not} if noise is None else {})

    def _layers_of_state(self, states: States, member: int) -> list[dict[str, Any]]:
        moments: Moments = states.moments(member, (self.beta1, self.beta2))
        power = moments.of(range(len(states.slots))).power
        rows = []
        for name, slots in _grouped({i: slot.label for i, slot in enumerate(states.slots)}).items():
            signal = moments.of(slots)
            share = signal.power / power if signal.elements and power > 0.0 else None
            rows.append({"block": name, "share": share, **self._numbers(signal)})
        return rows

    def _saved(self, states: States, member: int) -> dict[str, Any]:
        numbers = _gradient_numbers(states, list(states.gradients), member)
        norm = numbers["norm"]
        over = None if norm is None or not self.clip_norm else norm / self.clip_norm
        return {"checkpoint": states.series.names[member], **numbers, "over_clip": over}

    def _broken(self, states: States) -> Iterator[Finding]:
        """What cannot be: non-finite values of states and gradients, at the first member that has them."""
        series = states.series
        tensors: list[int] = [
            *(tensor for slot in states.slots for tensor in (slot.first, slot.second)),
            *states.gradients,
        ]
        counts: np.ndarray = series.non_finite[tensors].max(axis=1, initial=0)
        spoiled = [tensor for tensor, most in zip(tensors, counts.tolist(), strict=True) if most > 0]
        if len(spoiled) > self.listed:
            yield finding(self, "non-finite-states", "critical", None, len(spoiled), "listed")
        for tensor in spoiled if len(spoiled) <= self.listed else ():
            member = int((series.non_finite[tensor] > 0).argmax())
            count = int(series.non_finite[tensor, member])
            source, name = "counts of NaN and infinities", series.tensors[tensor]
            yield Finding("non-finite-state", "critical", name, count, 0, source, None, series.names[member])
        negative = list(_negative(states))
        source = f"smallest average of squares; derived; {len(negative)} such tensors in all checkpoints"
        for tensor, member, least in negative[: self.listed]:
            name = series.names[member]
            yield Finding("negative-square", "critical", series.tensors[tensor], least, 0, source, None, name)

    def _idle(self, states: States) -> Iterator[Finding]:
        """Parameters without any gradient in the last checkpoint that has a state."""
        series = states.series
        for member in _holders(states, [slot.second for slot in states.slots])[-1:]:
            rows = series.measured.moments[:, member]
            idle = [one for one in states.slots if 0 < rows["zeros"][one.second] == rows["count"][one.second]]
            source = f"elements with an average square of 0, all that it has; {len(idle)} such parameters"
            for slot in idle[: self.listed]:
                count = int(rows["count"][slot.second])
                yield Finding("no-gradient", "info", slot.label, count, 0, source, None, series.names[member])

    def _large(self, updates: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        above = [row for row in updates if row["ratio"] is not None and row["ratio"] > self.per_step]
        if above:
            row = max(above, key=lambda one: one["ratio"])
            sides = row["baseline"], row["candidate"]
            yield finding(self, "large-update", "info", None, row["ratio"], "per_step", *sides)


def _holders(states: States, tensors: Sequence[int]) -> list[int]:
    """Members in which any of these tensors was measured."""
    read: np.ndarray = states.series.decoded[list(tensors)]
    return [member for member, column in enumerate(read.T) if column.any()]


def _grouped(labels: Mapping[int, str]) -> dict[str, list[int]]:
    """Keys by the block of their parameter, in order of appearance."""
    from diffai_dist.analyses.roles import block

    groups: dict[str, list[int]] = {}
    for key, label in labels.items():
        groups.setdefault(block(label), []).append(key)
    return groups


def _layers_of_gradients(states: States, member: int) -> list[dict[str, Any]]:
    whole = _gradient_numbers(states, list(states.gradients), member)["norm"]
    rows = []
    for name, tensors in _grouped(states.gradients).items():
        numbers = _gradient_numbers(states, tensors, member)
        share = (numbers["norm"] / whole) ** 2 if whole and numbers["norm"] is not None else None
        rows.append({"block": name, "share": share, **numbers})
    return rows


def _gradient_numbers(states: States, tensors: Sequence[int], member: int) -> dict[str, Any]:
    """Of these saved gradients, as far as they were read, over their finite values."""
    import numpy as np

    from diffai_dist.analyses.optimizer_state import length
    from diffai_dist.statistics import side_columns

    series = states.series
    chosen = np.array([tensor for tensor in tensors if series.decoded[tensor, member]], np.int64)
    rows = series.measured.moments[chosen, member]
    held = (series.measured.comparison.aligned[tensor].tensors[member] for tensor in chosen.tolist())
    largest = side_columns(rows, [one.decoder for one in held if one])["absmax"]
    count = int(rows["count"].sum())
    return {
        "norm": length(series.norms2[chosen, member]),
        "largest": max((float(one) for one in largest if one is not None), default=None),
        "zero_grad": int(rows["zeros"].sum()) / count if count else None,
        "elements": count,
    }


def _negative(states: States) -> Iterator[tuple[int, int, float]]:
    """Averages of squares below 0, and where."""
    import numpy as np

    from diffai_dist.statistics import side_columns

    series, tensors = states.series, np.array([slot.second for slot in states.slots], np.int64)
    for member in range(len(series.members)):
        sound = tensors[states.sound(tensors, member)]
        held = (series.measured.comparison.aligned[tensor].tensors[member] for tensor in sound.tolist())
        least = side_columns(series.measured.moments[sound, member], [one.decoder for one in held if one])["min"]
        yield from ((int(t), member, low) for t, low in zip(sound, least, strict=True) if low is not None and low < 0)


def _updates(states: States) -> Iterator[dict[str, Any]]:
    """How far all weights together moved from each member to the next, over those whose distance is known."""
    import numpy as np

    from diffai_dist.analyses.optimizer_state import length

    series = states.series
    for t in series.intervals:
        known = ~states.others & np.isfinite(series.distances(t, t + 1).known) & np.isfinite(series.norms2[:, t])
        moved, norm = (length(column[known]) for column in (series.distances(t, t + 1).known, series.norms2[:, t]))
        ends = states.step(t)[0], states.step(t + 1)[0]
        steps = ends[1] - ends[0] if ends[0] is not None and ends[1] is not None and ends[1] > ends[0] else None
        update = None if moved is None or not norm else moved / norm
        ratio = None if update is None or steps is None else update / steps
        sides = {"baseline": series.names[t], "candidate": series.names[t + 1]}
        yield {**sides, "steps": steps, "update": update, "ratio": ratio}
