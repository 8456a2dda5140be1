"""The result as GitHub-flavoured Markdown for step summaries and comments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from diffai_dist.errors import Failure
from diffai_dist.records import AnalysisRecord, Result, Sweep, TensorRecord
from diffai_dist.report.array import finding_record
from diffai_dist.report.columns import joined, note
from diffai_dist.report.night import night_lines
from diffai_dist.report.overview import Overview, overview
from diffai_dist.report.pairs import from_gram, pair_table, sweep_coverage_lines, sweep_total_line
from diffai_dist.report.tables import Row, named, square, tables, title, worst_first
from diffai_dist.report.view import View, shown
from diffai_dist.report.wording import coverage_lines, entries, failure_entry, total_line
from diffai_dist.terminal import escape

LIMIT = 900_000  # bytes; GitHub refuses a step summary above 1 MiB as a whole
SHARE = 100_000  # bytes for each table but the tensors'
SWEEP_SHARE = 60_000  # the same in a sweep, which has more of them
ANALYSES_SHARE = 500_000  # bytes for the tables of all analyses together
SMALLEST = 2_000  # bytes below which no further section is begun
MATRIX_COLUMNS = 24  # beyond which no reader of a page follows a row

_ENDS = {ord("|"): r"\x7c", ord("`"): r"\x60"}

COLUMNS = ("status", "tensor", "mean", "std", "rel_l2", "max_abs", "changed", "further")
FINDING_COLUMNS = ("severity", "rule", "tensor", "baseline", "candidate", "value", "threshold", "source", "analysis")


def render(sweep: Sweep, view: View) -> Iterator[str]:
    """The verdict first; then whole sections, in as many whole rows as fit."""
    if sweep.mode is None:
        yield from _comparison(sweep.results[0], view)
    else:
        yield from _sweep(sweep, view)


def _comparison(result: Result, view: View) -> Iterator[str]:
    """The tensors take the room that everything else leaves."""
    facts = [f"baseline: {code(escape(result.baseline, 1024))}", f"candidate: {code(escape(result.candidate, 1024))}"]
    facts += map(code, coverage_lines(result))
    head = f"## Comparison\n\n**{total_line(result)}**\n\n" + "".join(f"- {fact}\n" for fact in facts)
    tail = _notes(result.failures, result.warnings, SHARE)
    for analysis in result.analyses:
        tail += _analysis(analysis, ANALYSES_SHARE // len(result.analyses), view)
    yield head
    rows = (_row(record, view) for record in shown(result, view))
    yield section("Tensors", COLUMNS, rows, LIMIT - len(head.encode()) - len(tail.encode()))
    yield tail


def _sweep(sweep: Sweep, view: View) -> Iterator[str]:
    """The first screen and the tables of all pairs; tensors and analyses of single pairs as long as there is room."""
    seen = overview(sweep)
    lines = night_lines(seen, overview(view.previous) if view.previous else None, view.notes)
    facts = (*lines, *sweep_coverage_lines(sweep), *from_gram(sweep))
    parts = [
        f"## Sweep\n\n**{sweep_total_line(seen)}**\n\n" + "".join(f"- {code(fact.strip())}\n" for fact in facts),
        _pairs(seen),
        _findings(seen),
        _notes(sweep.failures, sweep.warnings, SWEEP_SHARE),
        *(_analysis(one, ANALYSES_SHARE // len(sweep.analyses), view, findings=False) for one in sweep.analyses),
    ]
    listed = view.verbose or view.show_tensors
    if not listed:
        movers = ((joined((one.baseline, one.candidate)), *_row(one.record, view)) for one in seen.movers)
        parts.append(section("Largest movers", ("pair", *COLUMNS), movers, SWEEP_SHARE))
    yield from filter(None, parts)
    if listed or seen.pairs_analysed:
        yield from _each_pair(sweep, view, LIMIT - SMALLEST - len("".join(parts).encode()), listed)


def _pairs(seen: Overview) -> str:
    if not seen.sweep.pairs:
        return ""
    head, rows = pair_table(seen)
    names = ((escape(pair.baseline), escape(pair.candidate)) for pair in seen.sweep.pairs)
    cells = ((*sides, *row) for sides, row in zip(names, rows, strict=True))
    return section("Pairs", ("baseline", "candidate", *head), cells, SWEEP_SHARE)


def _findings(seen: Overview) -> str:
    waived = ("waived",) * any(one.finding.waived is not None for one in seen.findings)
    columns = (*FINDING_COLUMNS, *waived)
    rows = ({**finding_record(one.finding), "analysis": one.analysis} for one in seen.findings)
    cells = ([named(key, row[key])[1] if row.get(key) is not None else "" for key in columns] for row in rows)
    return section("Findings", columns, cells, SWEEP_SHARE)


def _each_pair(sweep: Sweep, view: View, room: int, listed: bool) -> Iterator[str]:
    """A section per pair; the last one that has room may be cut by rows, the others are counted."""
    for index, result in enumerate(sweep.results):
        if room < SMALLEST:
            yield f"\n{'; '.join(note(len(sweep.pairs) - index, 'pair')).strip()}\n"
            return
        name = code(joined((result.baseline, result.candidate)))
        rows = (_row(record, view) for record in shown(result, view)) if listed else ()
        text = section(name, COLUMNS, rows, room)
        left = room - len(text.encode())
        for analysis in result.analyses:
            text += _analysis(analysis, left // len(result.analyses), view, findings=False, pair=name)
        room -= len(text.encode())
        yield text


def _notes(failures: Sequence[Failure], warnings: Sequence[str], room: int) -> str:
    failed = ((failure_entry(failure),) for failure in failures)
    warned = ((escape(warning, 1024),) for warning in warnings)
    return section("Failures", ("failure",), failed, room) + section("Warnings", ("warning",), warned, room)


def section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], room: int) -> str:
    """A heading and a table of at most `room` bytes, cut by whole rows and saying by how many; "" without rows."""
    lines = [f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"]
    left = room - len(lines[0].encode()) - len("\n1,000,000,000 more\n")
    dropped = 0
    for row in rows:
        line = "| " + " | ".join(code(cell) if cell else " " for cell in row) + " |\n"
        left -= len(line.encode())
        if left < 0:
            dropped += 1
        else:
            lines.append(line)
    if dropped:
        lines.append(f"\n{dropped:,} more\n")
    return "".join(lines) if len(lines) > 1 else ""


def code(text: str) -> str:
    """A code span around escaped text: nothing in it is Markdown, HTML, a mention or the end of a table cell.

    >>> print(code("a|b <details> @all"))
    `a\\x7cb <details> @all`
    """
    return f"`{text.translate(_ENDS)}`"


def _row(record: TensorRecord, view: View) -> tuple[str, ...]:
    """The entries of the text line, those that have a column of their own in it and the others in the last one."""
    found: dict[str, str] = {}
    further: list[str] = []
    for entry in entries(record, view.verbose):
        key, _, value = entry.partition("=")
        if key in COLUMNS:
            found[key] = value
        else:
            further.append(entry)
    own = (found.get(column, "") for column in COLUMNS[2:-1])
    return record.status, escape(record.name), *own, ", ".join(further)


def _analysis(analysis: AnalysisRecord, room: int, view: View, findings: bool = True, pair: str = "") -> str:
    """Its plain values on one line, then a table for each table of the result and for the findings."""
    parts = tables(analysis.result, view.verbose)
    if findings and analysis.findings:
        parts.append(("findings", [finding_record(one) for one in worst_first(analysis.findings)]))
    before = f"{pair}: " if pair else ""
    return "".join(
        _table(before + title(analysis.name, key), rows, room // len(parts))
        if key
        else _facts(before + title(analysis.name), rows[0])
        for key, rows in parts
    )


def _table(heading: str, rows: Sequence[Row], room: int) -> str:
    if matrix := square(rows, 256):
        columns = [matrix.labels, *matrix.columns[:MATRIX_COLUMNS]]
        found = ([escape(name), *row[:MATRIX_COLUMNS]] for (name,), row in zip(matrix.names, matrix.rows, strict=True))
        table = section(heading, list(map(code, columns)), found, room)
        return table + "".join(f"\n{line.strip()}\n" for line in note(len(rows) + 1 - len(columns), "column"))
    columns = list(dict.fromkeys(named(key, None)[0] for row in rows for key in row))
    cells = (dict(named(key, value) for key, value in row.items()) for row in rows)
    return section(heading, list(map(code, columns)), ([row.get(key, "") for key in columns] for row in cells), room)


def _facts(heading: str, row: Row) -> str:
    lines = (code("=".join(named(key, value))) for key, value in row.items())
    return f"\n### {heading}\n\n" + "".join(f"- {line}\n" for line in lines)
