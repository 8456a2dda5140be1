"""Where a checkpoint keeps what an optimizer knows of gradients, told by names, and what sums of it say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffai_dist.analyses.lengths import total
from diffai_dist.analyses.series import Series
from diffai_dist.dtypes import Family

FIRST, SECOND, STEP = "exp_avg", "exp_avg_sq", "step"
_GRADIENTS = {"grad", "grads", "gradient", "gradients", "main_grad"}
_WRAPPERS = {
    "optimizer", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict", "optim", "opt_state",
    "base_optimizer_state", "state", "states", "module",
}  # fmt: skip
_SEPARATOR = re.compile(r"[./]")
_LONGEST = 1024  # characters that are looked at: a hostile name of 1 MB costs no more
_STEPS = ("step", "global_step", "iteration")  # keys of metadata


@dataclass(frozen=True, slots=True)
class Slot:
    """The state of one parameter: tensors of the series by index; `step` is None where none of its own is kept."""

    label: str  # the parameter's name, or its number where the optimizer counts them
    first: int
    second: int
    step: int | None


@dataclass(frozen=True)
class Moments:
    """Sums over Adam's state in one member, one row per slot; NaN where a slot cannot be used."""

    squares: np.ndarray  # Σ m̂², of the first moment with its bias taken out: m / (1 - β1^t)
    power: np.ndarray  # Σ v̂, likewise v / (1 - β2^t)
    noise: np.ndarray  # what Σ m̂² would be were there no signal, as a part of Σ v̂
    elements: np.ndarray
    zeros: np.ndarray  # elements with v = 0

    def of(self, slots: Sequence[int] | np.ndarray) -> Signal:
        """Of all these slots together; those that cannot be used are left out."""
        chosen = np.asarray(slots, np.int64)
        chosen = chosen[np.isfinite(self.squares[chosen]) & np.isfinite(self.power[chosen])]
        squares, power, noise = (total(one[chosen]) for one in (self.squares, self.power, self.noise * self.power))
        return Signal(squares, power, noise, int(self.elements[chosen].sum()), int(self.zeros[chosen].sum()))


@dataclass(frozen=True, slots=True)
class Signal:
    """How much of the gradients goes one way, and how much is noise; NaN and 0 of no elements."""

    squares: float
    power: float
    noise: float
    elements: int
    zeros: int

    @property
    def snr(self) -> float | None:
        """Σ m̂² / Σ v̂: 1 where all gradients were the same, ρ where they were noise alone."""
        return self.squares / self.power if self.power > 0.0 else None

    def noise_to_signal(self, margin: float) -> float | None:
        """(V - M) / (M - ρV); None unless M exceeds ρV by `margin` standard errors, 1/sqrt(n) each, and V exceeds M.

        >>> Signal(0.2, 1.0, 0.1, 10**6, 0).noise_to_signal(2.0), Signal(0.1, 1.0, 0.1, 10**6, 0).noise_to_signal(2.0)
        (8.0, None)
        """
        if not (self.elements and self.noise * (1.0 + margin / self.elements**0.5) < self.squares <= self.power):
            return None
        return (self.power - self.squares) / (self.squares - self.noise)

    @property
    def why_not(self) -> str:
        """The reason of such a None."""
        if not self.elements or not self.power > 0.0:
            return "no finite state with a known step and any gradient"
        if self.squares > self.power:
            return "not stationary: the average gradient exceeds what the average of squares allows"
        return "unidentifiable: the average gradient is not longer than noise alone would make it"


