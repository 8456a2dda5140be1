"""Names from files: shown on one line, and told apart where normalisation would make them one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import write_sparse
from diffai_dist.formats import open_checkpoint
from diffai_dist.formats.names import listed, lookalikes, quoted, shown
from diffai_dist.storage import Profile

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("Layer.weight", "layer.weight", id="row34-case"),
        pytest.param("caf\u00e9", "cafe\u0301", id="row34-normalisation"),
        pytest.param("\u212b", "\u00e5", id="row34-both"),
        pytest.param("stra\u00dfe", "STRASSE", id="row34-sharp-s"),
    ],
)
def test_names_that_normalisation_would_merge_stay_distinct_with_a_hint(
    tmp_path: Path, first: str, second: str
) -> None:
    path = write_sparse(tmp_path / "m.safetensors", {first: ("F32", (1,)), second: ("F32", (1,)), "x": ("F32", (1,))})
    checkpoint = open_checkpoint(str(path), Profile())
    assert list(checkpoint.tensors) == [first, second, "x"]
    (warning,) = checkpoint.warnings
    assert "1 pairs of distinct names differ only by normalisation or case" in warning
    assert warning.isascii()


def test_distinct_names_give_no_hint() -> None:
    assert lookalikes([f"layers.{n}.weight" for n in range(100)]) == []


@given(st.lists(st.text(), max_size=20))
def test_row29_names_are_shown_on_one_short_printable_line(names: list[str]) -> None:
    assert listed(names).isprintable()
    assert all(quoted(name).isprintable() for name in names)


def test_row29_a_name_of_a_megabyte_is_shortened_and_the_rest_counted() -> None:
    assert len(quoted("\x1b" * 1_000_000)) < 1100
    assert quoted("n" * 1_000_000).endswith("and 999,744 more characters")


@given(JSON)
def test_row29_values_are_shown_on_one_short_printable_line(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= 9 * 260
