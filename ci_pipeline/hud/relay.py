"""The routes of out-of-tree CI: webhooks from upstream, callbacks from jobs, results from relays elsewhere."""

from __future__ import annotations

import hmac
import logging
import math
from asyncio import wrap_future
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.routing import request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from ci_pipeline.oot import Refused, record
from ci_pipeline.oot.dispatch import GitHubApp, dispatch_event, verify_signature
from ci_pipeline.oot.payload import MAX_BODY_BYTES, Callback, Results, read_object, read_results
from ci_pipeline.oot.relay import Relay, open_relay
from ci_pipeline.oot.store import StoreUnavailable
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import OotSettings, load_oot_settings

log = logging.getLogger(__name__)

MAX_WEBHOOK_BYTES = 25 * 1024 * 1024
"""GitHub sends no larger ones."""

_STRINGS = {"type": "array", "items": {"type": "string"}}
_REPOSITORIES = {"type": "object", "additionalProperties": {"type": "string"}}
_REASONS = {
    400: "The body is wrong; the field is named",
    401: "Not who may send this",
    403: "The repository is not on the allowlist, or this is not what was dispatched to it",
    409: "Nothing was dispatched, or it does not follow from what the job reported before",
    413: "The body is too large",
    429: "Too many callbacks, see Retry-After",
    502: "No repository could be told",
    503: "Nothing was written: send it again later",
}


def _answers(fields: dict[str, dict[str, Any]], *refusals: int) -> dict[int | str, dict[str, Any]]:
    """How a route answers: an object with `ok` and `fields`, or one of these refusals."""

    def answer(description: str, properties: dict[str, Any]) -> dict[str, Any]:
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    errors = {status: answer(_REASONS[status], {"detail": {"type": "string"}}) for status in sorted(refusals)}
    return {200: answer("Taken, and on disk", {"ok": {"const": True}, **fields}), **errors}


def _body(model: type[Callback] | type[Results]) -> dict[str, Any]:
    """The schema of a body that the route reads itself, its parts in place."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs")

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            part = parts.get(str(node.get("$ref")).removeprefix("#/$defs/"))
            return resolved(part) if part else {name: resolved(value) for name, value in node.items()}
        return [resolved(value) for value in node] if isinstance(node, list) else node

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": resolved(schema)}}}}


callbacks = APIRouter(tags=["out-of-tree"])
"""The relay: callbacks of jobs, webhooks of upstream. `relay_lifespan` opens what it works on."""

results = APIRouter(tags=["out-of-tree"])
"""The HUD API, for relays elsewhere; it works on the same."""


@callbacks.post(
    "/github/callback",
    dependencies=[Security(HTTPBearer(scheme_name="OIDC token", auto_error=False))],
    openapi_extra=_body(Callback),
    responses=_answers(
        {"status": {"enum": ["in_progress", "completed", "ignored", "queued"]}}, 400, 401, 403, 409, 413, 429, 503
    ),
)
@callbacks.post("/github/callback/", include_in_schema=False)
async def github_callback(request: Request) -> Response:
    """A downstream job began or ended. `Authorization: Bearer <OIDC token>` says which repository's."""
    relay: Relay = request.app.state.relay
    authorization = request.headers.get("authorization")

    async def take(body: bytes) -> dict[str, Any]:
        return {"ok": True, "status": await relay.receive(authorization, body)}

    # A HUD elsewhere has the same limit for what the callback is wrapped in.
    return await _answer(request, take, MAX_BODY_BYTES - (1024 if relay.outbox else 0))


@results.post(
    "/api/oot/results",
    dependencies=[Security(APIKeyHeader(name="X-OOT-Relay-Token", scheme_name="Relay token", auto_error=False))],
    openapi_extra=_body(Results),
    responses=_answers(
        {"status": {"enum": ["in_progress", "completed"]}, "dynamoKey": {"type": "string"}}, 400, 401, 413, 503
    ),
)
async def oot_results(request: Request) -> Response:
    """A relay accepted a callback. `X-OOT-Relay-Token` says that it is one of ours."""
    relay: Relay = request.app.state.relay
    token = request.headers.get("x-oot-relay-token", "").encode()
    if not any(hmac.compare_digest(token, known.encode()) for known in _settings(request).relay_tokens):
        return _refusal(Refused(401, "X-OOT-Relay-Token is not right"))

    async def take(body: bytes) -> dict[str, Any]:
        sent = read_results(body)
        fields = record.flatten(sent.trusted, sent.untrusted.callback_payload, relay.upstream)
        await wrap_future(relay.store.write(fields))
        return {"ok": True, "status": fields["status"], "dynamoKey": fields["dynamoKey"]}

    return await _answer(request, take)


