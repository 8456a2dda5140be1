"""What the renderers say of many checkpoints: the first screen, the tables, the records; each result looked at once."""

from __future__ import annotations

import dataclasses
import doctest
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any, overload

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from diffai_dist.records import AnalysisRecord, ErrorBound, Finding, Member, Result, Source, Sweep
from diffai_dist.report import RENDERERS, View, as_records, columns, records_schema, sweep_coverage_lines, tables
from diffai_dist.report.night import LINES, night_lines
from diffai_dist.report.overview import TOP, overview
from diffai_dist.report.pairs import sweep_total_line
from diffai_dist.report.wording import bounded
from diffai_dist.terminal import cells
from results import HOSTILE, IMPACT, MIXED, change, described, failure, named, result, side, sweep, tensor

NAN = Finding("non-finite-appeared", "critical", "fc2.weight", 2, 0, "counts of NaN and infinities", "s-1", "s-2")
STALE = Finding("stale-tensor", "high", "fc1.bias", 3, 0, "bits", "s-0", "s-1")
FROZEN = Finding("frozen-tensors", "info", None, 1, None, "bits of all tensors")
BOUND = ErrorBound(3e-6, 4e-12, 2e-6)
NAMES = [f"s-{i}" for i in range(4)]
MATRIX = [{"checkpoint": a, **{b: 1 - abs(i - j) / 2**17 for j, b in enumerate(NAMES)}} for i, a in enumerate(NAMES)]


def found(*findings: Finding, name: str = "anomalies", **values: Any) -> AnalysisRecord:
    """An analysis of a series."""
    return AnalysisRecord(name, values, findings)


def moving(names: Sequence[str], rate: float = 0.01) -> list[Result]:
    """Consecutive pairs, each of which moved as far as the first ones together."""
    return [
        named(
            a, b, result(tensor("w", change=change(rel_l2=2 * rate * i)), tensor("same", "identical"), rel_l2=rate * i)
        )
        for i, (a, b) in enumerate(pairwise(names), 1)
    ]


def series(*findings: Finding, names: Sequence[str] = NAMES, **fields: Any) -> Sweep:
    """Four checkpoints and what was found in them."""
    return sweep(*moving(names), **{"analyses": (found(*findings),), **fields})


def from_gram(shown: Result) -> Result:
    """The same result as the Gram gives it."""
    missing = dict.fromkeys(("max_abs", "max_abs_index", "changed_fraction", "bits_changed_fraction"))
    records = tuple(
        dataclasses.replace(one, error_bound=BOUND, change=one.change and dataclasses.replace(one.change, **missing))
        for one in shown.tensors
    )
    return dataclasses.replace(shown, tensors=records, error_bound=BOUND)


def render(output: str, shown: Sweep, **view: Any) -> str:
    return "".join(RENDERERS[output](shown, View(**view)))


def block(text: str, heading: str) -> list[str]:
    """The lines under a heading of the text output."""
    return text.split(f"\n{heading}\n", 1)[1].split("\n\n", 1)[0].splitlines()


def night(tonight: Sweep, before: Sweep | None = None, **options: Any) -> list[str]:
    return night_lines(overview(tonight), overview(before) if before else None, **options)


def said(lines: Sequence[str], start: str) -> str:
    """What the one line that starts so says."""
    (line,) = [line for line in lines if line.startswith(start)]
    return line.removeprefix(start)


@pytest.mark.parametrize("module", [columns, tables])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# Records


def load(output: str, shown: Sweep, **view: Any) -> Any:
    text = render(output, shown, **view)
    return json.loads(text) if output == "json" else yaml.safe_load(text)


def everything() -> Sweep:
    """Two pairs that share a failure, one of them from the Gram, with analyses of their own and of the series."""
    spoiled = [failure(), failure(None, object="s3://b/step-9")]
    first = named("a", "b", dataclasses.replace(MIXED, failures=(spoiled[0],)))
    second = named("b", "c", from_gram(result(tensor("w"), failures=spoiled, analyses=[IMPACT])))
    matrix = found(STALE, FROZEN, name="similarity_matrix", cosine=MATRIX)
    return sweep(first, second, analyses=(matrix,), failures=(*spoiled, failure("lost", object="s3://b/step-3")))


def test_the_array_goes_pair_by_pair_and_tells_each_failure_once() -> None:
    rows = load("json", everything())
    kinds = ["tensor"] * 4 + ["failure", "analysis", "tensor", "failure", "analysis", "failure", "analysis"]
    assert [row["kind"] for row in rows] == kinds
    assert [row.get("pair") for row in rows if row["kind"] == "tensor"] == [["a", "b"]] * 4 + [["b", "c"]]
    assert [row.get("pair") for row in rows if row["kind"] == "analysis"] == [["a", "b"], ["b", "c"], None]
    assert [row["object"][-6:] for row in rows if row["kind"] == "failure"] == ["ensors", "step-9", "step-3"]
    assert rows[-1]["members"] == ["a", "b", "c"]
    assert all(list(row)[1] in ("pair", "members") for row in rows if row["kind"] != "failure")


