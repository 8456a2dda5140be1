"""A policy is rules and waivers, or an error with its place; nothing undefined passes, and no waiver is for ever."""

from __future__ import annotations

import doctest
import json
import math
import operator
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from diffai_dist.config import Policy, Rule, TensorSelect, Waiver, load_policy, policy_schema, setting_paths
from diffai_dist.config.policy import check_policy, metrics
from diffai_dist.config.problems import Rejected
from diffai_dist.errors import UsageError
from diffai_dist.gates import Gate, judge, limits
from diffai_dist.gates.tally import LISTED
from diffai_dist.records import SEVERITIES, AnalysisRecord, Change, Finding, Result, Severity, Side, Sweep
from results import change, named, result, side, sweep, tensor
from test_config import NOT_YAML, commented

CONFIGS = Path(__file__).parents[1] / "configs"
TODAY = date(2026, 11, 23)


def rule(**fields: Any) -> Rule:
    return Rule(**{"name": "r", "metric": "rel_l2", "op": ">", "threshold": 0.1, **fields})


def waiver(**fields: Any) -> Waiver:
    return Waiver(**{"rule": "r", "reason": "why", "expires": "2026-11-23", **fields})


def held(found: Sweep, *rules: Rule, waivers: tuple[Waiver, ...] = (), today: date = TODAY) -> Sweep:
    """The run as the policy sees it."""
    policy = Policy(rules=rules, waivers=waivers)
    check_policy(policy)
    return judge(found, Gate(policy=policy), today).sweep


def of_two(*records: Any, analyses: tuple[AnalysisRecord, ...] = ()) -> Sweep:
    return sweep(result(*records, analyses=analyses), mode=None)


def policy_record(found: Sweep) -> AnalysisRecord:
    (record,) = [one for one in (*found.analyses, *found.results[0].analyses) if one.name == "policy"]
    return record


def told(found: Sweep) -> list[tuple[str, str | None, object]]:
    return [(one.rule, one.tensor, one.value) for one in policy_record(found).findings]


def moved(name: str, **fields: Any) -> Any:
    return tensor(name, change=change(**fields))


# What is written


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Policy]:
    monkeypatch.chdir(tmp_path)

    def of(text: str) -> Policy:
        Path("p.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        return load_policy("p.yaml")

    return of


RULE = "rules:\n  - {name: a, metric: rel_l2, op: '>', threshold: 0.1}\n"


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(limits) == (0, 1)


def test_what_is_written_is_what_is_read(policy: Callable[[str], Policy]) -> None:
    read = policy(
        "rules:\n  - name: a\n    select: {tensor: 'h.*', role: q, dtype: BF16, pair: '* -> b'}\n    metric: status\n"
        "    op: '!='\n    threshold: identical\n    severity: low\n    min_count: 3\n"
        "waivers:\n  - {rule: a, tensor: h.0, reason: x, expires: 2026-02-28}\n"
    )
    select = TensorSelect(tensor="h.*", role="q", dtype="BF16", pair="* -> b")
    assert read.rules == (
        Rule(name="a", select=select, metric="status", op="!=", threshold="identical", severity="low", min_count=3),
    )
    assert read.waivers == (Waiver(rule="a", tensor="h.0", reason="x", expires="2026-02-28"),)
    assert policy(RULE).rules == (rule(name="a", severity="high"),)


REFUSED = {
    "odd indentation": (f"{RULE}    sevrity: low\n", "p.yaml:3:5: not YAML"),
    "unknown key of a rule": (
        "rules:\n  - name: a\n    metrc: rel_l2\n    op: '>'\n    threshold: 1\n",
        "p.yaml:3:5: unknown key 'metrc' (did you mean 'metric'?)",
    ),
    "unknown key of a selection": (
        "rules:\n  - {name: a, select: {tensors: x}, metric: rel_l2, op: '>', threshold: 1}\n",
        "p.yaml:2:24: unknown key 'tensors' (did you mean 'tensor'?)",
    ),
    "missing": ("rules:\n  - {name: a, op: '>', threshold: 1}\n", "p.yaml:2:5: the key 'metric' is missing"),
    "metric": (RULE.replace("rel_l2", "rel_l3"), "unknown metric 'rel_l3' (did you mean 'rel_l2'?)"),
    "no metric": (RULE.replace("rel_l2", "zzz"), "unknown metric 'zzz' (there are status, rel_l2, candidate.nans and"),
    "op": (RULE.replace("'>'", "'=>'"), "op wants one of >, >=, <, <=, ==, !=, found the text '=>'"),
    "NaN": (RULE.replace("0.1", ".nan"), "p.yaml:2:51: threshold wants a whole number or a finite number or text or"),
    "infinite": (RULE.replace("0.1", ".inf"), "found the number inf"),
    "text for a number": (RULE.replace("0.1", "high"), "threshold wants a number, as rel_l2 is"),
    "number for text": (RULE.replace("rel_l2", "candidate.dtype"), "threshold wants text, as candidate.dtype is"),
    "less than text": (
        RULE.replace("rel_l2", "status").replace("0.1", "changed"),
        "op wants == or !=, since status is text, found '>'",
    ),
    "status": (
        RULE.replace("rel_l2", "status").replace("0.1", "chnged").replace("'>'", "'=='"),
        "unknown status 'chnged' (did you mean 'changed'?)",
    ),
    "role": (RULE.replace("metric", "select: {role: embd}, metric"), "unknown role 'embd' (did you mean 'embed'?)"),
    "dtype": (RULE.replace("metric", "select: {dtype: BF61}, metric"), "unknown dtype 'BF61' (did you mean 'BF16'?)"),
    "dtype in small letters": (
        RULE.replace("metric", "select: {dtype: f32}, metric"),
        "p.yaml:2:31: unknown dtype 'f32' (did you mean 'F32'?)",
    ),
    "dtype as a limit": (
        RULE.replace("rel_l2", "candidate.dtype").replace("0.1", "xyz").replace("'>'", "'!='"),
        "unknown dtype 'xyz' (there are F32, BF16, F16,",
    ),
    "severity": (RULE.replace("}", ", severity: hihg}"), "(did you mean 'high'?)"),
    "count": (RULE.replace("}", ", min_count: 0}"), "min_count wants at least 1, found the number 0"),
    "two of a name": (RULE + RULE.splitlines()[1] + "\n", "two rules are named 'a': findings could not be told apart"),
    "half a waiver": (RULE.replace("}", ", reason: x}"), "has one of reason and expires: give both or none"),
    "date": (RULE.replace("}", ", reason: x, expires: soon}"), "expires wants a date such as 2027-03-01, found 'soon'"),
    "no such day": ("waivers:\n  - {rule: a, reason: x, expires: 2027-02-29}\n", "p.yaml:2:35: expires wants a date"),
    "for ever": ("waivers:\n  - {rule: a, reason: x}\n", "p.yaml:2:5: the key 'expires' is missing"),
    "no reason": ("waivers:\n  - {rule: a, expires: 2027-02-28}\n", "p.yaml:2:5: the key 'reason' is missing"),
    "everything": (
        "waivers:\n  - {reason: x, expires: 2027-02-28}\n",
        "p.yaml:2:5: a waiver of everything: give rule or tensor, the globs of what it is about",
    ),
    "secret": ("rules: []\npassword: hunter2\n", "p.yaml:2:1: 'password' looks like a credential"),
    "empty": ("", "p.yaml:1:1: empty: a policy is made of `rules:` and `waivers:`, each a list"),
    "nothing asked": ("rules: []\n", "p.yaml:1:1: neither a rule nor a waiver: a policy is made of `rules:` and"),
    "list": ("- a\n", "p.yaml:1:1: not a mapping: a policy is made of"),
    "rules are a list": ("rules: {a: 1}\n", "p.yaml:1:8: rules wants a list, found a section of settings"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_names_place_and_remedy(policy: Callable[[str], Policy], text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        policy(text)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


TREES = st.dictionaries(
    st.sampled_from(["rules", "waivers", "x"]),
    st.lists(
        st.dictionaries(
            st.sampled_from(sorted({path[-1] for path in setting_paths(Policy)})),
            st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["l2", ">", "2027-01-01"])
            | st.dictionaries(st.sampled_from(["tensor", "role", "y"]), st.text(max_size=3), max_size=2),
            max_size=6,
        ),
        max_size=2,
    ),
    max_size=2,
)  # fmt: skip


@given(
    TREES.map(json.dumps)
    | st.sampled_from([text for text, _ in NOT_YAML.values() if len(text) < 300])
    | st.text(max_size=60)
)
def test_any_text_is_a_policy_or_an_error_with_a_place(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "p.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = ""
    try:
        load_policy(str(path))
    except UsageError as error:
        message = str(error)
    assert re.match(r"$|.*p\.yaml(:\d+:\d+|: byte [\d,]+)", message)
    assert all(line.isprintable() for line in message.splitlines())


def test_the_example_can_be_used_line_by_line(policy: Callable[[str], Policy]) -> None:
    text = (CONFIGS / "policy.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=policy-schema.json\n")
    validator = jsonschema.Draft202012Validator(policy_schema())
    shown: set[str] = set()
    for variant in (text, *commented(text)):
        policy(variant)
        tree = YAML(typ="safe", pure=True).load(re.sub(r"(expires: )(\S+)", r"\1'\2'", variant))
        validator.validate(tree)
        shown |= {key for section in tree.values() for one in section for key in (*one, *one.get("select", ()))}
    assert shown == {path[-1] for path in setting_paths(Policy)} - {"rules", "waivers"}


def test_the_published_schema_is_that_of_the_model() -> None:
    published = json.loads((CONFIGS / "policy-schema.json").read_text(encoding="utf-8"))
    assert published == policy_schema(), "run: diffai-dist config schema --policy > configs/policy-schema.json"


def test_a_policy_that_is_made_by_a_program_is_checked_alike() -> None:
    with pytest.raises(Rejected, match="unknown metric"):
        check_policy(Policy(rules=(rule(metric="x"),)))


# Rules


@pytest.mark.parametrize(
    ("op", "below", "at", "above"),
    [(">", 0, 0, 1), (">=", 0, 1, 1), ("<", 1, 0, 0), ("<=", 1, 1, 0), ("==", 0, 1, 0), ("!=", 1, 0, 1)],
)
def test_a_limit_is_where_it_is_said_to_be(op: str, below: int, at: int, above: int) -> None:
    limit = 0.1
    values = (np.nextafter(limit, 0).item(), limit, np.nextafter(limit, 1).item())
    for value, breaks in zip(values, (below, at, above), strict=True):
        found = told(held(of_two(moved("w", rel_l2=value)), rule(op=op, threshold=limit)))
        assert found == [("r", "w", value)] * breaks


OPS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@given(
    st.lists(st.floats(-2, 2) | st.none() | st.just(math.nan), min_size=1, max_size=9),
    st.sampled_from(sorted(OPS)),
    st.floats(-2, 2),
)
def test_a_rule_is_what_it_says(values: list[float | None], op: str, limit: float) -> None:
    records = [moved(f"h.{i}", l2=value) for i, value in enumerate(values)]
    found = policy_record(held(of_two(*records), rule(metric="l2", op=op, threshold=limit)))
    unknown = [value is None or math.isnan(value) for value in values]
    broken = [value is None or math.isnan(value) or OPS[op](value, limit) for value in values]
    assert [one.tensor for one in found.findings] == [f"h.{i}" for i, breaks in enumerate(broken) if breaks]
    (row,) = found.result["rules"]
    assert (row["tensors"], row["broken"], row["undefined"]) == (len(values), sum(broken), sum(unknown))
    assert row["threshold"] == limit


@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("value", [None, math.nan])
def test_what_is_not_defined_never_passes(op: str, value: float | None) -> None:
    found = held(of_two(tensor("w", change=change(rel_l2=value), reason="the baseline's norm is 0")), rule(op=op))
    (finding,) = policy_record(found).findings
    assert (finding.tensor, finding.value, finding.threshold) == ("w", "not defined", 0.1)
    assert finding.source == f"policy: broken by rel_l2 {op} 0.1; the baseline's norm is 0"


@pytest.mark.parametrize("status", ["added", "removed", "incomparable", "failed"])
def test_a_tensor_without_numbers_never_passes(status: Any) -> None:
    assert told(held(of_two(tensor("w", status)), rule())) == [("r", "w", "not defined")]


def test_every_column_of_a_record_can_be_limited() -> None:
    numbers = {f"change.{name}" for name in Change.__dataclass_fields__}
    sides = {f"{one}.{name}" for one in ("baseline", "candidate") for name in Side.__dataclass_fields__}
    assert set(metrics()) == {"status", *numbers, *(one.partition(".")[2] for one in numbers), *sides}
    record = tensor("w", baseline=side(nans=3), candidate=side(dtype="BF16", shape=(2, 4)))
    for metric, limit in {"baseline.nans": 3, "candidate.dtype": "BF16", "candidate.shape": (2, 4),
                          "status": "changed", "change.max_abs": 0.0213}.items():  # fmt: skip
        assert told(held(of_two(record), rule(metric=metric, op="!=", threshold=limit))) == []
        ((_, _, value),) = told(held(of_two(record), rule(metric=metric, op="==", threshold=limit)))
        assert value == (limit if not isinstance(limit, tuple) else "[2, 4]")


def test_a_rule_is_about_what_it_selects() -> None:
    records = (
        moved("model.layers.0.self_attn.q_proj.weight"),
        moved("model.layers.0.mlp.up_proj.weight"),
        tensor("model.layers.1.self_attn.q_proj.weight", candidate=side(dtype="BF16")),
        tensor("model.layers.2.self_attn.q_proj.weight", "removed"),
    )

    def chosen(**select: str) -> list[int]:
        found = told(held(of_two(*records), rule(metric="status", op="!=", threshold="identical",
                                                 select=TensorSelect(**select))))  # fmt: skip
        names = [record.name for record in records]
        return [names.index(name) for _, name, _ in found if name]

    assert chosen() == [0, 1, 2, 3]
    assert chosen(tensor="*q_proj*") == [0, 2, 3]
    assert chosen(tensor="Model*") == []  # case counts
    assert chosen(role="up") == [1]
    assert chosen(dtype="BF16") == [2]
    assert chosen(dtype="F32") == [0, 1, 3]
    assert chosen(role="q", dtype="F32") == [0, 3]


def test_single_outliers_are_tolerated() -> None:
    records = [moved(f"h.{i}", rel_l2=0.2) for i in range(3)]
    for count, findings in ((3, 3), (4, 0)):
        found = held(of_two(*records), rule(min_count=count))
        assert len(told(found)) == findings
        assert policy_record(found).result["rules"][0]["broken"] == 3


def nights(*pairs: Result) -> Sweep:
    return sweep(*(named(f"s-{i}", f"s-{i + 1}", one) for i, one in enumerate(pairs)))


def test_findings_of_a_sweep_name_their_pair() -> None:
    found = held(nights(result(moved("w", rel_l2=0.0)), result(moved("w", rel_l2=0.3))), rule())
    (finding,) = policy_record(found).findings
    assert (finding.baseline, finding.candidate, finding.tensor) == ("s-1", "s-2", "w")
    assert all(one.name != "policy" for each in found.results for one in each.analyses)
    two = policy_record(held(of_two(moved("w", rel_l2=0.3)), rule())).findings[0]
    assert (two.baseline, two.candidate) == (None, None)


def test_a_rule_is_about_the_pairs_that_it_selects() -> None:
    both = nights(result(moved("w")), result(moved("w")))
    found = held(both, rule(select=TensorSelect(pair="* -> s-2")))
    assert [one.candidate for one in policy_record(found).findings] == ["s-2"]
    assert policy_record(found).result["rules"][0]["pairs"] == 1


def test_a_rule_about_nothing_is_a_finding() -> None:
    both = nights(result(moved("w", rel_l2=0.0)), result(moved("renamed", rel_l2=0.0)))
    gone, elsewhere, there = policy_record(
        held(
            both,
            rule(name="gone", select=TensorSelect(tensor="w")),
            rule(name="elsewhere", select=TensorSelect(pair="x -> *")),
            rule(name="never", select=TensorSelect(tensor="v"), severity="medium"),
            rule(name="always"),
        )
    ).findings
    assert {one.rule for one in (gone, elsewhere, there)} == {"policy-unmatched"}
    assert [one.severity for one in (gone, elsewhere, there)] == ["low", "high", "medium"]
    assert (gone.value, gone.candidate, gone.source) == (
        "gone", "s-2", "policy: no tensor is selected in 1 of 2 pairs",
    )  # fmt: skip
    assert (elsewhere.value, elsewhere.source) == ("elsewhere", "policy: no pair is x -> *")
    assert there.source == "policy: no tensor is selected in 2 of 2 pairs"


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("select", [{"tensor": "gone.*"}, {"dtype": "F16"}, {"role": "embed"}, {"pair": "nope*"}])
def test_a_rule_about_nothing_fails_as_the_rule_would(severity: Severity, select: dict[str, str]) -> None:
    policy = Policy(rules=(rule(select=TensorSelect(**select), severity=severity),))
    check_policy(policy)
    met = judge(of_two(moved("w", rel_l2=0.0)), Gate(policy=policy), TODAY).met
    assert [one.condition for one in met] == [severity] * (severity in SEVERITIES[:3])


def test_many_tensors_are_listed_as_far_as_a_reader_goes() -> None:
    records = [moved(f"h.{i}", rel_l2=0.2) for i in range(LISTED + 7)]
    assert len(told(held(of_two(*records[:LISTED]), rule()))) == LISTED
    severe = rule(severity="critical", select=TensorSelect(tensor="h.*"))
    *listed, rest = policy_record(held(of_two(*records), severe)).findings
    assert [one.tensor for one in listed] == [record.name for record in records[:LISTED]]
    assert (rest.rule, rest.severity, rest.tensor, rest.value) == ("r", "critical", None, 7)
    assert rest.source.endswith(f"tensors beyond the first {LISTED}")


# Waivers


def waived(found: Sweep) -> list[tuple[str | None, str | None]]:
    return [(one.tensor, one.waived) for one in policy_record(found).findings]


@pytest.mark.parametrize(
    ("today", "holds"), [(date(2026, 11, 22), True), (date(2026, 11, 23), True), (date(2026, 11, 24), False)]
)
def test_a_waiver_holds_to_the_end_of_its_day(today: date, holds: bool) -> None:
    found = held(of_two(moved("w")), rule(), waivers=(waiver(),), today=today)
    told_of = "why (until 2026-11-23)" if holds else None
    assert waived(found)[0] == ("w", told_of)
    expired = [one for one in policy_record(found).findings if one.rule == "waiver-expired"]
    assert len(expired) == (not holds)
    for finding in expired:
        assert (finding.severity, finding.value) == ("low", "2026-11-23")
        assert finding.source == "policy: waiver of r: why"


def test_a_waiver_is_of_a_rule_a_tensor_and_a_pair() -> None:
    both = nights(result(moved("a"), moved("b")), result(moved("a")))

    def kept(**fields: str) -> list[tuple[str | None, str | None]]:
        findings = policy_record(held(both, rule(), waivers=(waiver(**fields),))).findings
        return [(one.tensor, one.candidate) for one in findings if one.waived is None]

    assert kept() == []
    assert kept(rule="R") == [("a", "s-1"), ("b", "s-1"), ("a", "s-2")]
    assert kept(tensor="a") == [("b", "s-1")]
    assert kept(rule="*", tensor="b") == [("a", "s-1"), ("a", "s-2")]
    assert kept(pair="* -> s-2") == [("a", "s-1"), ("b", "s-1")]


def test_a_comparison_of_two_is_a_pair_for_waivers_too() -> None:
    for pair, reason in (("* -> new.*", "why (until 2026-11-23)"), ("* -> old.*", None)):
        assert waived(held(of_two(moved("w")), rule(), waivers=(waiver(pair=pair),))) == [("w", reason)]


def test_waivers_cover_findings_of_analyses_of_pairs_and_of_the_series() -> None:
    own = AnalysisRecord(
        "a", {}, (Finding("non-finite", "critical", "m", 1, 0, "x"), Finding("other", "low", None, 1, 0, "x"))
    )
    series = AnalysisRecord("s", {}, (Finding("non-finite", "critical", "m", 1, 0, "x", "s-0", "s-1"),))
    found = sweep(named("s-0", "s-1", result(tensor("m"), analyses=[own])), analyses=(series,))
    for pair, reason in (("s-0 -> s-1", "why (until 2026-11-23)"), ("s-1 -> *", None)):
        after = held(found, waivers=(waiver(rule="non-*", tensor="m", pair=pair),))
        assert [one.waived for one in after.analyses[0].findings] == [reason]
        assert [one.waived for one in after.results[0].analyses[0].findings] == [reason, None]
        assert after.results[-1].tensors == found.results[-1].tensors
    assert own.findings[0].waived is None  # what was found stays as it is


def test_a_waiver_of_a_tensor_is_of_no_finding_without_one() -> None:
    own = AnalysisRecord("a", {}, (Finding("other", "low", None, 1, 0, "x"),))
    found = held(of_two(tensor("m"), analyses=(own,)), waivers=(waiver(rule="*", tensor="*"),))
    assert found.results[0].analyses[0].findings == own.findings


def test_what_is_waived_takes_no_place_in_the_list() -> None:
    records = [moved(f"h.{i}") for i in range(LISTED + 5)] + [moved("last")]
    found = held(of_two(*records), rule(), waivers=(waiver(tensor="h.*"),))
    findings = policy_record(found).findings
    assert [one.tensor for one in findings if one.waived is None] == ["last"]
    assert len(findings) == LISTED + 1
    assert policy_record(found).result["rules"][0]["waived"] == LISTED + 5


def test_a_rule_may_be_broken_until_its_day() -> None:
    odd = rule(name="r[1]*", reason="ticket", expires="2026-11-23")
    plain = rule(name="r1x")
    for today, reason in ((TODAY, "ticket (until 2026-11-23)"), (date(2026, 11, 24), None)):
        findings = policy_record(held(of_two(moved("w")), odd, plain, today=today)).findings
        assert [(one.rule, one.waived) for one in findings if one.tensor] == [("r[1]*", reason), ("r1x", None)]
