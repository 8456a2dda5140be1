"""The configuration of a sweep: a YAML file as checked settings, every error with its place in the file.

    model      the settings: names, types, defaults, what each means
    policy     the same of a file of rules and waivers
    maps       and of a map of names
    nodes      YAML text as plain values and their places
    document   a file as it was written, and errors that quote it
    secrets    what a configuration must not hold
    checks     the types of settings, and what they say about each other
    thresholds those of analyses
    problems   what is wrong with a setting, in words, and what was probably meant
    paths      relative paths and `~`
    overrides  the command line over the file

pydantic and ruamel.yaml have their home here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

from diffai_dist import storage
from diffai_dist.config.checks import check_rules, check_types, model
from diffai_dist.config.document import parse
from diffai_dist.config.maps import TensorMap, check_map
from diffai_dist.config.model import (
    Cluster,
    Expect,
    FailOn,
    Output,
    Select,
    Slurm,
    Storage,
    SweepConfig,
    Tls,
    setting_paths,
)
from diffai_dist.config.overrides import overridden
from diffai_dist.config.paths import located
from diffai_dist.config.policy import Policy, Rule, TensorSelect, Waiver, check_policy
from diffai_dist.config.problems import Problem, Rejected, setting_name
from diffai_dist.config.secrets import refuse_secrets
from diffai_dist.config.thresholds import Thresholds, set_thresholds, threshold_problems, thresholds_schema
from diffai_dist.errors import UsageError
from diffai_dist.terminal import escape

__all__ = [
    "Cluster",
    "Expect",
    "FailOn",
    "Output",
    "Policy",
    "Rule",
    "Select",
    "Slurm",
    "Storage",
    "SweepConfig",
    "TensorMap",
    "TensorSelect",
    "Tls",
    "Waiver",
    "checked_thresholds",
    "json_schema",
    "load",
    "load_map",
    "load_policy",
    "merged",
    "policy_schema",
    "setting_paths",
]

MAX_BYTES = 1_000_000  # some 10,000 checkpoints named one by one; the parser takes seconds for that


def load(path: str, environ: Mapping[str, str], analyses: Collection[str] | None = None) -> SweepConfig:
    """The settings in a file; relative paths in it are relative to its folder, `~` is the HOME of `environ`.

    Raises UsageError with file, line and column, the line itself, and what was probably meant. `analyses` are the names
    that there are; without them, those in the file are taken as they stand.
    """
    document = parse(escape(path, None), _text(path, "configuration"))
    try:
        return _checked(document.value, os.path.dirname(os.path.abspath(path)), environ, analyses)
    except Rejected as error:
        raise document.error(error.problems) from None


def load_policy(path: str) -> Policy:
    """The rules and waivers in a file; raises UsageError like `load`."""
    document = parse(escape(path, None), _text(path, "policy"), Policy)
    try:
        refuse_secrets(document.value)
        policy = check_types(document.value, Policy)
        check_policy(policy)
    except Rejected as error:
        raise document.error(error.problems) from None
    return policy


def load_map(path: str) -> TensorMap:
    """The rules of a map of names; raises UsageError like `load`."""
    document = parse(escape(path, None), _text(path, "map"), TensorMap)
    try:
        found = check_types(document.value, TensorMap)
        check_map(found)
    except Rejected as error:
        raise document.error(error.problems) from None
    return found


def checked_thresholds(given: Thresholds) -> dict[str, dict[str, Any]]:
    """Thresholds that differ from their defaults; UsageError for one that no analysis has, or of another type."""
    if problems := list(threshold_problems(given)):
        raise UsageError("; ".join(map(_without_place, problems)))
    return set_thresholds(given)


def merged(config: SweepConfig, overrides: Mapping[str, Any]) -> SweepConfig:
    """The settings with those of the command line in place of the file's; None stands for one that was not given.

    Names are dotted: `{"store": None, "cluster.workers": 4}`. What rules out a choice of the file takes its place.
    Relative paths are relative to the working directory. Raises UsageError.
    """
    try:
        return _checked(overridden(dataclasses.asdict(config), overrides), os.getcwd(), {}, None)
    except Rejected as error:
        raise UsageError("; ".join(map(_without_place, error.problems))) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration, for editors."""
    schema = {"$schema": _DIALECT, **model(SweepConfig).json_schema()}
    schema["properties"]["thresholds"] |= thresholds_schema()
    return schema


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of a policy, for editors."""
    return {"$schema": _DIALECT, **model(Policy).json_schema()}


_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def _text(path: str, what: str) -> str:
    shown = escape(storage.redact(path), None)
    if storage.is_remote(path):
        raise UsageError(f"{shown}: a {what} is a local file; copy it here first")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{shown}: the {what} cannot be read: {reason}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{shown}: larger than {MAX_BYTES:,} bytes, which no {what} is; is it a checkpoint?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown}: byte {error.start:,} is not UTF-8; save the file as UTF-8") from error


def _checked(
    settings: Mapping[str, Any], folder: str, environ: Mapping[str, str], analyses: Collection[str] | None
) -> SweepConfig:
    """The settings as they are used; secrets go first, since the words for other problems quote values."""
    refuse_secrets(settings)
    config = located(check_types(settings, SweepConfig), folder, environ)
    check_rules(config, analyses)
    return config


def _without_place(problem: Problem) -> str:
    named = problem.message.startswith(setting_name(problem.path))
    return problem.message if named else f"{'.'.join(map(str, problem.path))}: {problem.message}"
