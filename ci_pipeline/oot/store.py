"""Where out-of-tree jobs are kept: what a store promises, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NewType, Protocol

from ci_pipeline.oot.lifecycle import Dispatch, Step, Transition
from ci_pipeline.oot.record import Record
from ci_pipeline.settings import SettingsError

Message = NewType("Message", bytes)
"""The body of a request that another service is owed."""


class StoreUnavailable(Exception):
    """The store did not take it: nothing was written, send it again later."""


@dataclass(frozen=True, slots=True)
class Change:
    """A record as it is after a write.

    `version` grows by one with each write of this record; `changed_at` is in seconds since 1970.
    """

    record: Record
    version: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Changes oldest first, and the cursor behind them: move it when they have arrived where they should."""

    changes: tuple[Change, ...]
    cursor: str


class Store(Protocol):
    """Records, the lifecycle of their jobs, and what all workers of a relay share.

    What a method that writes has returned from is durable. Every method may raise `StoreUnavailable`; all of them may
    be called from any thread.
    """

    def register_dispatch(self, dispatch: Dispatch) -> None:
        """Remember a dispatch; one that is made again counts from then on."""
        ...

    def advance(self, step: Step, now: float, effect: Callable[[Transition], Record]) -> Transition | None:
        """Decide about a callback and write its record, at once: of many that are equal exactly one is a transition.

        None is a retry of what was accepted before.

        Raises:
            Refused: see `lifecycle.decide`.
        """
        ...

    def write(self, record: Record) -> None:
        """Set the fields of one record that are there; an `in_progress` that comes late only fills what is missing."""
        ...

    def record(self, dynamo_key: str) -> Record | None: ...

    def records(self) -> Iterator[Change]:
        """Every record as it is now, in no order."""
        ...

    def changes_after(self, cursor: str, limit: int) -> ChangePage:
        """What changed behind a cursor ("" is the beginning), at most `limit` changes.

        Of a record that changed several times, the latest is certain to come.
        """
        ...

    def seconds_to_wait(self, repo: str, limit: int, now: float) -> float:
        """Count a request of this repository: 0 when it is among `limit` in the last minute, else how long to wait."""
        ...

    def repository_id(self, repo: str, repository_id: str) -> str:
        """The id that this repository had when it was first seen, which may be now."""
        ...

    def confirm_repository(self, repo: str, repository_id: str) -> None:
        """An operator says that this id is right from now on."""
        ...

    def signing_key(self) -> bytes:
        """32 random bytes, made once, the same for all workers."""
        ...

    def close(self) -> None: ...


def open_store(url: str, state_days: float = 3.0) -> Store:
    """Open `sqlite:///<path>` or `dynamodb://[<region>]/[<table>]`; lifecycles are kept for `state_days`.

    Raises:
        SettingsError: the address is neither.
    """
    if url.startswith("sqlite:///"):
        from ci_pipeline.oot.sqlite_store import SqliteStore

        return SqliteStore(url.removeprefix("sqlite:///"), state_days)
    if url.startswith("dynamodb://"):
        from ci_pipeline.oot.dynamodb_store import DynamoDBStore

        return DynamoDBStore.from_url(url, state_days)
    raise SettingsError("CI_PIPELINE_OOT_STORE: write sqlite:///<path> or dynamodb://<region>/<table>")
