"""What a user names, as URLs in order: patterns on every file system, steps and dates, windows, names, pairs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import doctest
import functools
import io
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_dist import choosing, storage
from diffai_dist.choosing import (
    PAIRS,
    Chosen,
    Window,
    choose,
    lists,
    literal,
    make_pairs,
    member_names,
    pattern,
    steps,
    window,
)
from diffai_dist.comparison import Pair
from diffai_dist.errors import Unreadable, UsageError
from diffai_dist.storage import Profile, check_url
from servers.s3server import S3Server

PROFILE = Profile()
NOW = datetime.datetime(2026, 11, 23, 9, 30, tzinfo=datetime.UTC)
TODAY = NOW.date()


def chosen(*patterns: str | Path, today: datetime.date = NOW, **bounds: Any) -> tuple[Chosen, ...]:
    return choose([str(one) for one in patterns], Window(**bounds), PROFILE, today)


def names(*patterns: str | Path, today: datetime.date = NOW, **bounds: Any) -> list[str]:
    """The last components of what is chosen."""
    return [one.url.rstrip("/").rpartition("/")[2] for one in chosen(*patterns, today=today, **bounds)]


def message(*patterns: str | Path, **bounds: Any) -> str:
    """What the refusal says, which is one line."""
    with pytest.raises(UsageError) as refusal:
        chosen(*patterns, **bounds)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def make(root: Path, *paths: str) -> Path:
    """Empty files, and folders where a path ends in a slash."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).mkdir(parents=True, exist_ok=True) if path.endswith("/") else (root / path).write_bytes(b"")
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as training leaves it."""
    return make(
        tmp_path / "run7",
        "step-9/",
        "step-10/",
        "step-100/",
        "step-11.safetensors",
        "step-12.safetensors.index.json",
        "step-13.pt",
        "optimizer-13.npy",
        ".step-13/",
        "README.md",
        "step-14.json",
    )


@pytest.mark.parametrize("module", [choosing.naming, lists, pattern, steps], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module) == doctest.TestResults(0, doctest.testmod(module).attempted)
    assert doctest.testmod(module).attempted


# Globs


def test_a_glob_takes_folders_weights_and_indexes_in_order_of_steps(run: Path) -> None:
    expected = ["step-9", "step-10", "step-11.safetensors", "step-12.safetensors.index.json", "step-13.pt", "step-100"]
    assert names(run / "step-*") == names(run / "*") == expected
    assert [one.step for one in chosen(run / "*")] == [9, 10, 11, 12, 13, 100]


def test_a_slash_at_the_end_asks_for_folders(run: Path) -> None:
    assert names(f"{run}/*/") == ["step-9", "step-10", "step-100"]


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("step-?", ["step-9"]),
        ("step-[!1]*", ["step-9"]),
        ("step-[0-9]0", ["step-10"]),
        ("step-1[]0-]", ["step-10"]),
        ("st*-*0", ["step-10", "step-100"]),
        (".step-*", [".step-13"]),
        ("step-1[^0]", ["step-10"]),  # as in Python, ^ is itself
    ],
)
def test_wildcards_are_those_of_a_shell(run: Path, glob: str, found: list[str]) -> None:
    assert names(run / glob) == found


def test_a_wildcard_may_stand_in_the_middle_and_lists_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"run{r}/step-{s}/hf/model.safetensors" for r in (1, 2) for s in (5, 10)), "run3/step-7/", "notes")
    listings: Counter[str] = Counter()
    for name in ("entries", "folders"):
        function = getattr(storage, name)

        def counted(url: str, profile: Profile, name: str = name, function: Any = function) -> Any:
            listings[name] += 1
            return function(url, profile)

        monkeypatch.setattr(storage, name, counted)
    found = chosen(tmp_path / "run*" / "step-*" / "hf" / "model.safetensors")
    assert [one.url.removeprefix(f"{tmp_path}/") for one in found] == [
        "run1/step-5/hf/model.safetensors",
        "run2/step-5/hf/model.safetensors",
        "run1/step-10/hf/model.safetensors",
        "run2/step-10/hf/model.safetensors",
    ]
    assert [one.step for one in found] == [5, 5, 10, 10]
    # The root, three runs, five steps, four folders "hf"; files matter in the last alone.
    assert listings == {"folders": 1 + 3 + 5 + 4, "entries": 4}


def test_a_name_behind_a_wildcard_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    make(tmp_path, "step-1/weights", "step-2/weights", "step-3/other")
    assert [one.step for one in chosen(tmp_path / "step-*" / "weights")] == [1, 2]


def test_a_relative_pattern_is_relative_to_the_working_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert chosen("step-?") == chosen("./step-?") == chosen("../run7//step-?") == chosen(f"file://{run}/step-?")
    monkeypatch.chdir(run.parent)
    assert names("*/step-?") == ["step-9"]


HOSTILE = [
    "a\nb",
    "\x1b[2J",
    "\u202ex",
    "-rf",
    "$(id)",
    "ü 日本",
    "a'b\"",
    "{step}",
    "[1]*",
    "%41",
    "a\\b",
    "\udcff",
    "~",
    "x#y",
]


def test_any_name_can_be_chosen(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/" for name in HOSTILE))
    assert sorted(names(tmp_path / "*")) == sorted(HOSTILE)
    for name in HOSTILE:
        assert [one.url for one in chosen(tmp_path / literal(name))] == [str(tmp_path / name)]
    assert set(member_names([str(tmp_path / name) for name in HOSTILE])) == set(HOSTILE)


def test_messages_escape_the_names_that_are_there(tmp_path: Path) -> None:
    make(tmp_path, "a\nb\x1b[2J/")
    told = message(tmp_path / "a\nb\x1b[2J" / "step-*")
    assert told.isprintable()
    assert "'nothing'" not in told
    assert told.endswith("holds nothing")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/a/**/b", "write one * for each level"),
        ("/a/{stp:08d}", "{step}, {step:08d} and {date:%Y-%m-%d}, and [{] is a brace"),
        ("/a/{step:8d}", "is no field"),
        ("/a/{step:018d}", "is no field"),
        ("/a/{date}", "is no field"),
        ("/a/{date:/}", "is no field"),
        ("/a/{date:%Y-%b-%d}", "'%b' in a date; there are %Y %m %d %j %H %M %S"),
        ("/a/{date:%Y-%m}", "names no day"),
        ("/a/[z-a]", "is no pattern"),
        ("/a/*/../b", "'..' behind a wildcard"),
        ("s3://b*/x", "name the bucket or host"),
        ("s3://run-{step:04d}/x", "name the bucket or host"),
        ("ftp://host/*", "not supported"),
        ("a::b*", "chained"),
        ("", "empty"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(text: str, says: str) -> None:
    assert says in message(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA123:canary-5f1c2d@bucket/*",
        "s3://AKIA123:canary-5f1c2d/with/slashes@bucket/*",
        "s3://bucket/*?X-Amz-Signature=canary-5f1c2d",
        "https://host/*?token=canary-5f1c2d",
        "https://user:canary-5f1c2d@host/step-{step}",
    ],
)
def test_a_pattern_with_a_credential_is_refused_and_not_shown(text: str) -> None:
    assert "canary" not in message(text)


# Templates


def test_a_template_gives_steps_and_dates(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(f"{day}/ckpt_{step:08d}/" for day, step in [("2026-11-02", 3), ("2026-11-01", 20), ("2026-13-01", 1)]),
    )
    make(
        tmp_path,
        "2026-11-02/ckpt_4/",
        "2026-11-02/ckpt_000000005/",
        "2026-11-02/ckpt_123456789/",
        "2026-11-3/ckpt_00000001/",
    )
    found = chosen(tmp_path / "{date:%Y-%m-%d}" / "ckpt_{step:08d}")
    assert [(one.date, one.step) for one in found] == [
        (datetime.date(2026, 11, 1), 20),
        (datetime.date(2026, 11, 2), 3),
        (datetime.date(2026, 11, 2), 123456789),
    ]


def test_a_date_may_span_levels_and_stand_in_parts(tmp_path: Path) -> None:
    make(tmp_path, "2026/11/02/model/", "2026/11/01/model/", "2025/305/06/model/")
    whole = chosen(tmp_path / "{date:%Y/%m/%d}" / "model")
    parts = chosen(tmp_path / "{date:%Y}" / "{date:%m}" / "{date:%d}" / "model")
    assert whole == parts
    assert [one.date for one in whole] == [datetime.date(2026, 11, 1), datetime.date(2026, 11, 2)]
    (counted,) = chosen(tmp_path / "{date:%Y/%j/%H}" / "model")
    assert counted.date == datetime.datetime(2025, 11, 1, 6)


def test_a_field_in_two_places_has_one_value(tmp_path: Path) -> None:
    make(tmp_path, "step-1/model_0001/", "step-1/model_0002/", "step-2/model_0002/", "5-5/", "5-6/")
    assert [one.step for one in chosen(tmp_path / "step-{step}" / "model_{step:04d}")] == [1, 2]
    assert names(tmp_path / "{step}-{step}") == ["5-5"]


def test_a_star_before_a_step_leaves_it_whole(run: Path) -> None:
    assert [one.step for one in chosen(run / "*{step}")] == [9, 10, 100]


def test_braces_that_are_no_field_are_themselves(tmp_path: Path) -> None:
    make(tmp_path, "{a,b}-1/", "{}-2/", "{step}/", "step-{3}/")
    assert names(tmp_path / "{a,b}-*") == ["{a,b}-1"]
    assert names(tmp_path / "{}-?", tmp_path / "[{]step}") == ["{step}", "{}-2"]
    assert names(tmp_path / "step-{3}") == ["step-{3}"]


FORMATS = st.lists(
    st.sampled_from(["%Y%m%d", "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%Y%j", "%H%M%S", "%H:%M", "%M"]),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(
    st.datetimes(datetime.datetime(1000, 1, 1)).map(lambda moment: moment.replace(microsecond=0)),
    FORMATS.filter(lambda formats: any("%Y" in one for one in formats)),
    st.integers(0, 10**12),
    st.integers(0, 12),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=5).filter(
        lambda text: "::" not in text
    ),
)
def test_what_a_template_writes_it_reads(
    moment: datetime.datetime, formats: list[str], step: int, width: int, text: str
) -> None:
    spec = f":0{width}d" if width else ""
    shape = f"x{literal(text)}-{{step{spec}}}_" + "_".join(f"{{date:{one}}}" for one in formats)
    written = f"x{text}-" + (f"{step:0{width}d}" if width else str(step)) + "_" + moment.strftime("_".join(formats))
    parsed = pattern.parse(f"/root/{shape}")
    assert parsed.url == "/root"
    fields: dict[str, int] = {}
    for level, name in zip(parsed.levels, written.split("/"), strict=True):
        found = level.match(name)
        assert found is not None
        together = pattern.agreeing(fields, iter(found.items()))
        assert together is not None
        fields = together
    read = pattern.moment(fields)
    assert fields["step"] == step
    if isinstance(read, datetime.datetime):
        assert all(getattr(read, part) in (0, getattr(moment, part)) for part in ("hour", "minute", "second"))
        read = read.date()
    assert read == moment.date()


FRAGMENTS = [
    "/",
    "//",
    ".",
    "..",
    "*",
    "?",
    "[",
    "!",
    "]",
    "^",
    "-",
    "{",
    "}",
    "{step}",
    "{step:03d}",
    "{date:%Y%j}",
    ":",
    "::",
]
FRAGMENTS += ["s3://", "file://", "http://", "b", "1", "%2F", "%00", "@", "~", "\\", "&", "|", "#"]


@settings(deadline=None)
@given(st.one_of(st.text(max_size=12), st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join)))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert check_url(pattern.parse(text).url) == pattern.parse(text).url


# Order, lists, unions


def test_plain_urls_are_taken_as_they_are_by_step_where_all_tell_one(tmp_path: Path) -> None:
    given = [str(tmp_path / name) for name in ("step-3", "step-1", "step-20", "step-1")]
    assert [one.step for one in chosen(*given)] == [1, 3, 20]
    assert [one.url for one in chosen(*given, str(tmp_path / "base"))] == [*given[:3], str(tmp_path / "base")]
    assert chosen("s3://no-such-bucket/a") == (Chosen("s3://no-such-bucket/a"),)
    assert chosen("https://host/a?rev=[1]*") == (Chosen("https://host/a?rev=[1]*", 1),)


def test_patterns_are_united_and_their_matches_stand_together_in_order(run: Path) -> None:
    base, end = run.parent / "base", run.parent / "end"
    assert names(base, run / "step-?", end, f"{run}/step-1*/", run / "step-9") == [
        "base",
        "step-9",
        "step-10",
        "step-100",
        "end",
    ]
    assert names(run / "step-100", f"{run}/step-*/") == ["step-100", "step-9", "step-10"]


def test_a_date_comes_before_a_step_and_what_has_neither_first(tmp_path: Path) -> None:
    make(tmp_path, "2026-11-02-1/", "2026-11-01-2/", "base/")
    assert names(tmp_path / "{date:%Y-%m-%d}-{step}", tmp_path / "b*") == ["base", "2026-11-01-2", "2026-11-02-1"]


def test_a_list_is_read_line_by_line(run: Path) -> None:
    file = run.parent / "list.txt"
    file.write_bytes(f"\ufeff# my run\n\n  {run}/step-?  \r\n{run}/with\u2028two lines\n\t#{run}/step-10\n".encode())
    assert names(f"@{file}") == ["step-9", "with\u2028two lines"]
    assert names(f"@file://{file}", run / "last") == ["step-9", "with\u2028two lines", "last"]


def test_a_list_comes_from_stdin(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(os.fsencode(f"{run}/step-?\n{run}/\udcff\n")))
    monkeypatch.setattr("sys.stdin", stdin)
    assert names("-") == ["step-9", "\udcff"]
    assert "on stdin is empty" in message("-")
    monkeypatch.setattr("sys.stdin", None)
    assert "on stdin is empty" in message("-")


def test_a_list_that_cannot_be_used_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read" in message(f"@{tmp_path}/missing")
    assert "cannot be read" in message(f"@{tmp_path}")
    (tmp_path / "list").write_text("# nothing\n")
    assert "is empty" in message(f"@{tmp_path}/list")
    (tmp_path / "list").write_text("@other\n")
    assert "names another list, '@other'" in message(f"@{tmp_path}/list")
    monkeypatch.setattr(lists, "MAX_BYTES", 3)
    assert "is no list of checkpoints: it has 7 bytes" in message(f"@{tmp_path}/list")
    assert "no checkpoint is named" in message()


# Nothing matches


def test_what_matches_nothing_names_the_nearest_folder_that_exists(run: Path) -> None:
    root = run.parent
    assert message(root / "rnu7" / "a" / "step-*") == (
        f"'{root}/rnu7/a/step-*' matches nothing: '{root}' holds 'run7', but no 'rnu7'. Similar names there: 'run7'"
    )
    assert "holds '.step-13', 'README.md', 'optimizer-13.npy', 'step-9', 'step-10' and 5 more" in message(run / "x*")
    assert message(run / "stpe-{step:05d}").endswith("Similar names there: 'step-100'")
    assert message(run / "step-9" / "*").endswith(f"'{run}/step-9' holds nothing")
    assert message(run / "R*").endswith(
        "The pattern fits 'README.md', but wanted is "
        "a folder or a file of weights (*.safetensors, *.pt, *.gguf, ..., *.index.json), with one step and a date that "
        "exists"
    )
    assert message(run / "step-14.*" / "x").endswith("The pattern fits 'step-14.json', but wanted is a folder")


def test_a_name_that_is_also_a_pattern_is_told_how_to_be_written(tmp_path: Path) -> None:
    make(tmp_path, "run[1]/", "2026-13-01/")
    assert message(tmp_path / "run[1]").endswith("To name 'run[1]' itself, write 'run[[]1]'")
    assert "fits '2026-13-01'" in message(tmp_path / "{date:%Y-%m-%d}")


def test_a_folder_that_cannot_be_listed_keeps_its_own_message(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, profile: Profile) -> list[str]:
        raise Unreadable(url, "access denied (403)", hint="Grant it")

    monkeypatch.setattr(storage, "folders", refuse)
    with pytest.raises(Unreadable, match=r"access denied \(403\). Grant it"):
        chosen(run / "*")


# Other file systems


def test_globs_and_templates_work_on_s3(s3: S3Server, bucket: str) -> None:
    for step in (9, 10, 100):
        s3.put(f"{bucket}/run 7/step-{step}/model.safetensors", b"1")
    s3.put(f"{bucket}/run 7/step-11.safetensors", b"1")
    s3.put(f"{bucket}/run 7/ü?#*[1].safetensors", b"1")
    s3.put(f"{bucket}/run 7/", b"")
    root = f"s3://{bucket}/run 7"
    assert names(f"{root}/step-*") == ["step-9", "step-10", "step-11.safetensors", "step-100"]
    assert [one.step for one in chosen(f"s3://{bucket}/*/step-{{step}}/model.safetensors")] == [9, 10, 100]
    assert chosen(f"{root}/{literal('ü?#*[1].safetensors')}") == (Chosen(f"{root}/ü?#*[1].safetensors", 1),)
    assert member_names([one.url for one in chosen(f"{root}/*")])[-1] == "step-100"


def test_what_matches_nothing_on_s3_says_what_is_there(s3: S3Server, bucket: str) -> None:
    s3.put(f"{bucket}/run7/step-9/model.safetensors", b"1")
    assert message(f"s3://{bucket}/rum7/a/b/step-*") == (
        f"'s3://{bucket}/rum7/a/b/step-*' matches nothing: 's3://{bucket}' holds 'run7', but no 'rum7'. "
        "Similar names there: 'run7'"
    )
    assert f"'s3://{bucket}/run7' holds 'step-9'" in message(f"s3://{bucket}/run7/ckpt-*")
    with pytest.raises(Unreadable, match="no such bucket"):
        chosen("s3://there-is-no-such-bucket/run/*")


def test_an_empty_bucket_holds_nothing(s3: S3Server, bucket: str) -> None:
    assert message(f"s3://{bucket}/run/*").endswith(f"'s3://{bucket}' holds nothing, but no 'run'")


def test_a_pattern_matches_more_than_a_thousand_names(moto: S3Server, use: Callable[..., S3Server]) -> None:
    use(moto)
    moto.bucket("thousand-steps")
    put = functools.partial(moto.client.put_object, Bucket="thousand-steps", Body=b"")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: put(Key=f"run/step-{step}.safetensors"), range(1003)))
    found = chosen("s3://thousand-steps/run/step-{step}.*")
    assert [one.step for one in found] == list(range(1003))
    assert len(chosen("s3://thousand-steps/run/*", every=100)) == 11


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """A request is no news."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_patterns_match_what_a_web_server_links_to(tmp_path: Path, web: str) -> None:
    make(tmp_path, "run 7/step 9/model.safetensors", "run 7/step 10/model.safetensors", "run 7/step 11.safetensors")
    found = chosen(f"{web}/run%207/step*")
    assert [(one.url, one.step) for one in found] == [
        (f"{web}/run%207/step%209/", 9),
        (f"{web}/run%207/step%2010/", 10),
        (f"{web}/run%207/step%2011.safetensors", 11),
    ]
    assert member_names([one.url for one in found]) == ("step%209", "step%2010", "step%2011.safetensors")
    assert [one.step for one in chosen(f"{web}/*/step%20{{step}}/model.safetensors")] == [9, 10]
    assert message(f"{web}/run%208/*").endswith("holds 'run 7', but no 'run%208'")


