"""The web application: pages for a person, the same as JSON for a script. Works without JavaScript."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote, urlencode

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from jinja2 import pass_context
from jinja2.runtime import Context
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ci_pipeline.hud.ci_runs import (
    CHANGES,
    COMMON,
    CiRuns,
    RunPage,
    TestFilter,
    TestsPage,
    WarehouseUnavailable,
    streaks,
)
from ci_pipeline.hud.metrics import Metrics
from ci_pipeline.hud.oot_pages import Number, Page, oot_router
from ci_pipeline.hud.relay import callbacks, callbacks_first, create_relay, relay_lifespan, results
from ci_pipeline.model import CiRun
from ci_pipeline.oot.relay import Relay
from ci_pipeline.profile import Profile
from ci_pipeline.services import Services
from ci_pipeline.settings import OotSettings, Settings
from ci_pipeline.web_address import is_web

log = logging.getLogger(__name__)

HERE = Path(__file__).parent

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

LATEST = 30
"""CI runs on the first page."""

Where = Annotated[TestFilter, Query()]


class NavigationEntry(NamedTuple):
    href: str
    text: str


def create_app(
    settings: Settings,
    profile: Profile,
    *,
    relay: OotSettings | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The application of one deployment; with `relay` and `routers`, that of out-of-tree CI too.

    Without a warehouse it starts all the same, and says what is missing.
    """
    app = FastAPI(
        title="ci_pipeline",
        responses={404: {"description": "There is none"}, 503: {"description": "No data at the moment"}},
        lifespan=relay_lifespan(relay, profile.repository) if relay else None,
        docs_url=None,
        redoc_url=None,
    )
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(_with_headers)
    app.add_middleware(GZipMiddleware, compresslevel=3)
    pages = templates(settings, profile)
    services = Services(settings, profile)
    ci_runs = CiRuns(services)

    def oncalls(repo: str) -> list[str]:
        """Who looks after a backend, as the relay's allowlist says; nobody is known where none runs."""
        relay: Relay | None = getattr(app.state, "relay", None)
        entry = relay.allowlist.current().find(repo) if relay else None
        return list(entry.oncalls) if entry else []

    app.include_router(oot_router(services, pages, oncalls))
    app.state.metrics = Metrics(services)
    app.include_router(app.state.metrics.router())
    for router in routers:
        app.include_router(router)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index(request: Request) -> Response:
        context = {"runs": ci_runs.latest(LATEST), "source": settings.source_uri}
        return pages.TemplateResponse(request, "index.html", context)

    @app.get("/runs/{run_id}", response_class=HTMLResponse, include_in_schema=False)
    def run_page(request: Request, run_id: Number, where: Where, page: Page = 1, parts: str = "") -> Response:
        shown = _run(ci_runs, run_id)
        context = {
            "shown": shown,
            "found": ci_runs.tests(shown.run, where, page),
            "common": ci_runs.common(shown.run),
            "where": where.model_dump(),
            "all_parts": parts,
        }
        return pages.TemplateResponse(request, "run.html", context)

    @app.get("/history", response_class=HTMLResponse, include_in_schema=False)
    def history(request: Request, test: str, device: str = "") -> Response:
        outcomes = ci_runs.test(test, device)
        by_place = streaks(outcomes, list(profile.devices))
        context = {"node_id": test, "device": device, "outcomes": outcomes, "streaks": by_place}
        return pages.TemplateResponse(request, "history.html", context)

    @app.get("/api/runs")
    def latest_runs(limit: Annotated[int, Query(ge=1, le=200)] = LATEST) -> list[RunPage]:
        return ci_runs.latest(limit)

    @app.get("/api/runs/{run_id}")
    def one_run(run_id: Number) -> RunPage:
        return _run(ci_runs, run_id)

    @app.get("/api/runs/{run_id}/tests")
    def tests_of_run(run_id: Number, where: Where, page: Page = 1) -> TestsPage:
        """The tests of a CI run that changed or fail, new failures first."""
        return ci_runs.tests(_run(ci_runs, run_id).run, where, page)

    @app.get("/api/history")
    def test_history(test: str, device: str = "") -> list[dict[str, Any]]:
        return [dict(row) for row in ci_runs.test(test, device)]

    @app.exception_handler(WarehouseUnavailable)
    async def unavailable(request: Request, error: WarehouseUnavailable) -> Response:
        return _message(pages, request, 503, "No data at the moment", str(error))

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        if _is_for_scripts(request):
            return await request_validation_exception_handler(request, error)
        told = "; ".join(f"{entry['loc'][-1]}: {entry['msg']}" for entry in error.errors())
        return _message(pages, request, 422, "That address is not right", f"{told}.")

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        title, told = HTTPStatus(error.status_code).phrase, error.detail
        if told == title and not _is_for_scripts(request):
            told = f"Nothing here answers {request.method} {request.url.path}."
        answer = _message(pages, request, error.status_code, title, told)
        answer.headers.update(error.headers or {})
        return answer

    return app


