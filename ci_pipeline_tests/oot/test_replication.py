"""From either kind of store to a real warehouse, also when that is down, empty, or will not have a row."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_pipeline.oot import replication
from ci_pipeline.oot.dynamodb_store import DynamoDBStore
from ci_pipeline.oot.payload import instant
from ci_pipeline.oot.record import FIELDS, Record
from ci_pipeline.oot.replication import Replicated, reconcile, replay, replicate, replicate_all
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Change, Store, StoreUnavailable
from ci_pipeline.oot.sweeper import close_silent_jobs
from ci_pipeline.warehouse import WarehouseError
from ci_pipeline.warehouse import client as warehouse_client
from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

KEY = "org/backend/delivery-1/CI/test/101"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
LATER = TODAY + timedelta(days=2)  # midnight may come while the tests run


def record(status: str = "in_progress", key: str = KEY, **fields: Any) -> Record:
    job: Record = {
        "dynamoKey": key,
        "status": status,
        "downstream_repo": "org/backend",
        "upstream_repo": "org/upstream",
        "delivery_id": "delivery-1",
        "pr_number": 7,
        "pytorch_head_sha": "a" * 40,
        "job_name": "test",
        "run_attempt": 1,
        "started_at": "2026-04-28T10:00:00Z",
    }
    if status == "completed":
        job |= {"conclusion": "success", "completed_at": "2026-04-28T10:30:00+00:00"}
    return {**job, **fields}


def rows(client: Client, columns: str = "dynamoKey, status") -> list[tuple[Any, ...]]:
    return [
        tuple(row)
        for row in client.query(f"SELECT {columns} FROM oot_workflow_job FINAL ORDER BY dynamoKey").result_rows
    ]


def all_of(store: Store, client: Client, cursor: str = "") -> Replicated:
    """Replicate until nothing is left."""
    while (done := replicate(store, client, cursor)).rows:
        cursor = done.cursor
    return done


def refuse(client: Client, condition: str) -> None:
    """Make the server refuse such rows, until `accept`."""
    checked = f"UInt8 MATERIALIZED throwIf({condition}, 'will not have it')"
    client.command(f"ALTER TABLE oot_workflow_job ADD COLUMN checked {checked}")


def accept(client: Client) -> None:
    client.command("ALTER TABLE oot_workflow_job DROP COLUMN checked SETTINGS mutations_sync = 1")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "oot.sqlite")
    yield store
    store.close()


# --- where a job is found ---------------------------------------------------------------------------------------------


def partitions(client: Client) -> list[tuple[Any, ...]]:
    """Status and week of every job, merged within weeks alone, as the pages count them."""
    merged = "SETTINGS do_not_merge_across_partitions_select_final = 1"
    query = f"SELECT status, toMonday(hour) FROM oot_workflow_job FINAL ORDER BY ALL {merged}"
    return [tuple(row) for row in client.query(query).result_rows]


@pytest.mark.parametrize("started_at", ["", "2026-04-28T10:00:00Z"])
def test_a_job_stays_in_one_partition_whatever_it_says_later(store: Store, warehouse: Client, started_at: str) -> None:
    begun = record("in_progress", started_at=started_at)
    if not started_at:
        del begun["started_at"]
    store.write(begun).result()
    cursor = replicate(store, warehouse, "").cursor
    [(_, week)] = partitions(warehouse)
    store.write(record("completed", started_at="2025-01-01T00:00:00Z", completed_at="2025-01-02T00:00:00Z")).result()
    assert replicate(store, warehouse, cursor).rows == 1
    assert partitions(warehouse) == [("completed", week)]
    assert rows(warehouse, "toYear(started_at)") == [(2025,)]


def test_a_file_of_an_earlier_version_is_opened_and_its_jobs_stay_where_they_were(tmp_path: Path, warehouse: Client):
    path = tmp_path / "oot.sqlite"
    with closing(SqliteStore(path)) as store:
        store.write(record("in_progress")).result()
        store.write({"dynamoKey": "without times", "status": "in_progress"}).result()
    with closing(sqlite3.connect(path)) as connection:
        for column in ("began_at", "pr_author"):
            connection.execute(f"ALTER TABLE oot_workflow_job DROP COLUMN {column}")
    with closing(SqliteStore(path)) as store:
        found = {str(change.record["dynamoKey"]): change for change in store.records()}
        assert found[KEY].began_at == "2026-04-28T10:00:00Z"
        assert abs(instant(found["without times"].began_at).timestamp() - time.time()) < 60
        store.write(record("completed", pr_author="ann")).result()
        replicate(store, warehouse, "")
    assert ("completed", date(2026, 4, 27)) in partitions(warehouse)


def test_a_warehouse_of_an_earlier_version_keeps_its_jobs(new_warehouse_url: str, monkeypatch: pytest.MonkeyPatch):
    client = connect(new_warehouse_url)
    every = warehouse_client._migrations()  # pyright: ignore[reportPrivateUsage]
    earlier = {name: statements for name, statements in every.items() if name < "0006"}
    with monkeypatch.context() as patched:
        patched.setattr(warehouse_client, "_migrations", lambda: earlier)
        migrate(client)
    columns = "dynamoKey, status, downstream_repo, delivery_id, version, started_at, completed_at"
    client.command(
        f"INSERT INTO oot_workflow_job ({columns}) VALUES"
        " ('astray', 'in_progress', 'org/backend', 'delivery-1', 1, 0, 0),"
        " ('astray', 'completed', 'org/backend', 'delivery-1', 2, 0, '2026-04-28 10:30:00'),"
        " ('begun', 'in_progress', 'org/backend', 'delivery-1', 1, '2026-04-28 10:00:00', 0)"
    )
    assert "0006_oot_began" in migrate(client)
    insert_one = [Change(record("completed", key="begun"), 2, 2.0, "2026-04-28T10:00:00Z")]
    assert replication.insert(client, insert_one) == []
    wait_for_mutations = "SELECT count() FROM system.mutations WHERE NOT is_done AND database = currentDatabase()"
    end = time.monotonic() + 30
    while client.command(wait_for_mutations) and time.monotonic() < end:
        time.sleep(0.05)
    assert partitions(client) == [("completed", date(2026, 4, 27))] * 2
    client.command(f"DROP DATABASE {client.database}", use_database=False)


# --- what arrives ---------------------------------------------------------------------------------------------------


def test_a_job_arrives_with_every_field_of_its_record(store: Store, warehouse: Client) -> None:
    full = record(
        "completed",
        conclusion="failure",
        downstream_repo_level="L2",
        pr_author="ann",
        event_type="pull_request",
        workflow_name="CI",
        workflow_run_url="https://github.com/org/backend/actions/runs/1",
        check_run_id="101",
        run_id="1",
        queue_time=12.5,
        execution_time=1782.25,
        passed_tests=1200,
        failed_tests=2,
        skipped_tests=3,
        total_tests=1205,
        failed_tests_json='[{"name": "té\\n"}]',
        artifact_url="https://example.com/artifact",
        environment='{"gpu": "x"}',
    )
    assert set(full) == set(FIELDS)
    store.write(full).result()
    before = time.time()
    done = replicate(store, warehouse, "")
    assert (done.rows, done.refused) == (1, 0)
    assert 0 <= done.lag < time.time() - before + 10
    [row] = rows(warehouse, ", ".join(full))
    expected = full | {
        "started_at": datetime(2026, 4, 28, 10, tzinfo=UTC),
        "completed_at": datetime(2026, 4, 28, 10, 30, tzinfo=UTC),
    }
    assert dict(zip(full, row, strict=True)) == expected
    assert rows(warehouse, "repository_full_name, duration_seconds, abs(now64() - changed_at) < 60") == [
        ("org/backend", 1800, True)
    ]


def test_what_a_job_does_not_say_is_empty_and_its_times_are_null(store: Store, warehouse: Client) -> None:
    job = record()
    del job["started_at"]
    store.write(job).result()
    replicate(store, warehouse, "")
    assert rows(warehouse, "conclusion, queue_time, execution_time, duration_seconds, total_tests") == [
        ("", None, None, 0, 0)
    ]
    assert rows(warehouse, "toUnixTimestamp(started_at), toUnixTimestamp(completed_at)") == [(0, 0)]


def test_a_job_that_completed_is_one_row(store: Store, warehouse: Client) -> None:
    store.write(record("in_progress", queue_time=3.0)).result()
    done = replicate(store, warehouse, "")
    assert rows(warehouse) == [(KEY, "in_progress")]
    store.write(record("completed")).result()
    replicate(store, warehouse, done.cursor)
    assert rows(warehouse, "status, conclusion, queue_time") == [("completed", "success", 3.0)]


@pytest.mark.parametrize("versions", [(1, 2), (0, 0)], ids=["counted", "by a writer that does not count"])
def test_a_late_in_progress_does_not_win_over_completed(warehouse: Client, versions: tuple[int, int]) -> None:
    began, ended = Change(record(), versions[0], 1.0), Change(record("completed"), versions[1], 2.0)
    replication.insert(warehouse, [ended])
    replication.insert(warehouse, [began])
    assert rows(warehouse) == [(KEY, "completed")]


def test_doing_it_again_changes_nothing(store: Store, warehouse: Client) -> None:
    for n in range(3):
        store.write(record(key=f"key-{n}")).result()
    for _ in range(3):
        all_of(store, warehouse)
    replicate_all(store, warehouse)
    assert rows(warehouse) == [(f"key-{n}", "in_progress") for n in range(3)]


def test_more_than_a_batch_arrives_in_order_batch_by_batch(
    sqlite: SqliteStore, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "BATCH", 10)
    for n in range(25):
        sqlite.write(record(key=f"key-{n:02}")).result()
    cursor, seen = "", []
    while (done := replicate(sqlite, warehouse, cursor)).rows:
        cursor = done.cursor
        seen.append(len(rows(warehouse)))
    assert seen == [10, 20, 25]
    assert rows(warehouse)[-1] == ("key-24", "in_progress")


def test_what_comes_while_it_watches_arrives_too(
    sqlite: SqliteStore, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "PAUSE", 0.1)
    timer = Timer(0.3, lambda: sqlite.write(record()).result())
    timer.start()
    done = replicate(sqlite, warehouse, "", seconds=1.5)
    timer.join()
    assert done.rows == 1
    assert replicate(sqlite, warehouse, done.cursor) == Replicated(done.cursor)


def test_times_without_a_zone_are_utc(warehouse: Client) -> None:
    texts = ["2026-04-28T10:00:00", "2026-04-28T12:00:00.123456789+02:00", "2026-04-28 10:00:00Z"]
    replication.insert(warehouse, [Change(record(key=f"key-{n}", started_at=t), 1, 1.0) for n, t in enumerate(texts)])
    assert rows(warehouse, "toString(toDateTime(started_at, 'UTC'))") == [("2026-04-28 10:00:00",)] * 3


def test_times_all_over_the_calendar_hold_nobody_up(warehouse: Client) -> None:
    jobs = [record(key=f"key-{year}", started_at=f"{year}-01-01T00:00:00Z") for year in range(1971, 2101)]
    assert replication.insert(warehouse, [Change(job, 1, 1.0) for job in jobs]) == []
    assert len(rows(warehouse)) == 130


_text = st.text(max_size=50)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    job=st.fixed_dictionaries(
        {},
        optional={
            name: {str: _text, int: st.integers(), float: st.floats()}[type]
            for name, type in FIELDS.items()
            if name not in ("dynamoKey", "status")
        },
    )
)
def test_whatever_a_record_holds_its_neighbour_arrives_and_nothing_is_lost(warehouse: Client, job: Record) -> None:
    key = f"key-{time.time_ns()}"
    changes = [Change({**record(key=key), **job}, 1, 1.0), Change(record(key=f"{key}-neighbour"), 1, 1.0)]
    refused = {str(letter.change.record["dynamoKey"]) for letter in replication.insert(warehouse, changes)}
    arrived = {row[0] for row in rows(warehouse, "dynamoKey") if row[0].startswith(key)}
    assert arrived | refused == {key, f"{key}-neighbour"}
    assert f"{key}-neighbour" in arrived


# --- what does not --------------------------------------------------------------------------------------------------


def test_while_the_warehouse_is_down_nothing_is_lost_and_all_arrives_later(store: Store, tmp_path: Path) -> None:
    with Embedded(tmp_path / "warehouse") as first:
        client = connect(first.url)
        migrate(client)
        port = int(first.url.rpartition(":")[2].partition("/")[0])
        store.write(record(key="key-0")).result()
        cursor = replicate(store, client, "").cursor
    store.write(record(key="key-1")).result()
    store.write(record("completed", key="key-0")).result()
    with pytest.raises(WarehouseError):
        replicate(store, client, cursor)
    with Embedded(tmp_path / "warehouse", port=port):
        assert rows(client) == [("key-0", "in_progress")]
        all_of(store, client, cursor)
        assert rows(client) == [("key-0", "completed"), ("key-1", "in_progress")]


def test_the_cursor_stays_behind_what_has_arrived(
    sqlite: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "BATCH", 2)
    for n in range(4):
        sqlite.write(record(key=f"key-{n}")).result()
    with Embedded(tmp_path / "warehouse") as embedded:
        client = connect(embedded.url)
        migrate(client)
        insert = replication.insert

        def insert_once(client: Client, changes: Any) -> Any:
            monkeypatch.setattr(replication, "insert", stopped)
            return insert(client, changes)

        def stopped(client: Client, changes: Any) -> Any:
            raise WarehouseError("down")

        monkeypatch.setattr(replication, "insert", insert_once)
        done = replicate(sqlite, client, "", seconds=5)
        monkeypatch.setattr(replication, "insert", insert)
        assert done.rows == 2
        assert replicate(sqlite, client, done.cursor, seconds=0.1).rows == 2
        assert len(rows(client)) == 4


def test_what_arrived_has_arrived_though_its_hours_cannot_be_counted(store: Store, warehouse: Client) -> None:
    store.write(record()).result()
    warehouse.command("RENAME TABLE oot_backend_hour TO elsewhere")
    done = replicate(store, warehouse, "")
    assert (done.rows, rows(warehouse)) == (1, [(KEY, "in_progress")])
    assert replicate(store, warehouse, done.cursor).rows == 0


def test_a_store_that_does_not_answer_is_reported(warehouse: Client, tmp_path: Path) -> None:

    with pytest.raises(StoreUnavailable):
        replicate(DynamoDBStore.from_url("dynamodb://us-east-1/?endpoint_url=http://127.0.0.1:9"), warehouse, "")


def test_a_row_that_the_warehouse_refuses_holds_nobody_up_and_can_be_replayed(store: Store, warehouse: Client) -> None:
    refuse(warehouse, "job_name = 'evil'")
    for n in range(5):
        store.write(record(key=f"key-{n}", job_name="evil" if n in (1, 4) else "test")).result()
    done = replicate(store, warehouse, "")
    assert (done.rows, done.refused) == (5, 2)
    assert [key for key, _ in rows(warehouse)] == ["key-0", "key-2", "key-3"]

    assert replay(warehouse) == Replicated(rows=2, refused=2)
    refused = {str(letter.change.record["dynamoKey"]): letter.reason for letter in replication.dead_letters(warehouse)}
    assert sorted(refused) == ["key-1", "key-4"]
    assert "will not have it" in refused["key-1"]

    accept(warehouse)
    assert replay(warehouse) == Replicated(rows=2)
    assert len(rows(warehouse)) == 5
    assert replay(warehouse) == Replicated()


@pytest.mark.parametrize(
    "field",
    [
        {"pr_number": -1, "job_name": "\x00\U0001f525\u202e' \\ \n"},
        {"run_attempt": 2**32},
        {"total_tests": 2**64},
        {"started_at": "yesterday"},
        {"completed_at": "0001-01-01T00:00:00Z"},
        {"job_name": "\ud800"},
        {"queue_time": "long"},
    ],
    ids=str,
)
def test_a_field_that_no_column_can_hold_becomes_a_dead_letter_with_the_reason(
    warehouse: Client, field: dict[str, Any]
) -> None:
    good, bad = Change(record(key="key-1"), 1, 1.0), Change(record(key="key-2", **field), 3, 5.0)
    [letter] = replication.insert(warehouse, [good, bad])
    assert letter.reason
    assert [key for key, _ in rows(warehouse)] == ["key-1"]
    assert list(replication.dead_letters(warehouse)) == [letter]
    assert letter.change == bad


def test_a_replayed_row_does_not_win_over_what_came_since(warehouse: Client) -> None:
    refuse(warehouse, "status = 'in_progress'")
    replication.insert(warehouse, [Change(record(), 1, 1.0)])
    replication.insert(warehouse, [Change(record("completed"), 2, 2.0)])
    accept(warehouse)
    assert replay(warehouse) == Replicated(rows=1)
    assert rows(warehouse) == [(KEY, "completed")]


def test_a_warehouse_without_the_table_makes_everything_wait(store: Store, warehouse: Client) -> None:
    store.write(record()).result()
    warehouse.command("RENAME TABLE oot_workflow_job TO elsewhere")
    with pytest.raises(WarehouseError):
        replicate(store, warehouse, "")
    assert list(replication.dead_letters(warehouse)) == []
    warehouse.command("RENAME TABLE elsewhere TO oot_workflow_job")
    assert replicate(store, warehouse, "").rows == 1


def test_a_warehouse_that_takes_no_dead_letter_either_makes_the_row_wait(warehouse: Client) -> None:
    refuse(warehouse, "1")
    warehouse.command("RENAME TABLE oot_dead_letter TO elsewhere")
    with pytest.raises(WarehouseError, match="dead letter"):
        replication.insert(warehouse, [Change(record(), 1, 1.0)])


# --- whether all is there -------------------------------------------------------------------------------------------


def test_reconciliation_finds_and_repairs_what_is_missing_or_different(store: Store, warehouse: Client) -> None:
    for n in range(4):
        store.write(record(key=f"key-{n}")).result()
    all_of(store, warehouse)
    store.write(record("completed", key="key-1")).result()  # not replicated
    warehouse.command("ALTER TABLE oot_workflow_job DELETE WHERE dynamoKey = 'key-2' SETTINGS mutations_sync = 1")
    replication.insert(warehouse, [Change(record(key="stranger"), 1, time.time())])

    found = reconcile(store, warehouse, TODAY, LATER)
    assert (found.jobs, found.missing, found.refused, found.strangers) == (4, ("key-2",), (), ("stranger",))
    assert found.different == ("key-1",)
    assert rows(warehouse) == [
        ("key-0", "in_progress"),
        ("key-1", "completed"),
        ("key-2", "in_progress"),
        ("key-3", "in_progress"),
        ("stranger", "in_progress"),
    ]
    again = reconcile(store, warehouse, TODAY, LATER)
    assert (again.jobs, again.missing, again.different) == (4, (), ())


def test_reconciliation_names_what_it_could_not_repair(store: Store, warehouse: Client) -> None:
    refuse(warehouse, "job_name = 'evil'")
    store.write(record(key="key-1", job_name="evil")).result()
    store.write(record(key="key-2")).result()
    found = reconcile(store, warehouse, TODAY, LATER)
    assert (found.jobs, sorted(found.missing), found.refused) == (2, ["key-1", "key-2"], ("key-1",))
    assert rows(warehouse) == [("key-2", "in_progress")]


def test_reconciliation_looks_at_the_day_that_it_is_asked_for_alone(store: Store, warehouse: Client) -> None:
    store.write(record()).result()
    assert reconcile(store, warehouse, TODAY - timedelta(days=1), TODAY).jobs == 0
    assert reconcile(store, warehouse, LATER, LATER + timedelta(days=1)).jobs == 0
    assert reconcile(store, warehouse, TODAY, LATER).missing == (KEY,)


def test_an_empty_warehouse_is_filled_from_the_store(store: Store, warehouse: Client) -> None:
    for n in range(3):
        store.write(record(key=f"key-{n}")).result()
    assert replicate_all(store, warehouse) == Replicated(rows=3)
    assert len(rows(warehouse)) == 3


# --- jobs that fall silent ------------------------------------------------------------------------------------------


def test_a_job_that_is_silent_for_six_hours_has_timed_out(store: Store) -> None:
    store.write(record(queue_time=3.0)).result()
    store.write(record("completed", key="done")).result()
    now = time.time()
    assert close_silent_jobs(store, 6.0, now + 5.9 * 3600) == []
    assert close_silent_jobs(store, 6.0, now + 6.1 * 3600) == [KEY]
    job = store.record(KEY)
    assert job
    assert (job["status"], job["conclusion"], job["queue_time"]) == ("completed", "timed_out", 3.0)
    assert job["completed_at"] == datetime.fromtimestamp(int(now + 6.1 * 3600), UTC).isoformat()
    assert close_silent_jobs(store, 6.0, now + 20 * 3600) == []
    done = store.record("done")
    assert done
    assert done["conclusion"] == "success"


def test_a_completion_that_comes_while_the_sweeper_looks_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(record()).result()
    [seen] = store.records(status="in_progress")
    store.write(record("completed", conclusion="failure")).result()
    assert store.close_job(seen, {"dynamoKey": KEY, "status": "completed", "conclusion": "timed_out"}).result() is False
    monkeypatch.setattr(store, "records", lambda **asked: [seen])
    assert close_silent_jobs(store, 6.0, time.time() + 7 * 3600) == []
    job = store.record(KEY)
    assert job
    assert job["conclusion"] == "failure"


def test_a_completion_after_the_sweeper_wins_everywhere(store: Store, warehouse: Client) -> None:
    store.write(record()).result()
    close_silent_jobs(store, 6.0, time.time() + 7 * 3600)
    cursor = replicate(store, warehouse, "").cursor
    assert rows(warehouse, "conclusion") == [("timed_out",)]
    store.write(record("completed")).result()
    all_of(store, warehouse, cursor)
    assert rows(warehouse, "conclusion, completed_at") == [("success", datetime(2026, 4, 28, 10, 30, tzinfo=UTC))]
