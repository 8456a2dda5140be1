"""The night of the README: twelve checkpoints of a real training in a bucket, with what went wrong in them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffai_dist.demo import night

pytestmark = pytest.mark.s3

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def nightly_command(bucket: str) -> list[str]:
    """The README's command, on another bucket."""
    found = re.search(r"^diffai-dist (sweep 's3://bucket/run7/step-\*'.*)$", README, re.MULTILINE)
    assert found, "the README has no nightly sweep"
    arguments = shlex.split(found[1].replace("s3://bucket/", f"s3://{bucket}/"))
    return [sys.executable, "-m", "diffai_dist", *arguments]


def upload(server: Any, bucket: str, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.put(f"{bucket}/{prefix}/{path.relative_to(folder)}", path.read_bytes())


def findings(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for record in records if record["kind"] == "analysis" for one in record["findings"]]


def test_a_clean_night_has_no_findings(s3: Any, bucket: str, tmp_path: Path) -> None:
    night.write_night(tmp_path)
    upload(s3, bucket, tmp_path, "run7")
    done = subprocess.run([*nightly_command(bucket), "-o", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [one for one in findings(json.loads(done.stdout)) if one["severity"] != "info"] == []


def test_every_plant_is_named_and_nothing_else(s3: Any, bucket: str, tmp_path: Path) -> None:
    night.write_night(tmp_path)
    plants = night.plant(tmp_path)
    upload(s3, bucket, tmp_path, "run7")
    done = subprocess.run([*nightly_command(bucket), "-o", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [one for one in findings(json.loads(done.stdout)) if one["severity"] != "info"]
    told = {one["rule"]: one for one in found}
    nan, stale, twin = (night.folder_of(step) for step in (plants.nan_step, plants.stale_step, plants.twin_step))
    assert sorted(one["rule"] for one in found) == ["duplicate-checkpoint", "non-finite-appeared", "stale-object"], (
        found
    )
    assert (told["non-finite-appeared"]["tensor"], told["non-finite-appeared"]["candidate"]) == (plants.nan_tensor, nan)
    assert told["stale-object"]["candidate"] == stale
    assert plants.stale_shard in json.dumps(told["stale-object"])
    assert told["duplicate-checkpoint"]["candidate"] == twin
    sizes = sum(path.stat().st_size for path in (tmp_path / twin).glob("*.safetensors"))
    assert told["duplicate-checkpoint"]["value"] == sizes
    assert all(one["severity"] == "critical" for one in found)


def test_the_first_screen_says_it_in_ten_lines(s3: Any, bucket: str, tmp_path: Path) -> None:
    night.write_night(tmp_path)
    night.plant(tmp_path)
    upload(s3, bucket, tmp_path, "run7")
    done = subprocess.run(nightly_command(bucket), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    screen = done.stdout.split("\n\n")[0].splitlines()
    assert len(screen) <= 10
    text = "\n".join(screen)
    for step in ("step-000500", "step-000800", "step-001100"):
        assert step in text
