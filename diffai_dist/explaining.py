"""What each analysis is, needs and costs, from what its class says; and what became of names that there are no more."""

from __future__ import annotations

import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffai_dist.analyses import EVERY
from diffai_dist.analyses.ancestor import ELSEWHERE, REFUSED, refusal
from diffai_dist.analyses.base import Explained, thresholds
from diffai_dist.analyses.expectations import Expectations
from diffai_dist.errors import DiffaiError, UsageError
from diffai_dist.listing import table
from diffai_dist.terminal import cells, escape

KINDS = {
    "H": "headers and small files alone",
    "1": "checkpoints one by one",
    "2": "a pair",
    "N": "a series of checkpoints in their order; two are one, too",
}

# CPU time of measuring two BF16 files of 1 GB with the partial, over that without: AMD EPYC (Zen 4), one thread, median
# of three. Decoding is shared: all but the last together cost 2.3. Codes are bins of tensors of 8 bits, none of these.
FACTORS: Mapping[str, float] = {
    "gram": 1.3,
    "content": 1.15,
    "bitwise": 1.4,
    "rows": 1.3,
    "columns": 1.7,
    "codes": 1.1,
    "histogram": 2.1,
}

# Rules of findings that no analysis makes, by the record that they stand in.
BESIDE: Mapping[str, Mapping[str, str]] = {
    Expectations.name: Expectations.rules,
    "policy": {
        "policy-unmatched": "a rule of the policy that selects no tensor in some pair: low",
        "waiver-expired": "a waiver of the policy whose last day is over: low",
    },
}

LISTED = ("name", "flag", "class", "cost", "in_all", "summary")  # of an analysis, in the list of all

Document = dict[str, Any]


def summary(kind: type[Explained]) -> str:
    """Its first line of help."""
    return inspect.getdoc(kind).splitlines()[0]  # type: ignore[union-attr] # a test says that each has one


def cost(kind: type[Explained]) -> str:
    """In a word: reads nothing, same pass, or own partials in that pass."""
    if set(kind.partials) - {"config"}:
        return "own partials"
    return "reads nothing" if kind.kind == "H" else "same pass"


def analyses_list(output: str) -> Iterator[str]:
    """Every analysis in a line, as a table or JSON."""
    if output == "json":
        rows = [{key: _analysis(kind)[key] for key in LISTED} for kind in EVERY.values()]
        yield json.dumps(rows, indent=1) + "\n"
        return
    lines = [
        (name, kind.kind, cost(kind), "yes" if kind.in_all else "no", summary(kind)) for name, kind in EVERY.items()
    ]
    yield from table(("name", "class", "cost", "--all", "answers"), lines)
    yield "\n"
    yield from (f"{letter}: {meaning}\n" for letter, meaning in KINDS.items())


def explained(name: str) -> Document:
    """What there is to say of an analysis, its flag, a rule, an error, or a name of the ancestor; else UsageError."""
    key = name.strip().lower().lstrip("-").replace("-", "_")
    by_flag = {listed.flag.lstrip("-").replace("-", "_"): one for one, listed in EVERY.listed.items()}
    if (found := key if key in EVERY else by_flag.get(key)) is not None:
        return _analysis(EVERY[found])
    rule = key.replace("_", "-")
    rules = _rules()
    if tests := {one: told[rule] for one, told in rules.items() if rule in told}:
        return {"kind": "rule", "name": rule, "analyses": tests}
    if (means := _errors().get(key.upper())) is not None:
        return {"kind": "error", "name": key.upper(), "means": means}
    if key in REFUSED:
        reason, nearest = REFUSED[key]
        return {"kind": "refused", "name": key, "reason": reason, "nearest": list(nearest)}
    if key in ELSEWHERE:
        return {"kind": "elsewhere", "name": key, "instead": ELSEWHERE[key]}
    meant = _near(key, [*EVERY, *REFUSED, *ELSEWHERE]) or _near(rule, [one for told in rules.values() for one in told])
    hint = f": did you mean {meant}?" if meant else ""
    raise UsageError(f"no analysis, rule or error {escape(name)!r}{hint}; diffai-dist analyses lists all")


