"""The verbs. A command parses, calls one function of the library, prints."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from diffai_dist.console import print_chunks
from diffai_dist.errors import Unreadable, UsageError

if TYPE_CHECKING:
    from diffai_dist.pipeline import OnProgress, Report
    from diffai_dist.plan import Plan
    from diffai_dist.run import Settings
    from diffai_dist.storage import Profile

Command = TypeVar("Command", bound=Callable[..., Any])

OUTPUTS = ("text", "json", "yaml", "markdown")


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


storage_options = _together(
    click.option("--endpoint-url", metavar="URL", help="S3-compatible server to use in place of AWS."),
    click.option("--anon", is_flag=True, help="Read public buckets without credentials."),
    click.option("--profile", metavar="NAME", help="Profile of the AWS configuration files to take credentials from."),
)

selection_options = _together(
    click.option("--include", metavar="GLOB", multiple=True, help="Only tensors whose name matches; repeatable."),
    click.option("--exclude", metavar="GLOB", multiple=True, help="No tensors whose name matches; repeatable."),
    click.option("--ignore-keys-regex", metavar="REGEX", help="No tensors in whose name the pattern is found."),
)

place_options = _together(
    click.option("--workers", metavar="N", type=click.IntRange(1), help="Start a cluster of N worker processes here."),
    click.option("--scheduler", metavar="ADDRESS", help="Use a running dask scheduler: address, file, or `env`."),
    click.option("--threads", metavar="N", type=click.IntRange(1), help="Threads per process."),
    click.option("--memory-limit", metavar="SIZE", help="Memory of this process, or of each of the N workers."),
    click.option("--unit-size", metavar="SIZE", help="Bytes that one task reads; changes no result."),
)

talk_options = _together(
    click.option("-q", "--quiet", is_flag=True, help="Print nothing; exit code 1 says that something differs."),
    click.option("-v", "--verbose", count=True, help="More numbers per tensor, and a log on stderr; twice for more."),
    click.option("--no-color", is_flag=True, help="No colours (also NO_COLOR)."),
    click.option("--no-progress", is_flag=True, help="No progress on stderr."),
)

output_options = _together(
    click.option("-o", "--output", type=click.Choice(OUTPUTS), default="text", show_default=True, help="Format."),
    click.option(
        "--output-file", metavar="PATH", type=click.Path(), help="Write the result to a file or URL in place of stdout."
    ),
    click.option("--force", is_flag=True, help="Replace the output file if it exists."),
    click.option("--show-identical", is_flag=True, help="Show tensors without a difference, too."),
    click.option("--sort-by-change-magnitude", is_flag=True, help="Largest relative change first."),
)


def _refuse(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def refuse(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            raise click.UsageError(f"{name} is not available yet; it comes with a later version", context)

    return refuse


def _analysis_options() -> Callable[[Command], Command]:
    from diffai_dist.analyses import ANALYSES, NOT_YET

    ready = [
        click.option(kind.flag, f"analysis_{name}", is_flag=True, help=(kind.__doc__ or "").splitlines()[0])
        for name, kind in ANALYSES.items()
    ]
    later = [
        click.option(flag, is_flag=True, expose_value=False, hidden=True, callback=_refuse(flag)) for flag in NOT_YET
    ]
    return _together(*ready, *later)


compare_options = _together(
    output_options,
    _analysis_options(),
    selection_options,
    click.option(
        "--epsilon", type=click.FloatRange(0), metavar="X", help="Differences of at most X count as none, and are said."
    ),
    click.option("--store", metavar="URL", type=click.Path(), help="Keep the run there as JSON and Parquet."),
    click.option("--exit-code", is_flag=True, help="Exit with 1 when something differs, like git diff."),
    place_options,
    storage_options,
    talk_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="diffai-dist", prog_name="diffai-dist")
def commands() -> None:
    """Compare ML model checkpoints: exact numbers, local or in a bucket, on one machine or a dask cluster.

    \b
    diffai-dist demo                                   try it on small networks
    diffai-dist compare old.safetensors new.safetensors
    diffai-dist compare s3://bucket/step-1000 s3://bucket/step-2000 --sort-by-change-magnitude
    """


def _compare(baseline: str, candidate: str, **options: Any) -> int:
    """What changed between two checkpoints: a file, a directory of shards, an index, or a URL of one."""
    from diffai_dist.pipeline import run_comparison

    _start_logging(options["verbose"])
    target = _Target(options)
    if options["store"]:
        _check_store(options["store"], _profile(options))
    settings = _settings(options)
    quiet = options["quiet"]
    bar = _Bar(enabled=not quiet and not options["no_progress"])
    with bar:
        report = run_comparison([baseline, candidate], settings, bar.start)
    if not quiet or target.path:
        target.write(report)
    if not quiet:
        _say_on_stderr(report, options["output"], target)
    if options["store"]:  # last: a store that fails does not cost the result
        _save(report, options["store"], quiet)
    return report.exit_code(differences_count=options["exit_code"] or quiet)


two_checkpoints = _together(
    click.argument("baseline", type=click.Path()),  # a type with which shells complete file names; URLs pass, too
    click.argument("candidate", type=click.Path()),
)

commands.command("compare")(two_checkpoints(compare_options(_compare)))
diffai = click.command("diffai", context_settings=commands.context_settings)(
    click.version_option(package_name="diffai-dist", prog_name="diffai")(
        click.argument("baseline", type=click.Path())(
            click.argument("candidate", type=click.Path())(compare_options(_compare))
        )
    )
)


def _settings(options: dict[str, Any]) -> Settings:
    from diffai_dist.analyses import ANALYSES
    from diffai_dist.cluster import Place, memory_bytes
    from diffai_dist.comparison import Selection
    from diffai_dist.run import Settings

    return Settings(
        Selection(options["include"], options["exclude"], options["ignore_keys_regex"]),
        options["epsilon"],
        tuple(name for name in ANALYSES if options[f"analysis_{name}"]),
        _profile(options),
        Place(
            options["workers"],
            options["scheduler"],
            options["threads"],
            options["memory_limit"],
            bool(options["verbose"]),
        ),
        memory_bytes(options["unit_size"], "--unit-size"),
    )


def _profile(options: dict[str, Any]) -> Profile:
    from diffai_dist.storage import Profile

    return Profile(options["endpoint_url"], options["anon"], options["profile"])


class _Target:
    """Where the result goes: stdout, or a file that is not there yet."""

    def __init__(self, options: dict[str, Any]) -> None:
        from diffai_dist.report import View
        from diffai_dist.terminal import colours, width

        self.path, self.profile, self.output = options["output_file"], _profile(options), options["output"]
        if self.path:
            _check_output_file(self.path, self.profile, options["force"])
        terminal = not self.path and sys.stdout.isatty()
        self.view = View(
            show_identical=options["show_identical"],
            sort_by_change=options["sort_by_change_magnitude"],
            width=width() if terminal else None,
            colour=not self.path and colours(sys.stdout, no_color=options["no_color"]),
            verbose=bool(options["verbose"]),
        )

    def write(self, report: Report) -> None:
        """Render the report there."""
        from diffai_dist import storage
        from diffai_dist.report import RENDERERS

        chunks = RENDERERS[self.output](report.result, self.view)
        if self.path:
            data = "".join(chunks).encode("utf-8", "backslashreplace")
            if _is_device(self.path):
                Path(self.path).write_bytes(data)
                return
            storage.publish(storage.check_url(self.path), data, self.profile)
            return
        print_chunks(chunks)


def _is_device(path: str) -> bool:
    return Path(path).is_char_device() or Path(path).is_fifo()  # /dev/null, /dev/fd/3, a named pipe


def _kind(url: str, profile: Profile) -> str | None:
    from diffai_dist import storage

    try:
        return storage.kind(storage.check_url(url), profile)
    except Unreadable:
        return None


def _check_output_file(path: str, profile: Profile, force: bool) -> None:
    """Refuse before anything is read what could not be written after it."""
    from diffai_dist import storage

    if not storage.is_remote(path) and not Path(path).resolve().parent.is_dir():
        raise UsageError(f"{path}: there is no such folder")
    kind = None if _is_device(path) else _kind(path, profile)
    if kind == "directory":
        raise UsageError(f"{storage.redact(path)} is a folder; name a file in it")
    if kind == "file" and not force:
        raise UsageError(f"{storage.redact(path)} exists; give --force to replace it, or another name")


def _check_store(url: str, profile: Profile) -> None:
    from diffai_dist import storage

    if storage.check_url(url).startswith(("http://", "https://")):
        raise UsageError(f"{storage.redact(url)}: a store cannot be written over http")
    if _kind(url, profile) == "file":
        raise UsageError(f"{storage.redact(url)} is a file; name a folder for the store")


class _Bar:
    """Progress on stderr, from the moment the plan is known."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.progress: Any = None

    def __enter__(self) -> _Bar:
        return self

    def start(self, plan: Plan) -> OnProgress | None:
        """Begin; returns what a finished unit calls."""
        if not self.enabled:
            return None
        from diffai_dist.terminal import Progress

        self.progress = Progress(plan.nbytes, sum(lane.nodes > 0 for lane in plan.lanes), True, sys.stderr).__enter__()
        advance: OnProgress = self.progress.advance
        return advance

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.__exit__(*error)


