"""The pages of out-of-tree CI, and the same as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import floor
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.templating import Jinja2Templates

from ci_pipeline.hud.ci_runs import CiRuns
from ci_pipeline.hud.oot_backends import (
    FAIR_RATE,
    GOOD_RATE,
    BackendPage,
    Cell,
    Commit,
    Days,
    Job,
    JobDetails,
    OotBackends,
    PullRequest,
    Step,
    Summary,
    Tally,
    View,
)
from ci_pipeline.services import Services

STATES = {
    "running": ("running", "●"),
    "success": ("good", "✓"),
    "failure": ("bad", "✗"),
    "timed_out": ("bad", "◷"),
    "cancelled": ("warn", "⊘"),
    "action_required": ("warn", "!"),
    "stale": ("warn", "?"),
    "skipped": ("none", "–"),
    "neutral": ("none", "○"),
}
"""The chip of a job: its kind and its symbol."""

Page = Annotated[int, Query(ge=1, le=100_000)]
Number = Annotated[int, Path(ge=1, lt=2**63)]
Text = Annotated[str, Query(max_length=700)]
Sha = Annotated[str, Query(max_length=100)]
PrFilter = Annotated[int | None, Query(ge=1, lt=2**63)]


def oot_router(services: Services, pages: Jinja2Templates, oncalls: Callable[[str], list[str]]) -> APIRouter:
    """The routes of the pages; those below `/api` answer with what the pages show. `oncalls`: of a repository."""
    router = APIRouter(tags=["out-of-tree"])
    backends = OotBackends(services, CiRuns(services), oncalls)
    environment: Any = pages.env
    environment.globals |= {
        "states": STATES,
        "tally_text": tally_text,
        "trend_paths": trend_paths,
        "trend_text": trend_text,
    }
    filters = (cell_text, cells_in, job_url, percent, pr_url, rate_kind, seconds, state_kind)
    environment.filters |= {of.__name__: of for of in filters}

    @router.get("/api/oot")
    def summary(days: Days = 7, view: View = "pull_requests", page: Page = 1) -> Summary:
        """All backends, the worst pass rate first. Jobs count when they began, retries each."""
        return backends.summary(days, view, page)

    @router.get("/api/oot/{org}/{repo}")
    def backend(
        org: str,
        repo: str,
        days: Days = 7,
        view: View = "pull_requests",
        job: Text = "",
        conclusion: Text = "",
        author: Text = "",
        pr: PrFilter = None,
        page: Page = 1,
    ) -> BackendPage:
        """One backend: health over `days`, and its commits by last activity, those with such a job."""
        like = {"job": job.strip(), "conclusion": conclusion, "author": author.strip().removeprefix("@")}
        found = backends.backend(f"{org}/{repo}", days, view, **like, pr=pr or 0, page=page)
        if found is None:
            raise HTTPException(404, f"{org}/{repo} has not reported any job.")
        return found

    @router.get("/api/oot/{org}/{repo}/jobs/{delivery_id}/{check_run_id}")
    def job(org: str, repo: str, delivery_id: str, check_run_id: str) -> list[JobDetails]:
        """One execution of a job, with its failed tests; several where its sender gave the same id twice."""
        found = backends.jobs(f"{org}/{repo}", delivery_id, check_run_id)
        if not found:
            raise HTTPException(404, f"{org}/{repo} has not reported this job.")
        return found

    @router.get("/api/pr/{number}")
    def pull_request(number: Number, upstream: Text = "", commit: Sha = "") -> PullRequest:
        """What CI says about a pull request of `upstream` (owner/name; the project's own when left out).

        Of its newest commit, or of the one that begins with `commit`.
        """
        return backends.pull_request(number, upstream, commit)

    @router.get("/oot", response_class=HTMLResponse, include_in_schema=False)
    def summary_page(request: Request, days: Days = 7, view: View = "pull_requests", page: Page = 1) -> Response:
        context = {"summary": backends.summary(days, view, page)}
        return pages.TemplateResponse(request, "oot.html", context)

    @router.get("/oot/{org}/{repo}", response_class=HTMLResponse, include_in_schema=False)
    def backend_page(
        request: Request,
        org: str,
        repo: str,
        days: Days = 7,
        view: View = "pull_requests",
        job: Text = "",
        conclusion: Text = "",
        author: Text = "",
        pr: Annotated[str, Query(pattern=r"^\s*#?\d{0,18}\s*$")] = "",
        page: Page = 1,
    ) -> Response:
        number = int(pr.strip().removeprefix("#") or 0)
        found = backend(org, repo, days, view, job, conclusion, author, number or None, page)
        filters = {"job": job, "conclusion": conclusion, "author": author, "pr": number or ""}
        context = {"found": found, "filters": filters}
        return pages.TemplateResponse(request, "oot_backend.html", context)

    @router.get(
        "/oot/{org}/{repo}/jobs/{delivery_id}/{check_run_id}", response_class=HTMLResponse, include_in_schema=False
    )
    def job_page(request: Request, org: str, repo: str, delivery_id: str, check_run_id: str) -> Response:
        context = {"found": job(org, repo, delivery_id, check_run_id)}
        return pages.TemplateResponse(request, "oot_job.html", context)

    def pr_page(request: Request, number: int, upstream: str, commit: str) -> Response:
        context = {"found": backends.pull_request(number, upstream, commit)}
        return pages.TemplateResponse(request, "pr.html", context)

    @router.get("/pr/{number}", response_class=HTMLResponse, include_in_schema=False)
    def pr_of_profile(request: Request, number: Number, commit: Sha = "") -> Response:
        return pr_page(request, number, "", commit)

    @router.get("/{owner}/{name}/pull/{number}", response_class=HTMLResponse, include_in_schema=False)
    def pr_of_upstream(request: Request, owner: str, name: str, number: Number, commit: Sha = "") -> Response:
        return pr_page(request, number, f"{owner}/{name}", commit)

    @router.get("/crcr", include_in_schema=False)
    @router.get("/crcr/{rest:path}", include_in_schema=False)
    def moved(request: Request, rest: str = "") -> Response:
        """The address that these pages had before."""
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(quote(f"/oot/{rest}".rstrip("/")) + query, 308)

    return router


def cells_in(commit: Commit, columns: Iterable[tuple[str, str]]) -> list[Cell | None]:
    """The cells of a row of the matrix, in the order of its columns."""
    by_job = {(cell.newest.workflow_name, cell.newest.job_name): cell for cell in commit.cells}
    return [by_job.get(column) for column in columns]


def job_url(job: Job) -> str:
    parts = (job.downstream_repo, "jobs", quote(job.delivery_id, safe=""), quote(job.check_run_id, safe=""))
    return f"/oot/{'/'.join(parts)}"


def pr_url(upstream_repo: str, number: int) -> str:
    """Always a page of this site, whatever the repository is called: `//host` would be another."""
    return f"/{quote(upstream_repo.lstrip('/'))}/pull/{number}"


def percent(rate: float) -> str:
    """Rounded down: what is not all green is not 100 %."""
    return f"{floor(rate * 1000) / 10:.1f} %"


def rate_kind(rate: float) -> tuple[str, str]:
    """The chip of a pass rate: its kind and its symbol."""
    return ("good", "✓") if rate >= GOOD_RATE else ("warn", "▲") if rate >= FAIR_RATE else ("bad", "✗")


def state_kind(state: str) -> tuple[str, str]:
    """The chip of a job's state: its kind and its symbol."""
    return STATES.get(state, ("warn", "?"))


def seconds(value: float | None) -> str:
    """`12 s`, `3 min 20 s`, `1 h 5 min`."""
    if value is None:
        return "–"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    big, small, names = (*divmod(whole, 60), ("min", "s")) if whole < 3600 else (*divmod(whole // 60, 60), ("h", "min"))
    return f"{big} {names[0]}" + (f" {small} {names[1]}" if small else "")


def tally_text(tally: Tally) -> str:
    """`3/4 passed, 1 running`."""
    text = f"{tally.success}/{tally.total + tally.running} passed"
    rest = {"failed": tally.failure, "timed out": tally.timed_out, "other": tally.other, "running": tally.running}
    return ", ".join([text, *(f"{count} {name}" for name, count in rest.items() if count)])


def cell_text(cell: Cell) -> str:
    """`timed out, 1 h 5 min, retried 2 times`."""
    job, retries = cell.newest, len(cell.earlier)
    text = [job.state.replace("_", " ")]
    if job.duration:
        text.append(seconds(job.duration))
    if retries:
        text.append(f"retried {retries} times" if retries > 1 else "retried")
    return ", ".join(text)


def trend_text(trend: Iterable[Step], of: str = "rate") -> str:
    """A trend in words: `from 92.0 % to 81.3 %, lowest 70.0 %`."""
    rate = of == "rate"
    steps = (step.tally.pass_rate if rate else step.average_duration for step in trend)
    values = [value for value in steps if value is not None]
    say = percent if rate else seconds
    if len(values) < 2:
        return say(values[0]) if values else "no jobs"
    extreme = f"lowest {percent(min(values))}" if rate else f"longest {seconds(max(values))}"
    return f"from {say(values[0])} to {say(values[-1])}, {extreme}"


def trend_paths(trend: Iterable[Step], height: int = 20, of: str = "rate") -> list[tuple[str, str]]:
    """The bars of a trend as SVG paths, one per kind of pass rate; `of` is what is drawn, the rate or the duration."""
    steps = list(trend)
    longest = max((step.average_duration or 0 for step in steps), default=0) or 1
    paths: dict[str, list[str]] = {}
    for place, step in enumerate(steps):
        rate = step.tally.pass_rate
        if rate is None:
            continue
        share = rate if of == "rate" else (step.average_duration or 0) / longest
        kind = rate_kind(rate)[0] if of == "rate" else "none"
        paths.setdefault(kind, []).append(f"M{place * 4 + 2} {height}v-{max(1.0, share * height):.1f}")
    return [(kind, "".join(bars)) for kind, bars in paths.items()]