def test_patterns_work_on_a_generic_file_system() -> None:
    for step in (9, 10):
        storage.publish(f"memory://choosing/run/step-{step}/model.safetensors", b"1", PROFILE)
    assert [one.step for one in chosen("memory://choosing/r*/step-*")] == [9, 10]
    assert "'memory://choosing' holds 'run', but no 'rum'" in message("memory://choosing/rum/*")


# Steps


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        (["/r/step-000300", "/r/step-000400"], [300, 400]),
        (["/r/global_step500", "/r/global_step1000"], [500, 1000]),
        (["/r/epoch3-step200", "/r/epoch3-step400"], [200, 400]),
        (["/r/epoch3-seed7", "/r/epoch4-seed7"], [3, 4]),
        (["/r/step-1/model.safetensors", "/r/step-2"], [1, 2]),
        (["/r/step-1/ema", "/r/step-1/raw", "/r/step-2/raw"], [1, 1, 2]),
        (["/r1/final", "/r2/final"], [1, 2]),
        (["/a/step-9", "/b/step-7"], [9, 7]),
        (["/r/step-100", "/r/step-200", "/r/step-200-fc1-frozen", "/r/best-v2"], [100, 200, 200, None]),
        (["/r/final", "/r/best"], [None, None]),
        (["/r/epoch1-step100", "/r/epoch1-step200", "/r/epoch2-step100"], [None, None, None]),
        (["/r/2026-10-31", "/r/2026-11-01"], [None, None]),
        (["/r/x-9999999999999999999", "/r/x-9999999999999999998"], [None, None]),
        (["s3://bucket1/a", "s3://bucket2/a"], [None, None]),
        (["/r7/step-5"], [5]),
        (["/r7/step-5/model.safetensors"], [5]),
        (["/r7/final"], [None]),
        ([], []),
    ],
)
def test_the_step_of_a_name_is_the_last_number_that_differs(urls: list[str], told: list[int | None]) -> None:
    assert steps.tell_steps(urls) == told


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), unique=True, min_size=1), st.integers(1, 12))
def test_steps_are_told_and_put_in_order_however_they_are_written(numbers: list[int], width: int) -> None:
    assert steps.tell_steps([f"s3://b7/run8/step_{number:0{width}d}" for number in numbers]) == numbers


