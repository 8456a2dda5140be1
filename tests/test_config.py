"""A configuration is settings or an error with its place; it holds no secrets, and shows none."""

from __future__ import annotations

import doctest
import json
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from diffai_dist import config
from diffai_dist.config import SweepConfig, json_schema, load, merged, problems, setting_paths
from diffai_dist.errors import UsageError
from diffai_dist.report import RENDERERS

CONFIGS = Path(__file__).parents[1] / "configs"
OTHERS = ("names.yaml", "policy.yaml", "slurm-jobs.yaml")  # not of sweeps
EXAMPLES = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.name not in OTHERS]
HOME = {"HOME": "/home/me"}
CANARY = "wJalrXUtnFEMIK7MDENG"

Load = Callable[..., SweepConfig]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def of(text: str | bytes, **options: Any) -> SweepConfig:
        Path("n.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load("n.yaml", HOME, **options)

    return of


def refusal(load: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(*arguments, **options)
    return str(caught.value)


def outcome(load: Callable[..., object], *arguments: Any) -> str:
    """The message of the refusal, empty if there is none."""
    try:
        load(*arguments)
    except UsageError as error:
        return str(error) or "no message"
    return ""


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(problems) == (0, 1)


def test_what_is_written_is_what_is_read(settings: Load) -> None:
    read = settings(
        "checkpoints: s3://b/step-*\nsince: 2026-11-01\nuntil: 000900\nlatest: 3\nepsilon: 1\n"
        "select: {include: [a, b]}\nstorage:\n  anon: true\ncluster: {workers: 2}\noutput: {format: json}\nname: no\n"
    )
    assert (read.patterns, read.since, read.until, read.latest) == (("s3://b/step-*",), "2026-11-01", 900, 3)
    assert (read.epsilon, read.select.include, read.storage.anon) == (1.0, ("a", "b"), True)
    assert (read.cluster.workers, read.output.format, read.name) == (2, "json", "no")


def test_what_is_not_written_has_its_default(settings: Load) -> None:
    read = settings("checkpoints: /a\n")
    assert read == SweepConfig(checkpoints=("/a",))
    assert settings("checkpoints: /a\nlatest:\nselect:\ncluster:\n  # workers: 2\n") == read


def test_a_section_of_comments_is_there_with_its_defaults(settings: Load) -> None:
    slurm = settings("checkpoints: a\ncluster:\n  slurm:\n    # jobs: 4\n").cluster.slurm
    assert slurm is not None
    assert slurm.jobs == 1
    assert "n.yaml:3:3: the key 'ca_file' is missing\n    tls: ...\n" in refusal(
        settings, "checkpoints: a\ncluster:\n  tls:\n"
    )


def test_paths_are_relative_to_the_folder_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "n.yaml").write_text(
        "checkpoints: [step-*, ../b, ~/c, '@list', '-', s3://b/c/, /d]\nstore: reports\noutput: {file: ~}\n"
        "pairs: [[step-1, ./x], [/y, s3://b/z]]\n"
        "cluster:\n  slurm: {config: jobs.yaml}\n  tls: {ca_file: ca, cert_file: ~/cert, key_file: /key}\n"
    )
    read = load(str(folder / "n.yaml"), HOME)
    escaped = f"{tmp_path}/run[[]1]"  # a folder is no pattern, whatever its name
    assert read.checkpoints == (
        f"{escaped}/step-*",
        f"{tmp_path}/b",
        "/home/me/c",
        f"@{folder}/list",
        "-",
        "s3://b/c/",
        "/d",
    )
    assert read.pairs == (("step-1", f"{folder}/x"), ("/y", "s3://b/z"))
    assert (read.store, read.output.file) == (f"{folder}/reports", None)
    assert read.cluster.slurm == config.Slurm(config=f"{folder}/jobs.yaml")
    assert read.cluster.tls == config.Tls(ca_file=f"{folder}/ca", cert_file="/home/me/cert", key_file="/key")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("env", "env"),
        ("tls://h:1", "tls://h:1"),
        ("scheduler.json", "/r/scheduler.json"),
        ("~/s.json", "/home/me/s.json"),
    ],
)
def test_a_scheduler_is_an_address_or_a_file(settings: Load, tmp_path: Path, written: str, read: str) -> None:
    scheduler = settings(f"checkpoints: a\ncluster: {{scheduler: '{written}'}}\n").cluster.scheduler
    assert scheduler == read.replace("/r/", f"{tmp_path}/")


