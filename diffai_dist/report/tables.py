"""An analysis's result as rows of named values, so that no output knows any analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffai_dist.records import Finding
from diffai_dist.report.wording import number, percent
from diffai_dist.terminal import escape

Row = Mapping[str, Any]

# Sums that scripts take from the JSON, and the coverage, which every output states anyway: shown with --verbose.
DETAILS = ("d2", "coverage", "undecoded")

SEVERITIES = ("critical", "high", "medium", "low", "info")


def tables(result: Row, verbose: bool = False) -> list[tuple[str, Sequence[Row]]]:
    """The plain values as a table of one row under no title, then every list of rows under its key.

    >>> tables({"tensors": 2, "norm": {"l2": 0.5}, "blocks": [{"block": "h.0"}, {"block": "h.1"}]})
    [('', [{'tensors': 2, 'norm.l2': 0.5}]), ('blocks', [{'block': 'h.0'}, {'block': 'h.1'}])]
    """
    single: dict[str, Any] = {}
    lists: list[tuple[str, Sequence[Row]]] = []
    for key, value in result.items():
        if key in DETAILS and not verbose:
            continue
        if isinstance(value, Mapping):
            single |= {f"{key}.{inner}": one for inner, one in value.items()}
        elif isinstance(value, list | tuple) and (not value or isinstance(value[0], Mapping)):
            lists.append((key, [_row(row, verbose) for row in value]))
        else:
            single[key] = value
    return [("", [single])] * bool(single) + [(key, rows) for key, rows in lists if rows]


def _row(row: Row, verbose: bool) -> Row:
    return row if verbose else {key: value for key, value in row.items() if key not in DETAILS}


def title(analysis: str, table: str = "") -> str:
    """The heading of a table: `Layer impact: blocks`."""
    words = escape(analysis).replace("_", " ").capitalize()
    return f"{words}: {escape(table).replace('_', ' ')}" if table else words


def named(key: str, value: Any) -> tuple[str, str]:
    """A value with its name as people read them: fractions in percent, and `changed=31%` as in the lines of tensors."""
    if key.endswith("_fraction"):
        return "changed" if key == "changed_fraction" else escape(key), percent(value)
    return escape(key), plain(value)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by severity, otherwise in the order of the analysis."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def plain(value: Any) -> str:
    """A JSON value as people read it."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{escape(key)}: {plain(one)}' for key, one in value.items())}}}"
    return number(value)