def test_numbers_from_the_gram_carry_their_error_bound_and_others_none() -> None:
    *before, last = [row for row in load("json", everything()) if row["kind"] == "tensor"]
    assert (last["method"], last["error_bound"]) == ("gram", {"l2": 3e-6, "cosine_distance": 4e-12, "rel_l2": 2e-6})
    assert not any("method" in row or "error_bound" in row for row in before)


def test_a_finding_names_members_only_where_it_has_any() -> None:
    stale, frozen = load("json", everything())[-1]["findings"]
    assert (stale["baseline"], stale["candidate"]) == ("s-0", "s-1")
    assert not {"baseline", "candidate"} & set(frozen)


def test_a_comparison_of_two_names_no_pair() -> None:
    rows = load("json", dataclasses.replace(everything(), mode=None))
    assert not any("pair" in row for row in rows)


def test_the_array_fits_the_published_schema() -> None:
    validator = jsonschema.Draft202012Validator(records_schema())
    rows = load("json", everything(), show_identical=True)
    validator.validate(rows)
    for row in rows:
        assert set(row) <= set(records_schema()["$defs"][row["kind"]]["properties"])
    (gram,) = [row for row in rows if "method" in row]
    for wrong in ({"pair": ["a"]}, {"pair": "ab"}, {"method": "guess"}, {"error_bound": {"l2": -1.0}}):
        assert not validator.is_valid([gram | wrong])
    assert not validator.is_valid([{key: value for key, value in gram.items() if key != "error_bound"}])


def test_yaml_holds_the_same_array_as_json() -> None:
    assert load("yaml", everything(), show_identical=True) == load("json", everything(), show_identical=True)


