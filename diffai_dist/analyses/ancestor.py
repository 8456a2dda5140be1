"""Names of diffai that are no analyses here: what cannot be computed from weights, and what is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

# What nobody can compute from weights: why not, and which analyses come nearest.
REFUSED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "risk_assessment": (
        "a risk depends on what a model is used for; --fail-on and a policy set limits to what was measured",
        ("change_summary",),
    ),
    "deployment_readiness": (
        "no weights tell whether a model may go out; --fail-on and a policy set limits to what was measured",
        ("integrity_check", "anomaly_detection"),
    ),
    "performance_impact_estimate": ("speed and accuracy need a device and data", ("memory_analysis",)),
    "hyperparameter_impact": (
        "the effect of a setting takes runs with and without it; what differs can be listed",
        ("architecture_comparison",),
    ),
    "learning_rate_analysis": (
        "the size of an update comes from gradients, schedule and decay alike",
        ("gradient_analysis", "convergence_analysis"),
    ),
    "attention_pattern_diff": ("patterns of attention need data; weights change head by head", ("attention_analysis",)),
    "learning_curve_analysis": ("a curve needs the losses of a log; weights tell movement", ("convergence_analysis",)),
}

# What something else does now.
ELSEWHERE: Mapping[str, str] = {
    "stats": "statistics of every tensor are always there; --output json has them all",
    "sort_by_change_magnitude": "--sort-by-change-magnitude orders tensors by ‖d‖ / ‖a‖, largest first, ties by name",
    "regression_test": "a policy sets limits to any measured number",
    "alert_on_degradation": "--fail-on SEVERITY ends with exit code 1 where a finding is as severe",
    "generate_report": "diffai-dist report RUN --store URL, in every --output",
    "markdown_output": "--output markdown",
    "review_friendly": "--output markdown",
    "include_charts": "the tables of a store can be plotted by any tool: diffai-dist query",
    "statistical_significance": "--distribution-shift: of millions of elements every p is 0, so it tells sizes",
    "head_importance": "--attention-analysis: change and share of the norm, head by head",
    "learning_progress": "--convergence-analysis",
    "clustering_change": "--similarity-matrix: its order and clusters",
    "ensemble_analysis": "--similarity-matrix: angles between what members have learned",
}


def refusal(name: str) -> str:
    """Why a name of the ancestor is refused, and what comes nearest.

    >>> refusal("performance_impact_estimate").partition(": ")[2]
    'cannot be derived from weights: speed and accuracy need a device and data. Nearest: --memory-analysis'
    """
    reason, nearest = REFUSED[name]
    flags = ", ".join(f"--{one.replace('_', '-')}" for one in nearest)
    return f"--{name.replace('_', '-')}: cannot be derived from weights: {reason}. Nearest: {flags}"
