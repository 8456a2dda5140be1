"""Verbs that work on a report store alone: `status`, `report`, `query`, `gc`."""

from __future__ import annotations

from typing import Any

import click

from diffai_dist.cli.gating import exit_code, gate_of, gate_options, judged, say_met
from diffai_dist.cli.options import (
    exit_option,
    format_option,
    needed_store_option,
    output_options,
    speech_options,
    storage_options,
    tensors_option,
)
from diffai_dist.cli.output import Target, kept_store, night_before, profile_of, start_logging
from diffai_dist.console import print_chunks


@click.argument("run", metavar="[RUN]", required=False)
@needed_store_option
@format_option
@storage_options
def status(run: str | None, store: str, output: str, **options: Any) -> int:
    """Runs of a store: how far, what failed. With RUN (an id, its beginning, or `latest`) that one in detail."""
    from diffai_dist.listing import run_detail, run_list

    kept = kept_store(store, profile_of(options))
    print_chunks(run_detail(kept.detail(run), output) if run else run_list(kept.runs(), output))
    return 0


@click.argument("run", metavar="RUN")
@needed_store_option
@output_options
@tensors_option
@exit_option
@gate_options
@click.option("--mlflow", is_flag=True, help="Log numbers and a folder to the MLflow at MLFLOW_TRACKING_URI, too.")
@storage_options
@speech_options
def report(run: str, store: str, mlflow: bool, **options: Any) -> int:
    """Show a finished run again, from the store alone. RUN is an id, its beginning, or `latest`."""
    from diffai_dist.tracking import log_to_mlflow

    start_logging(options["verbose"])
    target = Target(options, profile_of(options))
    gate = gate_of(options["fail_on"], options["policy"])
    kept = kept_store(store, profile_of(options))
    name = kept.resolve(run)
    verdict = judged(kept.load(name), gate)
    found = verdict.sweep
    if target.wanted:
        before = night_before(kept, name) if found.mode else None
        target.show(found, target.view(before and judged(before, gate).sweep))
    if not options["quiet"]:
        say_met(verdict)
    if mlflow:
        log_to_mlflow(name, found, kept.document(name), target.view())
    return exit_code(verdict, options)


@click.argument("store", metavar="STORE", type=click.Path())
@click.argument("sql", metavar="SQL")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    show_default=True,
    help="Format.",
)
@storage_options
def query(store: str, sql: str, output: str, **options: Any) -> int:
    """Ask the history of a store in SQL: tables runs, members, pairs, tensors, findings. Needs the `sql` extra."""
    from diffai_dist.listing import query_rows

    print_chunks(query_rows(kept_store(store, profile_of(options)).query(sql), output))
    return 0


@needed_store_option
@click.option("--older-than", metavar="AGE", default="7d", show_default=True, help="Spare what is younger: 12h, 7d.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@storage_options
def gc(store: str, older_than: str, dry_run: bool, **options: Any) -> int:
    """Remove from a store what nothing refers to: units of finished runs, parts that no marker names."""
    from diffai_dist.listing import age, removed_lines

    print_chunks(removed_lines(kept_store(store, profile_of(options)).clean(age(older_than), dry_run=dry_run), dry_run))
    return 0