REFUSED = {
    "unknown key": (
        "checkpoints: a\nstorage:\n  endpont_url: http://x\n",
        "n.yaml:3:3: unknown key 'endpont_url' (did you mean 'endpoint_url'?)\n    endpont_url: ...",
    ),
    "dashes": (
        "checkpoints: a\nselect:\n  ignore-keys-regex: x\n",
        "n.yaml:3:3: unknown key 'ignore-keys-regex' (did you mean 'ignore_keys_regex'?)\n    ignore-keys-regex: ...",
    ),
    "wrong section": (
        "checkpoints: a\nworkers: 4\n",
        "n.yaml:2:1: unknown key 'workers' (did you mean 'cluster.workers'?)\n    workers: ...",
    ),
    "unknown key of nothing": (
        "checkpoints: a\noutput:\n  colour:\n",
        "n.yaml:3:3: unknown key 'colour' (there are format, file)\n    colour: ...",
    ),
    "hostile key": (
        'checkpoints: a\noutput: {"\\e[31m\\n": 1}\n',
        "n.yaml:2:10: unknown key '\\x1b[31m\\x0a' (there are format, file)\n    \\x1b[31m\\x0a: ...",
    ),
    "text for a number": (
        "checkpoints: a\ncluster: {workers: four}\n",
        "n.yaml:2:20: workers wants a whole number, found the text 'four'\n    cluster: {workers: four}",
    ),
    "quoted number": (
        "checkpoints: a\nlatest: '3'\n",
        "n.yaml:2:9: latest wants a whole number, found the text '3' (remove the quotes)\n    latest: '3'",
    ),
    "number for text": (
        "checkpoints: a\nname: 7\n",
        "n.yaml:2:7: name wants text, found the number 7 (put it in quotes)\n    name: 7",
    ),
    "YAML 1.1": (
        "checkpoints: a\nstorage:\n  anon: yes\n",
        "n.yaml:3:9: anon wants true or false, found the text 'yes' (write true, without quotes)\n    anon: yes",
    ),
    "true for a number": (
        "checkpoints: a\nlatest: true\n",
        "n.yaml:2:9: latest wants a whole number, found true\n    latest: true",
    ),
    "zero": ("checkpoints: a\nevery: 0\n", "n.yaml:2:8: every wants at least 1, found the number 0\n    every: 0"),
    "negative": (
        "checkpoints: a\nepsilon: -1.0e-6\n",
        "n.yaml:2:10: epsilon wants at least 0, found the number -1e-06\n    epsilon: -1.0e-6",
    ),
    "infinite": (
        "checkpoints: a\nepsilon: .inf\n",
        "n.yaml:2:10: epsilon wants a finite number, found the number inf\n    epsilon: .inf",
    ),
    "inside a list": (
        "checkpoints:\n  - a\n  - 7\n",
        "n.yaml:3:5: checkpoints wants text, found the number 7 (put it in quotes)\n    - 7",
    ),
    "nothing in a list": (
        "checkpoints: a\nselect: {include: [a, ~]}\n",
        "n.yaml:2:23: include wants text, found nothing\n    select: {include: [a, ~]}",
    ),
    "list for a section": (
        "checkpoints: a\ncluster: [4]\n",
        "n.yaml:2:10: cluster wants a section of settings, found a list\n    cluster: [4]",
    ),
    "text for a list": (
        "checkpoints: a\nanalyses: layer_impact\n",
        "n.yaml:2:11: analyses wants a list, found the text 'layer_impact'\n    analyses: layer_impact",
    ),
    "pairs": (
        "checkpoints: a\npairs: consecutve\n",
        "n.yaml:2:8: pairs wants one of consecutive, vs-first, vs-last, vs-baseline, all or a list, found the text "
        "'consecutve' (did you mean 'consecutive'?)\n    pairs: consecutve",
    ),
    "half a pair": (
        "checkpoints: a\npairs: [[a, b], [a]]\n",
        "n.yaml:2:17: pairs wants two entries, [baseline, candidate], found a list\n    pairs: [[a, b], [a]]",
    ),
    "three in a pair": (
        "checkpoints: a\npairs: [[a, b, c]]\n",
        "n.yaml:2:9: pairs wants two entries, [baseline, candidate], found a list\n    pairs: [[a, b, c]]",
    ),
    "missing key": ("name: x\n", "n.yaml:1:1: the key 'checkpoints' is missing"),
    "no checkpoints": (
        "checkpoints: []\n",
        "n.yaml:1:14: checkpoints is an empty list: name at least one path, URL or pattern\n    checkpoints: []",
    ),
    "no pairs": (
        "checkpoints: a\npairs: []\n",
        "n.yaml:2:8: pairs is an empty list: name two checkpoints, or leave the key out\n    pairs: []",
    ),
    "no baseline": (
        "checkpoints: a\npairs: vs-baseline\n",
        "n.yaml:2:8: pairs: vs-baseline needs the key 'baseline', the path or URL of a checkpoint\n"
        "    pairs: vs-baseline",
    ),
    "baseline for nothing": (
        "checkpoints: a\nbaseline: b\n",
        "n.yaml:2:11: baseline is for pairs: vs-baseline or all; set one of them, or leave it out\n    baseline: b",
    ),
    "elementwise": (
        "checkpoints: a\nelementwise: true\n",
        "n.yaml:2:14: elementwise is for pairs: all only; all other pairs are measured so anyway\n"
        "    elementwise: true",
    ),
    "regular expression": (
        "checkpoints: a\nselect:\n  ignore_keys_regex: '('\n",
        "n.yaml:3:22: ignore_keys_regex is no regular expression: missing ), unterminated subpattern at position 0\n"
        "    ignore_keys_regex: '('",
    ),
    "protocol": (
        "checkpoints: [a, gopher://x]\n",
        "n.yaml:1:18: 'gopher://x': the protocol 'gopher' is not supported, use one of file, s3, gs, abfs, abfss, az, "
        "hf, http, https, memory\n    checkpoints: [a, gopher://x]",
    ),
    "endpoint": (
        "checkpoints: a\nstorage: {endpoint_url: minio}\n",
        "n.yaml:2:25: endpoint_url is not an http:// or https:// URL: write it as https://host:port\n"
        "    storage: {endpoint_url: minio}",
    ),
    "nothing as a store": (
        "checkpoints: a\nstore: ''\n",
        "n.yaml:2:8: '' is not a URL or path: it is empty or holds a NUL byte\n    store: ''",
    ),
    "size": (
        "checkpoints: a\ncluster: {unit_size: 4x}\n",
        "n.yaml:2:22: unit_size '4x' is not a size such as 4GB\n    cluster: {unit_size: 4x}",
    ),
    "no size": (
        "checkpoints: a\ncluster: {memory_limit: -1GB}\n",
        "n.yaml:2:25: memory_limit is '-1GB': give at least 1 byte\n    cluster: {memory_limit: -1GB}",
    ),
    "two places": (
        "checkpoints: a\ncluster:\n  workers: 2\n  scheduler: env\n",
        "n.yaml:3:3: workers and slurm start a cluster, scheduler joins one: give one of them\n    workers: 2",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_names_place_line_and_remedy(settings: Load, text: str, message: str) -> None:
    assert refusal(settings, text) == message


def test_analyses_are_those_that_there_are(settings: Load) -> None:
    text = "checkpoints: a\nanalyses:\n  - change_summary\n  - layer-impact\n"
    known = {"layer_impact", "change_summary"}
    assert refusal(settings, text, analyses=known) == (
        "n.yaml:4:5: unknown analysis 'layer-impact' (did you mean 'layer_impact'?)\n    - layer-impact"
    )
    assert "(there are change_summary, layer_impact)" in refusal(
        settings, "checkpoints: a\nanalyses: [x]\n", analyses=known
    )
    assert settings(text).analyses == ("change_summary", "layer-impact")


def test_problems_come_in_the_order_of_the_file_and_the_rest_is_counted(settings: Load) -> None:
    text = "checkpoints: a\n" + "".join(f"x{number}: {number}\n" for number in range(7)) + "latest: x\n"
    lines = refusal(settings, text).splitlines()
    assert [line.partition(" ")[0] for line in lines[::2]] == [*(f"n.yaml:{line}:1:" for line in range(2, 7)), "and"]
    assert lines[-1] == "and 3 more"


NOT_YAML = {
    "empty": ("", "1:1: empty"),
    "comments": ("# nothing\n", "1:1: empty"),
    "list": ("- a\n", "1:1: not a mapping"),
    "text": ("checkpoints\n", "1:1: not a mapping"),
    "two documents": ("checkpoints: a\n---\nb: 1\n", "2:1: not YAML: expected a single document"),
    "colons": ("checkpoints: a: b\n", "1:15: not YAML: mapping values are not allowed here"),
    "tab": ("checkpoints:\n\t- a\n", "2:1: a tab in the indentation"),
    "conflict": ("checkpoints: a\n<<<<<<< HEAD\nlatest: 1\n=======\n", "2:1: a marker of a merge conflict"),
    "end of a conflict": (">>>>>>> theirs\ncheckpoints: a\n", "1:1: a marker of a merge conflict"),
    "duplicate": ("checkpoints: a\nstore: x\nstore: y\n", "3:1: the key 'store' stands in line 2 already"),
    "number as a key": ("checkpoints: a\n7: x\n", "2:1: a key is text"),
    "list as a key": ("? [a]\n: b\n", "1:3: a key is text"),
    "merge key": ("checkpoints: a\n<<: {name: x}\n", "2:1: unknown key '<<'"),
    "Python": ("checkpoints: !!python/object/apply:os.system [id]\n", "1:14: the tag"),
    "Python in a key": ("!!python/name:os.system x: a\n", "1:1: the tag"),
    "own tag": ("checkpoints: !secret a\n", "1:14: the tag '!secret' is refused"),
    "binary": ("checkpoints: !!binary aGk=\n", "1:14: the tag"),
    "set": ("checkpoints: !!set {a}\n", "1:14: the tag"),
    "no number": ("checkpoints: a\nlatest: !!int x\n", "2:9: no usable int"),
    "huge number": (f"checkpoints: a\nlatest: 0x{'f' * 5000}\n", "2:9: no usable int"),
    "lone surrogate": ('checkpoints: "\\ud800"\n', "1:14: no usable str"),
    "beyond Unicode": ('checkpoints: "\\UFFFFFFFF"\n', "1:1: not YAML: an escape"),
    "control character": ("checkpoints: a\nname: \x07\n", "2:7: not YAML: a character that does not print"),
    "unknown alias": ("checkpoints: *a\n", "1:14: not YAML: found undefined alias"),
    "bomb": (
        "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(9)),
        "more than 100,000",
    ),
    "endless": ("checkpoints: &a [*a]\n", "1:14: nested more than 20 levels deep"),
    "deep": ("[" * 50_000, "1:1: nested more than 20 levels deep"),
}


@pytest.mark.parametrize(("text", "message"), NOT_YAML.values(), ids=NOT_YAML)
def test_what_is_no_configuration_is_refused_with_its_place(settings: Load, text: str, message: str) -> None:
    found = refusal(settings, text)
    assert re.match(r"n\.yaml:\d+:\d+: ", found)
    assert message in found


def test_an_alias_is_a_copy(settings: Load) -> None:
    read = settings("checkpoints: &all [/a, /b]\nselect: {include: *all}\n")
    assert read.checkpoints == read.select.include == ("/a", "/b")


def test_files_that_cannot_be_read_are_named(tmp_path: Path, settings: Load) -> None:
    assert (
        refusal(load, "nothing.yaml", HOME)
        == "nothing.yaml: the configuration cannot be read: No such file or directory"
    )
    assert refusal(load, ".", HOME) == ".: the configuration cannot be read: Is a directory"
    assert "embedded null byte" in refusal(load, "a\0b", HOME)
    assert refusal(load, "s3://b/n.yaml", HOME) == "s3://b/n.yaml: a configuration is a local file; copy it here first"
    assert refusal(settings, b"name: \xff").startswith("n.yaml: byte 6 is not UTF-8")
    assert refusal(settings, b"#" * 1_000_001).startswith("n.yaml: larger than 1,000,000 bytes")


def test_a_byte_order_mark_is_no_part_of_the_first_key(settings: Load) -> None:
    assert settings(b"\xef\xbb\xbfcheckpoints: /a\n").patterns == ("/a",)


SECRETS = [
    *(
        f"checkpoints: a\n{key}: {CANARY}\n"
        for key in (
            *(
                "key",
                "secret",
                "token",
                "password",
                "access_key",
                "secret-access-key",
                "AWS_SECRET_ACCESS_KEY",
                "apiKey",
            ),
            *("hf_token", "credentials", "passphrase", "sas", "account_key", "X-Auth-Token", "connectionString"),
        )
    ),
    f"checkpoints: a\nstorage:\n  anon: true\n  secret: {CANARY}\n",
    f"checkpoints: a\nstorage: {{endpoint_url: 7, secret: {CANARY}}}\n",
    f"checkpoints: a\nstorage: {{secret: [{{deep: {CANARY}}}]}}\n",
    f"checkpoints: a\nstorage:\n  token: |\n    first\n    {CANARY}\n",
    f"checkpoints: a\nenv:\n  - {{name: AWS_SECRET_ACCESS_KEY, value: {CANARY}, token: x}}\n",
    f"checkpoints: a\nstorge: {{pasword: {CANARY}}}\n",
    f"checkpoints: a\npasword:\n  {CANARY}\n",
    f"checkpoints: a\nstorage: {{pasword: {CANARY}, anon: 7}}\n",
    f"checkpoints: a\nname: {{pasword: {CANARY}}}\n",
    f"checkpoints: s3://me:{CANARY}@bucket/x\n",
    f"checkpoints: [a, 's3://me:{CANARY}@bucket/step-*']\n",
    f"checkpoints: '@s3://me:{CANARY}@bucket/list'\n",
    f"checkpoints: https://host/x?X-Amz-Credential=me&X-Amz-Signature={CANARY}\n",
    f"checkpoints: https://account.blob.core.windows.net/x?sv=1&sig={CANARY}\n",
    f"checkpoints: simplecache::s3://me:{CANARY}@bucket/x\n",
    f"checkpoints: a\nname: see https://me:{CANARY}@wiki/x\n",
    f"checkpoints: a\nstore: https://{CANARY}@host/x\n",
    f"checkpoints: a\npairs: [[a, 's3://me:{CANARY}@b/x']]\n",
    f"checkpoints: a\nbaseline: gs://b/x?access_token={CANARY}\n",
    f"checkpoints: a\nstorage: {{endpoint_url: 'http://me:{CANARY}@host:9000'}}\n",
    f"checkpoints: a\ncluster: {{scheduler: 'tls://me:{CANARY}@host:8786'}}\n",
    f"checkpoints: a\ncluster: {{scheduler: 'tcp://host:8786?token={CANARY}'}}\n",
    f"checkpoints: a\n'https://me:{CANARY}@host': 1\n",
    f"checkpoints: a\nname: AKIAIOSFODNN7EXAMPLE {CANARY}\n",
    f"checkpoints: a\nname: hf_abcdefghijklmnopqrstuvwxyz{CANARY}\n",
    f"checkpoints: a\nname: |\n  -----BEGIN RSA PRIVATE KEY-----\n  {CANARY}\n",
    f"checkpoints: ${{AWS_SECRET_ACCESS_KEY}}/{CANARY}\n",
    f"checkpoints: a\ntoken: {CANARY}: x\n",  # no YAML, which would quote the line
    f"checkpoints: a\n  password: {CANARY}\n",
    f"checkpoints: s3://me:{CANARY}@b/x: y\n",
    f"checkpoints: a\nsecret: {CANARY}\nsecret: {CANARY}\n",
    f"checkpoints: a\nsecret: !own {CANARY}\n",
]


@pytest.mark.parametrize("text", SECRETS, ids=range(len(SECRETS)))
def test_a_secret_is_refused_and_not_shown(settings: Load, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(text)
    shown = "".join(traceback.format_exception(caught.value))
    assert str(caught.value) in shown
    assert CANARY not in shown


def test_the_refusal_of_a_secret_says_how_to_pass_it(settings: Load) -> None:
    found = refusal(settings, f"checkpoints: a\nlatest: x\nstorage: {{key: {CANARY}}}\n")
    assert found.startswith("n.yaml:3:11: 'key' looks like a credential, and a configuration holds none: ")
    for way in ("AWS_SECRET_ACCESS_KEY", "storage.profile", "role"):
        assert way in found


def test_secrets_of_the_command_line_are_refused_alike() -> None:
    for name, value in {
        "store": f"s3://me:{CANARY}@b/x",
        "storage": {"secret": CANARY},
        "cluster.scheduler": f"tls://me:{CANARY}@h:1",
    }.items():
        assert CANARY not in refusal(merged, SweepConfig(checkpoints="a"), {name: value})


def test_names_that_only_look_like_secrets_are_settings(settings: Load) -> None:
    read = settings(
        "checkpoints: 's3://b/step-?/token_embd'\n"
        "select: {exclude: ['*token_embd*', '*.key.*'], ignore_keys_regex: 'key$'}\n"
        "cluster:\n  scheduler: tls://10.0.0.1:8786\n  tls: {ca_file: /a, cert_file: /b, key_file: /secret/token.pem}\n"
    )
    assert read.select.exclude == ("*token_embd*", "*.key.*")


BASE = SweepConfig(
    checkpoints=("/a",),
    pairs="vs-baseline",
    baseline="/b",
    store="/s",
    cluster=config.Cluster(scheduler="env", threads=2),
)


def test_what_is_not_given_leaves_the_file_as_it_is() -> None:
    assert merged(BASE, {"store": None, "cluster.workers": None}) == BASE


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = merged(
        BASE, {"store": "r", "checkpoints": ("x", Path("y")), "storage.anon": True, "select.include": ("w",)}
    )
    assert (asked.store, asked.checkpoints) == (f"{tmp_path}/r", (f"{tmp_path}/x", f"{tmp_path}/y"))
    assert (asked.storage.anon, asked.select.include, asked.baseline) == (True, ("w",), "/b")


def test_a_choice_takes_the_place_of_what_it_rules_out() -> None:
    workers = merged(BASE, {"cluster.workers": 4}).cluster
    assert (workers.workers, workers.scheduler, workers.threads) == (4, None, 2)
    slurm = merged(BASE, {"cluster.slurm.jobs": 3}).cluster
    assert (slurm.slurm, slurm.scheduler, slurm.threads) == (config.Slurm(jobs=3), None, None)
    assert merged(BASE, {"pairs": "all", "elementwise": True}).elementwise
    assert merged(BASE, {"pairs": "vs-first"}).baseline is None
    assert merged(BASE, {"pairs": "all"}).baseline == "/b"  # the anchor
    assert merged(BASE, {"pairs": "vs-baseline"}).baseline == "/b"
    everything = merged(BASE, {"pairs": "all", "elementwise": True})
    assert merged(everything, {"pairs": "vs-first"}).elementwise is False
    assert merged(everything, {"pairs": "all"}).elementwise is True


def test_tls_is_not_switched_off_by_the_way() -> None:
    tls = {"cluster.tls": {"ca_file": "/a", "cert_file": "/b", "key_file": "/c"}}
    kept = merged(merged(BASE, tls), {"cluster.scheduler": "tls://h:1"})
    assert kept.cluster.tls == config.Tls(ca_file="/a", cert_file="/b", key_file="/c")
    assert "tls:// scheduler" in refusal(merged, kept, {"cluster.scheduler": "tcp://h:1"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cluster.workers": 0}, "workers wants at least 1, found the number 0"),
        ({"cluster.wrkers": 1}, "cluster.wrkers: unknown key 'wrkers' (did you mean 'workers'?)"),
        (
            {"latest": "x", "every": "y"},
            "every wants a whole number, found the text 'y'; latest wants a whole number, found the text 'x'",
        ),
        ({"checkpoints": ()}, "checkpoints is an empty list: name at least one path, URL or pattern"),
        ({"epsilon": float("nan")}, "epsilon: float is no text, number or list of them"),
        ({"store": object()}, "store: object is no text, number or list of them"),
        ({"store": "\udcff"}, "store: str is no text, number or list of them"),
        ({"cluster": 4, "cluster.threads": 2, "storage": 4}, "storage wants a section of settings, found the number 4"),
    ],
)
def test_what_the_command_line_says_is_checked_alike(overrides: dict[str, Any], message: str) -> None:
    assert refusal(merged, BASE, overrides) == message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_example_is_a_configuration(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert load(str(path), HOME).patterns
    jsonschema.validate(_without_empty(YAML(typ="safe", pure=True).load(text)), json_schema())


def _without_empty(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def commented(text: str) -> Iterator[str]:
    """The text once for each setting that is commented out in it, without that comment sign."""
    for line in re.finditer(r"^( *)# (?=[a-z_]+: )", text, re.MULTILINE):
        yield f"{text[: line.start()]}{line[1]}{text[line.end() :]}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_what_is_commented_out_in_an_example_can_be_used(settings: Load, path: Path) -> None:
    for text in commented(path.read_text(encoding="utf-8")):
        settings(text)


def test_every_setting_is_in_an_example(settings: Load) -> None:
    shown: set[tuple[str, ...]] = set()
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        for variant in (text, *commented(text)):
            shown |= set(_names(YAML(typ="safe", pure=True).load(variant)))
    assert sorted(set(setting_paths()) - shown) == []


def _names(settings: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in settings.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from _names(value, (*before, name))


def test_the_published_schema_is_that_of_the_model() -> None:
    published = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    assert published == json_schema(), "run: diffai-dist config schema > configs/schema.json"


def test_every_setting_has_a_description() -> None:
    schema = json_schema()
    for kind in (schema, *schema["$defs"].values()):
        assert kind["description"]
        assert [name for name, field in kind["properties"].items() if not {"description", "$ref"} & set(field)] == []


def test_the_formats_are_those_that_there_are() -> None:
    assert json_schema()["$defs"]["Output"]["properties"]["format"]["enum"] == list(RENDERERS)


EVERYTHING = [path.read_text(encoding="utf-8") for path in EXAMPLES]
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["env", "all", "4GB"])
)
NAMES = st.sampled_from(sorted({path[-1] for path in setting_paths()})) | st.text(max_size=10)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=10
    ),
    max_size=6,
)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """An example with a few pieces cut out, doubled or replaced."""
    text = draw(st.sampled_from(EVERYTHING))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(start + 30, len(text))))
        piece = draw(
            st.sampled_from([text[start:stop] * 2, "", ": ", "\n", "\t", "- ", "[", "{", "&a ", "*a", "!!int ", "'"])
            | st.text(max_size=5)
        )
        text = text[:start] + piece + text[stop:]
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "n.yaml"