@callbacks.post(
    "/github/webhook",
    dependencies=[Security(APIKeyHeader(name="X-Hub-Signature-256", scheme_name="Signature", auto_error=False))],
    openapi_extra={
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in ("X-GitHub-Event", "X-GitHub-Delivery")
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    },
    responses=_answers(
        {"dispatched": _STRINGS, "already_dispatched": _STRINGS, "failed": _REPOSITORIES}, 400, 401, 413, 502, 503
    ),
)
async def github_webhook(request: Request) -> Response:
    """An upstream pull request or push, for every repository on the allowlist. Signed with the App's secret."""
    relay: Relay = request.app.state.relay

    async def take(body: bytes) -> dict[str, Any]:
        settings = _settings(request)
        verify_signature(body, request.headers.get("x-hub-signature-256", ""), settings.github_webhook_secret)
        if body.startswith(b"payload="):  # GitHub's default is a form
            raise Refused(400, "set the webhook's content type to application/json")
        app: GitHubApp | None = request.app.state.github_app
        if app is None:
            raise Refused(503, "GITHUB_APP_ID and GITHUB_APP_PRIVATE_KEY must be set to dispatch")
        told = await dispatch_event(
            _header(request, "X-GitHub-Event"),
            _header(request, "X-GitHub-Delivery"),
            read_object(body),
            upstream=relay.upstream,
            allowlist=relay.allowlist.current(),
            store=relay.store,
            app=app,
            valid_days=settings.oot_state_days,
        )
        if told.failed and not (told.dispatched or told.already_dispatched):
            reasons = "; ".join(f"{repo}: {reason}" for repo, reason in told.failed.items())
            raise Refused(502, f"no repository could be told: {reasons}")
        return {"ok": True, **asdict(told)}

    return await _answer(request, take, MAX_WEBHOOK_BYTES)


def _header(request: Request, name: str) -> str:
    if value := request.headers.get(name):
        return value
    raise Refused(400, f"the header {name} is missing")


def _settings(request: Request) -> OotSettings:
    return request.app.state.oot_settings


def _github_app(settings: OotSettings) -> GitHubApp | None:
    """The App that dispatches, where there is one."""
    key = settings.github_app_private_key
    if not (key and settings.github_app_id):
        return None
    return GitHubApp(settings.github_api_url, settings.github_app_id, key.get_secret_value())


async def _answer(
    request: Request, take: Callable[[bytes], Awaitable[dict[str, Any]]], limit: int = MAX_BODY_BYTES
) -> Response:
    try:
        return JSONResponse(await take(await _read_body(request, limit)))
    except Refused as refused:
        log.info("%s refused with %d: %s", request.url.path, refused.status, refused.detail)
        return _refusal(refused)
    except StoreUnavailable as error:
        log.error("%s: nothing written: %s", request.url.path, error)
        return _refusal(Refused(503, "the store does not answer, send it again later", retry_after=10))


def _refusal(refused: Refused) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refused.retry_after)))
    return JSONResponse({"detail": refused.detail}, refused.status, headers)


async def _read_body(request: Request, limit: int) -> bytes:
    """At most `limit` bytes, and not many more are kept.

    Raises:
        Refused: it is larger (413).
    """
    length = request.headers.get("content-length", "")
    body = bytearray()
    if not (length.isdecimal() and int(length) > limit):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise Refused(413, f"the body is larger than {limit} bytes")


def relay_lifespan(settings: OotSettings, upstream: str) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Open the relay for an application that includes its routers, and close it with it.

    Raises:
        SettingsError, StoreUnavailable: at once, before a server starts.
    """
    github_app = _github_app(settings)
    opened = ExitStack()
    relay = opened.enter_context(open_relay(settings, upstream))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        with opened:
            app.state.relay, app.state.oot_settings, app.state.github_app = relay, settings, github_app
            yield

    return lifespan


def create_relay(settings: OotSettings, upstream: str, routers: Sequence[APIRouter] = (callbacks, results)) -> FastAPI:
    """The relay and the HUD API, without pages."""
    app = FastAPI(
        title="Out-of-tree CI relay",
        lifespan=relay_lifespan(settings, upstream),
        docs_url=None,
        redoc_url=None,
    )
    for router in routers:
        app.include_router(router)
    return app


def callbacks_first(app: FastAPI) -> ASGIApp:
    """The application with a short way in for callbacks: FastAPI's own takes as long as verifying a token."""
    callback = request_response(github_callback)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/") == "/github/callback":
            scope["app"] = app
            await callback(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


def from_environment() -> ASGIApp:
    """For `uvicorn --factory ci_pipeline.hud.relay:from_environment --workers 2`."""
    settings = load_oot_settings()
    return callbacks_first(create_relay(settings, load_profile(settings.profile).repository))