def _start_logging(verbose: int) -> None:
    if verbose:
        level = logging.DEBUG if verbose > 1 else logging.INFO
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
        logging.getLogger("diffai_dist").setLevel(level)


def _save(report: Report, store: str, quiet: bool) -> None:
    from diffai_dist.pipeline import save

    name = save(report, store)
    if not quiet:
        click.echo(f"run {name} kept in the store", err=True)


def _say_on_stderr(report: Report, output: str, target: _Target) -> None:
    """What stdout does not say to a person: warnings, and failures and coverage where the output is for a program."""
    from diffai_dist.records import SCHEMA_VERSION
    from diffai_dist.report import coverage_lines, failure_entries
    from diffai_dist.terminal import escape

    for warning in report.result.warnings:
        click.echo(f"warning: {escape(warning, 400)}", err=True)
    if target.path or output in ("json", "yaml"):
        for entry in failure_entries(report.failures):
            click.echo(f"failed: {entry}", err=True)
        for line in coverage_lines(report.result):
            click.echo(line, err=True)
        click.echo(f"schema {SCHEMA_VERSION}", err=True)


@commands.command("inspect")
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Format.")
@storage_options
def inspect(checkpoint: str, output: str, **options: Any) -> int:
    """List a checkpoint's tensors, shapes, dtypes, bytes and metadata, from its headers alone."""
    from diffai_dist.inspection import as_document, as_text
    from diffai_dist.pipeline import open_members

    opened = open_members([checkpoint], _profile(options))
    if (member := opened.members[0]) is not None:
        document = as_document(member)
        print_chunks([json.dumps(document, indent=1) + "\n"] if output == "json" else as_text(document))
    return _end_with(opened.failures)


