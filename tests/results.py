"""Results made by hand: what the renderers and analyses are tested with, without files or kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.comparison import Comparison, Pair, compare_members
from diffai_dist.dtypes import BITS
from diffai_dist.errors import Failure
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.records import (
    AnalysisRecord,
    Change,
    Coverage,
    Finding,
    Measurements,
    Member,
    PairSummary,
    Result,
    Side,
    Status,
    Sweep,
    TensorRecord,
)
from diffai_dist.storage import Source

# Names that no one should have given a tensor; each is a test of every renderer.
HOSTILE = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x07bell",
    "\x08\x08\x08back",
    "\x7fdelete",
    "\x9b31mC1",
    "\x9d0;C1 title\x9c",
    "\x85next line",
    "\u2028line\u2029paragraph",
    "\u202egnp.exe",
    "\u2066isolate\u2069",
    "\u200bzero\u200cwidth\u200djoin\ufeff",
    "\u034f\u115f\u3164invisible",
    "a\ufe0fb\U000e0101",
    "\U000e0041tag",
    "\ud800",
    "low\udfff",
    "line\nbreak",
    "\n::error::forged",
    "::error::forged",
    "::add-mask::secret",
    "::stop-commands::x",
    "\r::warning::carriage",
    "##[error]forged",
    "##vso[task.complete result=Failed;]",
    "[/red]",
    "[bold]x[/bold]",
    "{{7*7}}",
    "${7*7}",
    "%0A%0D",
    "a|b|c",
    "`code`",
    "```\nfence",
    "\\|escaped",
    "<details><summary>",
    "</details>",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "@everyone",
    "[text](javascript:alert(1))",
    "![image](http://example.org/x.png)",
    "# heading",
    "- item",
    "=HYPERLINK(1)",
    "-1+cmd|calc",
    "\tleading tab",
    "no",
    "null",
    "~",
    "1e-05",
    "0x1F",
    "1_000",
    "12:30:45",
    "2026-01-01",
    "=",
    "<<",
    "? key",
    "- ",
    "&anchor *alias !tag",
    "%YAML 1.1",
    "---",
    "...",
    "key: value # comment",
    "'single' \"double\"",
    "権重.重み",
    "e\u0301\u0301\u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "..",
    "/",
    "layers." * 50 + "weight",
    "x" * 1_000_000,
    "\x1b" * 100_000,
)


def side(mean: float | None = 0.0018, std: float | None = 0.0518, **fields: Any) -> Side:
    """One side of a small F32 vector."""
    numbers: dict[str, Any] = {
        "count": 8, "mean": mean, "std": std, "min": -0.07, "max": 0.09, "absmax": 0.09, "absmax_index": 3,
        "rms": 0.0518, "l2": 0.1465, "zeros": 0, "subnormals": 0, "nans": 0, "posinfs": 0, "neginfs": 0,
    }  # fmt: skip
    return Side(**{"dtype": "F32", "shape": (8,), **numbers, **fields})


def change(**fields: Any) -> Change:
    """A small move of every second element."""
    numbers: dict[str, Any] = {
        "l2": 0.0293, "rel_l2": 0.2, "rel_l1": 0.09, "max_abs": 0.0213, "max_abs_index": 5, "mean_abs": 0.01,
        "cosine_distance": 2.1e-5, "changed_fraction": 0.5, "bits_changed_fraction": 0.5, "sign_flip_fraction": 0.0,
    }  # fmt: skip
    return Change(**{**numbers, **fields})


UNCHANGED = change(
    l2=0.0, rel_l2=0.0, rel_l1=0.0, max_abs=0.0, max_abs_index=0, mean_abs=0.0, cosine_distance=0.0,
    changed_fraction=0.0, bits_changed_fraction=0.0,
)  # fmt: skip


def tensor(name: str, status: Status = "changed", **fields: Any) -> TensorRecord:
    """A record of that status, with what such a record has."""
    parts: dict[str, Any] = {"baseline": side(), "candidate": side(0.0017, 0.0647), "change": change()}
    if status == "identical":
        parts |= {"candidate": side(), "change": UNCHANGED}
    elif status == "added":
        parts |= {"baseline": None, "change": None}
    elif status == "removed":
        parts |= {"candidate": None, "change": None}
    elif status == "incomparable":
        reason = "shapes differ: [8] and [9]"
        parts |= {"candidate": side(0.0017, 0.0647, shape=(9,)), "change": None, "reason": reason}
    elif status == "failed":
        parts |= {"baseline": Side("F32", (8,)), "candidate": Side("F32", (8,)), "change": None, "reason": "unread"}
    return TensorRecord(**{"name": name, "status": status, **parts, **fields})


def failure(tensor_name: str | None = "h.3.w", **fields: str) -> Failure:
    """A tensor that came back short."""
    texts = {
        "code": "E1103", "object": "s3://b/step-2/model.safetensors", "expected": "1,024 bytes", "found": "512 bytes",
        "hint": "Was the upload cut short?",
    }  # fmt: skip
    return Failure(tensor=tensor_name, **{**texts, **fields})


def covering(records: Sequence[TensorRecord]) -> Coverage:
    """The coverage of records of 8 F32 elements a side."""
    compared = sum(record.status in ("changed", "identical") for record in records)
    left = {
        "added": "only in the candidate", "removed": "only in the baseline",
        "incomparable": "shapes or dtypes without common values", "failed": "could not be read",
    }  # fmt: skip
    reasons: dict[str, int] = {}
    for record in records:
        if record.status in left:
            reasons[left[record.status]] = reasons.get(left[record.status], 0) + 1
    number = len(records)
    return Coverage(number, compared, 8 * number, 8 * compared, 64 * number, 64 * compared, 0, reasons)


def result(
    *records: TensorRecord,
    failures: Sequence[Failure] = (),
    analyses: Sequence[AnalysisRecord] = (),
    warnings: Sequence[str] = (),
    rel_l2: float | None = None,
) -> Result:
    """The result of one pair that holds these."""
    covered = covering(records)
    parts = tuple(failures), tuple(analyses), covered, tuple(warnings)
    whole = None if rel_l2 is None else change(rel_l2=rel_l2)
    return Result("old.safetensors", "new.safetensors", records, *parts, whole)


def named(baseline: str, candidate: str, found: Result, **fields: Any) -> Result:
    """The result between these members of a sweep."""
    return dataclasses.replace(found, baseline=baseline, candidate=candidate, **fields)


def described(name: str, **fields: Any) -> Member:
    """A member that could be opened; its URL ends in its name."""
    url = f"s3://b/run7/{name}/model.safetensors"
    parts = {"format": "safetensors", "objects": (Source(url, 76_800, f"etag:{name}"),), "tensors": 6, "nbytes": 76_800}
    return Member(**{"name": name, "url": url, **parts, **fields})


def sweep(*results: Result, **fields: Any) -> Sweep:
    """A sweep of these pairs, its members in the order in which they come; `mode=None` makes it a comparison of two."""
    names = dict.fromkeys(name for one in results for name in (one.baseline, one.candidate))
    parts: dict[str, Any] = {
        "name": None, "mode": "consecutive", "members": tuple(map(described, names)), "analyses": (),
        "pairs": tuple(map(summary, results)), "results": results,
        "failures": tuple(dict.fromkeys(failure for one in results for failure in one.failures)),
        "warnings": tuple(dict.fromkeys(warning for one in results for warning in one.warnings)),
    }  # fmt: skip
    return Sweep(**{**parts, **fields})


def summary(found: Result) -> PairSummary:
    """The result in a line."""
    counts = found.statuses, found.coverage, len(found.failures)
    return PairSummary(found.baseline, found.candidate, *counts, found.whole, found.error_bound)


def member(**tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    """A checkpoint of tensors given as name=(dtype, shape)."""
    source = Source("/m.safetensors", 10**9, "none")
    made = {}
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * BITS.get(dtype, 8) // 8
        made[name] = Tensor(name, dtype, shape, (Span(source, 0, nbytes),))
    return Checkpoint("/m.safetensors", "safetensors", (source,), made)


def measured(**shifts: dict[str, Any]) -> Measurements:
    """Measurements of one pair: per tensor of 10 elements the SHIFT fields that are not neutral, and a `dtype`."""
    one = member(**{name: (str(shift.get("dtype", "F32")), (10,)) for name, shift in shifts.items()})
    comparison = compare_members((one, one), (Pair(0, 1),))
    rows = empty(SHIFT, (len(comparison.aligned), 1))
    for i, aligned in enumerate(comparison.aligned):
        rows["count"][i] = rows["both"][i] = 10
        for key, value in shifts[aligned.name].items():
            if key != "dtype":
                rows[key][i, 0] = value
    return of(comparison, rows)


def of(comparison: Comparison, shifts: np.ndarray) -> Measurements:
    """Measurements with these shifts and neutral moments."""
    moments = empty(MOMENTS, (len(comparison.aligned), len(comparison.members)))
    return Measurements(comparison, moments, shifts, {})


IMPACT = AnalysisRecord(
    "layer_impact",
    {
        "rel_l2": 0.5,
        "d2": 4.0,
        "coverage": {"tensors": 2},
        "blocks": [{"block": "model.layers.0", "share": 0.42, "rel_l2": None, "changed_fraction": 0.31, "d2": 1.0}],
        "roles": [],
    },
    (
        Finding("small", "info", None, 1, None, "here"),
        Finding("dominant-block", "critical", "model.layers.0", 0.75, 0.5, "judgement"),
    ),
)

# One of each kind.
MIXED = result(
    tensor("a"), tensor("b", "identical"), tensor("c", "identical", within_epsilon=1e-6), tensor("d", "added"),
    tensor("e", "removed"), tensor("f", "incomparable"), tensor("h.3.w", "failed"),
    failures=[failure(), failure(None)], analyses=[IMPACT], warnings=["odd"],
)  # fmt: skip
