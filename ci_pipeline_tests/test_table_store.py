"""Tables are there whole or not at all, on a disk and in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ci_pipeline import table_store
from ci_pipeline.table_store import MissingTable, TableStore

TABLE = pa.table({"node_id": ["a::b", "ü"], "seconds": [1.5, None]})


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path) if request.param == "folder" else f"{request.getfixturevalue('bucket')}/tables")


def test_what_is_written_is_read(store: TableStore) -> None:
    size = store.write("run_diff", "1-1", TABLE)
    assert size > 0
    assert store.has("run_diff", "1-1")
    assert store.read("run_diff", "1-1").equals(TABLE)


def test_only_the_columns_that_are_asked_for_are_read(store: TableStore) -> None:
    store.write("numbers", "1-1", pa.table({"n": [1], "square": [1], "name": ["one"]}))
    assert store.read("numbers", "1-1", ["name", "n"]).to_pylist() == [{"name": "one", "n": 1}]


def test_a_large_table_is_read_as_a_small_one_is(store: TableStore) -> None:
    rows = table_store.FEW * 10
    large = pa.table({"n": range(rows), "noise": [os.urandom(100) for _ in range(rows)], "name": ["same"] * rows})
    assert store.write("numbers", "1-1", large) > table_store.SMALL
    assert store.read("numbers", "1-1").equals(large)
    assert store.read("numbers", "1-1", ["name", "n"]).equals(large.select(["name", "n"]))


def test_writing_again_replaces(store: TableStore) -> None:
    store.write("run_diff", "1-1", TABLE)
    store.write("run_diff", "1-1", TABLE.slice(1))
    assert store.read("run_diff", "1-1").num_rows == 1


def test_metadata_of_a_table_is_kept(store: TableStore) -> None:
    store.write("run_diff", "1-1", TABLE.replace_schema_metadata({"compared_with": "[]"}))
    assert store.read("run_diff", "1-1").schema.metadata == {b"compared_with": b"[]"}


def test_a_table_that_is_not_there_is_named(store: TableStore) -> None:
    with pytest.raises(MissingTable, match="CI run 1-1 has no table 'run_diff' yet"):
        store.read("run_diff", "1-1")


def test_it_is_known_when_each_run_was_written(store: TableStore) -> None:
    assert store.written("run_diff") == {}
    store.write("run_diff", "1-1", TABLE)
    store.write("run_diff", "2-1", TABLE)
    assert store.written("run_diff").keys() == {"1-1", "2-1"}
    assert all(time.tzinfo for time in store.written("run_diff").values())


def test_deleting_twice_is_no_error(store: TableStore) -> None:
    store.write("run_diff", "1-1", TABLE)
    store.delete("run_diff", "1-1")
    store.delete("run_diff", "1-1")
    assert not store.has("run_diff", "1-1")


def test_other_tools_read_all_runs_from_the_folder(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    store.write("run_diff", "1-1", TABLE)
    store.write("run_diff", "2-1", TABLE)
    (tmp_path / "run_diff" / ".3-1.part").write_bytes(b"half a file")
    assert pq.read_table(tmp_path / "run_diff").num_rows == 4


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TableStore(str(tmp_path))
    store.write("run_diff", "1-1", TABLE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("run_diff", "1-1", TABLE.slice(1))
    assert store.read("run_diff", "1-1").equals(TABLE)
