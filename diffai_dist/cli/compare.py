"""`diffai-dist compare A B`, and `diffai A B`, which is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from diffai_dist.cli.gating import (
    exit_code,
    expect_options,
    gate_of,
    gate_options,
    judged,
    parsed_thresholds,
    refuse_idle,
    say_idle,
    say_met,
    threshold_option,
)
from diffai_dist.cli.options import (
    analysis_options,
    chosen_analyses,
    epsilon_option,
    exit_option,
    output_options,
    place_options,
    selection_options,
    storage_options,
    store_option,
    talk_options,
    together,
    unit_size_option,
)
from diffai_dist.cli.output import Bar, Target, check_store, profile_of, say_on_stderr, start_logging
from diffai_dist.errors import UsageError

if TYPE_CHECKING:
    from diffai_dist.cluster import Place
    from diffai_dist.run import Settings

two_checkpoints = together(
    click.argument("baseline", type=click.Path()),  # a type with which shells complete file names; URLs pass, too
    click.argument("candidate", type=click.Path()),
)
compare_options = together(
    output_options,
    analysis_options(),
    selection_options,
    epsilon_option,
    threshold_option,
    expect_options,
    store_option,
    exit_option,
    gate_options,
    unit_size_option,
    place_options,
    storage_options,
    talk_options,
)


@two_checkpoints
@compare_options
def compare(baseline: str, candidate: str, **options: Any) -> int:
    """What changed between two checkpoints: a file, a directory of shards, an index, or a URL of one."""
    from diffai_dist.api import compare_group, run

    start_logging(options["verbose"])
    target = Target(options, profile_of(options))
    if options["store"]:
        check_store(options["store"], profile_of(options))
    settings, gate = settings_of(options), gate_of(options["fail_on"], options["policy"])
    with Bar(options) as bar:
        report = run(compare_group(baseline, candidate, settings), settings, options["store"], bar.start)
    verdict = judged(report.sweep, gate)
    if target.wanted:
        target.show(verdict.sweep, target.view())
    if not options["quiet"]:
        say_on_stderr(report, target, options["store"])
        say_met(verdict)
        say_idle(gate, settings)
    report.raise_for_store()
    return exit_code(verdict, options)


def settings_of(options: dict[str, Any]) -> Settings:
    """What the options say about a comparison."""
    from diffai_dist.cluster import memory_bytes
    from diffai_dist.comparison import Selection
    from diffai_dist.config import checked_thresholds
    from diffai_dist.request import analyses_of, expectations, matching_of
    from diffai_dist.run import Settings

    analyses = analyses_of(chosen_analyses(options), series=False)
    thresholds = checked_thresholds(parsed_thresholds(options["thresholds"]))
    refuse_idle(options["thresholds"], analyses, series=False)
    return Settings(
        Selection(options["include"], options["exclude"], options["ignore_keys_regex"]),
        options["epsilon"],
        analyses,
        thresholds,
        profile_of(options),
        place_of(options),
        memory_bytes(options["unit_size"], "--unit-size"),
        expect=expectations(options["expect_frozen"], options["expect_changed"], options["expect_cast"]),
        matching=matching_of(analyses, options["map"]),
        raw=options["raw"],
    )


def place_of(options: dict[str, Any]) -> Place:
    """Where the options say to run."""
    from diffai_dist.cluster import Place, Slurm, Tls

    tls, slurm = tls_of(options), None
    if options["cluster"] == "slurm":
        slurm = Slurm(options["jobs"] or 1, options["cluster_config"])
    else:
        refuse_jobs(options)
    return Place(
        options["workers"],
        options["scheduler"],
        options["threads"],
        options["memory_limit"],
        bool(options.get("verbose")),
        Tls(*tls) if tls else None,
        slurm,
    )


def refuse_jobs(options: dict[str, Any]) -> None:
    """Raise UsageError where options say what a job is, and nothing asks for jobs."""
    if options["jobs"] or options["cluster_config"]:
        raise UsageError("--jobs and --cluster-config say what --cluster slurm submits: give that, too")


def tls_of(options: dict[str, Any]) -> tuple[str, str, str] | None:
    """Authority, certificate and key; None without any."""
    authority, certificate, key = (options[f"tls_{name}_file"] for name in ("ca", "cert", "key"))
    if not (authority or certificate or key):
        return None
    if not (authority and certificate):
        raise UsageError("TLS takes both --tls-ca-file and --tls-cert-file")
    return authority, certificate, key or certificate
