"""What the pages of out-of-tree CI show, from the warehouse's rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from ci_pipeline.hud.ci_runs import CiRuns, RunPage, warehouse
from ci_pipeline.services import Services
from ci_pipeline.warehouse import oot
from ci_pipeline.warehouse.history import Row

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Days = Annotated[Literal[1, 7, 30], BeforeValidator(int)]
View = Literal["pull_requests", "nightlies"]

GOOD_RATE = 0.95
FAIR_RATE = 0.8
STALE_AFTER = timedelta(hours=1)
COMMITS = 20
"""Rows of a backend's matrix on one page."""
BACKENDS = 100
"""Rows of the summary on one page."""
COMMITS_OF_PR = 1000
RUNS_OF_COMMIT = 10

_NEVER = datetime.fromtimestamp(0, UTC)
_ENDS = ("running", "success", "failure", "timed_out", "total")
_NO_JOB: Row = dict.fromkeys((*_ENDS, "duration", "durations"), 0)
_PATIENCE = 0.5  # seconds that a page waits for hours to be counted anew


@dataclass(frozen=True)
class Tally:
    """How many jobs ended how. `total` is without those that run; `other` is neither of the three."""

    running: int = 0
    success: int = 0
    failure: int = 0
    timed_out: int = 0
    other: int = 0
    total: int = 0
    pass_rate: float | None = None

    @property
    def red(self) -> int:
        return self.failure + self.timed_out

    @staticmethod
    def of(running: int, success: int, failure: int, timed_out: int, total: int) -> Tally:
        other = total - success - failure - timed_out
        return Tally(running, success, failure, timed_out, other, total, success / total if total else None)


@dataclass(frozen=True)
class Step:
    """The jobs that began in one hour or day."""

    began: datetime
    tally: Tally
    average_duration: float | None


@dataclass(frozen=True)
class Backend:
    """How the jobs of one repository did; durations and queue times in seconds. `trend` has every hour or day."""

    downstream_repo: str
    level: str
    tally: Tally
    average_duration: float | None
    average_queue_time: float | None
    last_at: datetime | None
    trend: list[Step]


@dataclass(frozen=True)
class Summary:
    """The backends, the worst pass rate first. `arrived`: when the newest job came in; `stale`: that is long ago."""

    days: Days
    view: View
    arrived: datetime | None
    stale: bool
    page: int
    pages: int
    backends: list[Backend]


@dataclass(frozen=True)
class Job:
    """One execution of a job. `state` is its conclusion, or "running"; times in seconds, None where not known."""

    downstream_repo: str
    level: str
    state: str
    workflow_name: str
    job_name: str
    delivery_id: str
    check_run_id: str
    run_id: str
    run_attempt: int
    workflow_run_url: str
    artifact_url: str
    pr_number: int
    upstream_repo: str
    head_sha: str
    started_at: datetime | None
    completed_at: datetime | None
    queue_time: float | None
    duration: float | None
    passed_tests: int
    failed_tests: int
    skipped_tests: int
    total_tests: int

    @property
    def at(self) -> datetime:
        """Its last sign of life, as its sender says."""
        return self.completed_at or self.started_at or _NEVER


