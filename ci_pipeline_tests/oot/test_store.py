"""What every store promises; each test runs on both."""

from __future__ import annotations

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci_pipeline.oot import Refused, dynamodb_store
from ci_pipeline.oot import store as store_module
from ci_pipeline.oot.dynamodb_store import DynamoDBStore
from ci_pipeline.oot.lifecycle import Dispatch, Step, Transition
from ci_pipeline.oot.record import Record
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Change, Store, StoreUnavailable
from ci_pipeline.oot.stores import open_store
from ci_pipeline.settings import SettingsError

KEY = "org/backend/delivery-1/CI/test/101"
DISPATCH = Dispatch("delivery-1", "org/backend", dispatched_at=1000.0)
IN_PROGRESS = Step("delivery-1", "org/backend", "job-1", "in_progress", "digest-1", KEY)
COMPLETED = replace(IN_PROGRESS, status="completed", digest="digest-2")


def record(status: str = "in_progress", **fields: str | int | float) -> Record:
    return {"dynamoKey": KEY, "status": status, "downstream_repo": "org/backend", **fields}


def effect(status: str) -> Any:
    return lambda transition: {**record(status), **transition.measured}


def advance(store: Store, step: Step, now: float = 1010.0, rate_limit: int = 0) -> Transition | None:
    return store.advance(step, now, effect(step.status), rate_limit=rate_limit).result()


def changes(store: Store, cursor: str = "") -> list[Change]:
    found: list[Change] = []
    while (page := store.changes_after(cursor, 2)).changes:
        found += page.changes
        cursor = page.cursor
    return found


def test_a_job_goes_from_dispatched_to_completed_and_its_record_with_it(store: Store):
    store.register_dispatch(DISPATCH).result()
    assert advance(store, IN_PROGRESS, now=1010.0)
    assert store.record(KEY) == record("in_progress", queue_time=10.0)
    assert advance(store, COMPLETED, now=1040.5)
    assert store.record(KEY) == record("completed", queue_time=10.0, execution_time=30.5)


def test_a_retry_writes_nothing(store: Store):
    store.register_dispatch(DISPATCH).result()
    advance(store, IN_PROGRESS)
    assert advance(store, IN_PROGRESS, now=2000.0) is None
    assert [change.version for change in changes(store)] == [1]


def test_what_is_refused_leaves_no_record(store: Store):
    with pytest.raises(Refused) as refused:
        advance(store, IN_PROGRESS)
    assert refused.value.status == 409
    assert store.record(KEY) is None
    assert changes(store) == []


def test_of_many_equal_callbacks_at_once_exactly_one_is_a_transition(store: Store):
    store.register_dispatch(DISPATCH).result()
    with ThreadPoolExecutor(16) as pool:
        transitions = list(pool.map(lambda _: advance(store, IN_PROGRESS), range(32)))
    assert sum(transition is not None for transition in transitions) == 1
    assert [change.version for change in changes(store)] == [1]


def test_of_many_different_callbacks_at_once_one_wins_and_the_others_are_refused(store: Store):
    store.register_dispatch(DISPATCH).result()

    def attempt(n: int) -> str:
        try:
            advance(store, replace(IN_PROGRESS, digest=f"digest-{n}"))
        except Refused as refused:
            return str(refused.status)
        return "accepted"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(attempt, range(16))) == ["409"] * 15 + ["accepted"]


def test_many_may_read_at_once_and_each_reads_what_it_asked_for(store: Store):
    for n in range(8):
        store.write(record(dynamoKey=f"key {n}")).result()
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: store.record(f"key {n % 8}"), range(400))
    assert [known and known["dynamoKey"] for known in found] == [f"key {n % 8}" for n in range(400)]


def test_a_dispatch_counts_for_its_own_repository_and_delivery_alone(store: Store):
    store.register_dispatch(DISPATCH).result()
    for other in ({"repo": "org/other"}, {"delivery_id": "delivery-2"}):
        with pytest.raises(Refused, match="not dispatched"):
            advance(store, replace(IN_PROGRESS, **other))


def test_a_dispatch_that_is_made_again_counts_from_then_on(store: Store):
    store.register_dispatch(DISPATCH).result()
    store.register_dispatch(replace(DISPATCH, dispatched_at=1008.0)).result()
    advance(store, IN_PROGRESS, now=1010.0)
    assert store.record(KEY) == record(queue_time=2.0)


def test_of_many_that_would_tell_a_repository_at_once_one_does(store: Store):
    claims = [replace(DISPATCH, dispatched_at=1000.0 + n, told_until=1050.0 + n) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda claim: store.claim_dispatch(claim).result(), claims)) == 1
    assert advance(store, IN_PROGRESS, now=1010.0)