@pytest.mark.filterwarnings("ignore:Possible (nested set|set)")  # of a mutated regular expression
@given(mutations() | TREES.map(json.dumps) | st.text())
@example("%YAML 1.1\n---\ncheckpoints: a\nstorage: {anon: no}\n")
@example("checkpoints: a\r\nlatest: x\r\n")
@example("checkpoints: a\u2028latest: x\n")
def test_any_text_is_settings_or_an_error_with_a_place(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = outcome(load, str(file), HOME)
    assert re.match(r"$|.*n\.yaml(:\d+:\d+|: byte [\d,]+)", message)
    assert all(line.isprintable() for line in message.splitlines())


OVERRIDES = st.sampled_from([".".join(path) for path in setting_paths()])


@given(st.dictionaries(OVERRIDES, PLAIN | st.lists(PLAIN, max_size=3), max_size=4))
@example({"cluster": False, "cluster.slurm.jobs": 1})
def test_any_override_is_a_setting_or_an_error(overrides: dict[str, Any]) -> None:
    assert outcome(merged, BASE, overrides) != "no message"


VALIDATOR = jsonschema.Draft202012Validator(json_schema())


@given(TREES)
def test_what_is_accepted_passes_the_schema(file: Path, tree: dict[str, Any]) -> None:
    tree = {**tree, "checkpoints": "a"}
    file.write_text(json.dumps(tree))
    if not outcome(load, str(file), HOME):
        VALIDATOR.validate(_without_empty(tree))
