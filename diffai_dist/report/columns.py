"""Names and numbers in aligned columns, as many of them as the screen holds."""

from __future__ import annotations

from collections.abc import Sequence

from diffai_dist.terminal import cells, escape, inert

SHORTEST_NAME = 12  # columns that a name keeps on the narrowest screen
ARROW = " -> "
GAP = "  "


def grid(
    label: str, names: Sequence[Sequence[str]], head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> tuple[list[str], int]:
    """A heading and a line per row, and how many columns had no room; `names` are raw, everything else escaped.

    Where the width is short names give way first, down to SHORTEST_NAME each, then the last columns.

    >>> lines, dropped = grid("pair", [("step-1", "step-2")], ["rel_l2", "changed"], [["0.1", "6"]], None)
    >>> print("\\n".join(lines))
      pair              rel_l2  changed
      step-1 -> step-2     0.1        6
    """
    sizes = [max(map(cells, column)) for column in zip(head, *rows, strict=True)]
    labels = [joined(name) for name in names]
    widest = max(map(cells, (label, *labels)))
    kept = len(head)
    if width is not None:
        shortest = min(widest, max(cells(label), *(cells(joined(name, SHORTEST_NAME)) for name in names)))
        while kept > 1 and _needed(shortest, sizes[:kept]) > width:
            kept -= 1
        widest = max(shortest, min(widest, width - _needed(0, sizes[:kept])))
        parts = max(map(len, names), default=1)
        limit = (widest - len(ARROW) * (parts - 1)) // parts
        whole = zip(labels, names, strict=True)
        labels = [text if cells(text) <= widest else joined(name, limit) for text, name in whole]
    table = zip((label, *labels), (head, *rows), strict=True)
    return [_line(name, found[:kept], widest, sizes[:kept]) for name, found in table], len(head) - kept


def joined(names: Sequence[str], limit: int = 256) -> str:
    """Names of members as text, each cut beyond `limit` columns; those of a pair with an arrow between them."""
    return inert(ARROW.join(escape(name, limit) for name in names))


def cut(line: str, width: int | None) -> str:
    """The line as far as the screen holds it; escaped text only."""
    if width is None or cells(line) <= width:
        return line
    line = line[:width]
    while cells(line) >= width:
        line = line[:-1]
    return f"{line}…"


def note(dropped: int, noun: str) -> list[str]:
    """What is said of that many columns or rows that are not shown."""
    return [f"{GAP}{dropped:,} more {noun}{'' if dropped == 1 else 's'}: --output json"] if dropped else []


def _needed(label: int, sizes: Sequence[int]) -> int:
    return len(GAP) + label + sum(len(GAP) + size for size in sizes)


def _line(label: str, found: Sequence[str], widest: int, sizes: Sequence[int]) -> str:
    numbers = (" " * (size - cells(cell)) + cell for cell, size in zip(found, sizes, strict=True))
    return GAP + GAP.join((label + " " * (widest - cells(label)), *numbers))