def _rules() -> dict[str, Mapping[str, str]]:
    """All rules that a finding may have, by the record that it stands in."""
    return {**{one: kind.rules for one, kind in EVERY.items()}, **BESIDE}


def _errors() -> dict[str, str]:
    """What each error code means, and the exit code that it ends in."""
    found: dict[str, str] = {}
    kinds = [DiffaiError]
    while kinds:
        kind = kinds.pop(0)
        kinds += kind.__subclasses__()
        found.setdefault(kind.code, f"{inspect.getdoc(kind)} Exit code {kind.exit_code}.")
    return found


def _near(name: str, names: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name[:100], names, 1)), None)


def _analysis(kind: type[Explained]) -> Document:
    _, _, definition = inspect.getdoc(kind).partition("\n")  # type: ignore[union-attr] # as above
    return {
        "kind": "analysis",
        "name": kind.name,
        "flag": kind.flag,
        "class": kind.kind,
        "in_all": kind.in_all,
        "summary": summary(kind),
        "definition": " ".join(definition.split()),
        "cost": cost(kind),
        "partials": {partial: FACTORS.get(partial) for partial in kind.partials},
        "result": dict(kind.result),
        "rules": dict(kind.rules),
        "thresholds": {
            name: {"default": field.default, "help": field.metadata["help"], "source": field.metadata["source"]}
            for name, field in thresholds(kind).items()
        },
        "sources": list(kind.sources),
    }


def explanation(document: Document, output: str, width: int | None = None) -> Iterator[str]:
    """The document as text for people, or as JSON."""
    if output == "json":
        yield json.dumps(document, indent=1) + "\n"
    elif document["kind"] == "analysis":
        yield from _analysis_text(document, width or 100)
    else:
        yield from _wrapped(_other_text(document), width or 100)


def _analysis_text(document: Document, width: int) -> Iterator[str]:
    yield f"{document['name']}  {document['flag']}\n"
    yield from _wrapped([document["summary"], document["definition"]], width)
    facts = {
        "about": KINDS[document["class"]],
        "cost": _cost_text(document),
        "--all": "asks for it" if document["in_all"] else "does not ask for it",
    }
    limits = {
        f"{name} = {one['default']}": f"{one['help']} ({one['source']})" for name, one in document["thresholds"].items()
    }
    for title, found in (("", facts), ("Fields", document["result"]), ("Rules", document["rules"])):
        yield from _entries(title, found, width)
    yield from _entries(f"--threshold {document['name']}.FIELD=VALUE", limits, width)
    yield "\nSources\n"
    for source in document["sources"]:
        yield _fill(source, width, "  ", "    ")


def _cost_text(document: Document) -> str:
    measured = [
        _NAMES.get(partial, partial)
        if factor is None
        else f"{partial} ({factor:.3g} × the time of a comparison without)"
        for partial, factor in document["partials"].items()
    ]
    return f"{document['cost']}: {', '.join(measured)}" if measured else document["cost"]


_NAMES = {"config": "config.json beside the checkpoint"}


def _other_text(document: Document) -> list[str]:
    name = document["name"]
    if document["kind"] == "rule":
        return [f"{name}, a rule of {one}: {test}" for one, test in document["analyses"].items()]
    if document["kind"] == "error":
        return [f"{name}: {document['means']}"]
    flag = f"--{name.replace('_', '-')}"
    return [refusal(name) if document["kind"] == "refused" else f"{flag}: {document['instead']}"]


def _entries(title: str, found: Mapping[str, str], width: int) -> Iterator[str]:
    """Names and what they mean, in two columns."""
    if not found:
        return
    yield f"\n{title}\n" if title else "\n"
    indent = "  " if title else ""
    room = min(max(map(cells, found)), 28)
    for name, meaning in found.items():
        start = f"{indent}{name}{' ' * (room - cells(name))}  "
        rest = " " * (len(indent) + room + 2)
        yield _fill(meaning, max(width, 60), start, rest)


def _wrapped(paragraphs: Sequence[str], width: int) -> Iterator[str]:
    for paragraph in filter(None, paragraphs):
        yield _fill(paragraph, width)


def _fill(text: str, width: int, first: str = "", rest: str = "") -> str:
    """Lines broken between words alone: flags and names are whole, to be copied."""
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)