class Once(Sequence[Result]):
    """Results that are made when asked for, and count how often that is."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        self.asked = [0] * len(results)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        assert isinstance(index, int)
        made = self.results[index]  # raises IndexError at the end, which ends a loop
        self.asked[index] += 1
        return made


@pytest.mark.parametrize("output", RENDERERS)
def test_each_result_is_made_once(output: str) -> None:
    once = Once(moving(NAMES))
    before = Once(moving(NAMES[:3]))
    tonight = dataclasses.replace(series(NAN), results=once)
    previous = dataclasses.replace(series(names=NAMES[:3]), results=before)
    render(output, tonight, previous=previous, show_identical=True)
    assert once.asked == [1, 1, 1]
    assert max(before.asked) <= 1


def test_the_first_records_come_before_the_last_results_are_made() -> None:
    once = Once(moving(NAMES))
    rows: Iterator[dict[str, Any]] = as_records(dataclasses.replace(series(), results=once))
    assert next(rows)["pair"] == ["s-0", "s-1"]
    assert once.asked == [1, 0, 0]


# The first screen


def test_the_first_screen_of_a_run_alone() -> None:
    assert night(series(NAN, FROZEN, name="nightly"), notes=["2 of 3 pairs were measured by earlier runs"]) == [
        "sweep nightly: 4 checkpoints, s-0 to s-3, 3 pairs (consecutive)",
        "findings: 1 critical, 1 info",
        "  critical non-finite-appeared: fc2.weight, s-1 -> s-2",
        "newest: s-2 -> s-3, rel_l2 0.0300, 1.5 × the median",
        "  moved most: w, rel_l2 0.0600",
        "compared all 6 tensors in 3 pairs",
        "reuse: 2 of 3 pairs were measured by earlier runs",
    ]


def test_the_first_screen_after_a_night() -> None:
    before = series(STALE, FROZEN, names=NAMES[:3], failures=(failure("old"),))
    tonight = series(NAN, FROZEN, failures=(failure("old"), failure("h.3.w")))
    assert night(tonight, before)[1:6] == [
        "since last night: 1 new checkpoint (s-3)",
        "findings: 1 new (1 critical), 1 gone, 1 as last night",
        "  new critical non-finite-appeared: fc2.weight, s-1 -> s-2",
        "  gone high stale-tensor: fc1.bias, s-0 -> s-1",
        "failures: 1 new, 1 as last night; first: s3://b/step-2/model.safetensors: tensor h.3.w: 512 bytes, "
        "expected 1,024 bytes. Was the upload cut short? [E1103]",
    ]


def test_what_only_informs_is_counted_and_leaves_the_first_screen_to_the_rest() -> None:
    hints = [dataclasses.replace(FROZEN, tensor=f"w{i}", value=i) for i in range(30)]
    low = dataclasses.replace(STALE, severity="low")
    lines = night(series(*hints, low))
    assert said(lines, "findings: ") == "1 low, 30 info"
    assert next(line for line in lines if line.startswith("  ")) == "  low stale-tensor: fc1.bias, s-0 -> s-1"
    assert not any("more" in line or " info " in line for line in lines[2:])
    lines = night(series(*hints[:20], low), series(*hints[10:]))
    assert said(lines, "findings: ") == "11 new (1 low, 10 info), 10 gone, 10 as last night"
    assert [line for line in lines if line.startswith(("  new", "  gone"))] == [
        "  new low stale-tensor: fc1.bias, s-0 -> s-1"
    ]


def test_a_night_without_news_says_so() -> None:
    lines = night(series(FROZEN), series(FROZEN))
    assert said(lines, "since last night: ") == "the same checkpoints"
    assert said(lines, "findings: ") == "0 new, 1 as last night"
    assert not any(line.startswith("failures") for line in lines)


def test_checkpoints_that_were_rewritten_or_left_the_run_are_told() -> None:
    members = [described(name) for name in NAMES]
    other = dataclasses.replace(members[1], objects=(Source(members[1].url, 76_800, "etag:other"),))
    tonight = series(names=NAMES[1:], members=(other, *members[2:]))
    assert said(night(tonight, series(names=NAMES[:3])), "since last night: ") == (
        "1 new checkpoint (s-3); 1 rewritten checkpoint (s-1); 1 checkpoint no longer in the run"
    )


def test_members_are_known_by_their_urls_whatever_they_are_called() -> None:
    renamed = tuple(dataclasses.replace(described(name), name=f"run7/{name}") for name in NAMES)
    finding = dataclasses.replace(STALE, baseline="run7/s-0", candidate="run7/s-1")
    results = [named(f"run7/{one.baseline}", f"run7/{one.candidate}", one) for one in moving(NAMES)]
    tonight = sweep(*results, members=renamed, analyses=(found(finding),))
    lines = night(tonight, series(STALE))
    assert said(lines, "since last night: ") == "the same checkpoints"
    assert said(lines, "findings: ") == "0 new, 1 as last night"


def test_a_finding_that_got_worse_is_new_and_one_that_got_better_is_not() -> None:
    worse = dataclasses.replace(STALE, severity="critical")
    assert said(night(series(worse), series(STALE)), "findings: ") == "1 new (1 critical)"
    assert said(night(series(STALE), series(worse)), "findings: ") == "0 new, 1 as last night"


def closed(name: str) -> Member:
    return dataclasses.replace(described(name), format=None, objects=())


def test_what_is_waived_is_counted_last_and_neither_new_nor_gone() -> None:
    waived = dataclasses.replace(NAN, waived="known until 2027-01-01")
    tonight = overview(series(waived, STALE))
    assert [one.finding for one in tonight.findings] == [STALE, waived]
    alone = night_lines(tonight)
    assert alone[1:3] == ["findings: 1 high, 1 waived", "  high stale-tensor: fc1.bias, s-0 -> s-1"]
    assert "NaN" not in "".join(alone)
    for before in ((NAN, STALE), (waived, STALE)):
        assert "findings: 0 new, 1 as last night, 1 waived" in night_lines(tonight, overview(series(*before)))
    lapsed = night_lines(overview(series(NAN, STALE)), overview(series(waived, STALE)))
    assert "findings: 1 new (1 critical), 1 as last night" in lapsed
    text = render("text", series(waived, STALE))
    (line,) = (one for one in text.splitlines() if one.startswith("  critical non-finite-appeared"))
    assert line.endswith("source=counts of NaN and infinities, waived=known until 2027-01-01, analysis=anomalies")
    assert "2 findings: 1 high, 1 waived" in text
    assert "| `known until 2027-01-01` |" in render("markdown", series(waived, STALE))
    (record,) = (one for one in as_records(series(waived)) if one["kind"] == "analysis")
    assert record["findings"][0]["waived"] == "known until 2027-01-01"
    jsonschema.validate([record], records_schema())


def test_long_tables_and_lists_are_cut_where_people_read() -> None:
    rows = [{"tensor": f"w{i}", "bytes": i} for i in range(250)]
    told = series(analyses=(found(left_out=[f"n{i}" for i in range(50)], rows=rows),))
    text = render("text", told)
    assert [line for line in text.splitlines() if "tensor=w" in line and "bytes=" in line][-1].endswith("bytes=99")
    assert "\n  150 more rows: --output json\n" in text
    assert "n19, 30 more]" in text
    assert "bytes=249" in render("text", told, verbose=True)


@pytest.mark.parametrize(
    "tonight",
    [
        series(analyses=()),
        series(members=(closed("s-0"), *map(described, NAMES[1:]))),
        series(failures=(failure("fc1.bias"),)),
        series(names=NAMES[1:]),
    ],
    ids=["the analysis was not asked for", "a member could not be opened", "the tensor failed", "a member has left"],
)
def test_what_was_not_looked_at_is_not_called_gone(tonight: Sweep) -> None:
    assert said(night(tonight, series(STALE)), "findings: ") == "0 new, 1 of last night not looked for"


def test_what_lasts_is_not_new_where_the_run_has_moved_on() -> None:
    """A NaN that stays is told at the first member of each night's window."""
    at_first = dataclasses.replace(NAN, baseline=None, candidate="s-0")
    moved = dataclasses.replace(NAN, baseline=None, candidate="s-1")
    again = dataclasses.replace(NAN, baseline="s-2", candidate="s-3")
    before = series(at_first, names=NAMES[:3])
    assert said(night(series(moved, names=NAMES[1:]), before), "findings: ") == "0 new, 1 as last night"
    assert said(night(series(again, names=NAMES[1:]), before), "findings: ") == (
        "1 new (1 critical), 1 of last night not looked for"
    )