def test_what_was_told_is_not_told_again_and_what_was_not_is(store: Store):
    later = replace(DISPATCH, dispatched_at=2000.0, told_until=2008.0)
    for told_until, is_ours in ((0.0, True), (1999.0, True), (2001.0, False), (math.inf, False)):
        store.register_dispatch(replace(DISPATCH, told_until=told_until)).result()
        assert store.claim_dispatch(later).result() is is_ours


def test_a_completed_without_a_field_does_not_erase_it(store: Store):
    store.write(record("in_progress", queue_time=12.5, started_at="2026-04-28T10:00:00Z")).result()
    store.write(record("completed", conclusion="success", execution_time=1782.0)).result()
    assert store.record(KEY) == record(
        "completed", conclusion="success", queue_time=12.5, execution_time=1782.0, started_at="2026-04-28T10:00:00Z"
    )


def test_an_in_progress_that_comes_late_only_fills_what_is_missing(store: Store):
    store.write(record("completed", conclusion="failure", job_name="test")).result()
    store.write(record("in_progress", queue_time=3.0, job_name="other")).result()
    assert store.record(KEY) == record("completed", conclusion="failure", job_name="test", queue_time=3.0)


def test_every_write_is_a_change_with_a_higher_version(store: Store):
    before = time.time()
    store.write(record("in_progress")).result()
    first = changes(store)
    store.write(record("completed", conclusion="success")).result()
    last = changes(store)[-1]
    assert [change.record for change in first] == [record("in_progress")]
    assert last.record == record("completed", conclusion="success")
    assert (first[0].version, last.version) == (1, 2)
    assert before <= first[0].changed_at <= last.changed_at <= time.time()


def test_the_change_feed_goes_on_behind_its_cursor(store: Store):
    for n in range(5):
        store.write({**record(), "dynamoKey": f"key-{n}"}).result()
    page = store.changes_after("", 3)
    assert [change.record["dynamoKey"] for change in page.changes] == ["key-0", "key-1", "key-2"]
    rest = store.changes_after(page.cursor, 10)
    assert [change.record["dynamoKey"] for change in rest.changes] == ["key-3", "key-4"]
    assert store.changes_after(rest.cursor, 10).changes == ()
    store.write({**record("completed"), "dynamoKey": "key-0"}).result()
    assert [change.record["dynamoKey"] for change in store.changes_after(rest.cursor, 10).changes] == ["key-0"]


def test_the_cursor_of_another_kind_of_store_is_the_beginning(store: Store):
    store.write(record()).result()
    for cursor in ("12345", '{"shardId-1": "12345"}'):
        assert [change.record["dynamoKey"] for change in store.changes_after(cursor, 10).changes] == [KEY]


def test_a_page_of_changes_ends_where_it_has_many_bytes(store: Store, monkeypatch: pytest.MonkeyPatch):
    for module in (store_module, dynamodb_store):
        monkeypatch.setattr(module, "PAGE_BYTES", 250)
    tests = json.dumps([{"name": "x" * 80}])
    for n in range(5):
        store.write({**record("completed"), "dynamoKey": f"key-{n}", "failed_tests_json": tests}).result()
    seen: list[str] = []
    cursor, more = "", True
    while more:
        page = store.changes_after(cursor, 100)
        seen += [str(change.record["dynamoKey"]) for change in page.changes]
        cursor, more = page.cursor, page.more
        if isinstance(store, SqliteStore):
            assert len(page.changes) <= 3
    assert seen == [f"key-{n}" for n in range(5)]


def test_every_record_can_be_read_or_those_of_a_time_and_status(store: Store):
    store.write({**record(), "dynamoKey": "key-1"}).result()
    time.sleep(0.01)
    between = time.time()
    store.write({**record("completed"), "dynamoKey": "key-2"}).result()

    def keys(**which: Any) -> list[str]:
        return sorted(str(change.record["dynamoKey"]) for change in store.records(**which))

    assert keys() == ["key-1", "key-2"]
    assert keys(until=between) == ["key-1"]
    assert keys(since=between) == ["key-2"]
    assert keys(status="in_progress") == ["key-1"]
    assert keys(status="completed", until=between) == []


def test_the_rate_limit_holds_in_any_minute(store: Store):
    for second in (0.0, 30.0, 59.0):
        store.count_request("org/backend", 3, 1000.0 + second).result()
    with pytest.raises(Refused) as refused:
        store.count_request("org/backend", 3, 1059.5).result()
    assert refused.value.status == 429
    assert refused.value.retry_after == pytest.approx(0.5)
    store.count_request("org/backend", 3, 1060.0).result()
    with pytest.raises(Refused):
        store.count_request("org/backend", 3, 1089.0).result()
    store.count_request("org/backend", 3, 1090.0).result()


