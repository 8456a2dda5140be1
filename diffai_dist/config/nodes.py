"""YAML text as plain values and their places. The only home of ruamel.yaml.

YAML 1.2: `no` is text and 010 is ten. Tags that name other types than those of JSON are refused, dates stay the text
that they are, and an alias counts as a copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffai_dist.config.problems import Path, quoted
from diffai_dist.terminal import escape

MAX_VALUES = 100_000  # a bomb of ten lines of aliases would have billions
MAX_DEPTH = 20

_CORE = "tag:yaml.org,2002:"
# `<<` and `=` mean something in YAML 1.1 only, and dates are compared as they are written.
_TEXT = tuple(f"{_CORE}{kind}" for kind in ("str", "timestamp", "merge", "value"))
_PLAIN = tuple(f"{_CORE}{kind}" for kind in ("int", "float", "bool", "null"))
_CONFLICT = re.compile(r"(<{7}|>{7}|\|{7})( |$)")


@dataclass(frozen=True, slots=True)
class Span:
    """Where something stands; lines and columns count from 0."""

    start: tuple[int, int]  # line and column
    last_line: int


class NotYaml(ValueError):
    """What makes a text no configuration, and where."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line, self.column = line, column


def read(text: str, made_of: str) -> tuple[dict[str, Any], dict[Path, Span], dict[Path, Span]]:
    """The mapping in a text with the places of its keys and of its values; NotYaml if there is none.

    `made_of` says what such a file is made of to who wrote something else.
    """
    for number, line in enumerate(text.splitlines()):
        if _CONFLICT.match(line):
            raise NotYaml("a marker of a merge conflict: choose one of the two sides", number)
    root, plain = _compose(text)
    if root is None:
        raise NotYaml(f"empty: {made_of}")
    if root.id != "mapping":
        raise _refused(f"not a mapping: {made_of}", root)
    reader = _Reader(plain)
    return reader.section(root, ()), reader.keys, reader.values


def _compose(text: str) -> tuple[Any, Callable[[Any], Any]]:
    """The only document in the text as a tree of nodes, and what makes a value of a plain node."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        raise _syntax_error(text, error) from error
    except YAMLError as error:  # of the reader, which knows no lines
        before = text[: getattr(error, "position", 0)]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        raise NotYaml("not YAML: a character that does not print", line, column) from error
    except RecursionError as error:
        raise NotYaml(f"nested more than {MAX_DEPTH} levels deep") from error
    except (ValueError, OverflowError) as error:
        raise NotYaml("not YAML: an escape such as \\UFFFFFFFF that is no character") from error
    return root, yaml.constructor.construct_object


def _syntax_error(text: str, error: Any) -> NotYaml:
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return NotYaml("a tab in the indentation: YAML wants spaces", mark.line, mark.column)
    context = f"{error.context}, " if error.context else ""
    return NotYaml(f"not YAML: {escape(f'{context}{error.problem}', 200)}", mark.line, mark.column)


class _Reader:
    """Turns nodes into values, and notes where they stand."""

    def __init__(self, plain: Callable[[Any], Any]) -> None:
        self.plain = plain
        self.keys: dict[Path, Span] = {}
        self.values: dict[Path, Span] = {}

    def section(self, node: Any, path: Path) -> dict[str, Any]:
        """A mapping, each key once."""
        self._note(node, path)
        section = {}
        for key, value in node.value:
            name = self._name(key)
            here = (*path, name)
            if here in self.keys:
                raise _refused(f"the key {quoted(name)} stands in line {self.keys[here].start[0] + 1} already", key)
            self.keys[here] = _span(key)
            section[name] = self._value(value, here)
        return section

    def _name(self, node: Any) -> str:
        name = self._scalar(node) if node.id == "scalar" else None
        if not isinstance(name, str):
            raise _refused("a key is text: put it in quotes", node)
        return name

    def _value(self, node: Any, path: Path) -> Any:
        if node.id == "mapping" and node.tag == f"{_CORE}map":
            return self.section(node, path)
        self._note(node, path)
        if node.id == "sequence" and node.tag == f"{_CORE}seq":
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _note(self, node: Any, path: Path) -> None:
        if len(self.values) >= MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES:,} values, each alias counted as a copy", node)
        if len(path) > MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} levels deep", node)
        self.values[path] = _span(node)

    def _scalar(self, node: Any) -> Any:
        """Text, a number, true or false, or None."""
        if node.id != "scalar" or node.tag not in (*_TEXT, *_PLAIN):
            raise _refused(f"the tag {quoted(node.tag)} is refused: there is text, numbers, true and false", node)
        try:
            value = self.plain(node) if node.tag in _PLAIN else node.value
            # What JSON and the file system cannot hold: lone surrogates, and integers of thousands of digits.
            (value if isinstance(value, str) else str(value)).encode()
        except (ValueError, LookupError) as error:
            raise _refused(f"no usable {node.tag.removeprefix(_CORE)}", node) from error
        return value


def _span(node: Any) -> Span:
    end = node.end_mark
    return Span((node.start_mark.line, node.start_mark.column), end.line - (end.column == 0 < end.line))


def _refused(message: str, node: Any) -> NotYaml:
    return NotYaml(message, node.start_mark.line, node.start_mark.column)