def test_findings_of_pairs_are_compared_by_their_pairs() -> None:
    def spoiled(at: int) -> Sweep:
        results = moving(NAMES)
        finding = Finding("non-finite-appeared", "critical", "w", 1, 0, "counts")
        results[at] = dataclasses.replace(results[at], analyses=(found(finding, name="change_summary"),))
        quiet = [dataclasses.replace(one, analyses=one.analyses or (found(name="change_summary"),)) for one in results]
        return sweep(*quiet)

    assert said(night(spoiled(1), spoiled(1)), "findings: ") == "0 new, 1 as last night"
    lines = night(spoiled(2), spoiled(1))
    assert said(lines, "findings: ") == "1 new (1 critical), 1 gone"
    assert "  new critical non-finite-appeared: w, s-2 -> s-3" in lines


def test_healed_failures_are_told() -> None:
    lines = night(series(), series(failures=(failure("a"), failure("b"))))
    assert said(lines, "failures: ") == "2 of last night gone"


def test_the_newest_pair_is_the_one_that_reaches_the_latest_member() -> None:
    members = tuple(map(described, NAMES))
    a, b, c, d = NAMES
    choices = {
        "all": ([(a, b), (a, c), (a, d), (b, c), (b, d), (c, d)], (c, d)),
        "vs-first": ([(a, b), (a, c), (a, d)], (a, d)),
        "vs-last": ([(a, d), (b, d), (c, d)], (c, d)),
        "vs-baseline": ([(d, a), (d, b), (d, c)], (d, c)),
        "list": ([(b, c), (a, b)], (b, c)),
    }
    for mode, (pairs, expected) in choices.items():
        shown = sweep(*(named(*pair, result(tensor("w"))) for pair in pairs), mode=mode, members=members)
        newest = overview(shown).newest
        assert newest is not None
        assert (newest.baseline, newest.candidate) == expected


def test_what_was_not_compared_is_on_the_first_screen() -> None:
    shown = sweep(named("a", "b", result(tensor("w"), tensor("n", "added"))), named("b", "c", result(tensor("w"))))
    assert night(shown)[-1] == "compared 2 of 3 tensors in 2 pairs; not compared: 1 only in the candidate"


def test_pairs_that_rounding_swallows_are_counted_on_the_first_screen() -> None:
    near = dataclasses.replace(result(tensor("w")), whole=change(l2=1e-9), error_bound=ErrorBound(1e-8, None))
    shown = sweep(named("a", "b", near), named("a", "c", result(tensor("w"))), mode="all")
    assert "; 1 pair lost to rounding about the anchor: choose another --baseline" in night(shown)[-1]


def test_the_newest_of_all_pairs_is_measured_against_neighbours() -> None:
    far = [named(a, b, result(tensor("w"), rel_l2=rate)) for a, b, rate in [("a", "b", 0.1), ("a", "c", 9.0)]]
    shown = sweep(*far, named("b", "c", result(tensor("w"), rel_l2=0.3)), mode="all")
    assert "b -> c, rel_l2 0.3000, 1.5 × the median" in "\n".join(night(shown))


def test_members_of_which_nothing_was_read_are_on_the_first_screen() -> None:
    one = named("a", "b", result(tensor("w")))
    shown = sweep(one, members=tuple(map(described, "abcd")))
    assert night(shown)[-1].endswith("in 1 pair; not read: 2 unpaired checkpoints (c, d)")