class States:
    """The parts of a series that are no weights: Adam's moments, their steps, and saved gradients."""

    def __init__(self, series: Series) -> None:
        self.series = series
        kinds: dict[str, dict[str, int]] = {FIRST: {}, SECOND: {}, STEP: {}}
        gradients: dict[int, str] = {}
        for tensor, name in enumerate(series.tensors):
            kind, label = told(name)
            if kind in kinds:
                kinds[kind].setdefault(label, tensor)
            elif kind is not None:
                gradients[tensor] = label
        both = [label for label in kinds[SECOND] if label in kinds[FIRST]]
        steps = kinds[STEP]
        self.slots = tuple(Slot(label, kinds[FIRST][label], kinds[SECOND][label], steps.get(label)) for label in both)
        self.gradients = gradients
        self._common = steps.get("")  # one step for all parameters, beside the state

    @cached_property
    def others(self) -> np.ndarray:
        """Tensors that belong to the state or are gradients, true or false each: the rest are weights."""
        from diffai_dist.analyses.staleness_check import is_state

        found = np.array([is_state(name) for name in self.series.tensors], bool)
        found[list(self.gradients)] = True
        return found

    def step(self, member: int) -> tuple[int | None, str | None]:
        """The optimizer's step in a member, and where that is told: by a tensor, the metadata, or the URL."""
        every = [slot.step for slot in self.slots if slot.step is not None]
        own = self._tensor_steps([*every, -1 if self._common is None else self._common], member)
        if np.isfinite(own).any():
            return int(np.nanmax(own)), "tensor"
        metadata = self.series.measured.comparison.members[member].metadata
        texts = [metadata[key] for key in _STEPS if metadata.get(key, "").isascii() and metadata.get(key, "").isdigit()]
        if texts and len(texts[0]) < 19:
            return int(texts[0]), "metadata"
        step = self.series.members[member].step
        return step, None if step is None else "name"

    def steps(self, member: int) -> np.ndarray:
        """The step of each slot: of its own tensor, or else of the checkpoint; NaN where nobody tells it."""
        common = self.step(member)[0]
        own = self._tensor_steps([-1 if slot.step is None else slot.step for slot in self.slots], member)
        return np.where(np.isfinite(own), own, np.nan if common is None else float(common))

    def moments(self, member: int, betas: tuple[float, float]) -> Moments:
        """Sums of each slot in that member. Source: the bias corrections of Adam, Kingma and Ba 1412.6980."""
        rows = self.series.measured.moments[:, member]
        first = np.array([slot.first for slot in self.slots], np.int64)
        second = np.array([slot.second for slot in self.slots], np.int64)
        equal = rows["count"][first] == rows["count"][second]
        usable = self.sound(first, member) & self.sound(second, member) & equal
        steps = self.steps(member)
        with np.errstate(all="ignore"):
            steps = np.where(usable & (steps >= 1.0), steps, np.nan)
            fade = betas[0] ** steps
            squares = _squares(rows[first]) / (1.0 - fade) ** 2
            power = rows["finite"][second] * rows["mean"][second] / (1.0 - betas[1] ** steps)
            # Var(m̂)/Var(g) of independent gradients: Σ(1-β1)²β1^2i / (1-β1^t)², which tends to (1-β1)/(1+β1).
            noise = (1.0 - betas[0]) / (1.0 + betas[0]) * (1.0 + fade) / (1.0 - fade)
        return Moments(squares, power, noise, rows["count"][second], rows["zeros"][second])

    def sound(self, tensors: np.ndarray, member: int) -> np.ndarray:
        """Which of these tensors are real numbers, all finite, measured to their end."""
        decoders = [self._decoder(tensor, member) for tensor in tensors.tolist()]
        real = np.array([family in (Family.SINGLE, Family.DOUBLE) for family in decoders], bool)
        found: np.ndarray = real & self.series.decoded[tensors, member] & (self.series.non_finite[tensors, member] == 0)
        return found

    def _decoder(self, tensor: int, member: int) -> Family | None:
        held = self.series.measured.comparison.aligned[tensor].tensors[member]
        return None if held is None else held.decoder.family

    def _tensor_steps(self, tensors: Sequence[int], member: int) -> np.ndarray:
        """What tensors of one element hold; NaN for -1 and for what is no such tensor, or no whole number."""
        if not self.series.tensors:
            return np.full(len(tensors), np.nan)
        places = np.array(tensors, np.int64).reshape(-1)
        values: np.ndarray = self.series.measured.moments["mean"][places, member]
        known = (places >= 0) & (self.series.sizes[places, member] == 1) & (self.series.non_finite[places, member] == 0)
        found: np.ndarray = np.where(known & (values == np.floor(values)), values, np.nan)
        return found


def told(name: str) -> tuple[str | None, str]:
    """Which part of an optimizer's state a tensor is, or "gradient", or None; and of which parameter.

    >>> told("optimizer.state.h.0.w.exp_avg"), told("exp_avg_sq.h.0.w"), told("state.7.step"), told("grads.h.0.w")
    (('exp_avg', 'h.0.w'), ('exp_avg_sq', 'h.0.w'), ('step', '7'), ('gradient', 'h.0.w'))
    >>> told("h.0.w"), told("optimizer.step")
    ((None, 'h.0.w'), ('step', ''))
    """
    parts = _SEPARATOR.split(name) if len(name) <= _LONGEST else []
    for kind in (SECOND, FIRST):
        if kind in parts:
            return kind, _label(parts, {kind})
    if STEP in (parts[0:1] + parts[-1:]) and (len(parts) == 1 or not _WRAPPERS.isdisjoint(parts)):
        return STEP, _label(parts, {STEP})
    if not _GRADIENTS.isdisjoint(parts[:1] + parts[-1:]):
        return "gradient", _label(parts, _GRADIENTS)
    return None, name


def _label(parts: Sequence[str], kinds: set[str]) -> str:
    """The rest of the name, without what stands around all parameters alike."""
    rest = [part for part in parts if part not in kinds]
    while rest and rest[0] in _WRAPPERS:
        rest = rest[1:]
    return ".".join(rest)


def _squares(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows["m2"] + rows["finite"] * rows["mean"] ** 2
    return found


def length(squares: Iterable[float]) -> float | None:
    """The root of their sum; None where there is none."""
    found = total(np.array(list(squares), np.float64))
    return float(np.sqrt(found)) if np.isfinite(found) else None
