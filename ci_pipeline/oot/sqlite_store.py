"""The store in one SQLite file: durable at each answer, because callbacks that arrive together share a commit."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ci_pipeline.oot.lifecycle import Dispatch, JobState, Step, Transition, decide
from ci_pipeline.oot.record import FIELDS, Record
from ci_pipeline.oot.store import Change, ChangePage, Message, StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL"}
_COLUMNS = ", ".join(
    f"{name} {_TYPES[type]}{' PRIMARY KEY' if name == 'dynamoKey' else ''}" for name, type in FIELDS.items()
)

# `sequence` moves a record that changed to the end: reading behind a sequence is the change feed, and needs no second
# copy of anything. `failed_tests_json` may be large, so the small columns come before it in a row's pages.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS oot_workflow_job ({_COLUMNS}, version INTEGER, changed_at REAL, sequence INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS oot_workflow_job_sequence ON oot_workflow_job (sequence);
CREATE TABLE IF NOT EXISTS lifecycle (key TEXT PRIMARY KEY, item TEXT, expires_at REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lifecycle_expires_at ON lifecycle (expires_at);
CREATE TABLE IF NOT EXISTS request (repo TEXT, n INTEGER, at REAL, PRIMARY KEY (repo, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB, refused TEXT);
CREATE INDEX IF NOT EXISTS message_pending ON message (id) WHERE refused IS NULL;
"""

_BATCH = 256
_WINDOW = 60.0
_FOREVER = 1e12


