"""Options that say what a checkpoint is held to, and what becomes of the exit code."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from diffai_dist.cli.options import together
from diffai_dist.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from diffai_dist.config import FailOn
    from diffai_dist.gates import Gate, Verdict
    from diffai_dist.records import Sweep
    from diffai_dist.run import Settings

CONDITIONS = ("critical", "high", "medium", "low", "info", "changed", "missing", "nan", "unreadable", "never")

threshold_option = click.option(
    "--threshold",
    "thresholds",
    metavar="NAME.FIELD=VALUE",
    multiple=True,
    help="Another limit of an analysis (`explain NAME` lists them); repeatable.",
)
expect_options = together(
    click.option(
        "--expect-frozen", metavar="GLOB", multiple=True, help="Tensors that keep their bits, or exit with 1."
    ),
    click.option("--expect-changed", metavar="GLOB", multiple=True, help="Tensors that do not, likewise; repeatable."),
    click.option("--expect-cast", metavar="DTYPE", help="Prove the candidate to be the baseline, rounded to DTYPE."),
)
held_options = together(
    click.option(
        "--fail-on",
        metavar="WHAT",
        type=click.Choice(CONDITIONS),
        multiple=True,
        help="Exit with 1 on a finding as severe (critical, high, medium, low, info) that is not waived, or when "
        "something is: changed, missing, nan, unreadable; never; repeatable.",
    ),
    click.option(
        "--policy",
        metavar="FILE",
        type=click.Path(),
        help="Rules and waivers. Without a severity in --fail-on, a rule broken at medium or above exits with 1.",
    ),
)
gate_options = together(
    held_options,
    click.option("--exit-zero", is_flag=True, help="Not with 1, whatever is met: what was met is only said."),
)


def parsed_thresholds(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Thresholds as a configuration has them.

    >>> parsed_thresholds(["update-anomaly.medium=4.5", "layer_impact.dominant_share=.6"])
    {'update_anomaly': {'medium': 4.5}, 'layer_impact': {'dominant_share': 0.6}}
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        names, equals, value = text.partition("=")
        analysis, dot, name = names.replace("-", "_").partition(".")
        if not (equals and dot and analysis and name):
            raise UsageError(f"--threshold {text[:100]!r}: write NAME.FIELD=VALUE, as layer_impact.dominant_share=0.6")
        found.setdefault(analysis, {})[name] = _value(value)
    return found


def refuse_idle(texts: Iterable[str], analyses: Collection[str], series: bool) -> None:
    """Raise UsageError for a threshold of an analysis that nobody asks for, and that no series asks by itself."""
    from diffai_dist.analyses import EVERY, SERIES

    for name in parsed_thresholds(texts):
        if name not in analyses and not (series and name in SERIES and SERIES[name].always):
            raise UsageError(f"--threshold of {name} limits nothing: add {EVERY.listed[name].flag}")


def joined_thresholds(
    file: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Those of the command line over those of a file, one by one."""
    return {name: {**file.get(name, {}), **given.get(name, {})} for name in (*file, *given)}


def _value(text: str) -> Any:
    """What JSON, or Python, reads in the text: a number wherever it can be one."""
    for read in (json.loads, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def gate_of(conditions: Iterable[FailOn], policy: str | None) -> Gate:
    """The gate that was asked for; raises UsageError before anything is read."""
    from diffai_dist.config import load_policy
    from diffai_dist.gates import Gate

    return Gate(tuple(conditions), load_policy(policy) if policy else None)


def judged(sweep: Sweep, gate: Gate) -> Verdict:
    """The run as its gate sees it today."""
    from diffai_dist.gates import judge

    return judge(sweep, gate, datetime.now(UTC).date())


def gate_document(gate: Gate) -> dict[str, Any]:
    """The gate as a plan shows it; empty without any."""
    from diffai_dist.gates.waivers import expired, waivers_of

    if not (gate.conditions or gate.policy):
        return {}
    policy = None
    if gate.policy:
        waivers = waivers_of(gate.policy)
        counts = {"waivers": len(waivers), "expired": len(list(expired(waivers, datetime.now(UTC).date())))}
        policy = {"rules": len(gate.policy.rules), **counts}
    return {"gate": {"fail_on": list(gate.conditions), "policy": policy}}


def say_met(verdict: Verdict) -> None:
    """What the gate does not let pass, on stderr."""
    for line in verdict.lines():
        click.echo(f"gate: {line}", err=True)


def say_idle(gate: Gate, settings: Settings) -> None:
    """On stderr that a severity was named where nothing is asked for that has findings."""
    asked = settings.analyses or settings.expect or gate.policy or "never" in gate.conditions
    if gate.severity and not asked:
        idle = "no analysis was asked for, so nothing can be found; add --integrity-check or --all"
        click.echo(f"--fail-on {gate.severity}: {idle}", err=True)


def exit_code(verdict: Verdict, options: Mapping[str, Any]) -> int:
    """1 where the gate is broken, or where something differs and that counts; 3 when something could not be read."""
    sweep = verdict.sweep
    differs = sweep.differs and (options["exit_code"] or options["quiet"])
    if (verdict.met or differs) and not options["exit_zero"]:
        return 1
    return 0 if sweep.complete else CheckpointError.exit_code
