"""Patterns as users write them, as one regular expression for each level of names. Nothing here opens anything.

    *  ?  [a-c]  [!a-c]      as in a shell: within one name, and not for a leading dot
    {step}  {step:08d}       digits, as `format` writes them; one step may stand in several places
    {date:%Y-%m-%d}          of %Y %m %d %j %H %M %S; it may span levels (%Y/%m/%d) and stand in parts

A brace is text unless it begins a word in braces; `[{]`, `[*]`, `[?]` and `[[]` stand for these characters themselves.
A slash at the end asks for folders alone. The query of a web address is not a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from urllib.parse import unquote

from diffai_dist.errors import UsageError
from diffai_dist.formats.names import quoted
from diffai_dist.storage import check_url, redact
from diffai_dist.storage.urls import protocol

_TOKENS = re.compile(
    r"(?P<set>\[!?+[^/][^\]/]*\])|(?P<wild>\*+|\?)|\{(?P<field>[A-Za-z_]\w*)(?::(?P<spec>[^{}]*))?\}"
    r"|(?P<text>[^\[*?{]+|.)",
    re.DOTALL,
)
_STEP = re.compile(r"(?:0(?P<width>[1-9]|1[0-7]))?d?")
_DIGITS = {"Y": 4, "m": 2, "d": 2, "j": 3, "H": 2, "M": 2, "S": 2}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a name: an expression, with a group if it is a field, and a text like those that it matches."""

    expression: str
    sample: str  # wildcards as they are written
    field: str | None = None  # "step", or a letter of strftime
    literal: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """What the names on one level must be like."""

    pieces: tuple[Piece, ...]
    expression: re.Pattern[str]

    @property
    def literal(self) -> bool:
        """Whether it is one name."""
        return all(piece.literal for piece in self.pieces)

    @property
    def sample(self) -> str:
        """A name to compare others with: fields are zeros."""
        return "".join(piece.sample for piece in self.pieces)

    def match(self, name: str) -> dict[str, int] | None:
        """The fields of a name, None if it does not match."""
        if name.startswith(".") and not self.sample.startswith("."):
            return None
        found = self.expression.fullmatch(name)
        if not found:
            return None
        fields = [piece.field for piece in self.pieces if piece.field]
        return agreeing({}, zip(fields, map(int, found.groups()), strict=True))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A checked pattern: the URL of a folder and the levels of names below; no levels if it names one thing."""

    text: str
    url: str
    levels: tuple[Level, ...] = ()

    @property
    def folders_only(self) -> bool:
        """Whether files do not match."""
        return self.text.endswith("/")


def parse(text: str) -> Pattern:
    """Check a pattern; UsageError for unknown fields, `**`, wildcards in a bucket, and what is no URL or path."""
    web = protocol(text) in ("http", "https")
    host = re.match("[^/]*//[^/]*", text) if web else None  # may hold brackets: http://[0:1]:8080
    tokens = _TOKENS.finditer(text, host.end() if host else 0)
    first = next((token.start() for token in tokens if not token["text"]), None)
    if first is None or (web and "?" in text):
        return Pattern(text, check_url(text))
    start = text.rfind("/", 0, first) + 1
    if text[:start].endswith("://"):
        raise UsageError(f"{quoted(redact(text))}: name the bucket or host; wildcards and fields stand below it")
    check_url(text)  # credentials may stand behind the first wildcard
    encoded = web or text[:5].lower() == "file:"
    levels = tuple(_level(text, pieces) for pieces in _split(_pieces(text, text[start:], encoded)))
    _check_date({piece.field for level in levels for piece in level.pieces}, text)
    return Pattern(text, check_url(text[:start] or "."), levels)


def literal(name: str) -> str:
    """The pattern that matches the name alone, whatever it holds.

    >>> literal("run[1]/{step}")
    'run[[]1]/[{]step}'
    """
    return re.sub(r"[*?\[{]", r"[\g<0>]", name)


def agreeing(known: Mapping[str, int], fields: Iterator[tuple[str, int]]) -> dict[str, int] | None:
    """All fields together, None if one of them has two values."""
    merged = dict(known)
    return merged if all(merged.setdefault(name, value) == value for name, value in fields) else None


def moment(fields: Mapping[str, int]) -> date | None:
    """The date of the fields, a datetime if they tell the time; None without a year; ValueError for no such day.

    >>> moment({"Y": 2026, "j": 32}), moment({"Y": 2026, "m": 2, "d": 1, "H": 6})
    (datetime.date(2026, 2, 1), datetime.datetime(2026, 2, 1, 6, 0))
    """
    if "Y" not in fields:
        return None
    if "j" in fields:
        day = date(fields["Y"], 1, 1) + timedelta(fields["j"] - 1)
    else:
        day = date(fields["Y"], fields["m"], fields["d"])
    if agreeing(fields, iter({"Y": day.year, "m": day.month, "d": day.day}.items())) is None:
        raise ValueError("no such day")
    if not fields.keys() & set("HMS"):
        return day
    hour, minute, second = (fields.get(name, 0) for name in "HMS")
    return datetime.combine(day, time(hour, minute, second))


def _pieces(text: str, rest: str, encoded: bool) -> Iterator[Piece]:
    """The pieces of `rest`; a slash is a piece of its own."""
    for token in _TOKENS.finditer(rest):
        if token["field"]:
            yield from _field(text, token)
        elif token["set"]:
            yield Piece(_set(token[0][1:-1]), token[0])
        elif token["wild"]:
            if len(token[0]) > 1:
                raise UsageError(f"{quoted(text)}: ** would list all there is; write one * for each level")
            yield Piece(".*" if token[0] == "*" else ".", token[0])
        else:
            yield from _texts(unquote(token[0]) if encoded else token[0])


def _texts(text: str) -> Iterator[Piece]:
    for part in re.split("(/)", text):
        if part:
            yield Piece(re.escape(part), part, literal=True)


def _field(text: str, token: re.Match[str]) -> Iterator[Piece]:
    name, spec = token["field"], token["spec"] or ""
    if name == "step" and (found := _STEP.fullmatch(spec)):
        yield _step(int(found["width"] or 0))
    elif name == "date" and "%" in spec:
        yield from _date(text, spec)
    else:
        known = "{step}, {step:08d} and {date:%Y-%m-%d}"
        raise UsageError(f"{quoted(text)}: {quoted(token[0])} is no field; there are {known}, and [{{] is a brace")


def _step(width: int) -> Piece:
    # At most 18 digits: such a number fits 64 bits, and a longer one is no step.
    padded = f"[0-9]{{{width}}}|[1-9][0-9]{{{width},17}}"
    return Piece(f"({padded if width else '[0-9]{1,18}'})", "0" * width, "step")


def _date(text: str, spec: str) -> Iterator[Piece]:
    for part in re.split("(%.?)", spec, flags=re.DOTALL):
        if not part.startswith("%"):
            yield from _texts(part)
        elif part[1:] in _DIGITS:
            digits = _DIGITS[part[1:]]
            yield Piece(f"([0-9]{{{digits}}})", "0" * digits, part[1:])
        else:
            raise UsageError(f"{quoted(text)}: {quoted(part)} in a date; there are %{' %'.join(_DIGITS)}")


def _set(body: str) -> str:
    r"""The body of a character set as an expression.

    >>> _set("a-c"), _set("!]-"), _set("^[")
    ('[a-c]', '[^\\]\\-]', '[\\^\\[]')
    """
    negated = "^" if body.startswith("!") else ""
    escaped = re.sub(r"[^\w-]|-(?!\w)|(?<!\w)-", r"\\\g<0>", body.removeprefix("!"))
    return f"[{negated}{escaped}]"


def _split(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, ...]]:
    """The pieces level by level; empty levels and `.` are none."""
    level: list[Piece] = []
    for piece in (*pieces, Piece("/", "/", literal=True)):
        if piece.sample != "/":
            level.append(piece)
        else:
            if level and level != list(_texts(".")):
                yield tuple(level)
            level = []


def _level(text: str, pieces: tuple[Piece, ...]) -> Level:
    # A star leaves the digits to the field behind it: `*{step}` finds 300 in step-300, and not 0.
    parts = [
        f"(?<![0-9]){piece.expression}" if piece.field and before and before.sample == "*" else piece.expression
        for before, piece in zip((None, *pieces), pieces, strict=False)
    ]
    try:
        level = Level(pieces, re.compile("".join(parts), re.DOTALL))
    except re.error as error:
        raise UsageError(f"{quoted(text)} is no pattern: {error}") from error
    if level.literal and level.sample == "..":
        raise UsageError(f"{quoted(text)}: '..' behind a wildcard; write the path without it")
    return level


def _check_date(fields: set[str | None], text: str) -> None:
    dated = fields & set(_DIGITS)
    if dated and not ("Y" in dated and ("j" in dated or {"m", "d"} <= dated)):
        raise UsageError(f"{quoted(text)}: its date names no day; write %Y with %m and %d, or with %j")
