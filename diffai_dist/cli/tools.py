"""Verbs beside comparisons: `inspect`, `analyses`, `explain`, `demo`, `config schema`."""

from __future__ import annotations

import json
from typing import Any

import click

from diffai_dist.cli.options import format_option, raw_option, storage_options
from diffai_dist.cli.output import end_with, profile_of
from diffai_dist.console import print_chunks


@click.argument("checkpoint", type=click.Path())
@format_option
@raw_option
@storage_options
def inspect(checkpoint: str, output: str, **options: Any) -> int:
    """List a checkpoint's tensors, shapes, dtypes, bytes and metadata, from its headers alone."""
    from diffai_dist.inspection import as_document, as_text
    from diffai_dist.opening import one_alone, open_group

    opened = open_group(one_alone(checkpoint, options["raw"]), profile_of(options))
    if (found := opened.checkpoints[0]) is not None:
        document = as_document(found)
        print_chunks([json.dumps(document, indent=1) + "\n"] if output == "json" else as_text(document))
    return end_with(opened.all_failures or (tuple(found.unreadable.values()) if found else ()))


@format_option
def analyses(output: str) -> int:
    """List every analysis: what it is about, what it costs, whether --all asks for it, what it answers."""
    from diffai_dist.explaining import analyses_list

    print_chunks(analyses_list(output))
    return 0


@click.argument("name")
@format_option
def explain(name: str, output: str) -> int:
    """Say what an analysis or a rule of one is: definition, fields, rules, thresholds, cost, sources."""
    from diffai_dist.explaining import explained, explanation
    from diffai_dist.terminal import width

    print_chunks(explanation(explained(name), output, width()))
    return 0


@click.option(
    "--directory",
    metavar="PATH",
    type=click.Path(),
    help="Where to write the checkpoints [default: a new temporary folder].",
)
def demo(directory: str | None) -> int:
    """Train a tiny network, write its checkpoints with planted faults, compare them, say what to try next."""
    from diffai_dist.demo import run_demo

    print_chunks(run_demo(directory))
    return 0


@click.group("config")
def config() -> None:
    """Configuration files of sweeps."""


@config.command("schema")
@click.option("--policy", is_flag=True, help="That of policy files.")
def schema(policy: bool) -> int:
    """Print the JSON Schema of configuration files, for editors."""
    from diffai_dist.config import json_schema, policy_schema

    print_chunks([json.dumps(policy_schema() if policy else json_schema(), indent=2) + "\n"])
    return 0
