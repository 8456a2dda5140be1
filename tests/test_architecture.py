"""Which module may import which, and the one home of each library: also the reader's map."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffai_dist import schemes
from diffai_dist.formats import archive, gguf_header, npy
from diffai_dist.formats.containers import READERS
from diffai_dist.schemes import bnb4
from diffai_dist.schemes.stored import Late

PACKAGE = Path(__file__).parents[1] / "diffai_dist"

# Bottom first: a module imports only from names left of its own, and from its own package.
LAYERS = """
    errors dtypes storage checkpoint partials kernels schemes formats comparison choosing grid rows statistics records
    gram judging plan details chunks execute collect analyses matching whole layers terminal report cluster config
    opening run conclusions gates store reuse pipeline inspection request api listing explaining
    tracking demo console cli __init__ __main__
""".split()

HOMES = {
    "fsspec": "storage",
    "s3fs": "storage",
    "botocore": "storage",
    "aiobotocore": "storage",
    "aiohttp": "storage",
    "numba": "kernels",
    "llvmlite": "kernels",
    "dask": "cluster",
    "distributed": "cluster",
    "pyarrow": "store",
    "rich": "terminal",
    "click": "cli console",
    "yaml": "report",
    "safetensors": "demo",
    "pandas": "api",
    "pydantic": "config",
    "ruamel": "config",
    "duckdb": "store",
    "mlflow": "tracking",
    "dask_jobqueue": "cluster",
    "gguf": "schemes",
}

# What may be imported when a module is: the others cost a tenth of a second and more each.
LIGHT = {"click", "numpy", "numba", "diffai_dist"}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every name the file imports, inside functions too: that is where cycles hide; and when that happens."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    for node in ast.walk(tree):
        when = "never" if node in for_types else "at once" if node in tree.body else "when used"
        if isinstance(node, ast.Import):
            yield from ((alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{'.' * node.level}{node.module or ''}.{alias.name}", when) for alias in node.names)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_libraries_stay_home(path: Path) -> None:
    home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert home in LAYERS, f"{home} has no place in the layers"
    for name, when in imports(path):
        top, _, rest = name.partition(".")
        assert when == "never" or home in HOMES.get(top, home).split(), f"{name} belongs in {HOMES[top]}"
        if top in ("", PACKAGE.name):  # a relative import names no layer, so it fails too
            layer = rest.split(".")[0]
            assert layer in LAYERS, f"{name} is not one of the layers"
            assert LAYERS.index(layer) <= LAYERS.index(home), f"{home} may not import {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    for name, when in imports(path):
        top = name.split(".")[0]
        if when == "at once" and top in HOMES:
            assert top in LIGHT, f"{path.name} imports {top} at once"


def test_every_layer_exists() -> None:
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert found == set(LAYERS)


def test_readers_that_are_loaded_late_are_there_and_begin_as_the_table_says() -> None:
    assert [*READERS] == [archive.MAGIC, gguf_header.MAGIC, npy.MAGIC]
    for name in READERS.values():
        assert callable(pkgutil.resolve_name(f"diffai_dist.formats.{name}"))


def test_every_function_that_finds_weights_of_a_scheme_is_in_the_table_and_no_other() -> None:
    modules = [one.name for one in pkgutil.iter_modules(schemes.__path__)]
    there = {
        f"{module}:{name}"
        for module in modules
        for name in vars(importlib.import_module(f"{schemes.__name__}.{module}"))
        if name.startswith("find")
    }
    named = [one.find.name for one in schemes.SCHEMES if isinstance(one.find, Late)]
    assert sorted(named) == sorted(there)
    assert schemes.NESTED == bnb4.PARTS


FORBIDDEN = ("pickle.load", "eval(", "exec(", "yaml.load(", "allow_pickle=True", "torch.load", "os.system")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_executes_what_it_reads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if word in text] == []
