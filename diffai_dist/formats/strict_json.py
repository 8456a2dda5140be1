"""JSON with one meaning per text: what parsers disagree about is refused, quickly, with its place."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import NoReturn

from diffai_dist.formats.names import quoted

_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]++|\\.)*+"|(NaN|-?Infinity)', re.DOTALL)


class NotStrict(ValueError):
    """What is wrong with a JSON text and where; the caller adds whose text it is."""


def parse(data: bytes, *, max_objects: int, max_fields: int) -> object:
    """The value of a UTF-8 text; raises NotStrict for duplicate keys, NaN, -0, lone surrogates, depth and size.

    Plain `json.loads` takes all of these, or lets a RecursionError or a ValueError without a place escape. Colons
    and opening brackets are counted first, those inside strings too: 100 MB of `"":0,` would become gigabytes.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotStrict(f"invalid UTF-8 at byte {error.start:,} of the JSON text") from error
    if max(data.count(b":"), data.count(b"[")) > max_fields:
        raise NotStrict(f"more than {max_fields:,} fields or lists in the JSON text")
    value = _loads(text, max_objects)
    if "\\u" in text:
        _refuse_lone_surrogates(value)
    return value


def _loads(text: str, max_objects: int) -> object:
    count = 0

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal count
        count += 1
        if count > max_objects:
            raise NotStrict(f"more than {max_objects:,} entries")
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise NotStrict(f"duplicate key {quoted(_repeated(pairs))}")
        return fields

    def refuse_constant(name: str) -> NoReturn:
        raise NotStrict(f"{name} is not JSON, at {_place_of_constant(text)}")

    # The hook for integers costs 10 % of the time, so only texts that may need it pay.
    parse_int = _integer if "-0" in text else None
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant, parse_int=parse_int)
    except NotStrict:
        raise
    except json.JSONDecodeError as error:
        message = "text after the end of the JSON value" if error.msg == "Extra data" else f"invalid JSON: {error.msg}"
        raise NotStrict(f"{message}, at line {error.lineno:,} column {error.colno:,}") from error
    except RecursionError as error:
        raise NotStrict("JSON nested too deeply") from error
    except ValueError as error:  # Python's own limit, 4,300 digits
        raise NotStrict("an integer of thousands of digits in the JSON text") from error


def _integer(digits: str) -> int:
    """An integer; -0 is a float to other parsers and 0 to Python."""
    if digits == "-0":
        raise NotStrict("the number -0 in the JSON text")
    return int(digits)


def _repeated(pairs: list[tuple[str, object]]) -> str:
    return Counter(key for key, _ in pairs).most_common(1)[0][0]


def _place_of_constant(text: str) -> str:
    """Where the first NaN or Infinity outside a string stands: the parser does not tell its hook."""
    at = next(match.start(1) for match in _STRING_OR_CONSTANT.finditer(text) if match[1])
    return f"line {text.count(chr(10), 0, at) + 1:,} column {at - text.rfind(chr(10), 0, at):,}"


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise NotStrict("a lone surrogate in a string of the JSON text") from error
    except RecursionError as error:
        raise NotStrict("JSON nested too deeply") from error
