"""The published schema of the records, for programs that read them."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def records_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the array that `--output json` and `--output yaml` write."""
    text = (files("diffai_dist") / "schema" / "records-1.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
