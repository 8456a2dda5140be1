"""Options that several verbs share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from diffai_dist.analyses.sort_by_change import KEYS
from diffai_dist.cli.ancestor import translated

Command = TypeVar("Command", bound=Callable[..., Any])

OUTPUTS = ("text", "json", "yaml", "markdown", "junit")


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators as one, in the order of the help."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


storage_options = together(
    click.option("--endpoint-url", metavar="URL", help="S3-compatible server to use in place of AWS."),
    click.option("--anon", is_flag=True, help="Read public buckets without credentials."),
    click.option("--profile", metavar="NAME", help="Profile of the AWS configuration files to take credentials from."),
)

raw_option = click.option("--raw", is_flag=True, help="Codes and scales as they are stored, not their values.")
selection_options = together(
    click.option("--include", metavar="GLOB", multiple=True, help="Only tensors whose name matches; repeatable."),
    click.option("--exclude", metavar="GLOB", multiple=True, help="No tensors whose name matches; repeatable."),
    click.option("--ignore-keys-regex", metavar="REGEX", help="No tensors in whose name the pattern is found."),
    click.option("--map", metavar="FILE", type=click.Path(), help="Other names of tensors, and what is made of which."),
    raw_option,
)

place_options = together(
    click.option("--workers", metavar="N", type=click.IntRange(1), help="Start a cluster of N worker processes here."),
    click.option("--scheduler", metavar="ADDRESS", help="Use a running dask scheduler: address, file, or `env`."),
    click.option("--threads", metavar="N", type=click.IntRange(1), help="Threads per process."),
    click.option("--memory-limit", metavar="SIZE", help="Memory of this process, or of each of the N workers."),
    click.option("--cluster", type=click.Choice(["slurm"]), help="Start workers as jobs of a batch system."),
    click.option("--cluster-config", metavar="FILE", type=click.Path(), help="What a job is: queue, cores, memory."),
    click.option("--jobs", metavar="N", type=click.IntRange(1), help="How many such jobs.  [default: 1]"),
    click.option("--tls-ca-file", metavar="PEM", type=click.Path(), help="Authority that signed the scheduler's key."),
    click.option("--tls-cert-file", metavar="PEM", type=click.Path(), help="Certificate of this client."),
    click.option("--tls-key-file", metavar="PEM", type=click.Path(), help="Its key, if it is in a file of its own."),
)

unit_size_option = click.option("--unit-size", metavar="SIZE", help="Bytes that one task reads; changes no result.")

speech_options = together(
    click.option("-q", "--quiet", is_flag=True, help="Print nothing; exit code 1 says that something differs."),
    click.option("-v", "--verbose", count=True, help="More numbers per tensor, and a log on stderr; twice for more."),
    click.option("--no-color", is_flag=True, help="No colours (also NO_COLOR)."),
)
talk_options = together(
    speech_options,
    click.option("--no-progress", is_flag=True, help="No progress on stderr."),
)

output_options = together(
    click.option("-o", "--output", type=click.Choice(OUTPUTS), default="text", show_default=True, help="Format."),
    click.option(
        "--output-file", metavar="PATH", type=click.Path(), help="Write the result to a file or URL in place of stdout."
    ),
    click.option("--force", is_flag=True, help="Replace the output file if it exists."),
    click.option("--github", is_flag=True, help="In a GitHub workflow: annotations, and a step summary."),
    click.option("--show-identical", is_flag=True, help="Show tensors without a difference, too."),
    click.option("--sort-by-change-magnitude", is_flag=True, help="Largest relative change first."),
    click.option("--sort-by", metavar="KEY", type=click.Choice(KEYS), help=f"Largest first by {', '.join(KEYS)}."),
)


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", context, parameter)
    return value


tensors_option = click.option(
    "--show-tensors", is_flag=True, help="In text, every tensor of every pair, not the largest movers alone."
)
epsilon_option = click.option(
    "--epsilon",
    type=click.FloatRange(0),
    metavar="X",
    callback=_finite,
    help="Differences of at most X count as none, and are said.",
)
store_option = click.option("--store", metavar="URL", type=click.Path(), help="Keep the run there as JSON and Parquet.")
planned_store_option = click.option(
    "--store", metavar="URL", type=click.Path(), help="Say what that store has already; nothing is kept."
)
needed_store_option = click.option(
    "--store", metavar="URL", type=click.Path(), required=True, help="The report store: a folder or a URL."
)
exit_option = click.option("--exit-code", is_flag=True, help="Exit with 1 when something differs, like git diff.")
format_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Format."
)

# Every option can be set by the environment: --memory-limit is DIFFAI_DIST_MEMORY_LIMIT.
SETTINGS: dict[str, Any] = {"auto_envvar_prefix": "DIFFAI_DIST"}


class Verb(click.Command):
    """A command that refuses empty texts: `--scheduler "$ADDRESS"` without an address is a mistake, not a default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, names of the ancestor spelled as they are here; then look for empty values."""
        known = {option for parameter in self.params for option in parameter.opts}
        rest = super().parse_args(ctx, translated(args, known) if "--all" in known else args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            if not ctx.resilient_parsing and (value == "" or (isinstance(value, tuple) and "" in value)):
                raise click.BadParameter("it is empty; give a value or leave it out.", ctx, parameter)
        return rest


def analysis_options() -> Callable[[Command], Command]:
    """A flag for each analysis, of pairs and of series, and one for all that the one reading can answer."""
    from diffai_dist.analyses import EVERY
    from diffai_dist.analyses.ancestor import REFUSED

    flags = [
        click.option(one.flag, f"analysis_{name}", is_flag=True, help=one.help) for name, one in EVERY.listed.items()
    ]
    every = click.option("--all", "all_analyses", is_flag=True, help="All analyses that cost no second reading.")
    return together(every, *flags, *map(_refused, REFUSED))


def _refused(name: str) -> Callable[[Command], Command]:
    """A hidden flag that says why there is no such analysis."""
    from diffai_dist.analyses.ancestor import refusal

    def refuse(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            raise click.UsageError(refusal(name), context)

    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, is_flag=True, expose_value=False, hidden=True, callback=refuse)


def chosen_analyses(options: dict[str, Any]) -> tuple[str, ...]:
    """The analyses whose flags were given, as a configuration names them."""
    from diffai_dist.analyses import EVERY

    every = ("all",) if options["all_analyses"] else ()
    return (*every, *(name for name in EVERY if options[f"analysis_{name}"]))
