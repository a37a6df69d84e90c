"""The ledger on a disk and in a bucket."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.publish.ledger import Delivered, Ledger, name_of


@pytest.fixture(params=["disk", "bucket"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    root = str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue('bucket')}/ledger"
    return Ledger(root)


def test_an_entry_is_written_read_replaced_listed_and_removed(ledger: Ledger):
    assert ledger.read("slack/sent/a") is None
    assert ledger.names("slack") == []
    ledger.write("slack/sent/a", {"n": 1, "text": "ü 漢 🤗"})
    ledger.write("slack/sent/x/b", {"n": 2})
    ledger.write("slack/sent/a", {"n": 3})
    assert ledger.read("slack/sent/a") == {"n": 3}
    assert sorted(ledger.names("slack/sent")) == ["slack/sent/a", "slack/sent/x/b"]
    ledger.remove("slack/sent/a")
    ledger.remove("slack/sent/a")
    assert ledger.names("slack/sent") == ["slack/sent/x/b"]
    with ledger.lock("slack/sent/a"):
        pass


def test_what_became_of_a_delivery_is_one_line():
    delivered = Delivered("hub", "https://hub.test/tree/1", "2 files")
    assert delivered.about("files") == "files: hub https://hub.test/tree/1 (2 files)"
    assert Delivered("pending").about("thread") == "thread: pending"


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path):
    inside = threading.Event()
    first, second = Ledger(str(tmp_path)), Ledger(str(tmp_path))

    def hold() -> None:
        with second.lock("a"):
            inside.set()

    with first.lock("a"):
        thread = threading.Thread(target=hold)
        thread.start()
        assert not inside.wait(0.1)
    assert inside.wait(10)
    thread.join()


@given(parts=st.lists(st.text(max_size=20) | st.sampled_from(["..", ".", "", "a/b", "\0", "#x", "C:\\"]), min_size=1))
def test_names_from_other_people_stay_in_their_folder_and_apart(parts: list[str]):
    path = Path("/root", name_of(*parts) + ".json")
    assert "\0" not in str(path)
    assert len(path.parts) == 2 + len(parts)
    assert ".." not in path.parts
    assert name_of(*parts) != name_of(*parts, "")
