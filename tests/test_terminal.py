"""Hostile text, widths, colour, sizes, progress."""

from __future__ import annotations

import doctest
import io
import itertools
import re
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffai_dist import terminal
from diffai_dist.terminal import Progress, cells, colours, count, duration, escape, fit, paint, size, width
from results import HOSTILE

ANY_TEXT = st.text(st.characters())  # lone surrogates included

HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Narrow(io.StringIO):
    """A stream that holds ASCII only."""

    encoding = "ascii"


class Clock:
    """A clock that a test turns; it starts at 12:00 UTC of some day."""

    def __init__(self) -> None:
        self.now = 1_900_000_800.0 - 1_900_000_800.0 % 86400 + 43200

    def __call__(self) -> float:
        return self.now


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(terminal).failed == 0


@given(ANY_TEXT)
def test_what_escape_returns_prints_and_hides_nothing(name: str) -> None:
    shown = escape(name)
    assert shown.isprintable()
    assert not HIDDEN.search(shown)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_hostile_name_passes_as_it_is(name: str) -> None:
    shown = escape(name)
    assert shown
    assert not HIDDEN.search(shown)
    assert "##[" not in shown
    assert "##vso[" not in shown
    assert cells(shown) <= 256


@given(ANY_TEXT, ANY_TEXT)
def test_names_that_differ_look_different_unless_they_are_cut(one: str, other: str) -> None:
    if one and other:
        assert (escape(one, None) == escape(other, None)) == (one == other)


@given(st.text(st.characters(), min_size=1), st.integers(1, 40))
@example("権" * 100, 9)
@example("e" + "\u0301" * 1000, 10)
@example("\x1b" * 1000, 3)
def test_a_cut_name_fits_and_says_that_it_is_cut(name: str, limit: int) -> None:
    shown = escape(name, limit)
    assert cells(shown) <= limit
    assert shown == escape(name, None) or "…" in shown


def test_a_name_is_cut_in_the_middle_between_characters() -> None:
    assert escape("model.layers.10.self_attn.q_proj.weight", 20) == "model.laye…oj.weight"
    assert escape("a" * 10 + "\x1b" + "b" * 20, 13) == "aaaaaa…bbbbbb"


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("model.layers.0.mlp.gate_proj.weight", "重み.bias", "größe", "a b"):
        assert escape(name) == name


def test_an_empty_name_is_visible() -> None:
    assert escape("") == '""'


def test_wide_characters_take_two_columns() -> None:
    assert cells("重み") == 4
    assert cells("abc") == 3


def test_what_an_encoding_cannot_hold_gets_an_ascii_form() -> None:
    assert fit("a · b…", "ascii") == "a | b..."
    assert fit("重み", "ascii") == r"\u91cd\u307f"
    assert fit("a · b", "utf-8") == "a · b"
    assert fit("a · b", None) == "a · b"
    assert fit("0.1±1e-06", "ascii") == "0.1+-1e-06"


@pytest.mark.parametrize(
    ("environ", "no_color", "on_screen", "elsewhere"),
    [
        ({}, False, True, False),
        ({}, True, False, False),
        ({"NO_COLOR": "1"}, False, False, False),
        ({"NO_COLOR": ""}, False, True, False),
        ({"FORCE_COLOR": "1"}, False, True, True),
        ({"FORCE_COLOR": "0"}, False, False, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, True, True),
        ({"FORCE_COLOR": "1"}, True, False, False),
        ({"TERM": "dumb"}, False, False, False),
    ],
)
def test_colour_follows_option_then_environment_then_stream(
    environ: dict[str, str], no_color: bool, on_screen: bool, elsewhere: bool
) -> None:
    assert colours(Screen(), no_color, environ) is on_screen
    assert colours(io.StringIO(), no_color, environ) is elsewhere


def test_paint_adds_nothing_without_colour() -> None:
    assert paint("x", "bold red", colour=False) == "x"
    assert paint("x", "bold red", colour=True) == "\x1b[1;31mx\x1b[0m"


def test_only_a_terminal_has_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "123")
    assert width(Screen()) == 123
    assert width(io.StringIO()) is None


