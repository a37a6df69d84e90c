"""Where out-of-tree jobs are kept: what a store promises, whichever it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import NewType, Protocol, TypeVar

from ci_pipeline.oot import Refused
from ci_pipeline.oot.lifecycle import Dispatch, Status, Step, Transition
from ci_pipeline.oot.record import Record

T = TypeVar("T")

Message = NewType("Message", bytes)
"""The body of a request that another service is owed."""


class StoreUnavailable(Exception):
    """The store did not take it: nothing was written, send it again later."""


@dataclass(frozen=True, slots=True)
class Change:
    """A record as it is after a write.

    `version` grows by one with each write of this record; `changed_at` is in seconds since 1970. `began_at` is what
    `record.began_at` said at the first write; "" where another writer made the record.
    """

    record: Record
    version: int
    changed_at: float
    began_at: str = ""


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Changes oldest first, and the cursor behind them: move it when they have arrived where they should.

    `more`: the page was full.
    """

    changes: tuple[Change, ...]
    cursor: str
    more: bool = False


PAGE_BYTES = 16 * 2**20
"""A page is full, too, when its failed tests have that many characters: a change may hold megabytes of them."""


def page_of(items: Iterable[T], limit: int, failed_tests: Callable[[T], object]) -> tuple[list[T], bool]:
    """The next items until the page is full, and whether it is."""
    taken: list[T] = []
    size = 0
    for item in islice(items, limit):
        taken.append(item)
        size += len(str(failed_tests(item) or ""))
        if size >= PAGE_BYTES:
            break
    return taken, len(taken) == limit or size >= PAGE_BYTES


RATE_WINDOW = 60.0
"""Seconds that a rate limit looks back."""


def dispatch_key(of: Dispatch | Step) -> str:
    """What a dispatch is kept under: GitHub's names of repositories do not mind case."""
    return f"dispatch {of.repo.lower()} {of.delivery_id}"


def in_window(at: float, now: float) -> bool:
    """Whether a request counts. One that seems to come later was counted before the clock was set back, or by a clock
    that is ahead."""
    return abs(now - at) < RATE_WINDOW


def too_many(repo: str, rate_limit: int, wait: float) -> Refused:
    return Refused(429, f"{repo} may send {rate_limit} callbacks per minute", retry_after=wait)


class Store(Protocol):
    """Records, the lifecycle of their jobs, and what all workers of a relay share.

    What writes answers with a future: when it is done, the write is durable. So a caller in a thread takes its
    `result()`, a caller in an event loop awaits it, and many callers share a commit. Every method may be called from
    any thread, and may raise `StoreUnavailable`, as its future may.
    """

    def register_dispatch(self, dispatch: Dispatch) -> Future[None]:
        """Remember a dispatch; one that is made again counts from then on."""
        ...

    def claim_dispatch(self, dispatch: Dispatch) -> Future[bool]:
        """`register_dispatch`, unless it was told or is being told: then False. Of several at once one gets it."""
        ...

    def advance(
        self, step: Step, now: float, effect: Callable[[Transition], Record], *, rate_limit: int = 0
    ) -> Future[Transition | None]:
        """Count a callback, decide about it and write its record: of many that are equal exactly one is a transition.

        None is a retry of what was accepted before.

        Raises:
            Refused: it is one too many (429), or see `lifecycle.decide`.
        """
        ...

    def count_request(self, repo: str, rate_limit: int, now: float) -> Future[None]:
        """Count what is refused before it comes to `advance`: `rate_limit` in any 60 seconds, 0 for no limit.

        Raises:
            Refused: it is one too many (429).
        """
        ...

    def write(self, record: Record) -> Future[None]:
        """Set the fields of one record that are there; an `in_progress` that comes late only fills what is missing."""
        ...

    def record(self, dynamo_key: str) -> Record | None: ...

    def close_job(self, seen: Change, record: Record) -> Future[bool]:
        """`write` the end of a job in progress, provided that it is still as it was `seen`; False when it is not."""
        ...

    def records(self, *, since: float = 0.0, until: float = math.inf, status: Status | None = None) -> Iterator[Change]:
        """Every record as it is now, in no order; or those that changed from `since` and before `until`, in seconds
        since 1970, and those of one status."""
        ...

    def changes_after(self, cursor: str, limit: int) -> ChangePage:
        """What changed behind a cursor, at most `limit` changes and not much over `PAGE_BYTES`.

        Of a record that changed several times, the latest is certain to come. "" is the beginning, and so is the cursor
        of another store.
        """
        ...

    def repository_id(self, repo: str, repository_id: str) -> Future[str]:
        """The id that this repository had when it was first seen, which may be now."""
        ...

    def confirm_repository(self, repo: str, repository_id: str) -> Future[None]:
        """An operator says that this id is right from now on."""
        ...

    def signing_key(self) -> Future[str]:
        """A random secret, made once, the same for all workers."""
        ...

    def close(self) -> None:
        """Write what waits, then close; what comes later is refused."""
        ...