# Windows


def stepped(*numbers: int) -> list[Chosen]:
    return [Chosen(f"/r/step-{number}", number) for number in numbers]


def kept(found: Sequence[Chosen], today: datetime.date = NOW, **bounds: Any) -> list[Any]:
    """The steps or dates inside of the window."""
    return [one.date or one.step for one in window.narrow(Window(**bounds), found, today)]


def test_a_window_of_steps_includes_its_bounds() -> None:
    found = stepped(500, 1000, 1500, 2000, 2500)
    assert kept(found) == [500, 1000, 1500, 2000, 2500]
    assert kept(found, since=1000, until="2000") == [1000, 1500, 2000]
    assert kept(found, every=1000) == [1000, 2000]
    assert kept(found, every=500, latest=2) == [2000, 2500]
    assert kept(found, until=1999, every=1000, latest=3) == [1000]


@pytest.mark.parametrize(
    ("bounds", "days"),
    [
        ({"since": "7d"}, [16, 17, 22, 23]),
        ({"since": "2026-11-17"}, [17, 22, 23]),
        ({"until": datetime.date(2026, 11, 16)}, [15, 16]),
        ({"until": "yesterday"}, [15, 16, 17, 22]),
        ({"since": "today"}, [23]),
        ({"since": "12h"}, [22, 23]),  # half past nine in the evening of the 22nd
        ({"since": "9h"}, [23]),
        ({"since": "yesterday", "until": "yesterday"}, [22]),
        ({"until": "10h"}, [15, 16, 17, 22]),
        ({"since": datetime.datetime(2026, 11, 22, 23, tzinfo=datetime.timezone(datetime.timedelta(hours=-1)))}, [23]),
    ],
)
def test_a_window_of_dates_keeps_days_that_reach_into_it(bounds: dict[str, Any], days: list[int]) -> None:
    found = [Chosen(f"/r/{day}", None, datetime.date(2026, 11, day)) for day in (15, 16, 17, 22, 23)]
    assert kept(found, **bounds) == [datetime.date(2026, 11, day) for day in days]