def test_a_clock_that_was_set_back_locks_nobody_out(store: Store):
    for _ in range(3):
        store.count_request("org/backend", 3, 9000.0).result()
    for _ in range(3):
        store.count_request("org/backend", 3, 1000.0).result()
    with pytest.raises(Refused):
        store.count_request("org/backend", 3, 1001.0).result()


def test_the_rate_limit_is_one_for_all_workers_and_per_repository(store: Store):
    def count(repo: str) -> bool:
        try:
            store.count_request(repo, 10, 1000.0).result()
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(count, ["org/backend"] * 30)) == 10
    assert count("org/other")


def test_a_callback_beyond_the_rate_limit_changes_nothing(store: Store):
    store.register_dispatch(DISPATCH).result()
    store.count_request("org/backend", 1, 1005.0).result()
    with pytest.raises(Refused) as refused:
        advance(store, IN_PROGRESS, rate_limit=1)
    assert refused.value.status == 429
    assert store.record(KEY) is None
    assert advance(store, IN_PROGRESS, now=1066.0, rate_limit=1)


def test_a_refused_callback_counts_too(store: Store):
    with pytest.raises(Refused, match="not dispatched"):
        advance(store, IN_PROGRESS, rate_limit=1)
    with pytest.raises(Refused, match="per minute"):
        advance(store, IN_PROGRESS, rate_limit=1)


def test_a_repository_keeps_its_first_id_until_an_operator_confirms_another(store: Store):
    assert store.repository_id("org/backend", "1").result() == "1"
    assert store.repository_id("org/backend", "2").result() == "1"
    store.confirm_repository("org/backend", "2").result()
    assert store.repository_id("org/backend", "1").result() == "2"


def test_the_signing_key_is_made_once(store: Store):
    key = store.signing_key().result()
    assert len(key) >= 32
    assert store.signing_key().result() == key


def test_a_thousand_failed_tests_with_long_traces_are_kept_by_name(store: Store):
    tests = [
        {"name": f"test_{n}", "file": "a.py", "message": "é" * 500, "stacktrace": "x" * 4000, "duration_seconds": 1.5}
        for n in range(1000)
    ]
    store.write(record("completed", failed_tests_json=json.dumps(tests))).result()
    stored = store.record(KEY)
    assert stored
    assert [test["name"] for test in json.loads(str(stored["failed_tests_json"]))] == [test["name"] for test in tests]


def test_texts_of_other_people_come_back_as_they_were(store: Store):
    text = "'; DROP TABLE x; -- \x00 \U0001f525 \u202e </script> \\ \" \n"
    store.write(record(job_name=text)).result()
    assert store.record(KEY) == record(job_name=text)


def test_a_closed_store_refuses_and_does_not_hang(store: Store):
    store.close()
    with pytest.raises(StoreUnavailable):
        store.write(record()).result()


def test_an_address_that_is_no_store_is_refused_by_its_variable():
    with pytest.raises(SettingsError, match="CI_PIPELINE_OOT_STORE"):
        open_store("postgres://somewhere")


# --- one kind alone -------------------------------------------------------------------------------------------------


