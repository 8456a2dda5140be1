"""Whether settings can be used: the types of each, then what they say about each other. Nothing here does I/O."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from diffai_dist import cluster, storage
from diffai_dist.analyses.expectations import float_dtype
from diffai_dist.config.model import SweepConfig, setting_paths
from diffai_dist.config.problems import (
    Path,
    Problem,
    Rejected,
    did_you_mean,
    missing_key,
    quoted,
    unknown_key,
    wrong_value,
)
from diffai_dist.config.thresholds import threshold_problems
from diffai_dist.errors import UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@functools.cache
def model(kind: Any) -> TypeAdapter[Any]:
    """A kind of file as pydantic sees it, which takes a tenth of a second to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def check_types(settings: Mapping[str, Any], kind: type[T]) -> T:
    """The settings of a file of that kind as its values; raises Rejected."""
    from pydantic import ValidationError

    file: Any = kind  # of any type[T], typing does not know that it can be hashed
    settings = _explicit(settings, (), setting_paths(file))
    try:
        checked: T = model(file).validate_json(json.dumps(settings))
    except ValidationError as error:
        raise Rejected(_problems(settings, error.errors(include_url=False, include_input=False), kind)) from None
    return checked


def check_rules(config: SweepConfig, analyses: Collection[str] | None) -> None:
    """Raise Rejected where settings contradict each other or mean nothing; None leaves the analyses unchecked."""
    problems = [*_choice_of_pairs(config), *_urls(config), *_others(config), *_analyses(config, analyses)]
    problems += threshold_problems(config.thresholds)
    if problems:
        raise Rejected(problems)


def _explicit(settings: Mapping[str, Any], path: Path, known: Collection[Path]) -> dict[str, Any]:
    """Known keys without a value as what they stand for: a section whose lines are all comments, or a default."""
    made = {}
    for name, value in settings.items():
        here = (*path, name)
        if value is None and (here == ("thresholds",) or any(one[:-1] == here for one in known)):
            value = {}
        if value is not None or here not in known:
            made[name] = _explicit(value, here, known) if isinstance(value, Mapping) else value
    return made


def _problems(settings: Mapping[str, Any], errors: Sequence[Any], kind: type[Any]) -> Iterator[Problem]:
    """What pydantic says, by the value it is about; of that there is one error for each type it might have had."""
    about: dict[Path, list[Any]] = {}
    for error in errors:
        path, value = _descend(settings, error["loc"])
        if error["type"] == "unexpected_keyword_argument":
            yield unknown_key(path, kind)
        elif error["type"] == "missing" and isinstance(value, Mapping):
            yield missing_key((*path, error["loc"][-1]))
        else:
            about.setdefault(path, []).append(error)
    for path, reasons in about.items():
        # A number in a list of texts: it is the number that is wrong, not that the list is no text.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in about):
            yield wrong_value(path, _descend(settings, path)[1], reasons)


def _descend(value: Any, steps: Sequence[str | int]) -> tuple[Path, Any]:
    """As far as the steps lead, and what is there; the names of types that pydantic puts between lead nowhere."""
    path: Path = ()
    for step in steps:
        inside = isinstance(value, Mapping) and step in value
        if inside or (isinstance(value, list) and isinstance(step, int) and step < len(value)):
            path, value = (*path, step), value[step]
    return path, value


def _choice_of_pairs(config: SweepConfig) -> Iterator[Problem]:
    if config.pairs == "vs-baseline" and config.baseline is None:
        yield Problem(("pairs",), "pairs: vs-baseline needs the key 'baseline', the path or URL of a checkpoint")
    if config.pairs not in ("vs-baseline", "all") and config.baseline is not None:
        yield Problem(("baseline",), "baseline is for pairs: vs-baseline or all; set one of them, or leave it out")
    if config.elementwise and config.pairs != "all":
        yield Problem(("elementwise",), "elementwise is for pairs: all only; all other pairs are measured so anyway")
    if not config.pairs:
        yield Problem(("pairs",), "pairs is an empty list: name two checkpoints, or leave the key out")
    if not config.patterns:
        yield Problem(("checkpoints",), "checkpoints is an empty list: name at least one path, URL or pattern")


def _urls(config: SweepConfig) -> Iterator[Problem]:
    """Every path and URL must be one that storage takes."""
    named: list[tuple[Path, str | None]] = [
        *((("checkpoints", index), text.removeprefix("@")) for index, text in enumerate(config.patterns)),
        (("baseline",), config.baseline),
        (("store",), config.store),
        (("output", "file"), config.output.file),
        (("policy",), config.policy),
    ]
    if not isinstance(config.pairs, str):
        sides = (
            (("pairs", row, side), text) for row, pair in enumerate(config.pairs) for side, text in enumerate(pair)
        )
        # What is neither a URL nor an absolute path is the name of a member.
        named += [(path, text) for path, text in sides if text.startswith("/") or "://" in text]
    for path, text in named:
        if text is not None and (reason := _reason(storage.check_url, text)):
            yield Problem(path, reason)


def _others(config: SweepConfig) -> Iterator[Problem]:
    """What the values say that these settings become."""
    places = config.cluster
    slurm = places.slurm and cluster.Slurm(places.slurm.jobs, places.slurm.config)
    tls = places.tls and cluster.Tls(places.tls.ca_file, places.tls.cert_file, places.tls.key_file)
    place = (places.workers, places.scheduler, places.threads, places.memory_limit, False, tls, slurm)
    reasons: dict[Path, str | None] = {
        ("storage", "endpoint_url"): _reason(storage.Profile, config.storage.endpoint_url),
        ("expect", "cast"): _reason(float_dtype, config.expect.cast or "F32"),
        ("select", "ignore_keys_regex"): _reason(_compiled, config.select.ignore_keys_regex or ""),
        ("cluster",): _reason(cluster.Place, *place),
        ("cluster", "memory_limit"): _reason(_bytes, places.memory_limit, "memory_limit"),
        ("cluster", "unit_size"): _reason(_bytes, places.unit_size, "unit_size"),
    }
    yield from (Problem(path, reason) for path, reason in reasons.items() if reason)


def _analyses(config: SweepConfig, known: Collection[str] | None) -> Iterator[Problem]:
    for index, name in enumerate(config.analyses):
        if known is not None and name not in known and name != "all":
            hint = did_you_mean(name, known) or f"there are {', '.join(sorted(known))}"
            yield Problem(("analyses", index), f"unknown analysis {quoted(name)} ({hint})")


def _reason(check: Any, *arguments: Any) -> str | None:
    """Why the arguments are refused."""
    try:
        check(*arguments)
    except UsageError as error:
        return str(error)
    return None


def _compiled(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"ignore_keys_regex is no regular expression: {error}") from error


def _bytes(text: str | None, name: str) -> None:
    nbytes = cluster.memory_bytes(text, name)
    if nbytes is not None and nbytes < 1:
        raise UsageError(f"{name} is {quoted(text)}: give at least 1 byte")