def test_hours_count_where_names_tell_them() -> None:
    found = [Chosen(f"/r/{hour}", None, datetime.datetime(2026, 11, 23, hour)) for hour in (3, 6, 9)]
    assert kept(found, since="4h") == [one.date for one in found[1:]]
    assert kept(found, until="today") == [one.date for one in found]


def test_a_plain_date_is_its_midnight() -> None:
    found = [Chosen(f"/r/{day}", None, datetime.date(2026, 11, day)) for day in (21, 22, 23)]
    assert kept(found, today=TODAY, since="1h") == [datetime.date(2026, 11, 22), TODAY]


def test_every_counts_from_the_newest_where_there_are_no_steps() -> None:
    found = [Chosen(f"/r/{name}") for name in "abcdefg"]
    assert [one.url for one in window.narrow(Window(every=3), found, NOW)] == ["/r/a", "/r/d", "/r/g"]
    assert [one.url for one in window.narrow(Window(every=2, latest=2), found, NOW)] == ["/r/e", "/r/g"]


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (
            {"since": "7d"},
            "since 7d asks for dates, and 3 of 3 checkpoints tell none, as '/r/step-1': put {date:%Y-%m-%d}",
        ),
        ({"until": 5}, "until 5 asks for steps, and 1 of 3 checkpoints tell none, as '/r/base': put {step}"),
        ({"every": 2}, "every 2 asks for steps, and 1 of 3 checkpoints tell none, as '/r/base'"),
        ({"since": "soon"}, "since 'soon': write a step (1000), a date (2026-11-01), 7d, 12h, today or yesterday"),
        ({"since": "2026-02-30"}, "since '2026-02-30' is no date: day is out of range"),
        ({"until": "999999d"}, "until '999999d' is no date"),
        ({"since": "\x1b[2J"}, r"since '\x1b[2J'"),
    ],
)
def test_a_bound_that_cannot_be_judged_is_refused(bounds: dict[str, Any], says: str) -> None:
    found = [*stepped(1, 2), Chosen("/r/base")]
    with pytest.raises(UsageError) as refusal:
        window.narrow(Window(**bounds), found, NOW)
    assert says in str(refusal.value)


