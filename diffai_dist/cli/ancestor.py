"""Flags of diffai that are spelled another way here, and those whose analysis is not built."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from diffai_dist.errors import UsageError

# Read as what stands behind them; `--help` does not list them.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "--statistical-significance": ("--distribution-shift",),
    "--head-importance": ("--attention-analysis",),
    "--learning-progress": ("--convergence-analysis",),
    "--alert-on-degradation": ("--fail-on",),
    "--markdown-output": ("--output", "markdown"),
    "--review-friendly": ("--output", "markdown"),
}

# Names of the catalogue without an analysis, each with the nearest that is built.
NOT_BUILT: Mapping[str, str] = {
    "--inference-speed-estimate": "--memory-analysis: bytes of weights and of the KV cache",
    "--hyperparameter-comparison": "--architecture-comparison: what names, shapes and config.json tell",
    "--outlier-analysis": "--anomaly-detection: layers and rows that are out of line",
    "--norm-analysis": "--anomaly-detection: norms that explode, and numbers that are none",
    "--param-efficiency-analysis": "--memory-analysis: bytes that could be saved, and provably so",
    "--quantization-readiness": "--quantization-analysis: of a pair, one side of which is quantised",
    "--lineage": "--similarity-matrix: which checkpoints are alike",
    "--clustering-change": "--similarity-matrix: which checkpoints are alike",
    "--merge-analysis": "--similarity-matrix: angles between what members have learned",
    "--ensemble-analysis": "--similarity-matrix: angles between what members have learned",
    "--spectral-analysis": "--transfer-learning-analysis: what kind of change it is, with its evidence",
    "--delta-rank": "--transfer-learning-analysis: what kind of change it is, with its evidence",
}


def translated(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """The arguments with aliases spelled out; UsageError for a name that stands for nothing here.

    >>> translated(["a", "b", "--alert-on-degradation=high"], {"--fail-on"})
    ['a', 'b', '--fail-on', 'high']
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelled = [piece for argument in arguments[:end] for piece in _spelled(argument, known)]
    return [*spelled, *arguments[end:]]


def _spelled(argument: str, known: Collection[str]) -> Iterator[str]:
    flag, equals, value = argument.partition("=")
    if flag in known or flag not in _names():
        yield argument
    elif flag in ALIASES:
        yield from (*ALIASES[flag], *([value] if equals else ()))
    else:
        raise UsageError(f"{flag}: {_names()[flag]}")


def _names() -> Mapping[str, str]:
    """Every such flag, and what is said where it is no alias."""
    from diffai_dist.analyses.ancestor import ELSEWHERE

    elsewhere = {f"--{name.replace('_', '-')}": f"no flag here: {told}" for name, told in ELSEWHERE.items()}
    return (
        elsewhere
        | {flag: f"not built here; nearest: {told}" for flag, told in NOT_BUILT.items()}
        | dict.fromkeys(ALIASES, "")
    )
