"""The store in one SQLite file: durable at each answer, because callbacks that arrive together share a commit."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ci_pipeline.oot import Refused
from ci_pipeline.oot.lifecycle import Dispatch, JobState, Status, Step, Transition, decide
from ci_pipeline.oot.record import FIELDS, Record, began_at
from ci_pipeline.oot.store import (
    RATE_WINDOW,
    Change,
    ChangePage,
    Message,
    StoreUnavailable,
    dispatch_key,
    in_window,
    page_of,
    too_many,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL"}
_COLUMNS = {name: _TYPES[type] for name, type in FIELDS.items()} | {"began_at": "TEXT", "dynamoKey": "TEXT PRIMARY KEY"}
_LAYOUT = ", ".join(f"{name} {type}" for name, type in _COLUMNS.items())

# `sequence` moves a record that changed to the end: reading behind a sequence is the change feed, without a copy.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS oot_workflow_job (sequence INTEGER, version INTEGER, changed_at REAL, {_LAYOUT});
CREATE UNIQUE INDEX IF NOT EXISTS oot_workflow_job_sequence ON oot_workflow_job (sequence);
CREATE INDEX IF NOT EXISTS oot_workflow_job_in_progress ON oot_workflow_job (changed_at) WHERE status = 'in_progress';
CREATE TABLE IF NOT EXISTS lifecycle (key TEXT PRIMARY KEY, item TEXT, expires_at REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lifecycle_expires_at ON lifecycle (expires_at);
CREATE TABLE IF NOT EXISTS request (repo TEXT, n INTEGER, at REAL, PRIMARY KEY (repo, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB, refused TEXT);
CREATE INDEX IF NOT EXISTS message_pending ON message (id) WHERE refused IS NULL;
"""

_LIVE = "SELECT item FROM lifecycle WHERE key = ? AND expires_at > ?"
_BATCH = 256
_FOREVER = 1e12


