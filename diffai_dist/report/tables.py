"""An analysis's result as rows of named values, so that no output knows any analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_dist.records import SEVERITIES, Finding
from diffai_dist.report.wording import number, percent
from diffai_dist.terminal import escape

Row = Mapping[str, Any]

# Sums that scripts take from the JSON, and the coverage, which every output states anyway: shown with --verbose.
DETAILS = ("d2", "coverage", "undecoded")


RATIOS = ("compression", "compression_factor", "efficiency")  # of sizes: 0.25, not 0.2500


LISTED = 20  # entries of a list that stands in one line


def tables(result: Row, verbose: bool = False) -> list[tuple[str, Sequence[Row]]]:
    """The plain values as a table of one row under no title, then every list of rows under its key.

    >>> tables({"tensors": 2, "norm": {"l2": 0.5}, "blocks": [{"block": "h.0"}, {"block": "h.1"}]})
    [('', [{'tensors': 2, 'norm.l2': 0.5}]), ('blocks', [{'block': 'h.0'}, {'block': 'h.1'}])]
    """
    single: dict[str, Any] = {}
    lists: list[tuple[str, Sequence[Row]]] = []
    for key, value in _flat(result, verbose):
        if isinstance(value, list | tuple) and (not value or isinstance(value[0], Mapping)):
            lists += _matrices(key, [_row(row, verbose) for row in value])
        else:
            single[key] = value
    return [("", [single])] * bool(single) + [(key, rows) for key, rows in lists if rows]


def _flat(result: Row, verbose: bool) -> Iterable[tuple[str, Any]]:
    for key, value in result.items():
        if key in DETAILS and not verbose:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value


def _matrices(key: str, rows: Sequence[Row]) -> list[tuple[str, Sequence[Row]]]:
    """The table itself, or each matrix of a list of them that its first column tells apart."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name, *rest = row.items() or [("", "")]
        groups.setdefault(str(name[1]), []).append(dict(rest))
    if all(square(group) for group in groups.values()):
        return [(f"{key}.{name}", group) for name, group in groups.items()]
    return [(key, rows)]


def _row(row: Row, verbose: bool) -> Row:
    return row if verbose else {key: value for key, value in row.items() if key not in DETAILS}


@dataclass(frozen=True, slots=True)
class Matrix:
    """A number for each name of a row and name of a column, as text; `names` are as they came."""

    labels: str
    names: list[tuple[str]]
    columns: list[str]
    rows: list[list[str]]


def square(rows: Sequence[Row], limit: int = 12) -> Matrix | None:
    """Rows whose first value is one of the names of the others, once each; None for any other table.

    >>> square([{"of": "a", "a": 1.0, "b": 0.9871}, {"of": "b", "a": 0.9871, "b": 1.0}]).rows
    [['1', '0.987'], ['0.987', '1']]
    """
    label, *columns = list(rows[0]) or [""]
    names = [row.get(label) for row in rows]
    if len(rows) < 2 or names != columns or any(list(row) != [label, *columns] for row in rows):
        return None
    found = [[short(row[column]) for column in columns] for row in rows]
    return Matrix(escape(label), [(name,) for name in columns], [escape(name, limit) for name in columns], found)


def short(value: Any) -> str:
    """A number of a matrix in three significant digits; those of the distance from 1 where it would be rounded to 1.

    >>> short(0.98765), short(0.9999877), short(1.0), short(-2e-05), short(None)
    ('0.988', '1-1.23e-05', '1', '-2e-05', '-')
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return plain(value)
    text = f"{value:.3g}"
    return f"1-{1 - value:.3g}" if text == "1" and value < 1 else text


def title(analysis: str, table: str = "") -> str:
    """The heading of a table: `Layer impact: blocks`."""
    words = escape(analysis).replace("_", " ").capitalize()
    return f"{words}: {escape(table).replace('_', ' ')}" if table else words


def named(key: str, value: Any) -> tuple[str, str]:
    """A value with its name as people read them: fractions in percent, and `changed=31%` as in the lines of tensors."""
    if key.endswith("_fraction"):
        return "changed" if key == "changed_fraction" else escape(key), percent(value)
    return escape(key), short(value) if key in RATIOS else plain(value)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by severity, what is waived last, otherwise in the order of the analysis."""
    return sorted(findings, key=gravity)


def gravity(finding: Finding) -> int:
    """How far down a finding stands among others: what is waived counts less than anything."""
    return len(SEVERITIES) if finding.waived is not None else SEVERITIES.index(finding.severity)


def plain(value: Any) -> str:
    """A JSON value as people read it."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        more = [f"{len(value) - LISTED:,} more"] if len(value) > LISTED else []
        return f"[{', '.join((*map(plain, value[:LISTED]), *more))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{escape(key)}: {plain(one)}' for key, one in value.items())}}}"
    return number(value)