@pytest.mark.parametrize("bounds", [{"every": 0}, {"latest": -1}])
def test_a_window_of_nothing_is_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="write a number from 1 on"):
        Window(**bounds)


def test_a_window_that_leaves_nothing_says_what_there_was() -> None:
    with pytest.raises(UsageError) as refusal:
        window.narrow(Window(since=10, every=5), stepped(1, 9), NOW)
    assert str(refusal.value) == "since 10, every 5 leaves none of 2 checkpoints, '/r/step-1' to '/r/step-9'"


def test_the_window_applies_to_what_patterns_match(run: Path) -> None:
    assert names(run / "step-{step}", since=10, latest=1) == ["step-100"]
    assert "put {step} in the pattern" in message(run / "step-*", run / "base", since=10)


# Names


@pytest.mark.parametrize(
    ("urls", "named"),
    [
        (["s3://b/run7/step-3/model.safetensors", "s3://b/run7/step-4/model.safetensors"], ("step-3", "step-4")),
        (["/r/step-3", "/r/step-4"], ("step-3", "step-4")),
        (["/r1/step-3/x", "/r2/step-4/x"], ("r1/step-3", "r2/step-4")),
        (["s3://a/x", "s3://b/x"], ("a", "b")),
        (["s3://a/x/y", "s3://b/x/z"], ("a/x/y", "b/x/z")),
        (["s3://a/x", "gs://a/x"], ("s3://a", "gs://a")),
        (["/a/x", "s3://a/y"], ("/a/x", "s3://a/y")),
        (["/r/a", "/r/a/b"], ("a", "a/b")),
        (["/r/a", "/r/x/a"], ("a", "x/a")),
        (["s3://b/x//y", "s3://b/x/z/y"], ("x/", "x/z")),
        (["http://h/a/", "http://h/b/"], ("a", "b")),
        (["https://h/a?rev=1", "https://h/b?rev=1"], ("a", "b")),
        (["/r/only.safetensors"], ("only.safetensors",)),
        (["http://h/a/"], ("a",)),
        (["/"], ("/",)),
        ([], ()),
    ],
)
def test_a_member_is_named_by_what_differs(urls: list[str], named: tuple[str, ...]) -> None:
    assert member_names(urls) == named