def test_a_closed_stream_is_no_terminal() -> None:
    stream = Screen()
    stream.close()
    closed = io.StringIO()
    closed.close()
    assert width(closed) is None


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_400_000_000, "1.4 GB"), (999_960, "1.0 MB"), (1.43e12, "1.4 TB")],
)
def test_sizes_have_decimal_units(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


@given(st.integers(0, 10**18))
def test_a_size_never_shows_a_thousand_of_a_unit_that_has_a_next(nbytes: int) -> None:
    value, unit = size(nbytes).split()
    assert unit == "TB" or float(value.replace(",", "")) < 1000


def test_counts_and_durations_read_well() -> None:
    assert (count(1, "tensor"), count(41220, "tensor"), count(1234)) == ("1 tensor", "41,220 tensors", "1,234")
    assert [duration(s) for s in (-1, 0.4, 59.6, 61, 3599, 3600, 90000)] == [
        "0s",
        "0s",
        "1m",
        "1m",
        "1h00m",
        "1h00m",
        "25h00m",
    ]


def log(stream: io.StringIO, clock: Clock, **options: bool) -> Progress:
    return Progress(1_430_000_000_000, 41_220, stream=stream, clock=clock, environ={}, **options)


def test_a_log_gets_one_line_every_thirty_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with log(stream, clock) as progress:
        for second in range(1, 66):
            clock.now += 1
            progress.advance(1_900_000_000, 100, failed=second == 5, retries=7)
    assert stream.getvalue() == (
        "12:00:30 tensors 3,000/41,220 · 57.0/1,430 GB · 1.9 GB/s · eta 12m · retries 7 · failed 1\n"
        "12:01:00 tensors 6,000/41,220 · 114/1,430 GB · 1.9 GB/s · eta 12m · retries 7 · failed 1\n"
        "12:01:05 tensors 6,500/41,220 · 124/1,430 GB · 1.9 GB/s · eta 11m · retries 7 · failed 1\n"
    )


def test_a_log_names_the_checkpoints_of_a_sweep() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(1_430_000_000_000, 41_220, stream=stream, clock=clock, environ={}, checkpoints=12) as progress:
        clock.now += 190
        progress.advance(812_000_000_000, 21_380, failed=1, retries=7)
    assert stream.getvalue() == (
        "12:03:10 checkpoints 12 · tensors 21,380/41,220 · 812/1,430 GB · 4.3 GB/s · eta 2m · retries 7 · failed 1\n"
    )


def test_what_was_there_already_tells_nothing_of_the_rate() -> None:
    clock = Clock()
    progress = Progress(1000, 10, stream=io.StringIO(), clock=clock, environ={})
    clock.now += 10
    progress.advance(400, 4, reused=True)
    assert progress.status(clock.now) == "tensors 4/10 · 400/1,000 B"
    progress.advance(100, 1)
    assert progress.status(clock.now) == "tensors 5/10 · 500/1,000 B · 10 B/s · eta 50s"


class Paper(io.StringIO):
    """A stream that tells when it holds three lines."""

    def __init__(self) -> None:
        super().__init__()
        self.full = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.getvalue().count("\n") >= 3:
            self.full.set()
        return written


def test_a_log_goes_on_where_no_unit_ends() -> None:
    before = set(threading.enumerate())
    seconds, stream = itertools.count(0, 31), Paper()
    with Progress(1000, 10, stream=stream, clock=lambda: float(next(seconds)), environ={}):
        assert stream.full.wait(60)
    assert set(threading.enumerate()) <= before
    for line in stream.getvalue().splitlines():
        assert re.fullmatch(r"\d\d:\d\d:\d\d tensors 0/10 · 0/1,000 B", line)


def test_a_log_that_is_closed_ends_its_thread_and_not_the_run() -> None:
    before = set(threading.enumerate())
    seconds, stream = itertools.count(0, 31), Paper()
    progress = Progress(1000, 10, stream=stream, clock=lambda: float(next(seconds)), environ={})
    stream.close()
    progress.__enter__()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) <= before


def test_a_short_run_leaves_no_line() -> None:
    clock, stream = Clock(), io.StringIO()
    with log(stream, clock) as progress:
        clock.now += 29
        progress.advance(10, 1)
    assert stream.getvalue() == ""


def test_progress_that_is_off_says_nothing() -> None:
    for stream in (io.StringIO(), Screen()):
        clock = Clock()
        with log(stream, clock, enabled=False) as progress:
            clock.now += 100
            progress.advance(10, 1)
        assert stream.getvalue() == ""


def test_progress_is_plain_ascii_where_the_stream_is() -> None:
    clock, stream = Clock(), Narrow()
    with log(stream, clock) as progress:
        clock.now += 30
        progress.advance(10**9, 1)
    assert stream.getvalue().isascii()
    assert " | " in stream.getvalue()


def test_a_clock_that_goes_back_breaks_nothing() -> None:
    clock, stream = Clock(), io.StringIO()
    with log(stream, clock) as progress:
        clock.now -= 3600
        progress.advance(10, 1)
    assert "eta" not in progress.status(clock.now)


@pytest.mark.parametrize("environ", [{"CI": "true"}, {"TERM": "dumb"}])
def test_ci_and_dumb_terminals_get_lines_rather_than_a_bar(environ: dict[str, str]) -> None:
    clock, stream = Clock(), Screen()
    with Progress(1000, 10, stream=stream, clock=clock, environ=environ) as progress:
        clock.now += 30
        progress.advance(500, 5)
    assert stream.getvalue() == ("12:00:30 tensors 5/10 · 500/1,000 B · 17 B/s · eta 30s\n")


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    clock, stream = Clock(), Screen()
    with Progress(1000, 10, stream=stream, clock=clock, environ={}) as progress:
        clock.now += 10
        progress.advance(500, 5)
    drawn = stream.getvalue()
    assert "tensors 5/10" in drawn
    assert drawn.endswith("\x1b[2K")


def test_a_run_without_bytes_has_a_status() -> None:
    progress = Progress(0, 0, stream=io.StringIO(), clock=Clock(), environ={})
    assert progress.status(Clock().now) == "tensors 0/0 · 0/0 B"
