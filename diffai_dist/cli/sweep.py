"""`sweep`, `plan` and `resume`: many checkpoints, from a command line or a configuration."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from diffai_dist.cli.compare import place_of, refuse_jobs, tls_of
from diffai_dist.cli.gating import (
    exit_code,
    expect_options,
    gate_document,
    gate_of,
    gate_options,
    held_options,
    joined_thresholds,
    judged,
    parsed_thresholds,
    refuse_idle,
    say_met,
    threshold_option,
)
from diffai_dist.cli.options import (
    analysis_options,
    chosen_analyses,
    epsilon_option,
    exit_option,
    format_option,
    needed_store_option,
    output_options,
    place_options,
    planned_store_option,
    selection_options,
    storage_options,
    store_option,
    talk_options,
    tensors_option,
    together,
    unit_size_option,
)
from diffai_dist.cli.output import (
    Bar,
    Target,
    check_store,
    kept_store,
    night_before,
    profile_of,
    say_on_stderr,
    start_logging,
)
from diffai_dist.console import print_chunks
from diffai_dist.errors import UsageError

if TYPE_CHECKING:
    from diffai_dist.api import Report
    from diffai_dist.config import SweepConfig
    from diffai_dist.gates import Gate
    from diffai_dist.opening import Group
    from diffai_dist.records import Sweep
    from diffai_dist.run import Settings

MODES = ("consecutive", "vs-first", "vs-last", "vs-baseline", "all")

checkpoint_options = together(
    click.argument("checkpoints", nargs=-1, required=True, type=click.Path()),
    click.option("--pairs", metavar="CHOICE", help=f"{', '.join(MODES)}, or A:B,C:D with names of members."),
    click.option(
        "--baseline",
        metavar="URL",
        type=click.Path(),
        help="What vs-baseline compares all others with; the anchor of `all`.",
    ),
    click.option("--elementwise", is_flag=True, help="With --pairs all: measure every pair element by element, too."),
    click.option("--since", metavar="WHEN", help="First step, or date: 1000, 2026-11-01, 7d, 12h, yesterday, today."),
    click.option("--until", metavar="WHEN", help="Last step or date, likewise."),
    click.option("--every", metavar="N", type=click.IntRange(1), help="Steps that are multiples of N."),
    click.option("--latest", metavar="N", type=click.IntRange(1), help="The last N that all other limits leave."),
    click.option("--name", metavar="NAME", help="A name for the first lines, and to find last night's run by."),
)

# What an option is called in a configuration; the others are not settings of a sweep.
_SETTINGS = {
    **{name: name for name in ("baseline", "elementwise", "since", "until", "every", "latest", "name")},
    **{name: f"select.{name}" for name in ("include", "exclude", "ignore_keys_regex", "map", "raw")},
    **{name: f"storage.{name}" for name in ("endpoint_url", "anon", "profile")},
    **{name: f"cluster.{name}" for name in ("workers", "scheduler", "threads", "memory_limit", "unit_size")},
    **{f"expect_{name}": f"expect.{name}" for name in ("frozen", "changed", "cast")},
    **{name: name for name in ("epsilon", "fail_on", "policy", "store")},
    "output": "output.format",
    "output_file": "output.file",
}


def asked(checkpoints: tuple[str, ...], options: dict[str, Any]) -> SweepConfig:
    """The configuration file, if one was named, with what the command line and the environment say in its place."""
    from diffai_dist.analyses import EVERY
    from diffai_dist.config import SweepConfig, load, merged

    context = click.get_current_context()
    given = {
        name: options[name]
        for name in options
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    }
    settings = {_SETTINGS[name]: value for name, value in given.items() if name in _SETTINGS}
    if "pairs" in given:
        settings["pairs"] = _pairs(given["pairs"])
    if analyses := chosen_analyses(options):
        settings["analyses"] = analyses
    if tls := tls_of(options):
        settings["cluster.tls"] = dict(zip(("ca_file", "cert_file", "key_file"), tls, strict=True))
    in_file = _is_config(checkpoints)
    config = load(checkpoints[0], os.environ, EVERY) if in_file else SweepConfig(checkpoints=checkpoints)
    if thresholds := parsed_thresholds(options["thresholds"]):
        settings["thresholds"] = joined_thresholds(config.thresholds, thresholds)
    return merged(config, settings | _slurm(options, config))


def _slurm(options: dict[str, Any], config: SweepConfig) -> dict[str, Any]:
    """The jobs that the options ask for, in place of those of the file."""
    given = {"cluster.slurm.jobs": options["jobs"], "cluster.slurm.config": options["cluster_config"]}
    if config.cluster.slurm is not None:
        return given
    if options["cluster"] is None:
        refuse_jobs(options)
        return {}
    return given | {"cluster.slurm.jobs": options["jobs"] or 1}


def _is_config(checkpoints: tuple[str, ...]) -> bool:
    found = [name for name in checkpoints if name.endswith((".yaml", ".yml"))]
    if found and len(checkpoints) > 1:
        raise UsageError(f"{found[0]} is a configuration, and names the checkpoints itself: give it alone")
    return bool(found)


def _pairs(text: str) -> str | tuple[tuple[str, ...], ...]:
    """A way to choose pairs, or the pairs themselves: `a:b,b:c`. URLs hold colons, so these take names."""
    if ":" not in text:
        return text
    pairs = tuple(tuple(name.strip() for name in pair.split(":")) for pair in text.split(","))
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise UsageError(f"--pairs {text!r}: write A:B,C:D; {':'.join(pair)!r} is no pair of two names")
    return pairs


@checkpoint_options
@output_options
@tensors_option
@analysis_options()
@selection_options
@epsilon_option
@threshold_option
@expect_options
@store_option
@exit_option
@gate_options
@unit_size_option
@place_options
@storage_options
@talk_options
def sweep(checkpoints: tuple[str, ...], **options: Any) -> int:
    """Compare many checkpoints, each read once: globs, templates, lists, or one CONFIG.yaml.

    \b
    diffai-dist sweep 's3://bucket/run7/step-*' --pairs consecutive --store s3://bucket/reports
    diffai-dist sweep 's3://bucket/run7/step-{step:08d}' --latest 20 --every 1000
    diffai-dist sweep configs/nightly-s3.yaml
    """
    from diffai_dist.request import group_of, profile_of, settings_of

    start_logging(options["verbose"])
    config = asked(checkpoints, options)
    settings = settings_of(config, bool(options["verbose"]))
    refuse_idle(options["thresholds"], settings.analyses, series=True)
    options |= {"output": config.output.format, "output_file": config.output.file, "fail_on": config.conditions}
    target = Target(options, profile_of(config))
    gate = gate_of(config.conditions, config.policy)
    if config.store:
        check_store(config.store, settings.profile)
    if not options["quiet"]:
        _say_left_out(config)
    return _run(group_of(config, datetime.now(UTC)), settings, config.store, target, options, gate)


def _say_left_out(config: SweepConfig) -> None:
    from diffai_dist.request import left_out

    if names := left_out(config):
        click.echo(f"all leaves out {', '.join(names)}: pairs all measures these with --elementwise only", err=True)


def _run(
    group: Group, settings: Settings, store: str | None, target: Target, options: dict[str, Any], gate: Gate
) -> int:
    from diffai_dist.api import run

    with Bar(options) as bar:
        report = run(group, settings, store, bar.start)
    verdict = judged(report.sweep, gate)
    if target.wanted:
        before = _before(report, store)
        target.show(verdict.sweep, target.view(before and judged(before, gate).sweep, report.reading.notes))
    if not options["quiet"]:
        say_on_stderr(report, target, store)
        say_met(verdict)
    report.raise_for_store()
    return exit_code(verdict, options)


def _before(report: Report, store: str | None) -> Sweep | None:
    """The run of the night before, where this one was kept beside it."""
    from diffai_dist.api import open_store

    if store is None or report.store_error:
        return None
    return night_before(open_store(store, report.settings.profile), report.id)


@click.argument("run", metavar="RUN")
@needed_store_option
@output_options
@tensors_option
@exit_option
@gate_options
@place_options
@storage_options
@talk_options
def resume(run: str, store: str, **options: Any) -> int:
    """Finish an interrupted run; what it has published is not read again. RUN is an id, its beginning, or `latest`."""
    from diffai_dist.api import resumed

    start_logging(options["verbose"])
    target = Target(options, profile_of(options))
    gate = gate_of(options["fail_on"], options["policy"])
    run = kept_store(store, profile_of(options)).resolve(run)
    group, settings = resumed(run, store, profile_of(options), place_of(options))
    return _run(group, settings, store, target, options, gate)


@checkpoint_options
@format_option
# The order in which a run is shown; here so that a command line of `compare` is one of `plan`.
@click.option("--sort-by-change-magnitude", is_flag=True, hidden=True, expose_value=False)
@click.option("--sort-by", hidden=True, expose_value=False)
@analysis_options()
@selection_options
@epsilon_option
@threshold_option
@expect_options
@planned_store_option
@held_options
@unit_size_option
@place_options
@storage_options
def plan(checkpoints: tuple[str, ...], output: str, **options: Any) -> int:
    """Say what a comparison or sweep would read: tensors, bytes, units, peak memory, problems. Reads headers only.

    Takes what `compare` and `sweep` take: two checkpoints, patterns, or a configuration.
    """
    from diffai_dist.api import compare_group, planned
    from diffai_dist.inspection import plan_text
    from diffai_dist.request import group_of, settings_of

    config = asked(checkpoints, options)
    settings, pair = settings_of(config), _is_pair(checkpoints)
    refuse_idle(options["thresholds"], settings.analyses, series=not pair)
    gate = gate_document(gate_of(config.conditions, config.policy))
    group = compare_group(checkpoints[0], checkpoints[1], settings) if pair else group_of(config, datetime.now(UTC))
    document = planned(group, settings, config.store) | gate
    print_chunks([json.dumps(document, indent=1) + "\n"] if output == "json" else plan_text(document))
    return 3 if document["problems"] else 0


def _is_pair(checkpoints: tuple[str, ...]) -> bool:
    """Whether `plan` was asked about what `compare` takes: two checkpoints, and no word of a series."""
    from diffai_dist.choosing import literal

    source = click.get_current_context().get_parameter_source
    series = ("pairs", "baseline", "elementwise", "since", "until", "every", "latest", "name")
    plain = len(checkpoints) == 2 and all(literal(one) == one for one in checkpoints)
    return plain and not any(source(name) is not ParameterSource.DEFAULT for name in series)