@pytest.mark.parametrize("urls", [["/a", "/b", "/a"], ["https://h/a?rev=1", "https://h/a?rev=2"]])
def test_the_same_checkpoint_twice_is_refused(urls: list[str]) -> None:
    with pytest.raises(UsageError, match="/a' is there twice"):
        member_names(urls)


URLS = st.tuples(
    st.sampled_from(["/", "s3://b/", "s3://c/", "memory://"]),
    st.lists(st.text(st.sampled_from("a1ü .?"), max_size=2), min_size=1, max_size=4),
).map(lambda parts: parts[0] + "/".join(parts[1]).strip("/") + "x")


@settings(deadline=None)
@given(st.lists(URLS, unique=True, min_size=1, max_size=6))
def test_names_are_unique_and_never_empty_and_part_of_their_urls(urls: list[str]) -> None:
    named = member_names(urls)
    assert len(set(named)) == len(urls)
    assert all(name and name in url for name, url in zip(named, urls, strict=True))


# Pairs


def indices(pairs: Any, count: int = 4, baseline: int | None = None) -> list[tuple[int, int]]:
    found = make_pairs(pairs, [f"m{i}" for i in range(count)], [f"s3://b/m{i}/x" for i in range(count)], baseline)
    return [(pair.baseline, pair.candidate) for pair in found]


