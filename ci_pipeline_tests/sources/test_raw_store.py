import json
import shutil
from pathlib import Path

import pytest

from ci_pipeline.model import Problem
from ci_pipeline.sources import SourceError
from ci_pipeline.sources.folder import FolderSource
from ci_pipeline.sources.raw_store import RawStore, load, save
from ci_pipeline_tests.sources.inboxes import put_run


@pytest.fixture(params=["path", "file", "s3"])
def store(request, tmp_path):
    match request.param:
        case "path":
            return RawStore(str(tmp_path / "store"))
        case "file":
            return RawStore((tmp_path / "store").as_uri())
        case _:
            s3 = request.getfixturevalue("s3")
            return RawStore(f"s3://{s3.bucket}/raw/")


GONE = Problem("gone", "expired", "single", "run_models_gpu", "models_bert")


def fetched_run(folder: Path, text: str = "1 passed") -> Path:
    (folder / "artifacts/report").mkdir(parents=True)
    (folder / "artifacts/report/stats.txt").write_text(text)
    save(folder, {"id": 12, "name": "Nightly"}, {"jobs": [{"id": 1}]}, [GONE])
    return folder


def put(store: RawStore, key: str, folder: Path) -> None:
    with store.new(key) as stage:
        shutil.copytree(folder, stage, dirs_exist_ok=True)


def test_a_run_comes_back_as_it_was(store, tmp_path):
    folder = fetched_run(tmp_path / "run")
    assert not store.has("12-1")
    put(store, "12-1", folder)
    assert store.has("12-1")
    with store.local("12-1") as local:
        assert load(local) == store.load("12-1") == load(folder)
        assert (local / "artifacts/report/stats.txt").read_text() == "1 passed"
        assert load(local).problems == (GONE,)


def test_a_run_takes_the_place_of_the_one_before(store, tmp_path):
    old = fetched_run(tmp_path / "old")
    (old / "artifacts/left over").mkdir()
    (old / "artifacts/left over/x").write_text("x")
    put(store, "12-1", old)
    put(store, "12-1", fetched_run(tmp_path / "new", "2 passed"))
    with store.local("12-1") as local:
        assert load(local).artifact_names == ("report",)
        assert (local / "artifacts/report/stats.txt").read_text() == "2 passed"


def test_a_run_is_forgotten_and_others_are_not(store, tmp_path):
    folder = fetched_run(tmp_path / "run")
    put(store, "12-1", folder)
    put(store, "13-1", folder)
    store.delete("12-1")
    store.delete("12-1")
    assert not store.has("12-1")
    assert store.has("13-1")


def test_a_run_that_is_not_there_is_named(store):
    with pytest.raises(SourceError, match="run 99-1 is not in the raw store"), store.local("99-1"):
        pass


@pytest.mark.parametrize("key", ["", "..", "../x", "a/b"])
def test_a_key_that_leaves_the_store_is_refused(store, key):
    with pytest.raises(ValueError, match="no key"):
        store.has(key)


def test_half_a_run_on_s3_is_none(s3, tmp_path):
    store = RawStore(f"s3://{s3.bucket}/raw")
    put(store, "12-1", fetched_run(tmp_path / "run"))
    s3.delete_object(Bucket=s3.bucket, Key="raw/12-1/_SUCCESS")
    assert not store.has("12-1")
    put(store, "12-1", tmp_path / "run")
    assert store.has("12-1")


def test_a_fetch_that_fails_leaves_the_run_before(store, tmp_path):
    put(store, "12-1", fetched_run(tmp_path / "run"))
    with pytest.raises(IsADirectoryError), store.new("12-1") as folder:
        (fetched_run(folder, "2 passed") / "artifacts").write_text("")
    with store.local("12-1") as local:
        assert (local / "artifacts/report/stats.txt").read_text() == "1 passed"
    if (tmp_path / "store").exists():
        assert [path.name for path in (tmp_path / "store").iterdir()] == ["12-1"]


def test_a_run_can_be_fetched_right_into_the_store(store, tmp_path):
    with store.new("12-1") as folder:
        fetched = load(fetched_run(folder))
        assert not store.has("12-1")
    with store.local("12-1") as local:
        assert load(local) == fetched
    with pytest.raises(RuntimeError), store.new("13-1") as folder:
        raise RuntimeError("cut off")
    assert not store.has("13-1")


def test_on_this_machine_nothing_is_copied(tmp_path):
    store = RawStore(str(tmp_path / "store"))
    put(store, "12-1", fetched_run(tmp_path / "run"))
    with store.local("12-1") as local:
        assert local == tmp_path / "store" / "12-1"


def test_a_raw_store_is_an_inbox(tmp_path):
    put_run(tmp_path / "inbox", "12", artifacts={"report": {"a": "b"}, "bad.zip": b""})
    source = FolderSource(tmp_path / "inbox")
    fetched = source.fetch(source.run(12), tmp_path / "run")
    put(RawStore(str(tmp_path / "store")), "12-1", tmp_path / "run")
    again = FolderSource(tmp_path / "store")
    assert again.fetch(again.run(12), tmp_path / "again").problems == fetched.problems


@pytest.mark.parametrize("content", [None, "{", "[]", '{"id": 0}'])
def test_a_folder_without_a_run_is_an_error(tmp_path, content):
    folder = fetched_run(tmp_path / "run")
    if content is None:
        (folder / "run.json").unlink()
    else:
        (folder / "run.json").write_text(content)
    with pytest.raises(SourceError, match="not a fetched run"):
        load(folder)


def test_odd_text_in_problems_is_kept(tmp_path):
    odd = Problem("\ud800 name", "reason\n<x>")
    fetched = save(tmp_path, {"id": 1}, [], [odd])
    assert fetched.problems == (odd,)
    assert json.loads((tmp_path / "problems.json").read_text())[0]["reason"] == "reason\n<x>"
