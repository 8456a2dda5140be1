"""The verbs as programs: streams, exit codes, start-up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

import checkpoints
import models
from diffai_dist.report import records_schema


def program(*arguments: object, name: str = "diffai-dist", **environment: str) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own."""
    script = f"from diffai_dist.__main__ import {'main' if name == 'diffai-dist' else 'diffai'} as go; go()"
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_the_command_lines_of_the_seed_work(pair: tuple[Path, Path]) -> None:
    for flags in (
        [],
        ["--sort-by-change-magnitude"],
        ["--show-layer-impact"],
        ["--sort-by-change-magnitude", "--show-layer-impact"],
    ):
        done = program(*pair, *flags, name="diffai")
        assert done.returncode == 0, done.stderr
        assert "  ~ embed.weight: mean=" in done.stdout
        assert ", std=" in done.stdout
        assert done.stdout == program("compare", *pair, *flags).stdout


def test_the_seeds_mlflow_snippet_counts_changes(pair: tuple[Path, Path]) -> None:
    done = program(*pair, "--output", "json", name="diffai")
    diff_data = json.loads(done.stdout)
    assert len(diff_data) == 9
    assert {record["kind"] for record in diff_data} == {"tensor"}
    jsonschema.validate(diff_data, records_schema())


def test_all_outputs_say_the_same(pair: tuple[Path, Path]) -> None:
    records = json.loads(program("compare", *pair, "-o", "json").stdout)
    assert yaml.safe_load(program("compare", *pair, "-o", "yaml").stdout) == records
    for output in ("text", "markdown"):
        text = program("compare", *pair, "-o", output).stdout
        assert [record["name"] for record in records if record["name"] not in text] == []


@pytest.mark.parametrize("output", ["text", "json", "yaml", "markdown"])
def test_exit_codes_do_not_depend_on_the_output(pair: tuple[Path, Path], tmp_path: Path, output: str) -> None:
    a, b = pair
    missing = tmp_path / "missing.safetensors"

    def code(*arguments: object) -> int:
        return program("compare", *arguments, "-o", output).returncode

    assert code(a, b) == 0
    assert code(a, b, "--exit-code") == 1
    assert code(a, a, "--exit-code") == 0
    assert code(a, b, "--quiet") == 1
    assert code(a, missing) == 3
    assert code(a, missing, "--exit-code") == 3
    assert code(a, b, "--no-such-option") == 2
    assert code(a) == 2
    assert code(a, "ftp://host/x.safetensors") == 2
    assert code(a, b, "--workers", "1", "--scheduler", "env") == 2
    assert program("compare", a, b, "-o", output, "--scheduler", "env", DASK_SCHEDULER_ADDRESS="").returncode == 2
    assert program("compare", a, b, "-o", output, "--scheduler", tmp_path / "none.json").returncode == 4


def test_quiet_prints_nothing(pair: tuple[Path, Path]) -> None:
    done = program("compare", *pair, "--quiet")
    assert (done.stdout, done.stderr) == ("", "")


def test_coverage_is_said_whatever_the_output(pair: tuple[Path, Path]) -> None:
    for output, stream in (("text", "stdout"), ("json", "stderr"), ("yaml", "stderr")):
        done = program("compare", *pair, "-o", output)
        assert "9 of 12 tensors" in getattr(done, stream), getattr(done, stream)


