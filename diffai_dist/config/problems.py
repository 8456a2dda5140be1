"""What is wrong with a setting, in words: its name, what it wants, what was found, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_dist.config.model import SweepConfig, setting_paths
from diffai_dist.terminal import escape

Path = tuple[str | int, ...]

# The types of errors of pydantic, as what a person would have had to write.
_WANTED = {
    "bool_type": "true or false",
    "dataclass_type": "a section of settings",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "missing": "two entries, [baseline, candidate]",
    "string_type": "text",
    "too_long": "two entries, [baseline, candidate]",
    "tuple_type": "a list",
}

# YAML 1.2 reads yes, no, on and off as text, as it does what stands in quotes.
_BOOLEANS = dict.fromkeys(("yes", "on", "true"), "true") | dict.fromkeys(("no", "off", "false"), "false")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the setting to which `path` leads from the top of a document."""

    path: Path
    message: str
    at_key: bool = False  # the name is wrong, or the section as a whole
    secret: bool = False  # neither may be shown


class Rejected(ValueError):
    """Settings that cannot be used, with all that is wrong with them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))


def unknown_key(path: Path, kind: Any = SweepConfig) -> Problem:
    """A name that is no setting of that kind of file, with the one that was probably meant."""
    known, last = setting_paths(kind), str(path[-1])
    here = [other[-1] for other in known if other[:-1] == names(path)[:-1]]
    meant = did_you_mean(last.lower().replace("-", "_"), here)
    moved = next((f"did you mean '{'.'.join(other)}'?" for other in known if other[-1] == last), "")
    hint = meant or moved or f"there are {', '.join(here)}"
    return Problem(path, f"unknown key {quoted(last)} ({hint})", at_key=True)


def names(path: Path) -> tuple[str, ...]:
    """The path without places in lists, as a setting is known."""
    return tuple(part for part in path if isinstance(part, str))


def missing_key(path: Path) -> Problem:
    """A setting without which its section means nothing."""
    return Problem(path[:-1], f"the key '{path[-1]}' is missing", at_key=True)


def wrong_value(path: Path, value: object, errors: Sequence[Mapping[str, Any]]) -> Problem:
    """A value of which pydantic says, once for each type that it might have had, why it is none."""
    wanted = " or ".join(dict.fromkeys(map(_wanted, errors)))
    return Problem(path, f"{setting_name(path)} wants {wanted}, found {found(value)}{_hint(value, errors)}")


def setting_name(path: Path) -> str:
    """The name of the setting itself, also where the path leads to an entry of its list."""
    return next(reversed(names(path)), "a configuration")


def quoted(text: object) -> str:
    """Text out of a file, harmless, on one line, cut to what a message can hold."""
    return f"'{escape(str(text), 60)}'"


def found(value: object) -> str:
    """What a value is to someone who wrote YAML.

    >>> found(None), found(True), found(4.5), found("4"), found([4])
    ('nothing', 'true', 'the number 4.5', "the text '4'", 'a list')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return "a section of settings" if isinstance(value, Mapping) else "a list"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The closest of the known names as a question, empty if none is close."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else ""


def _wanted(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "literal_error":
            return f"one of {', '.join(_choices(error))}"
        case "greater_than_equal":
            return f"at least {error['ctx']['ge']:g}"
    return _WANTED.get(error["type"], str(error["msg"]))


def _hint(value: object, errors: Sequence[Mapping[str, Any]]) -> str:
    kinds = {error["type"] for error in errors}
    if not isinstance(value, str):
        text = "string_type" in kinds and "finite_number" not in kinds
        return " (put it in quotes)" if text and isinstance(value, bool | int | float) else ""
    if "bool_type" in kinds and value.lower() in _BOOLEANS:
        return f" (write {_BOOLEANS[value.lower()]}, without quotes)"
    if kinds & {"int_type", "float_type"} and value.isdecimal():
        return " (remove the quotes)"
    meant = did_you_mean(value.lower(), [choice for error in errors for choice in _choices(error)])
    return f" ({meant})" if meant else ""


def _choices(error: Mapping[str, Any]) -> list[str]:
    """The literals of an error, out of pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []
