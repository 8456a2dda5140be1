"""A configuration as it was written: values with their places, and errors that quote the line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from diffai_dist.config.model import SweepConfig, setting_paths
from diffai_dist.config.nodes import NotYaml, Span, read
from diffai_dist.config.problems import Path, Problem, names, setting_name
from diffai_dist.config.secrets import suspicious
from diffai_dist.errors import UsageError
from diffai_dist.terminal import escape

SHOWN = 5  # problems; the others are counted


@dataclass(frozen=True, slots=True)
class Document:
    """The settings in a file, and where each key and value stands."""

    name: str  # of the file, harmless
    lines: tuple[str, ...]
    value: dict[str, Any]
    keys: dict[Path, Span]
    values: dict[Path, Span]
    kind: Any  # SweepConfig, or another kind of file

    def error(self, problems: Iterable[Problem]) -> UsageError:
        """All problems as one error, in the order of the file."""
        found = sorted(problems, key=lambda problem: self._span(problem).start)
        private = set(self._private())
        shown = [self._sentence(problem, private) for problem in found[:SHOWN]]
        if len(found) > SHOWN:
            shown.append(f"and {len(found) - SHOWN:,} more")
        return UsageError("\n".join(shown))

    def _span(self, problem: Problem) -> Span:
        """Where the problem stands; what the file leaves out stands where its section does."""
        path = problem.path
        if problem.at_key and path in self.keys:
            return self.keys[path]
        while path not in self.values:
            path = path[:-1]
        return self.values[path]

    def _private(self) -> Iterator[int]:
        """Lines of what is no setting, which are not quoted: who mistypes `password` has a secret there."""
        for path, key in self.keys.items():
            if names(path) not in setting_paths(self.kind):
                value = self.values[path]
                yield from range(min(key.start[0], value.start[0]), max(key.start[0], value.last_line) + 1)

    def _sentence(self, problem: Problem, private: set[int]) -> str:
        line, column = self._span(problem).start
        if problem.secret or not problem.path:
            quote = ""
        elif problem.at_key or line in private:
            quote = f"{setting_name(problem.path)}: ..."
        else:
            quote = _line(self.lines, line)
        return _located(self.name, line, column, problem.message, quote)


def parse(name: str, text: str, kind: Any = SweepConfig) -> Document:
    """The document in a text; UsageError where it is no YAML mapping, or more than a configuration needs."""
    lines = tuple(text.splitlines())
    try:
        return Document(name, lines, *read(text, kind.MADE_OF), kind)
    except NotYaml as error:
        quote = "" if suspicious(text) else _line(lines, error.line)
        raise UsageError(_located(name, error.line, error.column, str(error), quote)) from None


def _located(name: str, line: int, column: int, message: str, quote: str) -> str:
    sentence = f"{name}:{line + 1}:{column + 1}: {message}"
    return f"{sentence}\n    {escape(quote, 160)}" if quote else sentence


def _line(lines: tuple[str, ...], number: int) -> str:
    return lines[number].strip(" ") if number < len(lines) else ""