def test_a_sqlite_store_is_there_again_after_a_restart(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/deep/oot.sqlite")
    store.register_dispatch(DISPATCH).result()
    advance(store, IN_PROGRESS)
    cursor = store.changes_after("", 10).cursor
    store.close()
    again = open_store(f"sqlite:///{tmp_path}/deep/oot.sqlite")
    assert advance(again, IN_PROGRESS) is None
    assert advance(again, COMPLETED)
    assert [change.record["status"] for change in again.changes_after(cursor, 10).changes] == ["completed"]
    again.close()


def test_the_file_with_the_signing_key_is_for_nobody_else(tmp_path: Path):
    SqliteStore(tmp_path / "oot.sqlite").close()
    assert (tmp_path / "oot.sqlite").stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_store_is_named(tmp_path: Path):
    path = tmp_path / "oot.sqlite"
    path.write_text("A letter, and no database. " * 100)
    for address, reason in ((path, "file is not a database"), (path / "oot.sqlite", "Not a directory|File exists")):
        with pytest.raises(StoreUnavailable, match=f"^the store cannot be opened at {address}: {reason}$"):
            SqliteStore(address)


def test_the_feed_of_a_file_that_was_put_back_from_a_backup_begins_anew(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        for n in range(3):
            store.write({**record(), "dynamoKey": f"key-{n}"}).result()
    shutil.copy(tmp_path / "oot.sqlite", tmp_path / "backup.sqlite")
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        for _ in range(3):
            store.write(record("completed")).result()
        cursor = store.changes_after("", 10).cursor
    with closing(SqliteStore(tmp_path / "backup.sqlite")) as store:
        page = store.changes_after(cursor, 10)
        assert len(page.changes) == 3
        store.write(record("completed")).result()
        assert [change.record["dynamoKey"] for change in store.changes_after(page.cursor, 10).changes] == [KEY]


def test_two_processes_can_share_a_sqlite_store(tmp_path: Path):
    stores = [SqliteStore(tmp_path / "oot.sqlite") for _ in range(2)]  # as two workers have
    stores[0].register_dispatch(DISPATCH).result()
    with ThreadPoolExecutor(16) as pool:
        transitions = list(pool.map(lambda n: advance(stores[n % 2], IN_PROGRESS), range(64)))
    assert sum(transition is not None for transition in transitions) == 1
    for store in stores:
        store.close()


def test_a_record_that_sqlite_cannot_take_spoils_no_other(tmp_path: Path):
    store = SqliteStore(tmp_path / "oot.sqlite")
    bad = [store.write({**record(), "pr_number": 2**70}) for _ in range(3)]
    good = [store.write({**record(), "dynamoKey": f"key-{n}"}) for n in range(3)]
    for future in good:
        future.result()
    for future in bad:
        with pytest.raises(StoreUnavailable):
            future.result()
    assert len(list(store.records())) == 3
    store.close()


def test_a_caller_that_gave_up_does_not_stop_the_others(tmp_path: Path):
    store = SqliteStore(tmp_path / "oot.sqlite")
    for n in range(200):
        store.write({**record(), "dynamoKey": f"key-{n}"}).cancel()
    store.write({**record(), "dynamoKey": "last"}).result(timeout=10)
    assert store.record("last")
    store.close()


def test_the_state_of_a_job_expires(tmp_path: Path):
    store = SqliteStore(tmp_path / "oot.sqlite", state_days=0.1 / 86400)
    store.register_dispatch(DISPATCH).result()
    time.sleep(0.15)
    with pytest.raises(Refused, match="too long ago"):
        advance(store, IN_PROGRESS)
    store.close()


def test_state_that_expired_is_not_kept(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "oot.sqlite", state_days=0.1 / 86400)) as store:
        store.register_dispatch(DISPATCH).result()
    time.sleep(0.15)
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        store.write(record()).result()
        assert store._query("SELECT key FROM lifecycle") == []  # pyright: ignore[reportPrivateUsage]


def test_requests_that_left_the_window_are_not_kept(tmp_path: Path):
    store = SqliteStore(tmp_path / "oot.sqlite")
    counted = [store.count_request("org/backend", 1_000_000, 1000.0 + n) for n in range(2000)]
    counted[-1].result()
    kept = store._query("SELECT count(*) FROM request")[0][0]  # pyright: ignore[reportPrivateUsage]
    assert kept < 100
    store.close()


def test_dynamodb_has_the_tables_streams_and_ttl_of_the_protocol(dynamodb_url: str):
    store = DynamoDBStore.from_url(f"dynamodb://us-east-1/?endpoint_url={dynamodb_url}")
    store.create_tables()
    store.create_tables()  # again is safe
    client = store._client  # pyright: ignore[reportPrivateUsage]
    table = client.describe_table(TableName="torchci-oot-workflow-job")["Table"]
    assert table["KeySchema"] == [{"AttributeName": "dynamoKey", "KeyType": "HASH"}]
    assert table["StreamSpecification"]["StreamViewType"] == "NEW_AND_OLD_IMAGES"
    ttl = client.describe_time_to_live(TableName="torchci-oot-workflow-job-lifecycle")["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "expires_at")
    store.close()


@pytest.mark.parametrize(
    "url", ["dynamodb://us-east-1/a/b", "dynamodb://us-east-1/a?region=x", "dynamodb://bad region/a", "dynamodb:///a"]
)
def test_an_address_of_dynamodb_that_is_wrong_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(SettingsError, match=r"^CI_PIPELINE_OOT_STORE: write dynamodb://<region>/<table>"):
        open_store(url)


def test_dynamodb_that_does_not_answer_is_reported_as_such():
    store = DynamoDBStore.from_url("dynamodb://us-east-1/?endpoint_url=http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        store.write(record()).result()
    with pytest.raises(StoreUnavailable):
        store.record(KEY)
    store.close()
