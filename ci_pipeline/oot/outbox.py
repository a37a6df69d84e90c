"""Results on their way to a HUD that is another service: kept on disk, delivered in order, also after a restart."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import threading
from asyncio import wait_for, wrap_future
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import httpx2
from tenacity import RetryError, Retrying, retry_if_exception_type, wait_exponential_jitter

from ci_pipeline.oot.lifecycle import Step, Transition
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Message
from ci_pipeline.quick_ack import acknowledge_head

log = logging.getLogger(__name__)

# What the HUD says about one body and not about us or itself: it will not change its mind.
_FINAL = frozenset((400, 413, 422))

_LOOK = 60.0  # seconds until it is looked for what another process left behind
_PAGE = 10  # messages at a time: each may have 2 MB


class _Undelivered(Exception):
    pass


class Outbox:
    """Sends the messages of one SQLite store to `<url>/api/oot/results`; workers on one store take turns.

    `patience` is how long a caller waits for the delivery of its own message, in seconds.
    """

    def __init__(self, store: SqliteStore, url: str, token: str, *, patience: float = 2.0) -> None:
        self._store = store
        self._url = url.rstrip("/") + "/api/oot/results"
        self._client = httpx2.Client(
            headers={"X-OOT-Relay-Token": token}, timeout=10.0, event_hooks={"response": [acknowledge_head]}
        )
        self._patience = patience
        self._turn = os.open(f"{store.path}.outbox.lock", os.O_CREAT | os.O_RDWR, 0o600)
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._down = False
        self._asking = threading.Lock()
        self._callers: dict[Future[bool], int] = {}  # each with the message up to which all must have arrived
        self._thread = threading.Thread(target=self._run, name="oot-outbox", daemon=True)
        self._thread.start()

    async def advance(
        self, step: Step, now: float, message: Callable[[Transition], Message], *, rate_limit: int = 0
    ) -> bool:
        """`Store.advance` with a message in place of a record; True when the HUD has it by now."""
        transition = await wrap_future(self._store.advance(step, now, message, rate_limit=rate_limit))
        if transition is None and not self.pending():
            return True
        newest = self._store.newest_message()
        arrived: Future[bool] = Future()
        with self._asking:
            if self._down:
                arrived.set_result(False)
            else:
                self._callers[arrived] = newest
        self._wake.set()
        try:
            return await wait_for(wrap_future(arrived), self._patience)
        except TimeoutError:
            return False

    def pending(self) -> int:
        """How many messages wait to be delivered."""
        return self._store.pending_messages()

    def close(self) -> None:
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout=15)
        os.close(self._turn)
        self._client.close()

    def _run(self) -> None:
        self._wake.set()  # for what was owed before
        while not self._closed.is_set():
            self._wake.wait(_LOOK)
            self._wake.clear()
            try:
                self._deliver_all()
            except RetryError:
                return  # closing
            except Exception:
                log.exception("The outbox goes on in a minute")
                self._closed.wait(60)
                self._wake.set()

    def _deliver_all(self) -> None:
        newest = self._store.newest_message()
        if not self._take_turn():
            return
        try:
            while messages := self._store.messages(_PAGE):
                for id, body in messages:
                    if self._closed.is_set():
                        return
                    self._deliver(id, body)
                    self._arrived(id)
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        self._arrived(newest)  # by another worker's turn

    def _take_turn(self) -> bool:
        while not self._closed.is_set():
            with suppress(BlockingIOError):
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            self._closed.wait(0.02)
        return False

    def _arrived(self, id: int) -> None:
        self._down = False
        self._answer(True, up_to=id)

    def _answer(self, delivered: bool, up_to: float = math.inf) -> None:
        with self._asking:
            for caller in [caller for caller, newest in self._callers.items() if newest <= up_to]:
                del self._callers[caller]
                if caller.set_running_or_notify_cancel():  # it may have lost patience
                    caller.set_result(delivered)

    def _deliver(self, id: int, body: bytes) -> None:
        for attempt in Retrying(
            retry=retry_if_exception_type((_Undelivered, httpx2.HTTPError)),
            wait=wait_exponential_jitter(multiplier=0.2, max=5.0, jitter=0.2),
            sleep=self._pause,
            stop=lambda _: self._closed.is_set(),
        ):
            with attempt:
                self._post(id, body)

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _post(self, id: int, body: bytes) -> None:
        try:
            response = self._client.post(self._url, content=body, headers={"content-type": "application/json"})
            if response.status_code in _FINAL:
                log.error("The HUD refused results for good, they are kept aside: %s", response.text[:500])
                self._store.settle_message(id, refused=response.text[:500]).result()
                return
            if not response.is_success:
                raise _Undelivered(f"{self._url}: {response.status_code} {response.text[:200]}")
        except (_Undelivered, httpx2.HTTPError) as error:
            if not self._down:
                log.warning("Results wait for the HUD: %s", error)
            self._down = True
            self._answer(False)
            raise
        self._store.settle_message(id).result()