class SqliteStore:
    """One writer thread per process; SQLite's own lock orders several processes on the same file."""

    def __init__(self, path: str | Path, state_days: float = 3.0) -> None:
        self.path = Path(path)
        self._state_seconds = state_days * 86400
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._open = threading.Lock()
        self._closed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(0o600)  # the signing key is in there
            connection = self._connect()
            connection.executescript(_SCHEMA)
            _add_columns(connection)
            self._reader = self._connect()
            self._one_reads = threading.Lock()  # the threads would share its prepared statements
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreUnavailable(f"the store cannot be opened at {self.path}: {reason}") from error
        self._writer = threading.Thread(target=self._write_loop, args=(connection,), name="oot-store", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=10.0, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    # --- writing: one thread, one transaction for all that waits -----------------------------------------------------

    def _submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Run `work` in the next transaction; done when that is committed.

        When it raises Refused, what it wrote so far stays.
        """
        task = _Task(work, Future())
        with self._open:
            if self._closed:
                raise StoreUnavailable(f"{self.path} is closed")
            self._queue.put(task)
        return task.future

    def _write_loop(self, connection: sqlite3.Connection) -> None:
        purge_at = 0.0
        while tasks := self._waiting():
            if time.time() > purge_at:
                tasks.append(_Task(_purge, Future()))
                purge_at = time.time() + 600
            self._commit(connection, tasks)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, tasks: list[_Task]) -> None:
        outcomes: list[Any] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for task in tasks:
                try:
                    outcomes.append(task.work(connection))
                except Refused as refused:
                    outcomes.append(refused)
            connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if len(tasks) > 1 and not isinstance(error, sqlite3.OperationalError):  # one spoils it for the others
                for task in tasks:
                    self._commit(connection, [task])
                return
            log.error("%s: %s", self.path, error, exc_info=not isinstance(error, sqlite3.Error))
            outcomes = [StoreUnavailable(str(error))] * len(tasks)
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, Exception):
                task.future.set_exception(outcome)
            else:
                task.future.set_result(outcome)

    def _waiting(self) -> list[_Task]:
        """Everything that waits to be written, after waiting for the first; nothing when the store was closed."""
        tasks: list[_Task] = []
        while task := self._queue.get():
            if task.future.set_running_or_notify_cancel():  # its caller may be gone by now
                tasks.append(task)
            if tasks and (len(tasks) == _BATCH or self._queue.empty()):
                return tasks
        self._queue.put(None)
        return tasks

    def close(self) -> None:
        """Write what waits, then close; what comes later is refused."""
        with self._open:
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        self._reader.close()

    def register_dispatch(self, dispatch: Dispatch) -> Future[None]:
        expires_at = time.time() + self._state_seconds
        return self._submit(lambda connection: _put(connection, dispatch_key(dispatch), dispatch, expires_at))

    def claim_dispatch(self, dispatch: Dispatch) -> Future[bool]:
        key, expires_at = dispatch_key(dispatch), time.time() + self._state_seconds

        def work(connection: sqlite3.Connection) -> bool:
            known = _get(connection, key, Dispatch)
            if known and dispatch.dispatched_at < known.told_until:
                return False
            _put(connection, key, dispatch, expires_at)
            return True

        return self._submit(work)

    def advance(
        self, step: Step, now: float, effect: Callable[[Transition], Record | Message], *, rate_limit: int = 0
    ) -> Future[Transition | None]:
        def work(connection: sqlite3.Connection) -> Transition | None:
            _count_request(connection, step.repo, rate_limit, now)
            state = _get(connection, f"job {step.job}", JobState)
            dispatch = None if state else _get(connection, dispatch_key(step), Dispatch)
            transition = decide(step, dispatch, state, now)
            if transition:
                _put(connection, f"job {step.job}", transition.state, time.time() + self._state_seconds)
                written = effect(transition)
                if isinstance(written, bytes):
                    connection.execute("INSERT INTO message (body) VALUES (?)", (written,))
                else:
                    _upsert(connection, written)
            return transition

        return self._submit(work)

    def write(self, record: Record) -> Future[None]:
        return self._submit(lambda connection: _upsert(connection, record))

    def close_job(self, seen: Change, record: Record) -> Future[bool]:
        def work(connection: sqlite3.Connection) -> bool:
            query = "SELECT 1 FROM oot_workflow_job WHERE dynamoKey = ? AND version = ? AND status = 'in_progress'"
            if not connection.execute(query, (record["dynamoKey"], seen.version)).fetchone():
                return False
            _upsert(connection, record)
            return True

        return self._submit(work)

    def count_request(self, repo: str, rate_limit: int, now: float) -> Future[None]:
        return self._submit(lambda connection: _count_request(connection, repo, rate_limit, now))

    def repository_id(self, repo: str, repository_id: str) -> Future[str]:
        return self._submit(lambda connection: _remember(connection, f"repository {repo}", repository_id))

    def confirm_repository(self, repo: str, repository_id: str) -> Future[None]:
        return self._submit(lambda connection: _put(connection, f"repository {repo}", repository_id, _FOREVER))

    def signing_key(self) -> Future[str]:
        return self._submit(lambda connection: _remember(connection, "signing key", secrets.token_hex(32)))

    # --- reading -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def _query(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        with self._reading(), self._one_reads:
            return self._reader.execute(query, parameters).fetchall()

    def record(self, dynamo_key: str) -> Record | None:
        rows = self._query("SELECT * FROM oot_workflow_job WHERE dynamoKey = ?", dynamo_key)
        return _change(rows[0]).record if rows else None

    def records(self, *, since: float = 0.0, until: float = math.inf, status: Status | None = None) -> Iterator[Change]:
        query = "SELECT * FROM oot_workflow_job WHERE changed_at >= ? AND changed_at < ?"
        if status:
            query += f" AND status = '{status}'"  # literally, as the partial index has it
        with self._reading(), contextlib.closing(self._connect()) as connection:
            yield from map(_change, connection.execute(query, (since, until)))

    def changes_after(self, cursor: str, limit: int) -> ChangePage:
        query = "SELECT * FROM oot_workflow_job WHERE sequence > ? ORDER BY sequence LIMIT ?"
        after = int(cursor) if cursor.isdecimal() else 0
        with (
            self._reading(),
            self._one_reads,
            contextlib.closing(self._reader.execute(query, (after, limit))) as found,
        ):
            rows, more = page_of(found, limit, lambda row: row["failed_tests_json"])
        if not rows and self._query("SELECT max(sequence) < ? FROM oot_workflow_job", after)[0][0]:
            return self.changes_after("", limit)  # the file is new, or from a backup
        return ChangePage(tuple(map(_change, rows)), str(rows[-1]["sequence"]) if rows else cursor, more)

    # --- messages that another service is owed -----------------------------------------------------------------------

    def messages(self, limit: int) -> list[tuple[int, bytes]]:
        """The oldest that are pending, with their ids."""
        query = "SELECT id, body FROM message WHERE refused IS NULL ORDER BY id LIMIT ?"
        return [(row["id"], row["body"]) for row in self._query(query, limit)]

    def pending_messages(self) -> int:
        """How many there are."""
        return self._query("SELECT count(*) FROM message WHERE refused IS NULL")[0][0]

    def newest_message(self) -> int:
        """The id of the last that was ever kept, 0 when there was none."""
        return self._query("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'")[0][0]

    def settle_message(self, id: int, refused: str | None = None) -> Future[None]:
        """It arrived; or it was `refused` for good and is kept aside with the reason."""

        def work(connection: sqlite3.Connection) -> None:
            if refused is None:
                connection.execute("DELETE FROM message WHERE id = ?", (id,))
            else:
                connection.execute("UPDATE message SET refused = ? WHERE id = ?", (refused, id))

        return self._submit(work)

    def resend_messages(self) -> Future[int]:
        """Those that were refused are pending again; how many."""
        again = "UPDATE message SET refused = NULL WHERE refused IS NOT NULL"
        return self._submit(lambda connection: connection.execute(again).rowcount)


class _Task(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


def _add_columns(connection: sqlite3.Connection) -> None:
    """The columns that a file of an earlier version has not."""
    connection.execute("BEGIN IMMEDIATE")
    there = {row["name"] for row in connection.execute("PRAGMA table_info(oot_workflow_job)")}
    for name in _COLUMNS.keys() - there:
        connection.execute(f"ALTER TABLE oot_workflow_job ADD COLUMN {name} {_COLUMNS[name]}")
    if "began_at" not in there:
        reported = "strftime('%Y-%m-%dT%H:%M:%SZ', changed_at, 'unixepoch')"
        connection.execute(f"UPDATE oot_workflow_job SET began_at = coalesce(started_at, completed_at, {reported})")
    connection.execute("COMMIT")


def _purge(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM lifecycle WHERE expires_at < ?", (time.time(),))


def _get(connection: sqlite3.Connection, key: str, type: type[T]) -> T | None:
    row = connection.execute(_LIVE, (key, time.time())).fetchone()
    return type(*json.loads(row[0])) if row else None


def _put(connection: sqlite3.Connection, key: str, item: JobState | Dispatch | str, expires_at: float) -> None:
    values = [item] if isinstance(item, str) else [getattr(item, name) for name in item.__slots__]
    connection.execute("REPLACE INTO lifecycle VALUES (?, ?, ?)", (key, json.dumps(values), expires_at))


def _remember(connection: sqlite3.Connection, key: str, text: str) -> str:
    """What this key was first remembered with."""
    known = _get(connection, key, str)
    if known is None:
        _put(connection, key, text, _FOREVER)
    return text if known is None else known


def _count_request(connection: sqlite3.Connection, repo: str, rate_limit: int, now: float) -> None:
    if not rate_limit:
        return
    # Requests are numbered: the one that is `rate_limit` before this one must have left the window.
    last = "SELECT n FROM request WHERE repo = ? ORDER BY n DESC LIMIT 1"
    n = (connection.execute(last, (repo,)).fetchone() or (0,))[0] + 1
    before = connection.execute("SELECT at FROM request WHERE repo = ? AND n = ?", (repo, n - rate_limit)).fetchone()
    if before and in_window(before[0], now):
        raise too_many(repo, rate_limit, before[0] + RATE_WINDOW - now)
    connection.execute("INSERT INTO request VALUES (?, ?, ?)", (repo, n, now))
    if n % 16 == 0:  # more out than in: what is kept shrinks to what the window holds
        oldest = "SELECT n FROM request WHERE repo = ? ORDER BY n LIMIT 32"
        delete = f"DELETE FROM request WHERE repo = ? AND abs(? - at) >= ? AND n IN ({oldest})"
        connection.execute(delete, (repo, now, RATE_WINDOW, repo))


def _upsert(connection: sqlite3.Connection, record: Record) -> None:
    statement = _upsert_statement(tuple(record), late=record["status"] == "in_progress")
    now = time.time()
    connection.execute(statement, (*record.values(), now, began_at(record, now)))


@lru_cache
def _upsert_statement(fields: tuple[str, ...], late: bool) -> str:
    value = (
        "CASE status WHEN 'completed' THEN coalesce({0}, excluded.{0}) ELSE excluded.{0} END"
        if late
        else "excluded.{0}"
    )
    sets = [f"{field} = {value.format(field)}" for field in fields if field != "dynamoKey"]
    return (
        f"INSERT INTO oot_workflow_job ({', '.join(fields)}, changed_at, began_at, version, sequence)"
        f" VALUES ({'?, ' * len(fields)} ?, ?, 1, (SELECT coalesce(max(sequence), 0) + 1 FROM oot_workflow_job))"
        f" ON CONFLICT (dynamoKey) DO UPDATE SET {', '.join(sets)},"
        " changed_at = excluded.changed_at, version = version + 1, sequence = excluded.sequence"
    )


def _change(row: sqlite3.Row) -> Change:
    record: Record = {name: row[name] for name in FIELDS if row[name] is not None}
    return Change(record, row["version"], row["changed_at"], row["began_at"])
