"""Where a result goes, what is said beside it, and how far a run is."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffai_dist.console import print_chunks
from diffai_dist.errors import StoreError, Unreadable, UsageError

if TYPE_CHECKING:
    from diffai_dist.api import Report
    from diffai_dist.pipeline import OnProgress
    from diffai_dist.plan import Plan
    from diffai_dist.records import Severity, Sweep
    from diffai_dist.report import View
    from diffai_dist.storage import Profile
    from diffai_dist.store import ReportStore

log = logging.getLogger(__name__)


def profile_of(options: dict[str, Any]) -> Profile:
    """How the options reach storage."""
    from diffai_dist.storage import Profile

    return Profile(options["endpoint_url"], options["anon"], options["profile"])


class Target:
    """Where the result goes: stdout, or a file that is not there yet."""

    def __init__(self, options: dict[str, Any], profile: Profile) -> None:
        self.options, self.profile = options, profile
        self.path, self.output = options["output_file"], options["output"]
        if self.path:
            _check_output_file(self.path, profile, options["force"])

    def view(self, previous: Sweep | None = None, notes: tuple[str, ...] = ()) -> View:
        """How the result is to be shown there."""
        from diffai_dist.report import View
        from diffai_dist.terminal import colours, width

        options = self.options
        terminal = not self.path and sys.stdout.isatty()
        return View(
            show_identical=options["show_identical"],
            sort_by=options["sort_by"] or ("rel_l2" if options["sort_by_change_magnitude"] else None),
            width=width() if terminal else None,
            colour=not self.path and colours(sys.stdout, no_color=options["no_color"]),
            verbose=bool(options["verbose"]),
            show_tensors=options.get("show_tensors", False),
            previous=previous,
            notes=notes,
            failing=_failing(options.get("fail_on") or ()),
        )

    def write(self, sweep: Sweep, view: View) -> None:
        """Render the result there."""
        from diffai_dist import storage
        from diffai_dist.report import RENDERERS

        chunks = RENDERERS[self.output](sweep, view)
        if not self.path:
            print_chunks(chunks)
            return
        data = "".join(chunks).encode("utf-8", "backslashreplace")
        if _is_device(self.path):
            Path(self.path).write_bytes(data)
        else:
            storage.publish(storage.check_url(self.path), data, self.profile)

    @property
    def wanted(self) -> bool:
        """Whether the result is to be seen anywhere."""
        return bool(not self.options["quiet"] or self.path or self.options["github"])

    def show(self, sweep: Sweep, view: View) -> None:
        """Write the result where it is wanted, and tell GitHub where that was asked for."""
        if not self.options["quiet"] or self.path:
            self.write(sweep, view)
        if self.options["github"]:
            tell_github(sweep, view)


def tell_github(sweep: Sweep, view: View) -> None:
    """Annotations go to stderr, which a runner reads for commands as it does stdout: that holds the result alone."""
    from diffai_dist.report.github import step_summary, workflow_commands

    for line in workflow_commands(sweep):
        click.echo(line, err=True, nl=False)
    if not (path := os.environ.get("GITHUB_STEP_SUMMARY")):
        return
    try:
        with open(path, "a", encoding="utf-8") as summary:
            summary.write(step_summary(sweep, replace(view, width=None, colour=False), summary.tell()))
    except OSError as error:
        log.warning("no step summary was written: %s", error)


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


def check_store(url: str, profile: Profile) -> None:
    """Refuse before anything is read a place that cannot be a store."""
    from diffai_dist import storage

    if storage.check_url(url).startswith(("http://", "https://")):
        raise UsageError(f"{storage.redact(url)}: a store cannot be written over http")
    if _kind(url, profile) == "file":
        raise UsageError(f"{storage.redact(url)} is a file; name a folder for the store")


def kept_store(url: str, profile: Profile) -> ReportStore:
    """A store that is there: where nothing is, an answer of no runs would hide a mistyped name."""
    from diffai_dist import storage
    from diffai_dist.api import open_store
    from diffai_dist.terminal import escape

    check_store(url, profile)
    path = storage.check_url(url)
    if not storage.is_remote(path) and not Path(path).is_dir():  # a bucket has no folders that could be missing
        raise UsageError(f"{escape(path, None)}: there is no such folder, so no store")
    return open_store(url, profile)


def night_before(kept: ReportStore, run: str) -> Sweep | None:
    """The run before this one, from the store; what is wrong with it does not cost this night's result."""
    try:
        earlier = kept.latest_before(kept.plan(run))
        return kept.load(earlier) if earlier else None
    except StoreError as error:
        log.warning("%s. What is new since the night before is not known", error)
        return None


def _failing(conditions: Sequence[str]) -> Severity:
    """The mildest severity that makes the exit code 1; medium where none is named."""
    from diffai_dist.records import SEVERITIES

    return next((one for one in reversed(SEVERITIES) if one in conditions), "medium")


class Bar:
    """Progress on stderr, from the moment the plan is known."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.enabled = not options["quiet"] and not options["no_progress"]
        self.progress: Any = None

    def __enter__(self) -> Bar:
        return self

    def start(self, plan: Plan) -> OnProgress | None:
        """Begin; returns what a finished unit calls."""
        if not self.enabled:
            return None
        from diffai_dist.terminal import Progress

        tensors, members = sum(len(lane.places) for lane in plan.lanes if lane.nodes), len(plan.comparison.members)
        self.progress = Progress(plan.nbytes, tensors, True, sys.stderr, checkpoints=members).__enter__()
        advance: OnProgress = self.progress.advance
        return advance

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.__exit__(*error)


def start_logging(verbose: int) -> None:
    """Log to stderr where --verbose asks for it."""
    if verbose:
        level = logging.DEBUG if verbose > 1 else logging.INFO
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
        logging.getLogger("diffai_dist").setLevel(level)


def say_on_stderr(report: Report, target: Target, store: str | None = None) -> None:
    """What stdout does not say to a person: warnings, and failures and coverage where the output is for a program."""
    from diffai_dist.records import SCHEMA_VERSION
    from diffai_dist.report import coverage_lines, failure_entries, sweep_coverage_lines
    from diffai_dist.terminal import escape

    sweep = report.sweep
    for warning in sweep.warnings:
        click.echo(f"warning: {escape(warning, 400)}", err=True)
    if target.path or target.output in ("json", "yaml", "junit"):
        for entry in failure_entries(sweep.failures):
            click.echo(f"failed: {entry}", err=True)
        for line in coverage_lines(sweep.results[0]) if sweep.mode is None else sweep_coverage_lines(sweep):
            click.echo(line, err=True)
        click.echo(f"schema {SCHEMA_VERSION}", err=True)
    if store and not report.store_error:
        click.echo(f"run {report.id} kept in the store", err=True)


def end_with(failures: Sequence[Any]) -> int:
    """Say what could not be read; the exit code that this makes."""
    from diffai_dist.report import failure_entries

    for entry in failure_entries(failures):
        click.echo(f"failed: {entry}", err=True)
    return 3 if failures else 0