@commands.command("plan")
@two_checkpoints
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Format.")
@selection_options
@place_options
@storage_options
def plan(baseline: str, candidate: str, output: str, **options: Any) -> int:
    """Say what a comparison would read: tensors, bytes, units, peak memory, problems. Reads headers, no weights."""
    from diffai_dist.cluster import Place, memory_bytes
    from diffai_dist.comparison import Selection
    from diffai_dist.inspection import plan_document, plan_text
    from diffai_dist.pipeline import fit_place, open_members
    from diffai_dist.plan import make_plan

    opened = open_members([baseline, candidate], _profile(options))
    place = Place(options["workers"], options["scheduler"], options["threads"], options["memory_limit"])
    selection = Selection(options["include"], options["exclude"], options["ignore_keys_regex"])
    comparison = opened.comparison(selection)
    made = None
    if comparison is not None:
        made = make_plan(comparison, _profile(options), memory_bytes(options["unit_size"], "--unit-size"))
        place = fit_place(made, place)
    document = plan_document(made, place, opened)
    print_chunks([json.dumps(document, indent=1) + "\n"] if output == "json" else plan_text(document))
    return 3 if opened.failures else 0


def _end_with(failures: Sequence[Any]) -> int:
    from diffai_dist.report import failure_entries

    for entry in failure_entries(failures):
        click.echo(f"failed: {entry}", err=True)
    return 3 if failures else 0


@commands.command("demo")
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


@commands.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell: eval "$(diffai-dist completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    for command, name in ((commands, "diffai-dist"), (diffai, "diffai")):
        variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
        print_chunks([kind(command, {}, name, variable).source() + "\n"])
    return 0
