"""How a series moves: whether its updates shrink, how straight its path is, which law its distance follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.trajectory import Step, Trajectory, grouped, kept, number, trajectories
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series
    from diffai_dist.analyses.trend import Trend

CONFOUND = (
    "movement only: the schedule of the learning rate and weight decay shape the size of updates as much as anything, "
    "and weights tell neither"
)
_LOST = (
    "{} updates and {} angles between updates are lost to rounding about the anchor: choose another with --baseline, "
    "or measure --pairs all --elementwise"
)
_LABELS = "a label of the trend needs {} updates that moved; there are {}"


@dataclass(frozen=True)
class ConvergenceAnalysis:
    """Whether updates shrink or grow over a series, path against displacement, angles of updates, laws of distance.

    u is ‖x_t+1 - x_t‖ / ‖x_t‖; D(t) = ‖x_t - x_0‖; straightness D / path of the last member; `plane_share` the part of
    the movement in its two main directions. The trend is Mann-Kendall's of log u per step, its slope Sen's. Labels:
    oscillating, shrinking, growing, stationary (no trend, and a slope that is small for sure), else insufficient.
    Checkpoints that hold less than half of the tensors with products are left out, then tensors not in all others.
    Distances are those of pairs measured element by element, else of the Gram. What may be nothing but rounding is
    null: where an update is, there is neither label nor law, for the small ones are those that are missing.
    """

    name: ClassVar[str] = "convergence_analysis"
    flag: ClassVar[str] = "--convergence-analysis"
    kind: ClassVar[Kind] = "N"
    partials: ClassVar[tuple[str, ...]] = ("gram",)
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = False
    result: ClassVar[Mapping[str, str]] = {
        "confound": "what else shapes updates, and weights do not tell",
        "checkpoints": "members that took part",
        "checkpoints_left_out": "names of the others",
        "tensors": "tensors that took part",
        "tensors_left_out": "the number of others",
        "axis": "unit of time: step, as names tell it, or index",
        "label": "oscillating, shrinking, growing, stationary or insufficient",
        "path": "sum of ‖x_t+1 - x_t‖",
        "displacement": "‖x_last - x_first‖",
        "straightness": "displacement / path, 1 for a straight line",
        "plane_share": "part of the scatter around the mean in its two main directions",
        "median_cosine": "of successive updates",
        "trend_p": "two-sided p of Mann-Kendall's test on log u per step",
        "trend_s": "pairs of updates that rise less those that fall",
        "log_slope_per_step": "Sen's slope of log u per step",
        "updates_that_moved": "updates that are not 0",
        "updates_lost_to_rounding": "updates that may be nothing but rounding",
        "cosines_lost_to_rounding": "angles between updates that may be nothing but rounding",
        "cannot": "what so few checkpoints do not tell; null where they tell all",
        "updates": "per update baseline, candidate, steps between them, u = ‖x_t+1 - x_t‖ / ‖x_t‖ and its bound of"
        " rounding u_error, u_per_step, cosine_to_last and its bound cosine_error, distance_from_first = ‖x_t+1 - x_0‖",
        "fits": "laws of the distance from the first member (c t^p: p 0.5 random walk, 1 straight; a + b log t) and of"
        " u per step: law, chosen by the smallest corrected Akaike criterion aicc, parameters",
        "blocks": "label to cosines_lost_to_rounding for each block",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "updates-growing": "p of the trend at most `significance`, and u rises by more than rounding: medium",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "trend: Mann 1945, Kendall 1975; slope: Sen 1968; correction from 10 points on: Hamed and Rao 1998",
        "choice of laws: Hurvich and Tsai 1989",
        "p of 0.05: convention; the other limits: judgement",
    )

    significance: float = threshold(0.05, "p of Mann-Kendall's test, at most which there is a trend", "convention")
    fewest: int = threshold(6, "updates that a label needs")
    flat: float = threshold(0.1, "|Sen's slope of log u| times the span, below which a series without trend is flat")
    oscillating: float = threshold(-0.2, "median cosine of successive updates, below which they go to and fro")

    def __call__(self, series: Series) -> AnalysisRecord:
        """The numbers of the whole model and of each block, and a finding where the whole model's updates grow."""
        members, tensors = kept(series)
        result: dict[str, Any] = {
            "confound": CONFOUND,
            "checkpoints": len(members),
            "checkpoints_left_out": [name for i, name in enumerate(series.names) if i not in members],
            "tensors": len(tensors),
            "tensors_left_out": len(series.tensors) - len(tensors),
            "axis": "index" if series.steps is None else "step",
        }
        if len(members) < 2 or not tensors:
            nothing = "anything: no two checkpoints have products of the same tensors"
            return AnalysisRecord(self.name, {**result, "label": "insufficient", "cannot": nothing})
        path = Trajectory(series, members, tensors)
        summary = self._summary(path)
        groups = dict(grouped(series, tensors))
        blocks = [
            {"block": name, **self._summary(one)}
            for name, one in zip(groups, trajectories(series, members, list(groups.values())), strict=True)
        ]
        result |= {
            **summary,
            "cannot": self._cannot(path),
            "updates": path.rows(),
            "fits": path.fits,
            "blocks": blocks,
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(path, summary)))

    def _summary(self, path: Trajectory | Step) -> dict[str, Any]:
        trend = path.trend()
        label = self._label(path, trend)
        return {
            "label": label,
            "path": number(path.length),
            "displacement": number(path.distances[-1]),
            "straightness": path.straightness(),
            "plane_share": path.plane_share(),
            "median_cosine": path.median_cosine(),
            "trend_p": trend.p if trend else None,
            "trend_s": trend.s if trend else None,
            "log_slope_per_step": trend.slope if trend else None,
            "updates_that_moved": path.moved,
            "updates_lost_to_rounding": path.lost,
            "cosines_lost_to_rounding": path.lost_angles,
        }

    def _label(self, path: Trajectory | Step, trend: Trend | None) -> str:
        cosine = path.median_cosine()
        if trend is None or trend.points < self.fewest or path.lost or path.lost_angles:
            return "insufficient"
        if cosine is not None and cosine < self.oscillating:
            return "oscillating"
        if trend.p <= self.significance and abs(trend.slope) * path.span > path.blur:
            return "growing" if trend.slope > 0.0 else "shrinking"
        flat = trend.p > self.significance and abs(trend.slope) * path.span < self.flat
        return "stationary" if flat else "insufficient"

    def _cannot(self, path: Trajectory) -> str | None:
        """What so few checkpoints do not tell; None where they tell all that there is."""
        missing = []
        if path.lost or path.lost_angles:
            missing.append(_LOST.format(path.lost, path.lost_angles))
        if len(path.updates) < 2:
            missing.append("two checkpoints give one update: no angle between updates, no path beside the displacement")
        if path.moved < self.fewest:
            missing.append(_LABELS.format(self.fewest, path.moved))
        if not path.lost and (any(fit["aicc"] is None for fit in path.fits) or not path.fits):
            missing.append("too few points to choose a law of distance or of updates")
        return "; ".join(missing) or None

    def _findings(self, path: Trajectory, summary: dict[str, Any]) -> list[Finding]:
        if summary["label"] != "growing":
            return []
        sides = path.names[0], path.names[-1]
        found = finding(self, "updates-growing", "medium", None, summary["trend_p"], "significance", *sides)
        slope = summary["log_slope_per_step"]
        return [replace(found, source=f"p of Mann-Kendall on log u, slope {slope:.3g} per step; {found.source}")]
