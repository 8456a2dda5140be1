"""A command as a process: exit codes, signals, and a stdout whose reader may leave."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn

import click

from diffai_dist.errors import CheckpointError, DiffaiError, StoreError


class Terminated(BaseException):
    """SIGTERM arrived."""


def _on_sigterm(number: int, frame: object) -> NoReturn:
    raise Terminated


def main(command: click.Command, name: str) -> NoReturn:
    """Run one command and end the process with its code, at once: a thread that waits for a server holds up nothing."""
    # A stream that the caller closed (`>&-`) is None: somewhere must be written to.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    code = 4
    try:
        code = run(command, name)
    finally:  # also where the error itself could not be written: that is no 1
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command; the number says how it ended (README, Exit codes). click's own codes collide with ours."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    # 100,000 tensors are millions of objects that live to the end: the collector's default of looking through them
    # every 700 allocations took a third of the time.
    gc.set_threshold(100_000, 50, 100)
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    except Terminated:
        return 143
    except click.ClickException as error:
        error.show()
        return 2
    except DiffaiError as error:
        code = "" if isinstance(error, CheckpointError) else f" [{error.code}]"  # its sentence ends in the code
        first, newline, rest = str(error).partition("\n")  # what follows quotes the line that is wrong
        click.echo(f"{name}: {first}{code}{newline}{rest}", err=True)
        return error.exit_code
    except SystemExit:  # click's answer to a reader of --help that left
        _hang_up()
        return 0
    except Exception:  # a bug: shown whole, but never as code 1
        traceback.print_exc()
        click.echo(f"{name}: this is a bug in diffai-dist; please report it with the lines above", err=True)
        return 4


def _hang_up() -> None:
    """Nothing more to say on stdout, also not when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_chunks(chunks: Iterable[str]) -> None:
    """Write to stdout whatever its encoding; what it cannot hold becomes ASCII or an escape."""
    from diffai_dist.terminal import fit

    try:
        for chunk in chunks:
            sys.stdout.write(fit(chunk, sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left (`| head`); click would make that exit code 1
        _hang_up()
    except OSError as error:
        _hang_up()
        raise StoreError(f"the result could not be written to stdout: {error.strerror}") from error
