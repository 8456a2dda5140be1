"""Names that come from files are hostile text: how to show them, and which of them may name a file."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

SHOWN_CHARACTERS = 256
SHOWN_NAMES = 5
SHOWN_ITEMS = 8
FILE_NAME_BYTES = 255

# Separators, drives and schemes, percent-encoding, query and fragment, glob patterns.
_FORBIDDEN = frozenset("/\\:%?#*[]")


def quoted(text: str) -> str:
    r"""A name on one line, shortened, with everything that a terminal could obey escaped.

    >>> quoted("a\x1b[2J")
    "'a\\x1b[2J'"
    """
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS]
    rest = f" and {len(text) - len(cut):,} more characters" if cut is not text else ""
    return f"{cut!r}{rest}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    >>> listed(["b", "a"]), listed("abcdefg")
    ("'b', 'a'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(quoted, names[:SHOWN_NAMES])) + more


def shown(value: object) -> str:
    """A value of a JSON text, shortened: a number may have 4,300 digits, a list a million items of any depth.

    >>> shown([1, True, ["a"]]), shown([0] * 20)
    ('[1, true, [...]]', '[0, 0, 0, 0, 0, 0, 0, 0, ...]')
    """
    if not isinstance(value, list):
        return _scalar(value)
    more = ["..."] if len(value) > SHOWN_ITEMS else []
    return f"[{', '.join([*map(_scalar, value[:SHOWN_ITEMS]), *more])}]"


def _scalar(value: object) -> str:
    if isinstance(value, list | dict):
        return "[...]" if isinstance(value, list) else "{...}"
    text = json.dumps(value[:SHOWN_CHARACTERS] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def is_plain_file_name(name: str) -> bool:
    """Whether a name can only mean a file of the folder it stands in, on every file system and in every URL.

    >>> is_plain_file_name("model-00001-of-00002.safetensors"), is_plain_file_name("../x"), is_plain_file_name("a::b")
    (True, False, False)
    """
    return (
        name.isprintable()  # no NUL, control, direction or zero-width characters, no lone surrogates
        and 0 < len(name.encode()) <= FILE_NAME_BYTES
        and not name.startswith((".", "~", " "))
        and _FORBIDDEN.isdisjoint(name)
    )


def lookalikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of distinct names that case folding and Unicode normalisation would make one."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        key = (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()
        first = seen.setdefault(key, name)
        if first is not name:
            pairs.append((first, name))
    return pairs