@dataclass(frozen=True)
class JobDetails:
    """A job with what its sender told about it. `omitted`: failed tests that are not listed."""

    job: Job
    tests: list[dict[str, Any]]
    omitted: int
    environment: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A job of a commit: the newest execution counts, the earlier ones are retries of it."""

    newest: Job
    earlier: list[Job] = field(default_factory=list[Job])


@dataclass(frozen=True)
class Commit:
    """What a backend says about one commit, of a pull request or of none (0)."""

    downstream_repo: str
    level: str
    upstream_repo: str
    pr_number: int
    pr_author: str
    head_sha: str
    last_at: datetime | None
    tally: Tally
    cells: list[Cell]


@dataclass(frozen=True)
class BackendPage:
    """One backend: its health, and its commits by last activity. `columns`: workflow and job of each column.

    `oncalls`: who looks after it.
    """

    days: Days
    view: View
    arrived: datetime | None
    stale: bool
    oncalls: list[str]
    health: Backend
    columns: list[tuple[str, str]]
    commits: list[Commit]
    page: int
    more: bool


@dataclass(frozen=True)
class BackendOfPr:
    """What a backend says about a pull request. `outdated`: this is of an earlier commit; `oncalls`: whom to ask."""

    commit: Commit
    outdated: bool
    oncalls: list[str]


@dataclass(frozen=True)
class KnownCommit:
    """A commit of a pull request, with the times of the first and the last job of any backend."""

    head_sha: str
    began_at: datetime
    last_at: datetime


@dataclass(frozen=True)
class PullRequest:
    """What CI says about a pull request: all backends, those that fail first, and the in-tree `runs` of `head_sha`.

    `tally` is of all that is shown of the backends; `commits`, newest first, are those that they reported on.
    """

    number: int
    upstream_repo: str
    other_upstreams: list[str]
    author: str
    head_sha: str
    tally: Tally
    backends: list[BackendOfPr]
    runs: list[RunPage]
    commits: list[KnownCommit]


class OotBackends:
    """Asks the warehouse. Every method raises `WarehouseUnavailable`."""

    def __init__(self, services: Services, ci_runs: CiRuns, oncalls: Callable[[str], list[str]]) -> None:
        self._services = services
        self._ci_runs = ci_runs
        self._oncalls = oncalls
        self._asking = ThreadPoolExecutor(8, "oot-queries")
        self._counter = ThreadPoolExecutor(1, "oot-hours")
        self._counted: Future[None] | None = None

    def summary(self, days: Days, view: View, page: int = 1) -> Summary:
        with warehouse(self._services) as client:
            arrived, found = self._health(client, days, view)()
        found.sort(key=_worst_first)
        pages = max(1, -(-len(found) // BACKENDS))
        page = min(page, pages)
        shown = found[(page - 1) * BACKENDS : page * BACKENDS]
        return Summary(days, view, arrived, _stale(arrived), page, pages, shown)

    def backend(
        self,
        repo: str,
        days: Days,
        view: View,
        *,
        job: str = "",
        conclusion: str = "",
        author: str = "",
        pr: int = 0,
        page: int = 1,
    ) -> BackendPage | None:
        """One backend; None where it never reported."""
        nightly, limit, offset = view == "nightlies", COMMITS + 1, (page - 1) * COMMITS
        with warehouse(self._services) as client:
            health = self._health(client, days, view, repo)
            ask = partial(oot.commits, client)
            if job or conclusion or author:
                ask = partial(oot.matching_commits, client, job=job, conclusion=conclusion, author=author)
            rows = ask(downstream_repo=repo, pr_number=pr, nightly=nightly, limit=limit, offset=offset)
            if not rows and not oot.commits(client, downstream_repo=repo, limit=1):
                return None
            found = commits(rows[:COMMITS], oot.jobs(client, rows[:COMMITS]))
            arrived, backends = health()
        level = found[0].level if found else ""
        backend = backends[0] if backends else Backend(repo, level, Tally(), None, None, None, [])
        columns = sorted({(cell.newest.workflow_name, cell.newest.job_name) for row in found for cell in row.cells})
        oncalls, more = self._oncalls(repo), len(rows) > COMMITS
        return BackendPage(days, view, arrived, _stale(arrived), oncalls, backend, columns, found, page, more)

    def jobs(self, repo: str, delivery_id: str, check_run_id: str) -> list[JobDetails]:
        """The jobs of this id, which should be one."""
        with warehouse(self._services) as client:
            rows = oot.job(client, repo, delivery_id, check_run_id)
        return [_details(row) for row in rows]

    def pull_request(self, number: int, upstream_repo: str = "", head_sha: str = "") -> PullRequest:
        """What is known of one commit of it, the newest unless `head_sha` begins another.

        Without `upstream_repo` the profile's, or any other that has this number.
        """
        with warehouse(self._services) as client:
            rows = oot.commits(client, pr_number=number, limit=COMMITS_OF_PR)
            upstreams = list(dict.fromkeys(row["upstream_repo"] for row in rows))
            ours = self._services.profile.repository
            chosen = upstream_repo or (ours if ours in upstreams or not upstreams else upstreams[0])
            rows = [row for row in rows if row["upstream_repo"] == chosen]
            known = _known_commits(rows)
            sha = next((commit.head_sha for commit in known if commit.head_sha.startswith(head_sha)), head_sha)
            runs = self._asking.submit(self._ci_runs.latest, RUNS_OF_COMMIT, head_sha=sha) if sha else None
            place = {commit.head_sha: back for back, commit in enumerate(known)}
            newest: dict[str, Row] = {}
            for row in sorted(rows, key=lambda row: place[row["pytorch_head_sha"]]):
                if row["pytorch_head_sha"] == sha or not head_sha:
                    newest.setdefault(row["downstream_repo"], row)
            shown = [row for row in rows if newest.get(row["downstream_repo"]) is row]
            found = sorted(commits(shown, oot.jobs(client, shown)), key=lambda commit: not commit.tally.red)
        return PullRequest(
            number,
            chosen,
            [upstream for upstream in upstreams if upstream != chosen],
            next((row["pr_author"] for row in rows if row["pr_author"]), ""),
            sha,
            tally(cell.newest for commit in found for cell in commit.cells),
            [BackendOfPr(commit, commit.head_sha != sha, self._oncalls(commit.downstream_repo)) for commit in found],
            runs.result() if runs else [],
            known,
        )

    def _health(
        self, client: Client, days: Days, view: View, repo: str = ""
    ) -> Callable[[], tuple[datetime | None, list[Backend]]]:
        """Asks when the newest job came in and how the backends did, both at once; to call for the answers.

        Hours that changed and that nobody has counted since are counted, in this request if that is soon done.
        """
        step = timedelta(hours=1) if days == 1 else timedelta(days=1)
        now = datetime.now(UTC)
        since = now - timedelta(days=days)
        nightly = view == "nightlies"
        ask = partial(oot.backend_times, client, nightly=nightly, since=since, step=step, downstream_repo=repo)
        asked = self._asking.submit(oot.arrived, client)
        told = self._asking.submit(ask)

        def answer() -> tuple[datetime | None, list[Backend]]:
            (arrived, counted), rows = asked.result(), told.result()
            if arrived != counted:
                if self._counted is None or self._counted.done():
                    self._counted = self._counter.submit(oot.count_hours, client)
                with suppress(TimeoutError):
                    self._counted.result(_PATIENCE if counted else None)
                rows = ask()
            by_repo: defaultdict[str, list[Row]] = defaultdict(list)
            for row in rows:
                by_repo[row["downstream_repo"]].append(row)
            # The window begins within the first step: of 24 hours there are 25.
            times = [_floor(now, step) - step * back for back in range(24 if days == 1 else days, -1, -1)]
            return arrived, [_backend(repo, rows, times) for repo, rows in by_repo.items()]

        return answer


def commits(rows: Sequence[Row], jobs: Iterable[Row]) -> list[Commit]:
    """Rows of `oot_commit` with their jobs, in their order; rows whose jobs say otherwise by now are left out."""
    by_commit: defaultdict[tuple[str, int, str], list[Job]] = defaultdict(list)
    for row in jobs:
        job = _job(row)
        by_commit[job.downstream_repo, job.pr_number, job.head_sha].append(job)
    found: list[Commit] = []
    for row in rows:
        if of_commit := by_commit[row["downstream_repo"], row["pr_number"], row["pytorch_head_sha"]]:
            in_columns = cells(of_commit)
            found.append(
                Commit(
                    row["downstream_repo"],
                    of_commit[0].level,
                    row["upstream_repo"],
                    row["pr_number"],
                    row["pr_author"],
                    row["pytorch_head_sha"],
                    _time(row["last_at"]),
                    tally(cell.newest for cell in in_columns),
                    in_columns,
                )
            )
    return found


def cells(jobs: Iterable[Job]) -> list[Cell]:
    """Executions of the same job together, by name.

    The newest is that of the run with the latest sign of life, and of its attempts the highest.
    """
    by_job: defaultdict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in jobs:
        by_job[job.workflow_name, job.job_name].append(job)
    found: list[Cell] = []
    for _, executions in sorted(by_job.items()):
        if len(executions) > 1:
            last: dict[str, datetime] = {}
            for job in executions:
                last[job.run_id] = max(job.at, last.get(job.run_id, _NEVER))
            executions.sort(key=lambda job: (last[job.run_id], job.run_id, job.run_attempt, job.at), reverse=True)
        found.append(Cell(executions[0], executions[1:]))
    return found


def tally(jobs: Iterable[Job]) -> Tally:
    """How many of these ended how."""
    states = [job.state for job in jobs]
    counts = (states.count(state) for state in ("running", "success", "failure", "timed_out"))
    return Tally.of(*counts, total=len(states) - states.count("running"))


def _backend(repo: str, rows: Sequence[Row], times: Sequence[datetime]) -> Backend:
    def total(name: str) -> Any:
        return sum(row[name] for row in rows)

    by_time: dict[datetime, Row] = {row["began"]: row for row in rows}
    return Backend(
        downstream_repo=repo,
        level=rows[-1]["level"],
        tally=Tally.of(*map(total, _ENDS)),
        average_duration=_average(total("duration"), total("durations")),
        average_queue_time=_average(total("queue_time"), total("queue_times")),
        last_at=_time(max(row["last_at"] for row in rows)),
        trend=[_step(began, by_time.get(began, _NO_JOB)) for began in times],
    )


def _step(began: datetime, row: Row) -> Step:
    counts = (row[name] for name in _ENDS)
    return Step(began, Tally.of(*counts), _average(row["duration"], row["durations"]))


def _average(total: float, count: int) -> float | None:
    return total / count if count else None


_AS_IN_ROW = Job.__dataclass_fields__.keys() - {
    "level",
    "state",
    "head_sha",
    "started_at",
    "completed_at",
    "duration",
}


def _job(row: Row) -> Job:
    completed = row["status"] == "completed"
    return Job(
        level=row["downstream_repo_level"],
        state=(row["conclusion"] or "unknown") if completed else "running",
        head_sha=row["pytorch_head_sha"],
        started_at=_time(row["started_at"]),
        completed_at=_time(row["completed_at"]),
        duration=row["duration_seconds"] or row["execution_time"],
        **{name: row[name] for name in _AS_IN_ROW},
    )


def _details(row: Row) -> JobDetails:
    tests = _json(row["failed_tests_json"], [])
    tests = [test for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []
    environment = _json(row["environment"], {})
    omitted = sum(count for test in tests if isinstance(count := test.get("omitted"), int))
    return JobDetails(_job(row), tests, omitted, environment if isinstance(environment, dict) else {})


def _json(text: str, default: Any) -> Any:
    try:
        return json.loads(text) if text else default
    except (ValueError, RecursionError):
        return default


def _time(moment: datetime) -> datetime | None:
    return moment if moment > _NEVER else None


def _known_commits(rows: Iterable[Row]) -> list[KnownCommit]:
    """The commits of some rows, that whose jobs began last first: a retry does not make an old commit the newest."""
    by_sha: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_sha[row["pytorch_head_sha"]].append(row)
    known = [
        KnownCommit(sha, min(row["began_at"] for row in of), max(row["last_at"] for row in of))
        for sha, of in by_sha.items()
    ]
    return sorted(known, key=lambda commit: commit.began_at, reverse=True)


def _floor(moment: datetime, step: timedelta) -> datetime:
    return moment - (moment - _NEVER) % step


def _worst_first(backend: Backend) -> tuple[float, str]:
    """Those of which nothing has completed come last."""
    rate = backend.tally.pass_rate
    return (2.0 if rate is None else rate), backend.downstream_repo


def _stale(arrived: datetime | None) -> bool:
    return arrived is not None and datetime.now(UTC) - arrived > STALE_AFTER