@settings(max_examples=60, deadline=None)
@given(
    counts=st.tuples(*[st.integers(0, 15)] * 4),
    failures=st.integers(0, 4),
    alone=st.booleans(),
    width=st.none() | st.integers(20, 120),
)
def test_the_first_screen_has_ten_lines_at_most_and_counts_what_it_leaves_out(
    counts: tuple[int, int, int, int], failures: int, alone: bool, width: int | None
) -> None:
    both, new, gone, pairs = counts
    old = [dataclasses.replace(STALE, tensor=f"both{i}") for i in range(both)]
    tonight = series(
        *old,
        *(dataclasses.replace(NAN, tensor=f"new{i}") for i in range(new)),
        names=[f"s-{i}" for i in range(pairs + 3)],
        failures=tuple(failure(f"t{i}") for i in range(failures)),
    )
    before = None if alone else series(*old, *(dataclasses.replace(STALE, tensor=f"gone{i}") for i in range(gone)))
    lines = night(tonight, before, notes=["reused"], width=width)
    assert len(lines) <= LINES
    assert width is None or all(cells(line) <= width for line in lines)
    shown = [line for line in lines if line.startswith(("  new ", "  gone ", "  critical ", "  high "))]
    more = [int(match[1]) for line in lines if (match := re.fullmatch(r"  (\d+) more", line))]
    assert len(shown) + sum(more) == (both + new if alone else new + gone)


def test_names_give_way_on_the_first_screen_before_anything_else_is_cut() -> None:
    long = dataclasses.replace(NAN, tensor="model.language_model.layers.10.self_attn.q_proj.weight")
    line = next(line for line in night(series(long), width=80) if "critical non" in line)
    assert line == "  critical non-finite-appeared: model.language_mod…ttn.q_proj.weight, s-1 -> s-2"
    assert cells(line) == 80


# Text


def test_a_sweep_reads_from_the_news_to_the_total() -> None:
    shown = series(NAN, name="nightly", failures=(failure(),))
    assert render("text", shown).splitlines()[6:] == [
        "compared all 6 tensors in 3 pairs",
        "",
        "Pairs",
        "  pair        rel_l2     1-cos  changed  identical",
        "  s-0 -> s-1  0.0100  2.10e-05        1          1",
        "  s-1 -> s-2  0.0200  2.10e-05        1          1",
        "  s-2 -> s-3  0.0300  2.10e-05        1          1",
        "",
        "Findings",
        "  critical non-finite-appeared: tensor=fc2.weight, baseline=s-1, candidate=s-2, value=2, threshold=0, "
        "source=counts of NaN and infinities, analysis=anomalies",
        "",
        "Failures",
        "  x s3://b/step-2/model.safetensors: tensor h.3.w: 512 bytes, expected 1,024 bytes. "
        "Was the upload cut short? [E1103]",
        "",
        "Largest movers",
        "  ~ w: mean=0.0018->0.0017, std=0.0518->0.0647, rel_l2=0.0600, max_abs=0.0213@5, changed=50%, pair=s-2->s-3",
        "  ~ w: mean=0.0018->0.0017, std=0.0518->0.0647, rel_l2=0.0400, max_abs=0.0213@5, changed=50%, pair=s-1->s-2",
        "  ~ w: mean=0.0018->0.0017, std=0.0518->0.0647, rel_l2=0.0200, max_abs=0.0213@5, changed=50%, pair=s-0->s-1",
        "",
        "3 of 3 pairs differ · 3 changed, 3 identical · 1 finding: 1 critical · incomplete: 1 failure",
        "3 pairs: compared all 6 tensors, 48 elements, 384 B",
    ]


def test_rare_columns_are_there_where_they_say_something() -> None:
    spoiled = result(
        tensor("w", candidate=side(nans=1)), tensor("n", "added"), tensor("r", "removed"), tensor("f", "failed")
    )
    shown = sweep(named("a", "b", spoiled), named("b", "c", result(tensor("w"), tensor("i", "incomparable"))))
    head, first, second = block(render("text", shown), "Pairs")
    columns = ["pair", "rel_l2", "1-cos", "non-finite", "changed", "added", "removed", "incomparable", "failed"]
    assert head.split() == [*columns, "identical"]
    assert first.split() == ["a", "->", "b", "-", "-", "1", "1", "1", "1", "0", "1", "0"]
    assert second.split() == ["b", "->", "c", "-", "-", "0", "1", "0", "0", "1", "0", "0"]


def test_distances_from_the_gram_show_their_bound_and_say_once_where_they_are_from() -> None:
    text = render("text", sweep(*map(from_gram, moving(NAMES)), mode="all"))
    _, first, *_, origin = block(text, "Pairs")
    assert first.split()[3:5] == ["0.0100±2e-06", "2.10e-05±4e-12"]
    assert origin == "  ± and method=gram: numbers from the Gram; --elementwise measures the rest"
    assert block(text, "Largest movers")[-1] == (
        "  ~ w: mean=0.0018->0.0017, std=0.0518->0.0647, rel_l2=0.0200±2e-06, cosine_distance=2.10e-05±4e-12, "
        "method=gram, pair=s-0->s-1"
    )
    assert "method=gram" not in render("text", series())


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_a_bound_is_shown_where_it_matters_and_never_below_itself(value: float, error: float) -> None:
    _, sign, shown = bounded(value, error).partition("±")
    assert bool(sign) == (error > 1e-9 * value)
    assert not sign or error <= float(shown) <= 2.0001 * error


