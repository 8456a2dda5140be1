"""Verbs beside comparisons: `inspect`, `demo`, `completion`, `config schema`."""

from __future__ import annotations

import json
from typing import Any

import click

from diffai_dist.cli.options import format_option, storage_options
from diffai_dist.cli.output import end_with, profile_of
from diffai_dist.console import print_chunks


@click.argument("checkpoint", type=click.Path())
@format_option
@storage_options
def inspect(checkpoint: str, output: str, **options: Any) -> int:
    """List a checkpoint's tensors, shapes, dtypes, bytes and metadata, from its headers alone."""
    from diffai_dist.inspection import as_document, as_text
    from diffai_dist.opening import one_alone, open_group

    opened = open_group(one_alone(checkpoint), profile_of(options))
    if (found := opened.checkpoints[0]) is not None:
        document = as_document(found)
        print_chunks([json.dumps(document, indent=1) + "\n"] if output == "json" else as_text(document))
    return end_with(opened.all_failures)


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
def schema() -> int:
    """Print the JSON Schema of configuration files, for editors."""
    from diffai_dist.config import json_schema

    print_chunks([json.dumps(json_schema(), indent=2) + "\n"])
    return 0
