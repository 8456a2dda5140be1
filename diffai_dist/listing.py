"""What a report store holds, as text or JSON: runs, one run, rows of a query, what was removed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from diffai_dist.errors import UsageError
from diffai_dist.terminal import cells, count, escape, inert, size

if TYPE_CHECKING:
    import pyarrow

    from diffai_dist.store import RunDetail, RunState

_AGE = re.compile(r"([0-9]+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def age(text: str) -> timedelta:
    """A duration such as `12h` or `7d`.

    >>> age("36h")
    datetime.timedelta(days=1, seconds=43200)
    """
    found = _AGE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"--older-than {text!r} is not a duration such as 12h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> Iterator[str]:
    """Lines of columns as wide as their widest cell; `right` says which are aligned there."""
    lines = [(inert(first), *others) for first, *others in (header, *rows)]
    widths = [max(map(cells, column)) for column in zip(*lines, strict=True)]
    sides = [*right, *[False] * (len(header) - len(right))]
    for row in lines:
        padded = [
            " " * (width - cells(cell)) + cell if side else cell + " " * (width - cells(cell))
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        yield "  ".join(padded).rstrip() + "\n"


def run_list(runs: Sequence[RunState], output: str) -> Iterator[str]:
    """The runs of a store, the newest last, where a terminal stops scrolling."""
    if output == "json":
        yield json.dumps([dataclasses.asdict(run) for run in runs], indent=1, default=str) + "\n"
        return
    if not runs:
        yield "no runs\n"
        return
    rows = [
        (run.run, escape(run.name or "-", 40), _started(run), run.state, _units(run), count(run.pairs), _failed(run))
        for run in reversed(runs)
    ]
    yield from table(("run", "name", "started", "state", "units", "pairs", "failures"), rows)


def _started(run: RunState) -> str:
    return f"{run.started:%Y-%m-%d %H:%M:%S}" if run.started else "-"


def _units(run: RunState) -> str:
    return "-" if run.units is None or run.units_total is None else f"{run.units:,}/{run.units_total:,}"


def _failed(run: RunState) -> str:
    return escape(run.problem, 200) if run.problem else count(run.failures)


def run_detail(detail: RunDetail, output: str) -> Iterator[str]:
    """One run: what failed first, then its state and its members."""
    if output == "json":
        yield json.dumps(dataclasses.asdict(detail), indent=1, default=str) + "\n"
        return
    for failure in detail.failures:
        yield f"failed: {escape(failure.sentence(), 1000)}\n"
    state, comparison = detail.state, detail.comparison
    facts = {
        "run": state.run,
        "name": state.name,
        "state": state.state,
        "started": _started(state),
        "units": _units(state),
        "pairs": f"{state.pairs:,} ({comparison['mode'] or 'one pair'})",
        "exit code": state.exit_code,
        "kept": size(detail.nbytes) if detail.marker else None,
        "checkpoints": f"{len(comparison['members']):,}",
    }
    for key, value in facts.items():
        if value is not None:
            yield f"  {key:<11} {escape(str(value), 400)}\n"
    for member in comparison["members"]:
        yield f"    {escape(member['name'], 60)}  {escape(member['url'], 400)}\n"


def removed_lines(removed: Sequence[tuple[str, int]], dry_run: bool) -> Iterator[str]:
    """What was removed, or would be, and how much that frees."""
    for path, _ in removed:
        yield f"{escape(path, 400)}\n"
    verb = "would be removed" if dry_run else "removed"
    yield f"{count(len(removed), 'object')} {verb}, {size(sum(nbytes for _, nbytes in removed))}\n"


def query_rows(found: pyarrow.Table, output: str) -> Iterator[str]:
    """The rows of a query as a table, JSON Lines or CSV."""
    names = found.column_names
    if output == "json":
        for row in found.to_pylist():
            yield json.dumps(row, default=str) + "\n"
        return
    rows = [[row[name] for name in names] for row in found.to_pylist()]
    if output == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([names, *([_harmless(cell) for cell in row] for row in rows)])
        yield buffer.getvalue()
        return
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(names))]
    yield from table([escape(name) for name in names], [[_cell(cell) for cell in row] for row in rows], numeric)


def _harmless(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula, as text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _cell(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return escape(str(cell), 60)