def create_server(
    settings: OotSettings, profile: Profile, *, pages: bool = True, relay: bool = True, hud_api: bool = True
) -> ASGIApp:
    """What one address serves: the pages, out-of-tree CI's relay, its HUD API, or all of it; requests are measured."""
    routers = [*([callbacks] if relay else []), *([results] if hud_api else [])]
    if pages:
        app = create_app(settings, profile, relay=settings if routers else None, routers=routers)
    else:
        app = create_relay(settings, profile.repository, routers)
        app.state.metrics = Metrics(Services(settings, profile), pages=False)
        app.include_router(app.state.metrics.router())
    return _with_head(app.state.metrics.measured(callbacks_first(app) if relay else app))


def templates(settings: Settings, profile: Profile) -> Jinja2Templates:
    """Jinja2 with autoescape, and what every page may use: `profile`, `navigation`, `url`, …, and the filters."""
    pages = Jinja2Templates(HERE / "templates")
    environment: Any = pages.env
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.globals |= {
        "profile": profile,
        "static": _static,
        "url": _url,
        "changes": CHANGES,
        "most_common": COMMON,
        "navigation": [
            NavigationEntry("/", "CI runs"),
            NavigationEntry("/oot", "Out-of-tree"),
            *([NavigationEntry(settings.dagster_url, "Dagster")] if is_web(settings.dagster_url) else []),
        ],
    }

    def commit_url(run: CiRun) -> str:
        return f"{profile.web_url}/{run.repository}/commit/{run.head_sha}"

    def compare_url(run: CiRun, other: CiRun) -> str:
        commits = [other.head_sha, run.head_sha]
        return f"{profile.web_url}/{run.repository}/compare/{'...'.join(commits)}" if all(commits) else ""

    def source_url(run: CiRun, node_id: str) -> str:
        path = node_id.partition("::")[0]
        return f"{profile.web_url}/{run.repository}/blob/{run.head_sha}/{quote(path)}" if run.head_sha else ""

    def dagster_url(run: CiRun) -> str:
        base = settings.dagster_url.rstrip("/")
        return f"{base}/assets/slack_report?view=partitions&partition={quote(run.key)}" if base else ""

    def history_url(node_id: str) -> str:
        return f"/history?test={quote(node_id, safe='')}"

    environment.filters |= {
        "history_url": history_url,
        "is_web": is_web,
        "utc": _utc,
        "duration": _duration,
        "name": profile.run_title,
        "commit_url": commit_url,
        "compare_url": compare_url,
        "source_url": source_url,
        "dagster_url": dagster_url,
    }
    return pages


@cache
def _static(name: str) -> str:
    """The address of a static file; another content is another address."""
    return f"/static/{name}?{hashlib.sha256((HERE / 'static' / name).read_bytes()).hexdigest()[:8]}"


@pass_context
def _url(context: Context, /, **changed: object) -> str:
    """The address of the same page with other parameters; another view begins on its first page."""
    request: Request = context["request"]
    query = {**request.query_params, "page": "", **{name: str(value) for name, value in changed.items()}}
    return f"{quote(request.scope['path'])}?{urlencode({name: value for name, value in query.items() if value})}"


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if round(seconds, 1) < 60 else str(timedelta(seconds=round(seconds)))


def _run(ci_runs: CiRuns, run_id: int) -> RunPage:
    if page := ci_runs.run(run_id):
        return page
    raise HTTPException(404, f"There is no CI run {run_id}.")


def _message(pages: Jinja2Templates, request: Request, status: int, title: str, message: str) -> Response:
    if _is_for_scripts(request):
        return JSONResponse({"detail": message}, status)
    context = {"status": status, "title": title, "message": message}
    return pages.TemplateResponse(request, "message.html", context, status)


def _is_for_scripts(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/github/"))


def _with_headers(app: ASGIApp) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/static/") and scope["query_string"] and message["status"] == 200:
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"
            await send(message)

        await app(scope, receive, sending)

    return serve


def _with_head(app: ASGIApp) -> ASGIApp:
    """Answers HEAD as GET; the server leaves out the body."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)

    return serve
