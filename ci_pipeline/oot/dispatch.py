"""Telling out-of-tree repositories of an upstream event, and remembering that they were told."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from asyncio import wrap_future
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import httpx2
from gidgethub import (
    BadRequest,
    GitHubBroken,
    GitHubException,
    HTTPException,
    RedirectionException,
    ValidationFailure,
)
from gidgethub.apps import get_installation_access_token, get_jwt
from gidgethub.httpx import GitHubAPI
from gidgethub.sansio import validate_event
from jwt import PyJWTError
from jwt.algorithms import RSAAlgorithm
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ci_pipeline.oot import Refused
from ci_pipeline.oot.allowlist import Allowlist, Entry
from ci_pipeline.oot.callback_token import mint
from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.payload import check_delivery_id, cut
from ci_pipeline.oot.store import Store, StoreUnavailable
from ci_pipeline.settings import SettingsError

log = logging.getLogger(__name__)

PULL_REQUEST_ACTIONS = frozenset(("opened", "reopened", "synchronize"))
"""What happens to a pull request that is worth a CI run."""

CLIENT_PAYLOAD_BYTES = 60_000
"""GitHub takes 64 KB; this leaves room for the token and what GitHub adds."""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of an event: who was told now, who had been told before, and why others were not."""

    dispatched: list[str]
    already_dispatched: list[str]
    failed: dict[str, str]


_AT_ONCE = 8
_PATIENCE = 8.0  # seconds for one repository; GitHub itself waits 10 for our answer


def verify_signature(body: bytes, signature: str, secret: SecretStr | None) -> None:
    """Hold a webhook to its `X-Hub-Signature-256`.

    Raises:
        Refused: it is not GitHub's, or nobody can say (401).
    """
    if not secret:
        raise Refused(401, "no webhook can be verified here: GITHUB_WEBHOOK_SECRET is not set")
    try:
        if not signature.isascii() or not signature.startswith("sha256="):
            raise ValidationFailure("sha256=… is missing")
        validate_event(body, signature=signature, secret=secret.get_secret_value())
    except ValidationFailure as error:
        raise Refused(401, f"X-Hub-Signature-256: {error}") from None


def dispatch_of(event: str, delivery_id: str, payload: Mapping[str, Any], upstream: str) -> Dispatch | None:
    """What is dispatched because of a webhook, its repository still open; None when nothing is."""
    if str(_part(payload, "repository").get("full_name")).lower() != upstream.lower():
        return None  # an App also hears of the repositories that it dispatches to
    if event == "pull_request" and payload.get("action") in PULL_REQUEST_ACTIONS:
        pull_request = _part(payload, "pull_request")
        number, sha = pull_request.get("number"), _part(pull_request, "head").get("sha")
    elif event == "push" and not payload.get("deleted"):
        number, sha = 0, payload.get("after")
    else:
        return None
    if not isinstance(number, int) or not isinstance(sha, str):
        raise Refused(400, f"a {event} event without its number or SHA")
    check_delivery_id(delivery_id)
    return Dispatch(delivery_id, "", time.time(), number, sha)


def trimmed(payload: Mapping[str, Any], limit: int = CLIENT_PAYLOAD_BYTES) -> dict[str, Any]:
    """A webhook's payload that fits: whole, without its long texts, or only what a CI run is about."""
    without_texts = {name: value for name, value in payload.items() if name not in ("commits", "organization")}
    if "pull_request" in payload:
        pull_request = _part(payload, "pull_request")
        without_texts["pull_request"] = {**pull_request, "body": cut(str(pull_request.get("body") or ""), 1024)}
    for candidate in (dict(payload), without_texts):
        if len(json.dumps(candidate).encode()) <= limit:
            return candidate
    return _essence(payload)