def test_modes_make_pairs() -> None:
    assert indices("consecutive") == [(0, 1), (1, 2), (2, 3)]
    assert indices("vs-first") == [(0, 1), (0, 2), (0, 3)]
    assert indices("vs-last") == [(3, 0), (3, 1), (3, 2)]
    assert indices("vs-baseline", baseline=2) == [(2, 0), (2, 1), (2, 3)]
    assert indices("all") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@settings(deadline=None)
@given(st.sampled_from(PAIRS), st.integers(2, 9), st.data())
def test_no_mode_pairs_twice_or_with_itself(mode: str, count: int, data: st.DataObject) -> None:
    baseline = data.draw(st.integers(0, count - 1)) if mode == "vs-baseline" else None
    found = indices(mode, count, baseline)
    assert len(set(map(frozenset, found))) == len(found)
    assert all(len(set(pair)) == 2 for pair in found)
    assert set(itertools.chain(*found)) == set(range(count))


def test_a_list_of_pairs_takes_names_and_urls() -> None:
    listed = [("m0", "m2"), ("s3://b/m2/x", "m0"), ("s3a://b/m1/x/", "m3")]
    assert indices(listed) == [(0, 2), (2, 0), (1, 3)]
    assert make_pairs([["m1", "m0"]], ["m0", "m1"], ["/r/m0", "/r/m1"]) == (Pair(1, 0),)


