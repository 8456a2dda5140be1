"""Which of the checkpoints that were found take part: since, until, every, latest."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffai_dist.errors import UsageError
from diffai_dist.formats.names import quoted
from diffai_dist.storage import redact

_BACK = re.compile(r"([0-9]{1,6})([dh])")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A checkpoint by its canonical URL, with what its name tells; a date with an hour is a datetime, in UTC."""

    url: str
    step: int | None = None
    date: datetime.date | None = None

    @property
    def told(self) -> bool:
        """Whether a step or a date is known."""
        return self.step is not None or self.date is not None


@dataclass(frozen=True, slots=True)
class Window:
    """Bounds, both included: a step (`1000`), a date (`2026-11-01`), `today`, `yesterday`, `7d` or `12h` ago, in UTC.

    `every` keeps the steps that it divides; where names tell no step, each so many-th, counted back from the last, so
    that the newest one is among them. `latest` keeps the last so many of what the others leave.
    """

    since: str | int | datetime.date | None = None
    until: str | int | datetime.date | None = None
    every: int | None = None
    latest: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "latest"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} {number}: write a number from 1 on")


def narrow(window: Window, found: Sequence[Chosen], today: datetime.date) -> tuple[Chosen, ...]:
    """Those inside of the window, in the same order; UsageError if none is, or if one has no step or date to judge."""
    kept = list(found)
    if window.since is not None:
        since = _bound("since", window.since, today)
        _check_told(found, since, f"since {window.since}")
        kept = [one for one in kept if _reaches(one, since)]
    if window.until is not None:
        until = _bound("until", window.until, today)
        _check_told(found, until, f"until {window.until}")
        kept = [one for one in kept if _begins_by(one, until)]
    if window.every is not None:
        kept = _thinned(kept, window.every)
    if window.latest is not None:
        kept = kept[-window.latest :]
    if not kept:
        raise UsageError(f"{_shown(window)} leaves none of {_span(found)}")
    return tuple(kept)


def first_moment(day: datetime.date | None) -> datetime.datetime:
    """The beginning of a day, a datetime as it is, in UTC without a zone; the earliest of all for None."""
    if day is None:
        return datetime.datetime.min
    if isinstance(day, datetime.datetime):
        return day.astimezone(datetime.UTC).replace(tzinfo=None) if day.tzinfo else day
    return datetime.datetime.combine(day, datetime.time.min)


def _last_moment(day: datetime.date) -> datetime.datetime:
    if isinstance(day, datetime.datetime):
        return first_moment(day)
    return datetime.datetime.combine(day, datetime.time.max)


def _reaches(one: Chosen, since: int | datetime.date) -> bool:
    """Whether the checkpoint, whose date may be a whole day, does not end before the bound."""
    if isinstance(since, int):
        return one.step is not None and one.step >= since
    return one.date is not None and _last_moment(one.date) >= first_moment(since)


def _begins_by(one: Chosen, until: int | datetime.date) -> bool:
    if isinstance(until, int):
        return one.step is not None and one.step <= until
    return one.date is not None and first_moment(one.date) <= _last_moment(until)


def _bound(name: str, value: str | int | datetime.date, today: datetime.date) -> int | datetime.date:
    """A step, a day or a moment."""
    if not isinstance(value, str):
        return value
    now = first_moment(today)
    try:
        if re.fullmatch("[0-9]{1,18}", value):
            return int(value)
        if value in ("today", "yesterday"):
            return now.date() - datetime.timedelta(days=value == "yesterday")
        if back := _BACK.fullmatch(value):
            number = int(back[1])
            if back[2] == "d":
                return now.date() - datetime.timedelta(days=number)
            return now - datetime.timedelta(hours=number)
        if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            return datetime.date.fromisoformat(value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name} {quoted(value)} is no date: {error}") from error
    raise UsageError(f"{name} {quoted(value)}: write a step (1000), a date (2026-11-01), 7d, 12h, today or yesterday")


def _check_told(found: Sequence[Chosen], bound: int | datetime.date, asked: str) -> None:
    step = isinstance(bound, int)
    silent = [one.url for one in found if (one.step if step else one.date) is None]
    if silent:
        what, field = ("step", "{step}") if step else ("date", "{date:%Y-%m-%d}")
        raise UsageError(
            f"{asked} asks for {what}s, and {len(silent):,} of {len(found):,} checkpoints tell none, as "
            f"{quoted(redact(silent[0]))}: put {field} in the pattern where the {what} stands"
        )


def _thinned(kept: list[Chosen], every: int) -> list[Chosen]:
    if any(one.step is not None for one in kept):
        _check_told(kept, every, f"every {every}")
        return [one for one in kept if one.step is not None and one.step % every == 0]
    return kept[::-1][::every][::-1]


def _shown(window: Window) -> str:
    names = ("since", "until", "every", "latest")
    return ", ".join(f"{name} {value}" for name in names if (value := getattr(window, name)) is not None)


def _span(found: Sequence[Chosen]) -> str:
    first, last = (quoted(redact(one.url)) for one in (found[0], found[-1]))
    return f"{len(found):,} checkpoints, {first} to {last}" if len(found) > 1 else f"one checkpoint, {first}"