def test_a_failure_is_in_the_records_and_on_stderr(pair: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10")
    done = program("compare", pair[0], broken, "-o", "json")
    (record,) = json.loads(done.stdout)
    jsonschema.validate([record], records_schema())
    assert record["kind"] == "failure"
    assert "broken.safetensors" in record["object"]
    assert "broken.safetensors" in done.stderr


def test_the_output_file_is_not_replaced_without_being_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "diff.json"
    done = program("compare", *pair, "-o", "json", "--output-file", out)
    assert (done.returncode, done.stdout) == (0, "")
    first = out.read_bytes()
    assert json.loads(first)
    assert program("compare", *pair, "--output-file", out).returncode == 2
    assert out.read_bytes() == first
    assert program("compare", *pair, "--output-file", out, "--force").returncode == 0
    assert out.read_bytes() != first


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    import numpy as np

    arrays = {f"layer.{index}.weight": np.full(3, index, np.float32) for index in range(5000)}
    a = models.write(tmp_path / "a.safetensors", arrays)
    b = models.write(tmp_path / "b.safetensors", {name: array + 1 for name, array in arrays.items()})
    command = f"{sys.executable} -m diffai_dist compare {a} {b} --no-progress | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.s3
def test_signals_end_with_their_codes(moto: Any, fault_proxy: Any, tmp_path: Path, number: int, code: int) -> None:
    """The proxy never answers, so the command is under way when the signal comes."""
    import numpy as np

    path = models.write(tmp_path / "a.safetensors", {"w": np.zeros(1000, np.float32)})
    moto.put("signals/a.safetensors", path.read_bytes())
    proxy = fault_proxy(moto)
    proxy.set("stall", -1, 0)
    environment = os.environ | moto.storage_environment
    url = "s3://signals/a.safetensors"
    command = [sys.executable, "-m", "diffai_dist", "compare", url, url, "--endpoint-url", proxy.endpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 60
        while not proxy.log() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr.decode()
    assert b"Traceback" not in stderr


def test_help_and_version_import_nothing_heavy() -> None:
    script = """
import sys
from diffai_dist.cli import commands
from diffai_dist.console import run
code = run(commands, "diffai-dist", [sys.argv[1]])
heavy = {"numpy", "numba", "pyarrow", "dask", "distributed", "s3fs", "fsspec", "pandas", "rich", "pydantic"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(code)
"""
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "diffai-dist" in done.stdout


def test_analyses_are_loaded_when_they_are_asked_for(pair: tuple[Path, Path]) -> None:
    script = """
import sys
from diffai_dist.analyses import EVERY
from diffai_dist.cli import commands
from diffai_dist.console import run
run(commands, "diffai-dist", sys.argv[2:])
asked = {f"diffai_dist.analyses.{name}" for name in sys.argv[1].split()}
assert {f"diffai_dist.analyses.{name}" for name in EVERY} & set(sys.modules) == asked
"""
    compare = ("compare", *map(str, pair), "--no-progress")
    layers = ("layer_impact", *compare, "--show-layer-impact")
    for asked in (("", "compare", "--help"), ("", *compare), layers):
        done = subprocess.run([sys.executable, "-c", script, *asked], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_readers_and_schemes_are_loaded_when_a_file_asks_for_them(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    script = """
import sys
from diffai_dist.cli import commands
from diffai_dist.console import run
from diffai_dist.schemes import SCHEMES
from diffai_dist.schemes.stored import Late
run(commands, "diffai-dist", ["compare", *sys.argv[2:], "--no-progress"])
finding = {one.find.name.partition(":")[0] for one in SCHEMES if isinstance(one.find, Late)}
late = {f"schemes.{name}" for name in finding | {"loops", "blocks", "scales", "ggml", "chunked"}}
late |= {f"formats.{name}" for name in ("gguf", "npy", "npz", "zips", "archive", "ranges", "torch_zip", "dcp")}
found = {name for name in late if f"diffai_dist.{name}" in sys.modules}
assert found == set(sys.argv[1].split()), found
"""
    fp8 = {"m.weight": ("F8_E4M3", (4, 8)), "m.weight_scale": ("F32", (4, 1)), "n.weight": ("BF16", (4, 8))}
    quantised = checkpoints.write_sparse(tmp_path / "fp8.safetensors", fp8)
    np.save(tmp_path / "array.npy", np.ones(3, np.float32))
    asked = {
        "": pair,
        "schemes.fp8 schemes.loops schemes.blocks schemes.scales": (pair[0], quantised),
        "formats.npy": (tmp_path / "array.npy", tmp_path / "array.npy"),
    }
    for names, urls in asked.items():
        command = [sys.executable, "-c", script, names, *map(str, urls)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_else() -> None:
    script = (
        "import sys, diffai_dist; assert 'numpy' not in sys.modules; from diffai_dist import compare; compare.__call__"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_comparing_files_needs_no_cluster_no_cloud_and_no_tables(pair: tuple[Path, Path]) -> None:
    script = """
import sys
from diffai_dist.cli import commands
from diffai_dist.console import run
run(commands, "diffai-dist", ["compare", *sys.argv[1:], "--no-progress"])
heavy = {"pyarrow", "distributed", "s3fs", "pandas", "aiobotocore"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script, *map(str, pair)], check=True, stdout=subprocess.DEVNULL)


def test_plan_reads_no_weights(pair: tuple[Path, Path]) -> None:
    document = json.loads(program("plan", *pair, "-o", "json").stdout)
    assert document["tensors"] == {"added": 1, "compared": 9, "incomparable": 1, "removed": 1}
    assert document["problems"] == []
    assert document["read_bytes"] > 0
    script = """
import sys
from diffai_dist import storage
from diffai_dist.cli import commands
from diffai_dist.console import run
run(commands, "diffai-dist", ["plan", *sys.argv[1:]])
assert storage.traffic().bytes <= 2 * 131072, storage.traffic()
"""
    subprocess.run([sys.executable, "-c", script, *map(str, pair)], check=True, stdout=subprocess.DEVNULL)


def test_plan_and_run_agree_on_bytes(pair: tuple[Path, Path]) -> None:
    planned = json.loads(program("plan", *pair, "-o", "json").stdout)["read_bytes"]
    total = sum(
        int(line.split()[0]) for line in program("compare", *pair, "-v").stderr.splitlines() if line.endswith("x")
    )
    assert planned > total


def test_inspect_lists_what_headers_tell(pair: tuple[Path, Path]) -> None:
    document = json.loads(program("inspect", pair[0], "-o", "json").stdout)
    named = {tensor["name"]: tensor for tensor in document["tensors"]}
    assert named["embed.weight"]["shape"] == [2100, 1024]
    assert named["model.layers.0.mlp.up_proj.weight"]["dtype"] == "BF16"
    text = program("inspect", pair[0]).stdout
    assert "embed.weight" in text
    assert "11 tensors in 1 object," in text


def test_a_memory_limit_that_cannot_be_met_is_refused(pair: tuple[Path, Path]) -> None:
    done = program("compare", *pair, "--memory-limit", "1MB")
    assert done.returncode == 2
    assert "--memory-limit 1MB" in done.stderr


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), ("2>&-", 0), (">/dev/full", 4), ("--epsilon nan 2>/dev/full", 4), ("--output-file /dev/null", 0)],
)
def test_closed_and_full_streams_end_without_a_traceback(pair: tuple[Path, Path], redirection: str, code: int) -> None:
    command = f"{sys.executable} -m diffai_dist compare {pair[0]} {pair[1]} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_could_not_be_written_is_refused_before_the_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for options in (
        ["--output-file", tmp_path],
        ["--output-file", tmp_path / "none" / "out.txt"],
        ["--store", pair[0]],
        ["--store", "https://example.invalid/store"],
        ["--workers", "2", "--memory-limit", "100MB"],
        ["--scheduler", "foo://x"],
        ["--unit-size", "much"],
    ):
        done = program("compare", *pair, *options)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "[E0002]" in done.stderr


def test_a_store_that_cannot_be_written_is_found_before_anything_is_read(pair: tuple[Path, Path]) -> None:
    done = program("compare", *pair, "--store", "/proc/diffai-store")
    assert (done.returncode, done.stdout) == (4, "")
    assert "/proc/diffai-store" in done.stderr


def test_a_store_that_fails_at_the_end_does_not_cost_the_result(pair: tuple[Path, Path], tmp_path: Path) -> None:
    script = """
import sys
from diffai_dist import store
from diffai_dist.__main__ import main
from diffai_dist.errors import StoreError

def full(*arguments):
    raise StoreError("the disk is full")

store.ReportStore.finish = full
main()
"""
    command = [sys.executable, "-c", script, "compare", *map(str, pair), "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4
    assert "embed.weight" in done.stdout
    assert "the disk is full" in done.stderr


def test_quiet_still_writes_the_output_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = program("compare", *pair, "-q", "-o", "json", "--output-file", tmp_path / "out.json")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert json.loads((tmp_path / "out.json").read_text())


def test_hostile_dtypes_are_inert_in_a_listing(tmp_path: Path) -> None:
    path = checkpoints.write_data(tmp_path / "a.safetensors", {"w": ("\x1b[31mEVIL", (4,), bytes(4))})
    for command in (["inspect", path], ["compare", path, path, "--show-identical"], ["plan", path, path]):
        assert "\x1b" not in program(*command).stdout


def test_a_plan_says_what_cannot_be_opened(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = program("plan", pair[0], tmp_path / "nothing", "-o", "json")
    assert done.returncode == 3
    (problem,) = json.loads(done.stdout)["problems"]
    assert "nothing" in problem


def test_the_demo_shows_what_it_planted(tmp_path: Path) -> None:
    done = program("demo", "--directory", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "nans=0->1" in done.stdout
    second = done.stdout.split("\n2. ")[1].split("\n3. ")[0]
    assert "~ fc1" not in second
    assert "~ fc2.weight" in second
    assert len(list((tmp_path / "demo").glob("*.safetensors"))) == 7  # four steps, a cast and two quantised versions


def test_completion_prints_a_script_for_both_programs() -> None:
    for shell in ("zsh", "fish"):
        done = program("completion", shell)
        assert "_DIFFAI_DIST_COMPLETE" in done.stdout
        assert "_DIFFAI_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    "environment", [{"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"HOME": "/nonexistent"}]
)
def test_poor_surroundings_are_survived(pair: tuple[Path, Path], environment: dict[str, str]) -> None:
    done = program("compare", *pair, **environment)
    assert done.returncode == 0, done.stderr
    assert "embed.weight" in done.stdout


def test_output_does_not_depend_on_hash_seed_or_time_zone(pair: tuple[Path, Path]) -> None:
    outputs = {
        program(
            "compare", *pair, "-o", "json", "--show-layer-impact", "--change-summary", PYTHONHASHSEED=seed, TZ=zone
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert len(outputs) == 1


SECRET = "wJalrXUtnFEMI-canary"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@bucket/a.safetensors",
        f"https://user:{SECRET}@example.invalid/a.safetensors",
        f"https://example.invalid/a.safetensors?X-Amz-Signature={SECRET}",
        f"https://example.invalid/a.safetensors?sig={SECRET}",
    ],
)
def test_a_secret_in_a_url_is_refused_and_never_echoed(url: str) -> None:
    done = program("compare", url, url)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
