"""The README is true: its commands run, its output is theirs, and it knows every command, option, error and module.

`python tests/test_docs.py` writes the present output into the README.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import jsonschema
import pytest

from diffai_dist import errors
from diffai_dist.analyses import ANALYSES
from diffai_dist.cli import commands
from diffai_dist.formats import FORMATS
from diffai_dist.report import RENDERERS, records_schema
from diffai_dist.storage import BACKENDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"^```console\n\$ (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def output(command: str, folder: Path) -> str:
    """What a shell prints of `PROGRAM ... [| head -N] [| grep TEXT]`, or of `PROGRAM ...; echo $?`."""
    command, _, code = command.partition("; echo $")
    command, *pipes = command.split(" | ")
    assert not (code and pipes), "a shell would print the last command's"
    program, *arguments = shlex.split(command)
    entry = {"diffai-dist": "main", "diffai": "diffai"}[program]
    script = f"from diffai_dist.__main__ import {entry} as go; go()"
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 or (code and done.returncode == 1), done.stderr
    lines = done.stdout.replace(f"{folder}/", "").splitlines(keepends=True)
    for pipe in pipes:
        name, _, argument = pipe.partition(" ")
        lines = lines[: int(argument[1:])] if name == "head" else [one for one in lines if argument in one]
    return "".join([*lines, *([f"{done.returncode}\n"] if code else [])])


def numbers_aside(text: str) -> str:
    """Training depends in its last bits on the machine's BLAS, a run's id on its paths; what is said does not."""
    return re.sub(r"\b[0-9a-f]{16}\b|-?[0-9][0-9.,]*(e[-+][0-9]+)?", "#", text)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo").resolve()
    output("diffai-dist demo --directory .", folder)
    return folder


@pytest.mark.parametrize("block", BLOCKS.findall(README), ids=lambda block: block[0][:60])
def test_the_output_in_the_readme_is_what_the_command_prints(demo: Path, block: tuple[str, str]) -> None:
    command, shown = block
    assert numbers_aside(output(command, demo)) == numbers_aside(shown)


def test_the_readme_shows_five_commands() -> None:
    assert len(BLOCKS.findall(README)) >= 5


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    for name, command in commands.commands.items():
        assert command.help, name
        assert name in README or name == "completion", name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, (name, parameter.name)


def test_the_readme_knows_every_analysis_output_protocol_and_error() -> None:
    for kind in ANALYSES.values():
        assert f"`{kind.flag}`" in README
    for name in RENDERERS:
        assert name in README.lower()
    for protocol in BACKENDS:
        assert protocol in README or protocol in ("abfss", "https", "memory")
    codes = {
        kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DiffaiError)
    }
    assert {code for code in codes - {"E0001", "E1000"} if code not in README} == set()
    assert set(FORMATS) == {"file", "index", "folder"}


def test_the_readme_names_every_module() -> None:
    package = ROOT / "diffai_dist"
    for path in package.iterdir():
        name = path.name.removesuffix(".py")
        if not name.startswith("__") and name not in ("schema", "py.typed"):
            assert f"`{name}/`" in README or f"`{name}`" in README, name


def test_the_published_schema_is_a_schema_and_refuses_strangers() -> None:
    schema = records_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    records, analyses = (
        json.loads((ROOT / "diffai_dist/schema" / name).read_text()) for name in ("records-1.json", "analyses-1.json")
    )
    assert {**records, "$defs": {**records["$defs"], "analyses": analyses}} == schema
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"kind": "tensor", "name": "w"}], schema)


def test_the_repository_speaks_of_itself_alone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "diffai_dist", "configs", "tests", "k8s", "README.md", "LICENSE", "CHANGELOG.md"}
    assert {name for name in top if name not in allowed and not name.startswith(".")} == set()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        output("diffai-dist demo --directory .", folder)
        fresh = BLOCKS.sub(lambda found: f"```console\n$ {found[1]}\n{output(found[1], folder)}```", README)
    (ROOT / "README.md").write_text(fresh, encoding="utf-8")
