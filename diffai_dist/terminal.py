"""What reaches a terminal or a log: hostile text made harmless, widths, colour, sizes and progress."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

# "##[" and "##vso[" are commands to CI runners wherever they stand in a line, unlike "::error::", which must start it.
_PIECES = re.compile(r"##(?=[a-z]*\[)|.", re.DOTALL)
# Printable for Python, invisible on a screen: Unicode's default-ignorable characters outside category Cf.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_ASCII = str.maketrans({"·": "|", "…": "...", "→": "->", "×": "x", "±": "+-"})
_STYLES = {"red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36", "dim": "2", "bold": "1"}


def escape(name: str, limit: int | None = 256) -> str:
    r"""The name as text that no terminal, CI runner or reader can misread, cut in the middle beyond `limit` columns.

    What does not print (control characters, bidi overrides, zero-width characters, lone surrogates) shows as a Python
    escape, and so does the backslash: names that differ look different unless they are cut.

    >>> print(escape("a\x1b[31m\u202eb\n"))
    a\x1b[31m\u202eb\x0a
    """
    if name.isascii() and name.isprintable() and "\\" not in name and "##" not in name:
        if not name:
            return '""'
        if limit is None or len(name) <= limit:
            return name
        tail = (limit - 1) // 2
        return f"{name[: limit - 1 - tail]}…{name[len(name) - tail :]}"
    if limit is None or len(name) <= 2 * limit:
        return _cut([_visible(piece) for piece in _PIECES.findall(name)], limit)
    # Only the ends can show: a name of 1 MB costs no more than one of 512 characters.
    ends = name[:limit] + name[-limit:]
    return _cut([_visible(piece) for piece in _PIECES.findall(ends)], limit)


def _visible(piece: str) -> str:
    if len(piece) > 1 or piece == "\\":
        return r"\x23\x23" if len(piece) > 1 else r"\\"
    if piece.isprintable() and not _INVISIBLE.match(piece):
        return piece
    code = ord(piece)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cut(pieces: Sequence[str], limit: int | None) -> str:
    # A combining mark counts as a column of its own, so that no pile of them passes the limit.
    sizes = [max(1, cells(piece)) for piece in pieces]
    if limit is None or sum(sizes) <= limit:
        return "".join(pieces)
    tail = _fitting(sizes[::-1], (limit - 1) // 2)
    head = _fitting(sizes, limit - 1 - sum(sizes[len(sizes) - tail :]))
    return "".join((*pieces[:head], "…", *pieces[len(pieces) - tail :]))


def _fitting(sizes: Sequence[int], room: int) -> int:
    count = 0
    for size in sizes:
        room -= size
        if room < 0:
            break
        count += 1
    return count


def cells(text: str) -> int:
    """How many columns the text takes; most East Asian characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def fit(text: str, encoding: str | None) -> str:
    r"""The text in what the encoding can hold: our signs have ASCII forms, other characters become `\u` escapes."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal behind the stream (stdout by default); None where there is none."""
    return shutil.get_terminal_size().columns if is_terminal(stream or sys.stdout) else None


def is_terminal(stream: TextIO) -> bool:
    """Whether a person may be watching the stream; a closed one has no watcher."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def colours(stream: TextIO, no_color: bool = False, environ: Mapping[str, str] | None = None) -> bool:
    """Whether to colour: `--no-color`, NO_COLOR, FORCE_COLOR and TERM=dumb decide in this order, else the stream."""
    environ = os.environ if environ is None else environ
    if no_color or environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] != "0"
    return environ.get("TERM") != "dumb" and is_terminal(stream)


def paint(text: str, style: str, colour: bool) -> str:
    """The text in one or several styles such as "bold red", or as it is without colour."""
    codes = ";".join(_STYLES[name] for name in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m" if colour and codes else text


def size(nbytes: float) -> str:
    """A size in decimal units.

    >>> size(999), size(1_400_000_000), size(1_430_000_000_000_000)
    ('999 B', '1.4 GB', '1,430 TB')
    """
    unit, name = _unit(nbytes)
    return f"{_scaled(nbytes, unit)} {name}"


def inert(text: str) -> str:
    r"""Escaped text that may begin a line: a CI runner takes `::` there for a command, blanks before it or not.

    >>> inert("::error::x"), inert("model::x")
    ('\\x3a:error::x', 'model::x')
    """
    return text.replace(":", r"\x3a", 1) if text.lstrip().startswith("::") else text


def count(number: int, noun: str = "") -> str:
    """A count with thousands separators, and with its noun if there is one.

    >>> count(41220), count(1, "tensor"), count(0, "tensor")
    ('41,220', '1 tensor', '0 tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}" if noun else f"{number:,}"


def duration(seconds: float) -> str:
    """A duration in its two largest units at most.

    >>> duration(42), duration(300), duration(3900)
    ('42s', '5m', '1h05m')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes = round(whole / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _unit(nbytes: float, most: int = 1000) -> tuple[int, str]:
    """The unit in which the size is a number below `most`."""
    unit, name = 1, "B"
    for power, larger in enumerate(("kB", "MB", "GB", "TB"), 1):
        if nbytes >= 1000 ** (power - 1) * (most - 0.5):  # 999.6 kB would show as 1,000 kB
            unit, name = 1000**power, larger
    return unit, name


def _scaled(nbytes: float, unit: int) -> str:
    value = nbytes / unit
    return f"{value:,.0f}" if unit == 1 or value >= 99.95 else f"{value:.1f}"


class Progress:
    """How far a run is, on stderr: a live bar where someone watches, else one line every 30 s.

    The rate is the average since the start, over what this run read. `clock` gives seconds since the epoch; times are
    shown in UTC. The lines come from a thread, so that a log goes on where no unit ends for minutes.
    """

    INTERVAL = 30.0  # seconds between two lines of a log

    def __init__(
        self,
        total_bytes: int,
        total_tensors: int,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] | None = None,
        checkpoints: int = 0,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._total_bytes, self._total_tensors, self._checkpoints = total_bytes, total_tensors, checkpoints
        self._bytes = self._reused = self._tensors = self._failed = self._retries = 0
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = self._told = clock()
        # GitLab and GitHub set CI=true; some runners give their logs a pseudo-terminal.
        plain = environ.get("TERM") == "dumb" or environ.get("CI", "").lower() not in ("", "0", "false")
        self._live: Any = None
        self._animated = enabled and not plain and is_terminal(self._stream)
        self._telling, self._ended = threading.Lock(), threading.Event()
        self._teller: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._started = self._told = self._clock()
        if self._animated:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            self._live = Live(console=console, get_renderable=self._bar, refresh_per_second=5, transient=True)
            self._live.start()
        elif self._enabled:
            self._teller = threading.Thread(target=self._tell_on_time, name="progress", daemon=True)
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._teller is not None:
            self._teller.join(1.0)  # not for ever: a log that nobody reads any more blocks whoever writes to it
            self._teller = None
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._started < self._told < (now := self._clock()):
            self._tell(now)  # short runs leave no line, long ones end with the last state

    def advance(
        self, nbytes: int = 0, tensors: int = 0, failed: int = 0, retries: int = 0, reused: bool = False
    ) -> None:
        """Count what was finished (`retries`: all so far); what was there already, `reused`, tells nothing of the rate.

        A log line follows where the last one is 30 s old.
        """
        self._bytes += nbytes
        self._reused += nbytes if reused else 0
        self._tensors += tensors
        self._failed += failed
        self._retries = max(self._retries, retries)
        self._tell_if_due()

    def status(self, now: float) -> str:
        """The state in one line, with the rate and the time left once they can be told."""
        unit, name = _unit(self._total_bytes, 10_000)  # 812/1,430 GB moves, 0.8/1.4 TB does not
        seconds = now - self._started
        parts = [f"checkpoints {self._checkpoints:,}"] if self._checkpoints else []
        parts += [
            f"tensors {self._tensors:,}/{self._total_tensors:,}",
            f"{_scaled(self._bytes, unit)}/{_scaled(self._total_bytes, unit)} {name}",
        ]
        if seconds > 0 and self._bytes > self._reused:
            rate = (self._bytes - self._reused) / seconds
            left = max(0, self._total_bytes - self._bytes) / rate
            parts += [f"{size(rate)}/s", f"eta {duration(left)}"]
        trouble = (("retries", self._retries), ("failed", self._failed))
        return " · ".join([*parts, *(f"{name} {number:,}" for name, number in trouble if number)])

    def _tell_on_time(self) -> None:
        while not self._ended.wait(min(self.INTERVAL, max(0.0, self._told + self.INTERVAL - self._clock()))):
            try:
                self._tell_if_due()
            except (OSError, ValueError):  # a stream that is closed has no reader
                return

    def _tell_if_due(self) -> None:
        with self._telling:
            if self._enabled and not self._animated and (now := self._clock()) - self._told >= self.INTERVAL:
                self._tell(now)

    def _tell(self, now: float) -> None:
        self._told = now
        line = f"{datetime.fromtimestamp(now, UTC):%H:%M:%S} {self.status(now)}\n"
        self._stream.write(fit(line, self._stream.encoding))
        self._stream.flush()

    def _bar(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        status = fit(self.status(self._clock()), self._stream.encoding)
        bar = ProgressBar(total=max(1, self._total_bytes), completed=self._bytes, width=20)
        line.add_row(bar, Text(status, no_wrap=True, overflow="ellipsis"))
        return line
