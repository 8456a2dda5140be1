"""What the renderers say, to the character; and that no name, however hostile, breaks one of them."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from diffai_dist.records import SCHEMA_VERSION, AnalysisRecord, Change, Coverage, Finding, Result, Side
from diffai_dist.report import RENDERERS, View, as_records, coverage_lines, markdown, records_schema, tables, wording
from diffai_dist.report.array import CHANGE, SIDE
from diffai_dist.report.wording import number, percent
from diffai_dist.terminal import cells
from results import HOSTILE, IMPACT, MIXED, change, failure, result, side, sweep, tensor

ANY_TEXT = st.text(st.characters(), max_size=30)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.none() | FINITE | st.integers(-(2**64), 2**64)


def render(output: str, shown: Result, **view: Any) -> str:
    return "".join(RENDERERS[output](sweep(shown, mode=None), View(**view)))


def lines(*records: Any, **view: Any) -> list[str]:
    """The lines of the tensors in the text output."""
    return [line for line in render("text", result(*records), **view).splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("module", [markdown, tables, wording])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# Text


def test_a_changed_tensor_reads_as_in_the_seed() -> None:
    assert lines(tensor("fc1.bias")) == [
        "  ~ fc1.bias: mean=0.0018->0.0017, std=0.0518->0.0647, rel_l2=0.2000, max_abs=0.0213@5, changed=50%"
    ]


def test_every_status_has_its_sign() -> None:
    assert lines(
        tensor("a", "added"), tensor("r", "removed"), tensor("i", "incomparable"), tensor("s", "identical"),
        show_identical=True,
    ) == [
        "  + a: shape=[8], dtype=F32, mean=0.0017, std=0.0647",
        "  - r: shape=[8], dtype=F32, mean=0.0018, std=0.0518",
        "  ! i: shape=[8]->[9], mean=0.0018->0.0017, std=0.0518->0.0647, reason=shapes differ: [8] and [9]",
        "  = s: mean=0.0018, std=0.0518",
    ]  # fmt: skip


def test_identical_tensors_stay_hidden_unless_asked_for() -> None:
    assert lines(tensor("s", "identical"), tensor("e", "identical", within_epsilon=1e-6)) == []


def test_what_epsilon_lets_pass_is_said() -> None:
    quiet = tensor("w", "identical", within_epsilon=1e-6, change=change(max_abs=4.2e-7))
    (line,) = lines(quiet, show_identical=True)
    assert line == "  = w: mean=0.0018, std=0.0518, within epsilon 1e-06 (max_abs=4.20e-07)"


def test_dtypes_and_non_finite_values_show_when_there_are_any() -> None:
    moved = tensor("w", baseline=side(posinfs=1, neginfs=1), candidate=side(None, None, dtype="BF16", nans=1))
    assert lines(moved)[0].endswith("changed=50%, dtype=F32->BF16, nans=0->1, infs=2->0")
    assert "nans=3" in lines(tensor("w", "added", candidate=side(nans=3)))[0]


def test_missing_numbers_are_a_dash() -> None:
    gone = Change(*[None] * 10)
    (line,) = lines(tensor("w", baseline=side(None, None), candidate=side(None, 0.1), change=gone, reason="bytes"))
    assert line == "  ~ w: mean=-, std=-->0.1000, rel_l2=-, max_abs=-, changed=-, reason=bytes"


def test_a_change_from_zero_is_infinite() -> None:
    assert "rel_l2=inf" in lines(tensor("w", change=change(rel_l2=None)))[0]


def test_other_bits_of_equal_values_are_said() -> None:
    signs = change(changed_fraction=0.0, bits_changed_fraction=0.25)
    assert lines(tensor("w", change=signs))[0].endswith("changed=0%, bits_changed=25%")


def test_verbose_adds_the_other_statistics() -> None:
    (line,) = lines(tensor("w"), verbose=True)
    assert line.startswith(lines(tensor("w"))[0])
    assert line.endswith(
        "shape=[8], min=-0.0700->-0.0700, max=0.0900->0.0900, l2=0.1465->0.1465, zeros=0->0, rel_l1=0.0900, "
        "mean_abs=0.0100, cosine_distance=2.10e-05, sign_flips=0%"
    )


@given(st.floats(-1e300, 1e300))
def test_a_number_that_is_not_zero_never_looks_like_zero(value: float) -> None:
    shown = number(value)
    assert (float(shown) == 0) == (value == 0)
    assert math.isclose(float(shown), value, rel_tol=0.051)
    assert len(shown) <= 13


@given(st.floats(0, 1))
def test_a_share_never_looks_like_nothing_or_all(fraction: float) -> None:
    shown = percent(fraction)
    assert (shown == "0%") == (fraction == 0)
    assert (shown == "100%") == (fraction == 1)


def test_on_80_columns_mean_and_std_come_first_and_a_name_that_fits_is_whole() -> None:
    name = "model.language_model.layers.10.self_attn.q_proj.weight"
    moved = tensor(name, candidate=side(-3e-4, 1e-7, nans=2, dtype="BF16"))
    assert lines(moved, width=80) == [
        "  ~ model.language_model.layers.10.self_attn.q_proj.weight:",
        "        mean=0.0018->-3.00e-04, std=0.0518->1.00e-07, rel_l2=0.2000,",
        "        max_abs=0.0213@5, changed=50%, dtype=F32->BF16, nans=0->2",
    ]


def test_on_200_columns_everything_stands_on_one_line() -> None:
    moved = tensor("model.language_model.layers.10.self_attn.q_proj.weight", candidate=side(dtype="BF16", nans=2))
    assert lines(moved, width=200) == lines(moved)


@given(st.integers(10, 220), st.text(st.characters(), max_size=80))
def test_a_narrow_terminal_loses_no_number(columns: int, name: str) -> None:
    moved = tensor(name, candidate=side(-3e-4, dtype="BF16", nans=2))
    entries = wording.entries(moved)
    shown = lines(moved, width=columns)
    joined = " ".join(line.strip() for line in shown)
    assert joined.endswith(": " + ", ".join(entries))
    assert all(cells(line) <= max(columns, 34) for line in shown)


def test_without_a_terminal_nothing_is_cut_or_wrapped() -> None:
    name = "layers." * 100 + "weight"
    (line,) = lines(tensor(name))
    assert line.startswith(f"  ~ {name}: mean=")


def test_colour_marks_names_and_non_finite_values_and_changes_no_character() -> None:
    shown = result(tensor("a"), tensor("b", "added"), tensor("c", candidate=side(nans=1)), failures=[failure()])
    painted = render("text", shown, colour=True, width=60)
    assert "\x1b[33m  ~ a:\x1b[0m" in painted
    assert "\x1b[1;31mnans=0->1\x1b[0m" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == render("text", shown, width=60)


def test_failures_follow_the_tensors_and_warnings_are_left_to_stderr() -> None:
    shown = result(tensor("a"), tensor("h.3.w", "failed"), failures=[failure()], warnings=["odd"], rel_l2=0.2)
    assert render("text", shown).splitlines()[1:] == [
        "  x s3://b/step-2/model.safetensors: tensor h.3.w: 512 bytes, expected 1,024 bytes. "
        "Was the upload cut short? [E1103]",
        "1 changed, 0 added, 0 removed, 1 failed, 0 identical · rel_l2 0.2000",
        "compared 1 of 2 tensors, 8 of 16 elements, 64 B of 128 B",
        "not compared: 1 could not be read",
    ]


def total(*records: Any, **parts: Any) -> str:
    return wording.total_line(result(*records, **parts))


def test_the_total_says_how_many_ended_how() -> None:
    same = [tensor(f"s{i}", "identical") for i in range(3)]
    quiet = tensor("e", "identical", within_epsilon=1e-6)
    assert total(tensor("a"), tensor("n", "added"), *same, quiet, rel_l2=0.0894) == (
        "1 changed, 1 added, 0 removed, 4 identical (1 within epsilon) · rel_l2 0.0894"
    )
    assert total(tensor("r", "removed"), tensor("i", "incomparable")) == (
        "0 changed, 0 added, 1 removed, 1 incomparable, 0 identical"
    )


def test_the_total_says_no_size_of_change_where_none_is_defined() -> None:
    assert total(tensor("a"), tensor("b", change=change(l2=None, rel_l2=None))).endswith("0 identical")
    assert total(tensor("a"), rel_l2=0.0).endswith("· rel_l2 0")


def test_no_difference_is_said_in_words() -> None:
    same = tensor("s", "identical")
    assert total(same) == "no differences · 1 identical"
    assert total(dataclasses.replace(same, within_epsilon=1e-6)) == "no differences · 1 identical (1 within epsilon)"
    assert total() == "no differences · 0 identical"


def test_no_difference_is_not_claimed_beyond_what_could_be_read() -> None:
    partly = total(tensor("s", "identical"), tensor("f", "failed"), failures=[failure("f")])
    assert partly == "no differences in what could be read · 1 identical, 1 failed"
    assert total(failures=[failure(None)]) == "nothing was compared"


def test_the_coverage_states_what_was_not_compared_and_why() -> None:
    assert coverage_lines(result(tensor("a"), tensor("b"))) == ["compared all 2 tensors, 16 elements, 128 B"]
    assert coverage_lines(result(tensor("a"))) == ["compared 1 tensor, 8 elements, 64 B"]
    assert coverage_lines(result()) == ["compared no tensors"]
    partly = Coverage(291, 290, 10**10, 10**9, 13_476_839_424, 13_000_000_000, 2, {"only in the candidate": 1})
    assert coverage_lines(dataclasses.replace(result(), coverage=partly)) == [
        "compared 290 of 291 tensors, 1,000,000,000 of 10,000,000,000 elements, 13.0 GB of 13.5 GB",
        "2 tensors compared byte by byte: dtype without a decoder",
        "not compared: 1 only in the candidate",
    ]
    nothing = Coverage(0, 0, 0, 0, 0, 0, 0, {"a checkpoint could not be opened": 0})
    assert coverage_lines(dataclasses.replace(result(), coverage=nothing))[1] == (
        "not compared: a checkpoint could not be opened"
    )


def test_an_analysis_is_a_heading_and_lines_of_keys_and_values() -> None:
    text = render("text", result(tensor("a"), analyses=[IMPACT]))
    assert text.splitlines()[1:-2] == [
        "",
        "Layer impact",
        "layer_impact: rel_l2=0.5000",
        "Layer impact: blocks",
        "layer_impact: block=model.layers.0, share=0.4200, rel_l2=-, changed=31%",
        "Layer impact: findings",
        "layer_impact: finding=dominant-block, severity=critical, tensor=model.layers.0, value=0.7500, "
        "threshold=0.5000, source=judgement",
        "layer_impact: finding=small, severity=info, value=1, source=here",
        "",
    ]
    assert "d2=4.0000, coverage.tensors=2" in render("text", result(analyses=[IMPACT]), verbose=True)


def test_an_empty_comparison_has_a_sensible_text() -> None:
    assert render("text", result()) == "no differences · 0 identical\ncompared no tensors\n"


def test_tensors_sort_by_change_when_asked() -> None:
    records = [tensor("a"), tensor("b", change=change(rel_l2=0.9)), tensor("c", "added")]
    for output in ("text", "json", "yaml", "markdown"):
        shown = render(output, result(*reversed(records)), sort_by="rel_l2")
        order = [re.search(rf"\b{name}\b(?=[:`\"\n])", shown) for name in "bac"]
        starts = [match.start() for match in order if match]
        assert starts == sorted(starts)


# JSON and YAML


def load(output: str, shown: Result, **view: Any) -> Any:
    text = render(output, shown, **view)
    return json.loads(text) if output == "json" else yaml.safe_load(text)


BOTH = pytest.mark.parametrize("output", ["json", "yaml"])


@BOTH
def test_the_array_holds_changes_then_failures_then_analyses(output: str) -> None:
    found = load(output, MIXED)
    assert [row["kind"] for row in found] == ["tensor"] * 4 + ["failure"] * 2 + ["analysis"]
    assert [row["status"] for row in found[:4]] == ["changed", "added", "removed", "incomparable"]
    everything = load(output, MIXED, show_identical=True)
    assert [row["name"] for row in everything if row["kind"] == "tensor"] == ["a", "b", "c", "d", "e", "f"]


@BOTH
def test_without_analyses_the_length_is_the_number_of_changes(output: str) -> None:
    assert len(load(output, result(tensor("a"), tensor("b", "identical"), tensor("c", "removed")))) == 2
    assert load(output, result()) == []


@BOTH
@pytest.mark.parametrize("show_identical", [False, True])
def test_the_array_fits_the_published_schema(output: str, show_identical: bool) -> None:
    validator = jsonschema.Draft202012Validator(records_schema())
    validator.check_schema(records_schema())
    validator.validate(load(output, MIXED, show_identical=show_identical))


def test_the_schema_describes_every_field_and_this_version() -> None:
    schema = records_schema()
    parts = schema["$defs"]
    assert schema["version"] == SCHEMA_VERSION
    assert tuple(parts["side"]["properties"]) == SIDE == tuple(parts["side"]["required"])
    assert tuple(parts["change"]["properties"]) == CHANGE == tuple(parts["change"]["required"])
    for row in as_records(sweep(MIXED, mode=None), View(show_identical=True)):
        assert set(row) <= set(parts[row["kind"]]["properties"])
        assert set(row) >= set(parts[row["kind"]]["required"])
        for finding in row.get("findings", ()):
            assert list(finding) == parts["finding"]["required"]


def test_the_schema_refuses_what_is_not_a_record() -> None:
    validator = jsonschema.Draft202012Validator(records_schema())
    (row,) = as_records(sweep(result(tensor("a")), mode=None))
    for wrong in (row | {"status": "failed"}, row | {"kind": "x"}, {k: v for k, v in row.items() if k != "change"}):
        assert not validator.is_valid([wrong])


def test_json_has_one_record_per_line() -> None:
    text = render("json", MIXED)
    assert text.startswith('[\n{"kind":"tensor","name":"a","status":"changed","baseline":{"dtype":"F32",')
    assert text.endswith("}\n]\n")
    assert [json.loads(line.removesuffix(",")) for line in text.splitlines()[1:-1]] == json.loads(text)


@BOTH
def test_numbers_come_back_to_the_bit(output: str) -> None:
    numbers = (1e-05, 5e-324, 1.7976931348623157e308, 0.1, 1e16, 1e22, -0.0, 2**53 + 1, 2**64 - 1, -(2**63), 3.0)
    for value in numbers:
        back = load(output, result(tensor("w", baseline=side(max=value))))[0]["baseline"]["max"]
        assert (type(back), repr(back)) == (type(value), repr(value))


@BOTH
@settings(max_examples=50)
@given(numbers=st.lists(NUMBERS, min_size=14, max_size=14), moves=st.lists(NUMBERS, min_size=10, max_size=10))
def test_every_statistic_comes_back(output: str, numbers: list[Any], moves: list[Any]) -> None:
    sent = tensor("w", baseline=Side("F32", (2, 3), *numbers), change=Change(*moves))
    (row,) = load(output, result(sent))
    assert list(row["baseline"].values()) == ["F32", [2, 3], *numbers]
    assert list(row["change"].values()) == moves


@BOTH
def test_an_infinity_that_slips_through_is_null(output: str) -> None:
    analysis = AnalysisRecord("x", {"a": math.inf, "b": [math.nan]})
    shown = result(tensor("w", change=change(l2=math.inf)), analyses=[analysis])
    first, second = load(output, shown)
    assert first["change"]["l2"] is None
    assert second["result"] == {"a": None, "b": [None]}


# Hostile text


def hostile(name: str) -> Result:
    """The name wherever a file or a URL could have put it."""
    finding = Finding("rule", "high", name, name, None, "here")
    analysis = AnalysisRecord("layer_impact", {"block": name, "top": [{"tensor": name}, {"tensor": "b"}]}, (finding,))
    records = (
        tensor(name),
        tensor(name, "added", reason=f"no decoder for {name}"),
        tensor(name, "incomparable", candidate=side(dtype=name)),
        tensor(name, "identical"),
        tensor(name, "failed", reason=name),
    )
    failures = [failure(name, object=name, found=name, expected=name, hint=name)]
    shown = result(*records, failures=failures, analyses=[analysis], warnings=[name])
    return dataclasses.replace(shown, baseline=name, candidate=name)


RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
VIEWS = ({}, {"show_identical": True, "verbose": True, "sort_by": "rel_l2"}, {"width": 80})
NAMES = pytest.mark.parametrize("name", HOSTILE, ids=[f"row29-33-{index}" for index in range(len(HOSTILE))])


@NAMES
@pytest.mark.parametrize("output", ["text", "markdown"])
def test_no_control_character_and_no_command_reaches_people(output: str, name: str) -> None:
    for view in VIEWS:
        shown = render(output, hostile(name), **view)
        assert not RAW.search(shown)
        # GitHub's runner skips blanks before "::"; "##[" and "##vso[" are commands anywhere.
        assert not re.search(r"^\s*::|##\[|##vso\[", shown, re.MULTILINE)
        assert shown.endswith("\n")
        shown.encode()


@NAMES
def test_a_name_adds_no_line(name: str) -> None:
    for output in ("text", "markdown", "json"):
        plain = render(output, hostile("w"), show_identical=True)
        assert render(output, hostile(name), show_identical=True).count("\n") == plain.count("\n")


@NAMES
@BOTH
def test_hostile_names_come_back_exactly(output: str, name: str) -> None:
    text = render(output, hostile(name[:5000]))
    assert text.isascii()
    assert not RAW.search(text)
    first, second, *_, failed, analysis = load(output, hostile(name[:5000]))
    assert (first["name"], failed["tensor"], failed["found"]) == (name[:5000],) * 3
    assert second["reason"] == f"no decoder for {name[:5000]}"
    assert analysis["result"]["block"] == name[:5000]


@BOTH
def test_a_long_name_comes_back_whole(output: str) -> None:
    name = "\x1b權\ud800" * 50_000
    assert load(output, result(tensor(name)))[0]["name"] == name


@BOTH
@given(name=st.text(st.characters()))
def test_any_name_comes_back_exactly(output: str, name: str) -> None:
    assert load(output, result(tensor(name)))[0]["name"] == name


@NAMES
def test_an_independent_parser_finds_nothing_in_the_markdown_but_our_tables(name: str) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    blocks = parser.parse(render("markdown", hostile(name), show_identical=True))
    usual = parser.parse(render("markdown", hostile("w"), show_identical=True))
    assert [block.type for block in blocks] == [block.type for block in usual]
    inline = [child for block in blocks for child in block.children or ()]
    assert {child.type for child in inline} <= {"code_inline", "text", "strong_open", "strong_close"}
    ours = {child.content for block in usual for child in block.children or () if child.type == "text"}
    assert {child.content for child in inline if child.type == "text"} <= ours


def test_markdown_reads_as_tables() -> None:
    text = render("markdown", result(tensor("fc1|`x`"), tensor("b", "added"), analyses=[IMPACT], rel_l2=0.2))
    assert text == (
        "## Comparison\n"
        "\n"
        "**1 changed, 1 added, 0 removed, 0 identical · rel_l2 0.2000**\n"
        "\n"
        "- baseline: `old.safetensors`\n"
        "- candidate: `new.safetensors`\n"
        "- `compared 1 of 2 tensors, 8 of 16 elements, 64 B of 128 B`\n"
        "- `not compared: 1 only in the candidate`\n"
        "\n"
        "### Tensors\n"
        "\n"
        "| status | tensor | mean | std | rel_l2 | max_abs | changed | further |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| `changed` | `fc1\\x7c\\x60x\\x60` | `0.0018->0.0017` | `0.0518->0.0647` | `0.2000` | `0.0213@5` | `50%` "
        "|   |\n"
        "| `added` | `b` | `0.0017` | `0.0647` |   |   |   | `shape=[8], dtype=F32` |\n"
        "\n"
        "### Layer impact\n"
        "\n"
        "- `rel_l2=0.5000`\n"
        "\n"
        "### Layer impact: blocks\n"
        "\n"
        "| `block` | `share` | `rel_l2` | `changed` |\n"
        "| --- | --- | --- | --- |\n"
        "| `model.layers.0` | `0.4200` | `-` | `31%` |\n"
        "\n"
        "### Layer impact: findings\n"
        "\n"
        "| `rule` | `severity` | `tensor` | `value` | `threshold` | `source` |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| `dominant-block` | `critical` | `model.layers.0` | `0.7500` | `0.5000` | `judgement` |\n"
        "| `small` | `info` | `-` | `1` | `-` | `here` |\n"
    )


def test_markdown_is_cut_by_whole_rows_below_its_limit() -> None:
    rows = [{"block": f"b{i}", "share": 0.1} for i in range(20_000)]
    many = result(
        *(tensor(f"model.layers.{i}.weight") for i in range(20_000)),
        failures=[failure(f"t{i}") for i in range(20_000)],
        warnings=[f"warning {i}" for i in range(20_000)],
        analyses=[AnalysisRecord("layer_impact", {"blocks": rows, "roles": rows})] * 2,
    )
    text = render("markdown", many)
    assert 700_000 < len(text.encode()) < 900_000
    kept = len(re.findall(r"^\| `changed`.*\|   \|$", text, re.MULTILINE))
    dropped = re.findall(r"^([0-9,]+) more$", text, re.MULTILINE)
    assert kept + int(dropped[0].replace(",", "")) == 20_000
    assert len(dropped) == 7


# All of them


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from results import MIXED, sweep
from diffai_dist.report import RENDERERS, View
for mode in (None, "all"):
    for output in RENDERERS:
        view = View(show_identical=True, sort_by="rel_l2", show_tensors=True)
        sys.stdout.write("".join(RENDERERS[output](sweep(MIXED, mode=mode), view)))
"""


def test_the_output_does_not_depend_on_the_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("output", RENDERERS)
def test_renderers_yield_pieces_and_end_with_a_newline(output: str) -> None:
    shown = sweep(MIXED, mode=None)
    pieces = list(RENDERERS[output](shown, View()))
    assert len(pieces) > 2
    assert "".join(pieces).endswith("\n")
    assert list(RENDERERS[output](shown, View())) == pieces


@given(st.lists(ANY_TEXT, unique=True, max_size=6))
def test_no_name_makes_a_renderer_fail(names: list[str]) -> None:
    for output in RENDERERS:
        assert render(output, result(*map(tensor, names)), width=40).endswith("\n")
