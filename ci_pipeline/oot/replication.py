"""From the store to the warehouse: changes in their order, nothing lost, and the same however often it is done."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from ci_pipeline.oot.payload import instant
from ci_pipeline.oot.record import FIELDS
from ci_pipeline.oot.store import Change, Store, StoreUnavailable, page_of
from ci_pipeline.warehouse import WarehouseError
from ci_pipeline.warehouse.client import refusals
from ci_pipeline.warehouse.oot import count_hours

if TYPE_CHECKING:
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

TABLE = "oot_workflow_job"

BATCH = 500
"""Changes of one insert, at most."""

PAUSE = 1.0
"""Seconds between two looks at a store where little changes: DynamoDB lets a shard be read five times a second, and an
empty one is read three times each."""

_TIMES = ("started_at", "completed_at")
_MEASURED = ("queue_time", "execution_time")
_NEVER = datetime.fromtimestamp(0, UTC)
_COMPLETED = 1 << 62  # above any number of writes

# ClickHouse's codes for a table that takes no row at all: no such column, unknown table, dropped, memory, read-only,
# too many parts, too few replicas, quorum, unknown status of insert, access denied.
_NO_ROW_AT_ALL = frozenset((16, 60, 218, 241, 242, 252, 285, 286, 319, 497))


@dataclass(frozen=True, slots=True)
class Replicated:
    """What arrived, and the `cursor` behind it.

    `refused`: rows among them that are kept as dead letters. `lag`: the longest time in seconds from a write in the
    store to its arrival.
    """

    cursor: str = ""
    rows: int = 0
    refused: int = 0
    lag: float = 0.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A change that the warehouse refused, and why."""

    change: Change
    reason: str


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Jobs of the store that changed in a time, and what the warehouse had of them before it was repaired.

    `missing` and `different` are their keys, `refused` those that could not be repaired; `strangers` are the keys of
    jobs that only the warehouse has.
    """

    jobs: int
    missing: tuple[str, ...] = ()
    different: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()


def replicate(store: Store, client: Client, cursor: str, *, seconds: float = 0.0) -> Replicated:
    """Bring what changed behind `cursor`, and what changes within `seconds`; when all is there, count it for the pages.

    Where this ends early the cursor is behind what has arrived; what lies behind it comes next time.

    Raises:
        StoreUnavailable, WarehouseError: before anything arrived.
    """
    end = time.monotonic() + seconds
    done = Replicated(cursor)
    while True:
        try:
            page = store.changes_after(done.cursor, BATCH)
            refused = insert(client, page.changes)
        except (StoreUnavailable, WarehouseError):
            if done.rows == 0:
                raise
            log.exception("Replication stops here and goes on later")
            return done
        now = time.time()
        done = Replicated(
            page.cursor,
            done.rows + len(page.changes),
            done.refused + len(refused),
            max([done.lag, *(now - change.changed_at for change in page.changes)]),
        )
        if page.changes and not page.more:
            try:
                count_hours(client)
            except WarehouseError as error:
                log.warning("The next page that shows these hours counts them itself: %s", error)
        left = end - time.monotonic()
        if left <= 0:
            return done
        if not page.more:
            time.sleep(min(PAUSE, left))


def replicate_all(store: Store, client: Client) -> Replicated:
    """Bring every job of the store once more: to an empty warehouse, or behind a change feed that has forgotten.

    Raises:
        StoreUnavailable, WarehouseError: some are missing.
    """
    done = Replicated()
    for changes in _batches(store.records()):
        refused = insert(client, changes)
        done = replace(done, rows=done.rows + len(changes), refused=done.refused + len(refused))
    return done


def insert(client: Client, changes: Sequence[Change]) -> list[DeadLetter]:
    """Insert all that the warehouse takes; what it refuses for good is kept as dead letters, which are returned.

    Raises:
        WarehouseError: it cannot be reached, or takes no row at all.
    """
    if not changes:
        return []
    try:
        table = _table(changes)
        with refusals(f"the warehouse refuses rows of {TABLE}"):
            client.insert_arrow(TABLE, table)
    except (ValueError, TypeError, OverflowError, WarehouseError) as error:  # of pyarrow, or of the server
        code = getattr(error.__cause__, "code", None)
        if isinstance(error, WarehouseError) and (code is None or (len(changes) == 1 and code in _NO_ROW_AT_ALL)):
            raise
        if len(changes) > 1:
            middle = len(changes) // 2
            return insert(client, changes[:middle]) + insert(client, changes[middle:])
        letter = DeadLetter(changes[0], str(error))
        log.error("%s is kept as a dead letter: %s", letter.change.record["dynamoKey"], letter.reason)
        # A warehouse that cannot take this either is in trouble itself: then the row waits.
        _keep(client, letter, pending=True)
        return [letter]
    return []


# --- dead letters ---------------------------------------------------------------------------------------------------


def dead_letters(client: Client) -> Iterator[DeadLetter]:
    """Those that are pending.

    Raises:
        WarehouseError: it cannot be reached.
    """
    with refusals("the warehouse does not answer"):
        result = client.query(
            "SELECT record, record_version, changed_at, began_at, reason FROM oot_dead_letter FINAL WHERE pending"
        )
    for record, version, changed_at, began_at, reason in result.result_rows:
        yield DeadLetter(Change(json.loads(record), version, changed_at, began_at), reason)


def replay(client: Client) -> Replicated:
    """Insert the dead letters; what is refused again stays pending.

    Raises:
        WarehouseError: it cannot be reached; the others stay pending.
    """
    done = Replicated()
    for letter in dead_letters(client):
        refused = len(insert(client, [letter.change]))
        if not refused:
            _keep(client, letter, pending=False)
        done = replace(done, rows=done.rows + 1, refused=done.refused + refused)
    return done


def _keep(client: Client, letter: DeadLetter, *, pending: bool) -> None:
    change = letter.change
    row = {
        "dynamoKey": _utf8(str(change.record["dynamoKey"])),
        "record": json.dumps(change.record),  # ASCII: what is no Unicode comes back as it was
        "record_version": change.version,
        "changed_at": change.changed_at,
        "began_at": _utf8(change.began_at),
        "reason": _utf8(letter.reason),
        "pending": pending,
        "version": time.time_ns(),
    }
    with refusals("the warehouse refuses a dead letter"):
        client.insert("oot_dead_letter", [list(row.values())], column_names=list(row))


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


# --- whether all is there -------------------------------------------------------------------------------------------


def reconcile(store: Store, client: Client, since: datetime, until: datetime) -> Reconciled:
    """Compare the jobs that changed from `since` and before `until`, and insert what is missing or different.

    Raises:
        StoreUnavailable, WarehouseError: it was not finished; again is safe.
    """
    with refusals("the warehouse does not answer"):
        rows = client.query(
            f"SELECT dynamoKey, version, status, conclusion FROM {TABLE} FINAL"
            " WHERE changed_at >= {since:DateTime64(6)} AND changed_at < {until:DateTime64(6)}",
            {"since": since, "until": until},
        ).result_rows
    there = {key: state for key, *state in rows}
    jobs = 0
    missing: list[str] = []
    different: list[str] = []
    refused: list[DeadLetter] = []

    def astray() -> Iterator[Change]:
        nonlocal jobs
        for change in store.records(since=since.timestamp(), until=until.timestamp()):
            jobs += 1
            key = str(change.record["dynamoKey"])
            state = there.pop(key, None)
            if state != [_version(change), change.record["status"], change.record.get("conclusion", "")]:
                (missing if state is None else different).append(key)
                yield change

    for changes in _batches(astray()):
        refused += insert(client, changes)
    # The others have changed since then, or are the warehouse's alone.
    strangers = [key for key in there if store.record(key) is None]
    return Reconciled(
        jobs,
        tuple(missing),
        tuple(different),
        tuple(str(letter.change.record["dynamoKey"]) for letter in refused),
        tuple(strangers),
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def _batches(changes: Iterator[Change]) -> Iterator[list[Change]]:
    while batch := page_of(changes, BATCH, lambda change: change.record.get("failed_tests_json"))[0]:
        yield batch


def _version(change: Change) -> int:
    """A job that completed wins over the same job in progress, also where a writer does not count."""
    return change.version + (_COMPLETED if change.record["status"] == "completed" else 0)


def _table(changes: Iterable[Change]) -> pa.Table:
    """
    Raises:
        ValueError, TypeError, OverflowError: a field of one of them is not of its column's type.
    """
    import pyarrow as pa

    return pa.Table.from_pylist([_row(change) for change in changes], schema=_schema())


def _row(change: Change) -> dict[str, Any]:
    record = change.record
    row: dict[str, Any] = {name: record.get(name, None if type is float else type()) for name, type in FIELDS.items()}
    times = {name: _time(record.get(name)) for name in _TIMES}
    changed_at = datetime.fromtimestamp(change.changed_at, UTC)
    began_at = _time(change.began_at or record.get("started_at") or record.get("completed_at"))
    return row | times | {"version": _version(change), "changed_at": changed_at, "began_at": began_at}


def _time(text: Any) -> datetime:
    """1970 where there is none."""
    return instant(text) if text else _NEVER


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    types: dict[type, pa.DataType] = {str: pa.string(), int: pa.uint64(), float: pa.float64()}
    special: dict[str, pa.DataType] = {name: pa.timestamp("ns", "UTC") for name in _TIMES}
    special["run_attempt"] = pa.uint32()
    fields = [
        pa.field(name, special.get(name, types[type]), nullable=name in _MEASURED) for name, type in FIELDS.items()
    ]
    return pa.schema(
        [
            *fields,
            pa.field("version", pa.uint64(), nullable=False),
            pa.field("changed_at", pa.timestamp("us", "UTC"), nullable=False),
            pa.field("began_at", pa.timestamp("ns", "UTC"), nullable=False),
        ]
    )