def _essence(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Number, SHA, labels, repository; what comes from other people's keyboards is cut."""
    essence = _only(payload, "action", "number", "ref", "before", "after")
    essence["repository"] = _only(_part(payload, "repository"), "full_name", "html_url", "default_branch")
    essence["sender"] = _only(_part(payload, "sender"), "login")
    if "pull_request" in payload:
        pull_request = _part(payload, "pull_request")
        labels: Iterable[Any] = pull_request.get("labels") or ()
        essence["pull_request"] = {
            **_only(pull_request, "number", "title", "state", "draft", "html_url"),
            "user": _only(_part(pull_request, "user"), "login"),
            "labels": [_only(label, "name") for label in list(labels)[:100]],
            **{
                side: {
                    **_only(_part(pull_request, side), "ref", "sha"),
                    "repo": _only(_part(_part(pull_request, side), "repo"), "full_name"),
                }
                for side in ("head", "base")
            },
        }
    return essence


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = of.get(name)
    return part if isinstance(part, Mapping) else {}


def _only(of: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: cut(of[name], 256) if isinstance(of[name], str) else of[name] for name in names if name in of}


class GitHubApp:
    """Sends `repository_dispatch` as a GitHub App that is installed where it sends to.

    Raises:
        SettingsError: the key is none.
    """

    def __init__(self, api_url: str, app_id: str, private_key: str) -> None:
        self._api_url = api_url.rstrip("/")
        self._app_id = app_id
        try:
            # Read once, which takes 50 ms. Some environments carry a text of many lines as one.
            self._private_key: Any = RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(private_key.replace("\\n", "\n"))
            get_jwt(app_id=app_id, private_key=self._private_key)
        except (PyJWTError, ValueError, AttributeError):
            raise SettingsError("GITHUB_APP_PRIVATE_KEY: must be the App's private key, a PEM text") from None
        self._certificates = httpx2.create_ssl_context()  # 40 ms, once
        self._tokens: dict[str, tuple[float, str]] = {}  # by repository, with the time until which they are good

    def client(self) -> httpx2.AsyncClient:
        """Connections to GitHub, for `dispatch`; the caller closes them."""
        return httpx2.AsyncClient(timeout=5.0, verify=self._certificates)

    async def dispatch(
        self, client: httpx2.AsyncClient, repo: str, event_type: str, client_payload: dict[str, Any]
    ) -> None:
        """Send one `repository_dispatch`.

        Raises:
            gidgethub.GitHubException, httpx2.HTTPError: after three attempts, or at once when GitHub says no.
        """

        def forget_token(_: RetryCallState) -> None:  # it may have been withdrawn
            self._tokens.pop(repo, None)

        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_passing),
            wait=_wait,
            before_sleep=forget_token,
            stop=stop_after_attempt(3),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                github = GitHubAPI(client, "ci-pipeline", base_url=self._api_url)
                token = await self._token(github, repo)
                data = {"event_type": event_type, "client_payload": client_payload}
                await github.post(f"/repos/{repo}/dispatches", data=data, oauth_token=token)

    async def _token(self, github: GitHubAPI, repo: str) -> str:
        good_until, token = self._tokens.get(repo, (0.0, ""))
        if time.time() < good_until:
            return token
        app = get_jwt(app_id=self._app_id, private_key=self._private_key)
        installation = await github.getitem(f"/repos/{repo}/installation", jwt=app)
        answer = await get_installation_access_token(
            github, installation_id=str(installation["id"]), app_id=self._app_id, private_key=self._private_key
        )
        if expires_at := answer.get("expires_at"):
            self._tokens[repo] = (datetime.fromisoformat(expires_at).timestamp() - 60, answer["token"])
        return answer["token"]


_backoff = wait_exponential_jitter(multiplier=0.2, max=2.0, jitter=0.2)


def _is_passing(error: BaseException) -> bool:
    """GitHub is broken, busy for a moment, or does not know its own token any more; any other no stays one."""
    if not isinstance(error, BadRequest):
        return isinstance(error, GitHubBroken | httpx2.HTTPError)
    busy = error.status_code == 429 or "retry-after" in error.headers
    return error.status_code == 401 or (busy and _retry_after(error) < _PATIENCE / 2)


def _wait(state: RetryCallState) -> float:
    return _backoff(state) + _retry_after(state.outcome and state.outcome.exception())


def _retry_after(error: BaseException | None) -> float:
    after = error.headers.get("retry-after", "") if isinstance(error, HTTPException) else ""
    return float(after) if after.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"GitHub took longer than {_PATIENCE:g} s"
    if isinstance(error, BadRequest) and error.status_code == 404:
        return f"{error}: is the App installed there?"
    if isinstance(error, RedirectionException):
        return f"{error}: the repository was renamed, put its new name on the allowlist"
    return f"{type(error).__name__}: {error}"


async def dispatch_event(
    event: str,
    delivery_id: str,
    payload: Mapping[str, Any],
    *,
    upstream: str,
    allowlist: Allowlist,
    store: Store,
    app: GitHubApp,
    valid_days: float = 3.0,
) -> Told:
    """Tell every repository on the allowlist of an upstream event; of a delivery that comes again, who missed it.

    Raises:
        Refused: the event is not what GitHub sends (400).
    """
    told = Told([], [], {})
    dispatch = dispatch_of(event, delivery_id, payload, upstream)
    if dispatch is None:
        return told
    envelope = {"event_type": event, "delivery_id": delivery_id, "payload": trimmed(payload)}
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def tell(entry: Entry) -> None:
        repo = entry.repo
        async with at_once:
            now = time.time()
            telling = replace(dispatch, repo=repo, dispatched_at=now, told_until=now + _PATIENCE)
            try:
                async with asyncio.timeout(_PATIENCE):
                    # Remembered first: a fast job may report before GitHub has answered us.
                    if not await wrap_future(store.claim_dispatch(telling)):
                        told.already_dispatched.append(repo)
                        return
                    token = mint(telling, await wrap_future(store.signing_key()), valid_days)
                    await app.dispatch(client, repo, event, {**envelope, "callback_token": token})
                told.dispatched.append(repo)
            except Exception as error:  # whatever it is, the other repositories are told
                told.failed[repo] = _reason(error)
                expected = isinstance(error, GitHubException | httpx2.HTTPError | StoreUnavailable | TimeoutError)
                log.error(
                    "%s not told of %s %s: %s", repo, event, delivery_id, told.failed[repo], exc_info=not expected
                )
            until = 0.0 if repo in told.failed else math.inf
            try:
                await wrap_future(store.register_dispatch(replace(telling, told_until=until)))
            except StoreUnavailable as error:
                log.error("%s may be told again of %s %s: %s", repo, event, delivery_id, error)

    async with app.client() as client:
        await asyncio.gather(*map(tell, allowlist))
    return told
