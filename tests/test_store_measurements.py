"""Measurements of earlier runs serve later ones: the same name, the same numbers, or none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import sweeps
from diffai_dist.comparison import Selection
from diffai_dist.errors import StoreError
from diffai_dist.partials import MOMENTS, SHIFT
from diffai_dist.records import Measurements
from diffai_dist.run import Settings
from diffai_dist.storage import Profile
from diffai_dist.store import ReportStore
from diffai_dist.store.measurements import measurement_key, save_measurements
from diffai_dist.store.tables import parquet
from results import failure

SETTINGS = Settings()
SHAPES = {"w": ("F32", (3, 4)), "\ud800": ("F32", (5,)), "empty": ("F32", (0,)), "odd": ("F6_E3M2", (4,))}


@pytest.fixture
def store(tmp_path: Path) -> ReportStore:
    return ReportStore(str(tmp_path), Profile())


def three(**fields: object) -> Measurements:
    members = [sweeps.checkpoint(number, SHAPES if number < 3 else {"w": ("F32", (4, 3))}) for number in (1, 2, 3)]
    made = sweeps.measured(*members, pairs=[(0, 1), (1, 2)], **fields)  # type: ignore[arg-type]
    for t, one in enumerate(made.comparison.aligned):
        for m, found in enumerate(one.tensors):
            if found and found.dtype == "F6_E3M2":
                made.moments["count"][t, m] = found.nbytes
                made.shifts["count"][t, 0] = found.nbytes
    return made


def kept(store: ReportStore) -> set[str]:
    return {path.stem for path in Path(store.url).glob("measurements/*.parquet")}


def test_rows_are_found_again_to_the_bit_by_the_name_of_the_tensor(store: ReportStore) -> None:
    made = three()
    save_measurements(store, made, SETTINGS)
    comparison, members = made.comparison, made.comparison.members
    for index, member in enumerate(members):
        found = store.load_rows(store.member_key(member, SETTINGS))
        assert found is not None
        assert set(found) == set(member.tensors)
        for t, one in enumerate(comparison.aligned):
            if one.name in found:
                assert found[one.name].dtype == MOMENTS
                assert found[one.name].tobytes() == made.moments[t, index].tobytes()
    found = store.load_rows(store.pair_key(members[0], members[1], SETTINGS))
    assert found is not None
    assert {name: row.dtype for name, row in found.items()} == dict.fromkeys(SHAPES, SHIFT)
    assert all(found[one.name] == made.shifts[t, 0] for t, one in enumerate(comparison.aligned))
    # The last pair has no tensor of one shape: there is nothing to keep.
    assert len(kept(store)) == 4


def test_the_columns_are_those_of_the_partials(store: ReportStore) -> None:
    made = three()
    save_measurements(store, made, SETTINGS)
    table = pq.read_table(
        Path(store.url) / f"measurements/{store.member_key(made.comparison.members[0], SETTINGS)}.parquet"
    )
    assert table.column_names == ["name", *(MOMENTS.names or ())]
    assert table["name"].to_pylist() == [one.name.replace("\ud800", "\\ud800") for one in made.comparison.aligned]
    assert table["mean"].to_pylist() == made.moments["mean"][:, 0].tolist()


def test_what_was_not_measured_element_by_element_is_not_kept(store: ReportStore) -> None:
    made = three(gram=True)
    save_measurements(store, made, SETTINGS)
    assert kept(store) == {store.member_key(member, SETTINGS) for member in made.comparison.members}


def test_the_name_is_decided_by_objects_selection_and_role() -> None:
    a, b = (sweeps.checkpoint(number, SHAPES) for number in (1, 2))
    later = sweeps.checkpoint(1, SHAPES, version="mtime:9")
    fewer = Settings(Selection(exclude=("w",)))
    keys = [
        measurement_key("member", [a], SETTINGS),
        measurement_key("member", [later], SETTINGS),
        measurement_key("member", [a], fewer),
        measurement_key("pair", [a, b], SETTINGS),
        measurement_key("pair", [b, a], SETTINGS),
    ]
    assert len(set(keys)) == len(keys)
    assert measurement_key("member", [a], Settings(epsilon=1.0, analyses=("layer_impact",))) == keys[0]


def test_a_member_that_failed_anywhere_is_not_kept_nor_are_its_pairs(store: ReportStore) -> None:
    made = three()
    members = made.comparison.members
    save_measurements(store, dataclasses.replace(made, failures={(0, 0): failure()}), SETTINGS)
    assert kept(store) == {store.member_key(one, SETTINGS) for one in members[1:]}


def test_what_was_not_measured_to_the_last_element_is_not_kept(store: ReportStore) -> None:
    made = three()
    made.moments["count"][1, 1] -= 1
    made.shifts["count"][0, 0] = 0
    save_measurements(store, made, SETTINGS)
    assert kept(store) == {store.member_key(made.comparison.members[index], SETTINGS) for index in (0, 2)}


def test_what_nothing_identifies_is_not_kept(store: ReportStore) -> None:
    a, b = sweeps.checkpoint(1, {"w": ("F32", (2,))}, version="none"), sweeps.checkpoint(2, {"w": ("F32", (2,))})
    save_measurements(store, sweeps.measured(a, b), SETTINGS)
    assert kept(store) == {store.member_key(b, SETTINGS)}


def test_a_file_that_verifies_is_kept_as_it_is_and_a_damaged_one_is_written_again(
    store: ReportStore, caplog: pytest.LogCaptureFixture
) -> None:
    made = three()
    parts = save_measurements(store, made, SETTINGS)
    path = Path(store.url) / parts[0].path
    written = path.read_bytes()
    table = pq.read_table(path)
    other_numbers = table.set_column(1, "count", table["count"].take([1, 0, 2, 3]))
    pq.write_table(table, path, compression="none")  # as another version of the library may have written it
    other = path.read_bytes()
    assert other != written
    assert store.load_rows(path.stem) is not None
    again = save_measurements(store, made, SETTINGS)
    assert path.read_bytes() == other
    assert (again[0].size, again[1:]) == (len(other), parts[1:])
    for damaged in (b"", written[:-9], b"PAR1", parquet(other_numbers), parquet(table.replace_schema_metadata({}))):
        path.write_bytes(damaged)
        assert store.load_rows(path.stem) is None
        assert save_measurements(store, made, SETTINGS) == parts
    assert caplog.text.count(f"{path.name} is damaged") == 5


def test_a_file_under_another_name_is_not_taken_for_it(store: ReportStore) -> None:
    parts = save_measurements(store, three(), SETTINGS)
    first, second = (Path(store.url) / part.path for part in parts[:2])
    second.write_bytes(first.read_bytes())
    assert store.load_rows(second.stem) is None


def test_other_numbers_of_the_same_objects_are_an_error(store: ReportStore) -> None:
    save_measurements(store, three(seed=1), SETTINGS)
    with pytest.raises(StoreError, match=r"non-deterministic result: .*measurements/"):
        save_measurements(store, three(seed=2), SETTINGS)