class SqliteStore:
    """One writer thread per process; SQLite's own lock orders several processes on the same file."""

    def __init__(self, path: str | Path, state_days: float = 3.0) -> None:
        self.path = Path(path)
        self._state_seconds = state_days * 86400
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._closing = False
        try:
            connection = self._connect()
            connection.executescript(_SCHEMA)
            self._reader = self._connect()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error
        self._writer = threading.Thread(target=self._write_loop, args=(connection,), name="oot-store", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=10.0, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    # --- writing: one thread, one transaction for all that waits -----------------------------------------------------

    def _submit(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `work` in the next transaction; wait for its commit, or with `durable=False` only for its result."""
        task = _Task(work, durable)
        if self._writer.is_alive():
            self._queue.put(task)
        try:
            return task.future.result(timeout=30.0 if self._writer.is_alive() else 0.0)
        except TimeoutError:
            raise StoreUnavailable(f"{self.path}: nothing is written at present") from None

    def _write_loop(self, connection: sqlite3.Connection) -> None:
        purge_at = 0.0
        while not self._closing:
            tasks = self._waiting()
            failure = None
            try:
                connection.execute("BEGIN IMMEDIATE")
                for task in tasks:
                    task.run(connection)
                if time.time() > purge_at:
                    connection.execute("DELETE FROM lifecycle WHERE expires_at < ?", (time.time(),))
                    purge_at = time.time() + 600
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                log.error("%s: %s", self.path, error)
                failure = error
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            for task in tasks:
                task.settle(failure)
        connection.close()

    def _waiting(self) -> list[_Task]:
        """Everything that waits to be written, after waiting for the first."""
        tasks: list[_Task] = []
        task = self._queue.get()
        while task:
            tasks.append(task)
            if len(tasks) == _BATCH:
                return tasks
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                return tasks
        self._closing = True
        return tasks

    def close(self) -> None:
        self._queue.put(None)
        self._writer.join(timeout=10)
        self._reader.close()

    def register_dispatch(self, dispatch: Dispatch) -> None:
        key, item = _dispatch_key(dispatch.delivery_id, dispatch.repo), asdict(dispatch)
        self._submit(lambda connection: self._put(connection, key, item, self._expiry()))

    def advance(self, step: Step, now: float, effect: Callable[[Transition], Record | Message]) -> Transition | None:
        def work(connection: sqlite3.Connection) -> Transition | None:
            state = self._get(connection, f"job {step.job}")
            dispatch = None if state else self._get(connection, _dispatch_key(step.delivery_id, step.repo))
            transition = decide(
                step, Dispatch(**dispatch) if dispatch else None, JobState(**state) if state else None, now
            )
            if transition:
                self._put(connection, f"job {step.job}", asdict(transition.state), self._expiry())
                written = effect(transition)
                if isinstance(written, bytes):
                    connection.execute("INSERT INTO message (body) VALUES (?)", (written,))
                else:
                    _upsert(connection, written)
            return transition

        return self._submit(work)

    def write(self, record: Record) -> None:
        self._submit(lambda connection: _upsert(connection, record))

    def seconds_to_wait(self, repo: str, limit: int, now: float) -> float:
        def work(connection: sqlite3.Connection) -> float:
            # Requests are numbered: the one that is `limit` before this one must have left the window.
            last = "SELECT n FROM request WHERE repo = ? ORDER BY n DESC LIMIT 1"
            n = (connection.execute(last, (repo,)).fetchone() or (0,))[0] + 1
            before = connection.execute("SELECT at FROM request WHERE repo = ? AND n = ?", (repo, n - limit)).fetchone()
            if before and before[0] > now - _WINDOW:
                return before[0] + _WINDOW - now
            connection.execute("INSERT INTO request VALUES (?, ?, ?)", (repo, n, now))
            # Two out for one in: the table shrinks to what the window holds.
            oldest = "SELECT n FROM request WHERE repo = ? ORDER BY n LIMIT 2"
            connection.execute(
                f"DELETE FROM request WHERE repo = ? AND at <= ? AND n IN ({oldest})", (repo, now - _WINDOW, repo)
            )
            return 0.0

        return self._submit(work, durable=False)

    def repository_id(self, repo: str, repository_id: str) -> str:
        def work(connection: sqlite3.Connection) -> str:
            known = self._get(connection, f"repository {repo}")
            if known is None:
                self._put(connection, f"repository {repo}", {"id": repository_id}, _FOREVER)
            return known["id"] if known else repository_id

        return self._submit(work)

    def confirm_repository(self, repo: str, repository_id: str) -> None:
        item = {"id": repository_id}
        self._submit(lambda connection: self._put(connection, f"repository {repo}", item, _FOREVER))

    def signing_key(self) -> bytes:
        def work(connection: sqlite3.Connection) -> str:
            known = self._get(connection, "signing key")
            if known is None:
                known = {"key": secrets.token_hex(32)}
                self._put(connection, "signing key", known, _FOREVER)
            return known["key"]

        return bytes.fromhex(self._submit(work))

    def _expiry(self) -> float:
        return time.time() + self._state_seconds

    @staticmethod
    def _get(connection: sqlite3.Connection, key: str) -> dict[str, Any] | None:
        query = "SELECT item FROM lifecycle WHERE key = ? AND expires_at > ?"
        row = connection.execute(query, (key, time.time())).fetchone()
        return json.loads(row[0]) if row else None

    @staticmethod
    def _put(connection: sqlite3.Connection, key: str, item: dict[str, Any], expires_at: float) -> None:
        connection.execute("REPLACE INTO lifecycle VALUES (?, ?, ?)", (key, json.dumps(item), expires_at))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _query(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        try:
            return self._reader.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def record(self, dynamo_key: str) -> Record | None:
        rows = self._query("SELECT * FROM oot_workflow_job WHERE dynamoKey = ?", dynamo_key)
        return _change(rows[0]).record if rows else None

    def records(self) -> Iterator[Change]:
        with contextlib.closing(self._connect()) as connection:
            yield from map(_change, connection.execute("SELECT * FROM oot_workflow_job"))

    def changes_after(self, cursor: str, limit: int) -> ChangePage:
        query = "SELECT * FROM oot_workflow_job WHERE sequence > ? ORDER BY sequence LIMIT ?"
        rows = self._query(query, int(cursor or 0), limit)
        return ChangePage(tuple(map(_change, rows)), str(rows[-1]["sequence"]) if rows else cursor)

    # --- messages that another service is owed -----------------------------------------------------------------------

    def messages(self, limit: int) -> list[tuple[int, bytes]]:
        """The oldest that are pending, with their ids."""
        query = "SELECT id, body FROM message WHERE refused IS NULL ORDER BY id LIMIT ?"
        return [(row["id"], row["body"]) for row in self._query(query, limit)]

    def newest_message(self) -> int:
        """The id of the last that was ever kept, 0 when there was none."""
        return self._query("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'")[0][0]

    def settle_message(self, id: int, refused: str | None = None) -> None:
        """It arrived; or it was `refused` for good and is kept aside with the reason."""
        if refused is None:
            self._submit(lambda connection: connection.execute("DELETE FROM message WHERE id = ?", (id,)).close())
        else:
            update = "UPDATE message SET refused = ? WHERE id = ?"
            self._submit(lambda connection: connection.execute(update, (refused, id)).close())


class _Task:
    """Work for the writer thread, and the future by which its caller waits for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any], durable: bool) -> None:
        self.future: Future[Any] = Future()
        self._work = work
        self._durable = durable
        self._result: Any = None

    def run(self, connection: sqlite3.Connection) -> None:
        connection.execute("SAVEPOINT task")
        try:
            self._result = self._work(connection)
        except sqlite3.OperationalError:  # the disk, not this task: nobody's work can be committed
            raise
        except Exception as error:
            connection.execute("ROLLBACK TO task")
            self.future.set_exception(error)
        else:
            if not self._durable:
                self.future.set_result(self._result)
        connection.execute("RELEASE task")

    def settle(self, failure: sqlite3.Error | None) -> None:
        if self.future.done():
            return
        if failure:
            self.future.set_exception(StoreUnavailable(str(failure)))
        else:
            self.future.set_result(self._result)


def _dispatch_key(delivery_id: str, repo: str) -> str:
    return f"dispatch {repo.lower()} {delivery_id}"


def _upsert(connection: sqlite3.Connection, record: Record) -> None:
    names = [*record, "changed_at", "version", "sequence"]
    late = record["status"] == "in_progress"
    sets = ", ".join(
        f"{name} = CASE status WHEN 'completed' THEN coalesce({name}, excluded.{name}) ELSE excluded.{name} END"
        if late
        else f"{name} = excluded.{name}"
        for name in record
        if name != "dynamoKey"
    )
    connection.execute(
        f"INSERT INTO oot_workflow_job ({', '.join(names)})"
        f" VALUES ({', '.join('?' * len(record))}, ?, 1, (SELECT coalesce(max(sequence), 0) + 1 FROM oot_workflow_job))"
        f" ON CONFLICT (dynamoKey) DO UPDATE SET {sets},"
        " changed_at = excluded.changed_at, version = version + 1, sequence = excluded.sequence",
        (*record.values(), time.time()),
    )


def _change(row: sqlite3.Row) -> Change:
    record: Record = {name: row[name] for name in FIELDS if row[name] is not None}
    return Change(record, row["version"], row["changed_at"])