def test_no_distance_at_all_carries_its_error_as_a_distance() -> None:
    still = from_gram(result(tensor("w", change=change(l2=0.0, rel_l2=0.0, cosine_distance=0.0))))
    (line,) = block(render("text", sweep(named("a", "b", still))), "Largest movers")
    assert "rel_l2=0 (l2=0±3e-06), cosine_distance=0±4e-12" in line


def test_the_largest_movers_are_those_of_all_pairs() -> None:
    results = [
        named(
            f"s-{i}",
            f"s-{i + 1}",
            result(*(tensor(f"t{j}", change=change(rel_l2=(7 * i + j) / 100)) for j in range(7))),
        )
        for i in range(4)
    ]
    born = result(tensor("zero", change=change(rel_l2=None)))
    lines = block(render("text", sweep(*results, named("s-4", "s-5", born))), "Largest movers")
    sizes = [re.search(r"rel_l2=([0-9.inf]+)", line) for line in lines]
    assert [match and float(match[1]) for match in sizes] == [float("inf"), *(i / 100 for i in range(27, 18, -1))]
    assert len(lines) == TOP


def test_the_tensors_of_each_pair_come_when_asked_for() -> None:
    for view in ({"show_tensors": True}, {"verbose": True}):
        text = render("text", series(), show_identical=True, **view)
        assert "Largest movers" not in text
        for pair in ("s-0 -> s-1", "s-1 -> s-2", "s-2 -> s-3"):
            assert [line[:4] for line in block(text, pair)] == ["  ~ ", "  = "]


def test_the_analyses_of_a_pair_stand_under_its_name_and_their_findings_above() -> None:
    text = render("text", sweep(named("a", "b", result(tensor("w"), analyses=[IMPACT]))))
    assert "\na -> b\n\nLayer impact\nlayer_impact: rel_l2=0.5000\n" in text
    assert block(text, "Findings")[0].startswith(
        "  critical dominant-block: tensor=model.layers.0, baseline=a, candidate=b,"
    )
    assert "Layer impact: findings" not in text


def test_a_matrix_is_a_grid_with_three_digits() -> None:
    shown = series(analyses=(found(name="similarity_matrix", cosine=MATRIX, order=NAMES),))
    assert block(render("text", shown), "Similarity matrix: cosine") == [
        "  checkpoint         s-0         s-1         s-2         s-3",
        "  s-0                  1  1-7.63e-06  1-1.53e-05  1-2.29e-05",
        "  s-1         1-7.63e-06           1  1-7.63e-06  1-1.53e-05",
        "  s-2         1-1.53e-05  1-7.63e-06           1  1-7.63e-06",
        "  s-3         1-2.29e-05  1-1.53e-05  1-7.63e-06           1",
    ]


def test_a_matrix_of_matrices_has_a_heading_for_each() -> None:
    shown = series(analyses=(found(name="similarity_matrix", roles={"attention": MATRIX, "mlp": MATRIX}),))
    text = render("text", shown)
    assert block(text, "Similarity matrix: roles.attention")[6:] == block(text, "Similarity matrix: roles.mlp")


def test_a_list_of_matrices_is_told_apart_by_its_first_column() -> None:
    rows = [{"role": role, **row} for role in ("attention", "mlp") for row in MATRIX]
    nested = series(analyses=(found(name="similarity_matrix", cosine=rows),))
    plain = series(analyses=(found(name="similarity_matrix", cosine={"attention": MATRIX, "mlp": MATRIX}),))
    for output in ("text", "markdown"):
        assert render(output, nested) == render(output, plain)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_wide_matrix_is_cut_visibly(width: int) -> None:
    names = [f"step-{i:06d}" for i in range(40)]
    rows = [{"checkpoint": a, **{b: 0.5 for b in names}} for a in names]
    shown = series(analyses=(found(name="similarity_matrix", cosine=rows),))
    *lines, last = block(render("text", shown, width=width), "Similarity matrix: cosine")
    kept = len(lines[0].split()) - 1
    assert last == f"  {40 - kept} more columns: --output json"
    assert all(cells(line) <= width for line in lines)
    assert cells(lines[0]) + 13 > width
    whole = block(render("text", shown), "Similarity matrix: cosine")
    assert len(whole) == 41
    assert len(whole[0].split()) == 41


