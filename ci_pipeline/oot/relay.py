"""The gates that a callback passes, in order; what comes out is on disk."""

from __future__ import annotations

import json
import time
from asyncio import wrap_future
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ci_pipeline.oot import Refused, callback_token, record
from ci_pipeline.oot.allowlist import AllowlistCache, AllowlistError, Level
from ci_pipeline.oot.identity import Identity, Verifier
from ci_pipeline.oot.lifecycle import Step, Transition
from ci_pipeline.oot.outbox import Outbox
from ci_pipeline.oot.payload import Callback, Trusted, read_callback
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Message, Store
from ci_pipeline.oot.stores import open_store
from ci_pipeline.settings import OotSettings, SettingsError

TokenMode = Literal["off", "optional", "required"]
Answer = Literal["in_progress", "completed", "ignored", "queued"]


@dataclass
class Relay:
    """Takes callbacks. With an `outbox` the records are another service's, and it is sent what they are made of.

    `upstream` is the repository that callbacks are about when they do not say; `rate_limit` is per repository and
    minute, 0 for none.
    """

    store: Store
    verifier: Verifier
    allowlist: AllowlistCache
    upstream: str
    rate_limit: int = 60
    token_mode: TokenMode = "optional"
    outbox: Outbox | None = None
    _repository_ids: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _signing_key: str = field(default="", init=False)

    async def receive(self, authorization: str | None, body: bytes) -> Answer:
        """Take one callback; when this returns, it is durable.

        Raises:
            Refused: with the status and the one line that its sender gets.
            StoreUnavailable: nothing was written.
        """
        now = time.time()
        callback = read_callback(body)
        identity = await self.verifier.identity(authorization)
        entry = self.allowlist.current().find(identity.repo)
        if entry is None:
            raise Refused(403, f"{identity.repo} is not on the allowlist")
        await self._check_repository(identity)
        if entry.level == "L1":
            return "ignored"
        # The allowlist's spelling is the one that was dispatched to.
        return await self._take(entry.repo, entry.level, callback, body, now)

    async def _check_repository(self, identity: Identity) -> None:
        """A name that was given up and claimed by somebody else has another id."""
        repo = identity.repo.lower()
        if not identity.repository_id or self._repository_ids.get(repo) == identity.repository_id:
            return
        known = await wrap_future(self.store.repository_id(repo, identity.repository_id))
        self._repository_ids[repo] = known
        if known != identity.repository_id:
            raise Refused(
                401,
                f"{identity.repo} has the id {identity.repository_id} and had {known}: an operator must confirm that it"
                " is still the same backend (ci-pipeline oot confirm)",
            )

    async def _take(self, repo: str, level: Level, callback: Callback | Refused, body: bytes, now: float) -> Answer:
        try:
            if isinstance(callback, Refused):
                raise callback
            trusted = Trusted(verified_repo=repo, downstream_repo_level=level)
            base = record.flatten(trusted, callback, self.upstream)
            step = record.step(callback, base)
            await self._check_token(callback, step)
        except Refused:
            await wrap_future(self.store.count_request(repo, self.rate_limit, now))
            raise
        if self.outbox:
            message = partial(_results, repo, level, body)
            delivered = await self.outbox.advance(step, now, message, rate_limit=self.rate_limit)
            return step.status if delivered else "queued"
        written = self.store.advance(step, now, lambda done: {**base, **done.measured}, rate_limit=self.rate_limit)
        await wrap_future(written)
        return step.status

    async def _check_token(self, callback: Callback, step: Step) -> None:
        if self.token_mode == "off" or callback.self_report:
            return
        if callback.callback_token:
            self._signing_key = self._signing_key or await wrap_future(self.store.signing_key())
            callback_token.verify(callback.callback_token, step, self._signing_key)
        elif self.token_mode == "required":
            raise Refused(403, "callback_token is required here: send the one that came with the dispatch")


def _results(repo: str, level: Level, body: bytes, transition: Transition) -> Message:
    """The body for the HUD API, the callback in it byte for byte."""
    trusted = {
        "verified_repo": repo,
        "downstream_repo_level": level,
        "ci_metrics": {"queue_time": None, "execution_time": None, **transition.measured},
    }
    return Message(b'{"trusted":%b,"untrusted":{"callback_payload":%b}}' % (json.dumps(trusted).encode(), body))


@contextmanager
def open_relay(settings: OotSettings, upstream: str) -> Generator[Relay]:
    """The relay of a deployment: its store, keys, allowlist, and the outbox when the HUD is another service.

    Raises:
        SettingsError: the allowlist or another setting is wrong.
        StoreUnavailable: the store cannot be opened.
    """
    with ExitStack() as stack:
        try:
            allowlist = AllowlistCache(settings.oot_allowlist, settings.oot_allowlist_ttl)
        except AllowlistError as error:
            raise SettingsError(f"CI_PIPELINE_OOT_ALLOWLIST: {error}") from None
        stack.callback(allowlist.close)
        store = stack.enter_context(closing(open_store(settings.store_url, settings.oot_state_days)))
        outbox = None
        if settings.hud_url:
            if not isinstance(store, SqliteStore):
                raise SettingsError(
                    "CI_PIPELINE_HUD_URL: results for another service are kept on disk, set"
                    " CI_PIPELINE_OOT_STORE=sqlite:///<path>, or leave the URL out and share the DynamoDB table"
                )
            if not settings.relay_tokens:
                raise SettingsError("CI_PIPELINE_RELAY_TOKENS: the HUD at CI_PIPELINE_HUD_URL expects one")
            outbox = stack.enter_context(closing(Outbox(store, settings.hud_url, settings.relay_tokens[0])))
        yield Relay(
            store=store,
            verifier=Verifier(settings.oidc_issuers, settings.oidc_audience),
            allowlist=allowlist,
            upstream=upstream,
            rate_limit=settings.rate_limit_per_min,
            token_mode=settings.callback_token,
            outbox=outbox,
        )