def test_a_list_of_pairs_takes_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = [str(tmp_path / "r" / name) for name in "ab"]
    assert make_pairs([("r/a", "b")], member_names(urls), urls) == (Pair(0, 1),)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (
            "consequtive",
            "write consecutive, vs-first, vs-last, vs-baseline, all, or a list. Similar names there: 'cons",
        ),
        ("vs-baseline", "name the baseline, too"),
        ([], "the list of pairs is empty"),
        ([("m0", "m0")], "the pair 'm0' and 'm0' is one checkpoint"),
        ([("m0", "s3://b/m0/x")], "is one checkpoint"),
        ([("m0", "m1"), ("s3://b/m0/x", "m1")], "is there twice"),
        ([("m0", "n1")], "'n1' of the pairs is none of the checkpoints 'm0', 'm1', 'm2', 'm3'"),
        ([("step", "m1\x1b")], "'step' of the pairs"),
        ([("m0",)], "a pair is a baseline and a candidate, and not 'm0'"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(pairs: Any, says: str) -> None:
    with pytest.raises(UsageError) as refusal:
        indices(pairs)
    assert says in str(refusal.value)


@pytest.mark.parametrize("count", [0, 1])
def test_one_member_makes_no_pair(count: int) -> None:
    with pytest.raises(UsageError, match="makes no pair: name two or more, or widen the window"):
        indices("all", count)