def test_other_tables_are_no_matrices() -> None:
    assert tables.square([{"block": "a", "a": 1.0}]) is None
    assert tables.square([{"block": "a", "a": 1, "b": 2}, {"block": "c", "a": 1, "b": 2}]) is None
    assert tables.square([{"block": "a", "a": 1, "b": 2}, {"block": "b", "a": 1}]) is None
    assert tables.square([{}, {}]) is None


@given(st.floats(-1, 1))
def test_a_number_of_a_matrix_shows_as_one_only_where_it_is(value: float) -> None:
    assert (tables.short(value) == "1") == (value == 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(30, 200), st.booleans())
def test_no_line_of_plain_names_exceeds_the_screen(width: int, gram: bool) -> None:
    results = moving([f"step-{i:06d}" for i in range(8)])
    shown = sweep(
        *(map(from_gram, results) if gram else results), name="nightly", analyses=(found(NAN, cosine=MATRIX),)
    )
    text = render("text", shown, width=width)
    entries = re.compile(r"^ {8}\S+$|^  ± ")  # one entry, however long, is not broken
    assert [line for line in text.splitlines()[:-3] if cells(line) > max(width, 44) and not entries.search(line)] == []


def test_colour_changes_no_character() -> None:
    shown = series(NAN, STALE, name="nightly", failures=(failure(),))
    painted = render("text", shown, colour=True, width=80)
    assert "\x1b[1;31mcritical\x1b[0m non-finite-appeared:" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == render("text", shown, width=80)


def total(*results: Result, **fields: Any) -> str:
    return sweep_total_line(overview(sweep(*results, **fields)))


def test_the_total_tells_the_verdict() -> None:
    same, moved = result(tensor("a", "identical")), result(tensor("a"), tensor("n", "added"))
    quiet = result(tensor("a", "identical", within_epsilon=1e-6))
    assert total(named("a", "b", same), named("b", "c", quiet)) == (
        "no differences in 2 pairs · 2 identical (1 within epsilon)"
    )
    assert total(named("a", "b", same), named("b", "c", moved)) == (
        "1 of 2 pairs differ · 1 changed, 1 added, 1 identical"
    )
    assert total(named("a", "b", same), failures=(failure(None),)) == (
        "no differences in what could be read · 1 identical · incomplete: 1 failure"
    )
    assert total(named("a", "b", result(failures=[failure(None)]))) == (
        "nothing was compared · 0 identical · incomplete: 1 failure"
    )


def test_the_coverage_is_that_of_all_pairs() -> None:
    shown = sweep(named("a", "b", result(tensor("w"), tensor("n", "added"))), named("b", "c", result(tensor("w"))))
    assert sweep_coverage_lines(shown) == [
        "2 pairs: compared 2 of 3 tensors, 16 of 24 elements, 128 B of 192 B",
        "not compared: 1 only in the candidate",
    ]


def test_a_sweep_in_which_nothing_could_be_opened_has_a_sensible_text() -> None:
    shown = sweep(named("a", "b", result(failures=[failure(None)])), members=(closed("a"), closed("b")))
    for output in RENDERERS:
        assert render(output, shown).endswith("\n")
    assert "newest: a -> b, rel_l2 -" in render("text", shown)
    empty = sweep(members=(described("a"),), analyses=(found(FROZEN),))
    assert render("text", empty).startswith("sweep: 1 checkpoint, a, 0 pairs (consecutive)\n")


# Markdown


def test_markdown_reads_as_sections() -> None:
    shown = series(NAN, name="nightly", failures=(failure(),), warnings=("odd",))
    text = render("markdown", shown, notes=("2 of 3 pairs were measured by earlier runs",))
    assert text.startswith(
        "## Sweep\n"
        "\n"
        "**3 of 3 pairs differ · 3 changed, 3 identical · 1 finding: 1 critical · incomplete: 1 failure**\n"
        "\n"
        "- `sweep nightly: 4 checkpoints, s-0 to s-3, 3 pairs (consecutive)`\n"
        "- `findings: 1 critical`\n"
    )
    assert "- `reuse: 2 of 3 pairs were measured by earlier runs`\n" in text
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [
        "Pairs",
        "Findings",
        "Failures",
        "Warnings",
        "Largest movers",
    ]
    assert "| `s-2` | `s-3` | `0.0300` | `2.10e-05` | `1` | `1` |\n" in text
    assert "| `critical` | `non-finite-appeared` | `fc2.weight` | `s-1` | `s-2` | `2` | `0` |" in text
    assert "| `s-2 -> s-3` | `changed` | `w` |" in text


def test_markdown_shows_the_tensors_of_each_pair_when_asked() -> None:
    text = render("markdown", series(analyses=(found(cosine=MATRIX),)), show_tensors=True)
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [
        "Pairs", "Anomalies: cosine", "`s-0 -> s-1`", "`s-1 -> s-2`", "`s-2 -> s-3`",
    ]  # fmt: skip
    assert "| `s-0` | `1` | `1-7.63e-06` |" in text


