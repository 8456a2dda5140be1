"""The published schemas of the records, for programs that read them."""

from __future__ import annotations

import inspect
import json
from importlib.resources import files
from typing import Any

from diffai_dist.analyses import EVERY
from diffai_dist.analyses.base import Explained
from diffai_dist.records import SCHEMA_VERSION

Schema = dict[str, Any]


def records_schema() -> Schema:
    """JSON Schema (draft 2020-12) of the array that `--output json` and `--output yaml` write.

    It holds that of the analyses, which the published file refers to.
    """
    schema = _published("records-1.json")
    schema["$defs"]["analyses"] = _published("analyses-1.json")
    return schema


def _published(name: str) -> Schema:
    schema: Schema = json.loads((files("diffai_dist") / "schema" / name).read_text(encoding="utf-8"))
    return schema


def analyses_schema() -> Schema:
    """JSON Schema of a record of kind analysis, by name: schema/analyses-1.json, from what the classes say."""
    kinds = sorted(EVERY.items())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:diffai-dist:analyses:1",
        "title": "Analyses of diffai-dist",
        "version": SCHEMA_VERSION,
        "description": "What a record of kind analysis holds, by its name. Within version 1 fields are only added.",
        "type": "object",
        "allOf": [
            {"if": {"properties": {"name": {"const": name}}}, "then": {"$ref": f"#/$defs/{name}"}} for name, _ in kinds
        ],
        "$defs": {name: _analysis(kind) for name, kind in kinds},
    }


def _analysis(kind: type[Explained]) -> Schema:
    """A rule of another version is no error: it is any string, beside those that are described."""
    rules: list[Schema] = [{"const": rule, "description": test} for rule, test in kind.rules.items()]
    return {
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "properties": {
            "result": {"properties": {key: {"description": meaning} for key, meaning in kind.result.items()}},
            "findings": {"items": {"properties": {"rule": {"anyOf": [*rules, {"type": "string"}]}}}},
        },
    }
