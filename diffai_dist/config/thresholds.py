"""Thresholds of analyses as settings: which there are, of what type, and which of them differ from their defaults."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from diffai_dist.analyses import EVERY
from diffai_dist.analyses.base import thresholds
from diffai_dist.config.problems import Problem, did_you_mean, quoted, wrong_value

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Thresholds = Mapping[str, Mapping[str, Any]]  # values by analysis and name


def threshold_problems(given: Thresholds) -> Iterator[Problem]:
    """What no analysis has, and values of another type than the default's; a NaN would limit nothing."""
    for analysis, values in given.items():
        if analysis not in EVERY:
            hint = _hint(analysis, EVERY)
            yield Problem(("thresholds", analysis), f"unknown analysis {quoted(analysis)} ({hint})", at_key=True)
            continue
        for name, value in values.items():
            path = ("thresholds", analysis, name)
            if name not in _limits(analysis):
                hint = _hint(name, _limits(analysis))
                yield Problem(path, f"{analysis} has no threshold {quoted(name)} ({hint})", at_key=True)
            elif errors := _errors(analysis, name, value):
                yield wrong_value(path, value, errors)


def set_thresholds(given: Thresholds) -> dict[str, dict[str, Any]]:
    """Those that differ from their defaults, as values of their types: equal questions have equal settings."""
    differing = {
        analysis: {
            name: found
            for name, value in sorted(values.items())
            if (found := _adapter(analysis, name).validate_json(json.dumps(value))) != _limits(analysis)[name].default
        }
        for analysis, values in sorted(given.items())
    }
    return {analysis: values for analysis, values in differing.items() if values}


def threshold_names() -> frozenset[str]:
    """The names of all thresholds."""
    return frozenset(name for analysis in EVERY for name in _limits(analysis))


def thresholds_schema() -> dict[str, Any]:
    """The JSON Schema of the section, with the default of each threshold and what it limits."""
    sections = {
        analysis: {
            "additionalProperties": False,
            "description": f"Thresholds of {EVERY[analysis].flag}.",
            "properties": {name: _described(analysis, name) for name in _limits(analysis)},
            "type": "object",
        }
        for analysis in EVERY
        if _limits(analysis)
    }
    return {"additionalProperties": False, "properties": sections, "type": "object"}


@functools.cache
def _limits(analysis: str) -> dict[str, Any]:
    return thresholds(EVERY[analysis])


@functools.cache
def _types(analysis: str) -> dict[str, Any]:
    return get_type_hints(EVERY[analysis])


def _adapter(analysis: str, name: str) -> TypeAdapter[Any]:
    return _checking(_types(analysis)[name])


@functools.cache
def _checking(kind: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _errors(analysis: str, name: str, value: Any) -> list[Any]:
    from pydantic import ValidationError

    try:
        _adapter(analysis, name).validate_json(json.dumps(value))
    except ValidationError as error:
        return list(error.errors(include_url=False, include_input=False))
    return []


def _hint(name: str, known: Collection[str]) -> str:
    there = f"there are {', '.join(known)}" if known else "there are none"
    return did_you_mean(name.lower().replace("-", "_"), known) or there


def _described(analysis: str, name: str) -> dict[str, Any]:
    field = _limits(analysis)[name]
    told = f"{field.metadata['help']} ({field.metadata['source']})"
    return {"default": field.default, "description": told, **_adapter(analysis, name).json_schema()}