def test_markdown_stays_below_its_limit_and_counts_what_it_leaves_out() -> None:
    names = [f"step-{i:06d}" for i in range(60)]
    rows = [{"checkpoint": a, **{b: 0.5 for b in names}} for a in names]
    findings = [dataclasses.replace(NAN, tensor=f"model.layers.{i}.weight") for i in range(5000)]
    layers = found(name="layer_impact", blocks=[{"block": f"model.layers.{i}"} for i in range(100)])
    records = [tensor(f"model.layers.{i}.weight") for i in range(200)]
    results = [named(a, b, result(*records, analyses=[layers])) for a, b in pairwise(names)]
    shown = sweep(
        *results,
        analyses=(
            found(*findings, cosine=rows),
            *(found(name=f"a{i}", rows=[{"x": "y" * 99}] * 9999) for i in range(4)),
        ),
        failures=tuple(failure(f"t{i}") for i in range(5000)),
        warnings=tuple(f"warning {i}" for i in range(9000)),
    )
    text = render("markdown", shown, show_tensors=True)
    assert 700_000 < len(text.encode()) < 900_000
    assert "36 more columns: --output json" in text
    kept = len(re.findall(r"^### `step-\d+ -> step-\d+`$", text, re.MULTILINE))
    (left,) = re.findall(r"^(\d+) more pairs: --output json$", text, re.MULTILINE)
    assert 0 < kept == 59 - int(left)
    assert text.count(" more\n") >= 7


# Hostile text


def hostile(name: str) -> Sweep:
    """The name wherever a file or a URL could have put it."""
    finding = Finding("rule", "high", name, name, None, "here", name, name)
    pair = found(finding, name="layer_impact", block=name, top=[{"tensor": name}, {"tensor": "b"}])
    records = (
        tensor(name),
        tensor(name, "added", reason=f"no decoder for {name}"),
        tensor(name, "incomparable", candidate=side(dtype=name)),
        tensor(name, "identical"),
    )
    failures = [failure(name, object=name, found=name, expected=name, hint=name)]
    first = named(name, "b", result(*records, failures=failures, analyses=[pair], warnings=[name], rel_l2=0.1))
    matrix = [{name: name, "b": 1.0}] if name == "b" else [{"checkpoint": a, name: 0.5, "b": 1.0} for a in (name, "b")]
    return sweep(first, named("b", name, from_gram(first)), name=name, analyses=(found(finding, cosine=matrix),))


RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
VIEWS: tuple[dict[str, Any], ...] = ({}, {"verbose": True, "show_identical": True}, {"width": 80, "show_tensors": True})
EACH = pytest.mark.parametrize("name", HOSTILE, ids=[f"row29-33-{index}" for index in range(len(HOSTILE))])


@EACH
@pytest.mark.parametrize("output", ["text", "markdown"])
def test_no_control_character_and_no_command_reaches_people(output: str, name: str) -> None:
    for view in VIEWS:
        shown = render(output, hostile(name), previous=hostile("w"), notes=(name,), **view)
        assert not RAW.search(shown)
        assert not re.search(r"^\s*::|##\[|##vso\[", shown, re.MULTILINE)
        shown.encode()


@EACH
def test_a_name_adds_no_line_and_comes_back_exactly(name: str) -> None:
    for output in ("text", "markdown", "json"):
        plain = render(output, hostile("w"), show_identical=True, show_tensors=True)
        assert render(output, hostile(name), show_identical=True, show_tensors=True).count("\n") == plain.count("\n")
    first, *_, last = load("json", hostile(name[:5000]))
    assert first["pair"] == [name[:5000], "b"]
    assert last["members"] == [name[:5000], "b"]
    assert last["findings"][0]["candidate"] == name[:5000]


@EACH
def test_an_independent_parser_finds_nothing_in_the_markdown_but_our_tables(name: str) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    blocks = parser.parse(render("markdown", hostile(name), show_tensors=True, notes=(name,)))
    usual = parser.parse(render("markdown", hostile("w"), show_tensors=True, notes=("w",)))
    assert [one.type for one in blocks] == [one.type for one in usual]
    inline = [child for one in blocks for child in one.children or ()]
    assert {child.type for child in inline} <= {"code_inline", "text", "strong_open", "strong_close"}
    ours = {child.content for one in usual for child in one.children or () if child.type == "text"}
    assert {child.content for child in inline if child.type == "text"} <= ours


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=30), unique=True, min_size=2, max_size=5), st.integers(10, 100))
def test_no_name_makes_a_renderer_fail(names: list[str], width: int) -> None:
    shown = series(names=names, name=names[0])
    for output in RENDERERS:
        assert render(output, shown, width=width, previous=shown).endswith("\n")
