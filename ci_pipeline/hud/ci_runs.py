"""What the pages of CI runs show, from the warehouse's rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ci_pipeline.analysis.infrastructure import infrastructure
from ci_pipeline.model import RED, CiRun
from ci_pipeline.profile import Profile
from ci_pipeline.services import Services
from ci_pipeline.warehouse import WarehouseError, history
from ci_pipeline.warehouse.history import KnownRun, Row

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client


class WarehouseUnavailable(Exception):
    """There is nobody to ask. One line that says why, and the way out."""


@dataclass(frozen=True)
class Part:
    """What one test job says about one folder on one device. A part that is not complete has a reason."""

    matrix_entry: str
    device: str
    failed: int
    errors: int
    success: int
    skipped: int
    seconds: float
    complete: bool
    reason: str
    job_url: str


CHANGES = {
    "new_failure": ("New failures", "✗", "bad"),
    "changed_error": ("Fails with another error", "≠", "warn"),
    "failing": ("Failing", "✗", "bad"),
    "still_failing": ("Still failing", "●", "bad"),
    "fixed": ("Fixed", "✓", "good"),
    "newly_skipped": ("Newly skipped", "⊘", "warn"),
    "vanished": ("Not run any more", "?", "warn"),
}
"""What happened to a test since the previous run: the title, symbol and kind of the chip. "failing": there was none."""

TESTS = 50
"""Tests of a run on one page."""
COMMON = 12
"""What failing tests have in common: as many folders, and errors, as are shown."""
HISTORY = 300
"""Outcomes of one test, in all runs and on all devices."""


class TestFilter(BaseModel):
    """Which tests of a run: those with all that is given; `text` is part of the name or the trace."""

    __test__ = False

    test_job: str = ""
    change: str = ""
    folder: str = ""
    device: str = ""
    error: str = ""
    text: str = ""


@dataclass(frozen=True)
class TestOfRun:
    """One test that changed or fails, with the devices on which it does so in the same way."""

    __test__ = False

    test_job: str
    matrix_entry: str
    node_id: str
    change: str
    devices: list[str]
    category: str
    trace: str
    previous_trace: str
    since: datetime | None
    since_run_id: int
    only_here: bool  # it does not fail in the other vendor's run


@dataclass(frozen=True)
class TestsPage:
    """Some of the tests of a run, by what happened to them; `matching` is how many there are on all pages."""

    __test__ = False

    matching: int
    page: int
    pages: int
    tests: list[TestOfRun]


@dataclass(frozen=True)
class Common:
    """What some failing tests have in common. `infrastructure`: what the machines did, or ""; `ask`: whom."""

    value: str
    tests: int
    infrastructure: str
    ask: str


@dataclass(frozen=True)
class Streak:
    """How a test ended in one workflow on one device, newest first, and how long it has done so.

    `since_start`: in all runs that are known, so that it may be longer.
    """

    workflow: str
    device: str
    outcomes: list[Row]
    fails: bool
    since: Row
    since_start: bool


@dataclass(frozen=True)
class TestJobPage:
    """One test job of one CI run."""

    __test__ = False

    test_job: str
    label: str
    has_matrix: bool
    results: list[Part] = field(default_factory=list[Part])
    changes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def red(self) -> int:
        return sum(part.failed + part.errors for part in self.results)

    @property
    def success(self) -> int:
        return sum(part.success for part in self.results)

    @property
    def skipped(self) -> int:
        return sum(part.skipped for part in self.results)

    @property
    def parts(self) -> int:
        return len(self.results)

    @property
    def missing(self) -> int:
        return sum(not part.complete for part in self.results)

    @property
    def incomplete(self) -> bool:
        return self.missing > 0

    @property
    def compared(self) -> bool:
        """Whether there was an earlier run to compare with: something is known then of every test that fails."""
        return not self.red or bool(self.changes.keys() - {"unique_failure"})

    @property
    def new(self) -> int | None:
        """Tests that did not fail in the run before; None where there was none."""
        return self.changes.get("new_failure", 0) if self.compared else None

    @property
    def notable(self) -> list[Part]:
        """What was not seen whole, and what fails, the worst first."""
        notable = [part for part in self.results if not part.complete or part.failed or part.errors]
        return sorted(notable, key=lambda part: (part.complete, -part.failed - part.errors))


@dataclass(frozen=True)
class RunPage:
    """One CI run. `problems`: what was not seen, one line each.

    `against`: the runs that it was compared with; in lists None, not asked.
    """

    run: CiRun
    problems: list[str] = field(default_factory=list[str])
    jobs: list[TestJobPage] = field(default_factory=list[TestJobPage])
    against: list[CiRun] | None = None

    @property
    def red(self) -> int:
        return sum(job.red for job in self.jobs)

    @property
    def new(self) -> int | None:
        """Tests that did not fail in the run before; None where a test job has none."""
        new = [job.new for job in self.jobs]
        return None if None in new else sum(filter(None, new))

    @property
    def incomplete(self) -> bool:
        """Also when nothing at all was seen: an empty run is not a green one."""
        return bool(self.problems) or not self.jobs or any(job.incomplete for job in self.jobs)


def run_page(known: KnownRun, results: Iterable[Row], profile: Profile) -> RunPage:
    """A run from its rows of `test_job_result`, test jobs in the profile's order."""
    by_job: dict[str, list[Part]] = defaultdict(list)
    for row in results:
        by_job[row["test_job"]].append(Part(**{name: row[name] for name in Part.__dataclass_fields__}))
    job_order, device_order = list(profile.test_jobs), list(profile.devices)
    jobs = [
        TestJobPage(
            test_job,
            profile.job_to_test_map.get(test_job, test_job),
            any(part.matrix_entry not in ("", test_job) for part in parts),
            sorted(parts, key=lambda part: (part.matrix_entry, _place(part.device, device_order))),
        )
        for test_job, parts in sorted(by_job.items(), key=lambda entry: _place(entry[0], job_order))
    ]
    unseen = [_unseen(job.label, part) for job in jobs for part in job.results if not part.complete]
    return RunPage(known.run, [*known.problems, *unseen], jobs)


def _unseen(label: str, part: Part) -> str:
    where = f"{label}: {part.matrix_entry}" if part.matrix_entry else label
    return f"{where} on {part.device}: {part.reason}" if part.device else f"{where}: {part.reason}"


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Known names in their order, then the others by name."""
    return (order.index(name) if name in order else len(order)), name


def streaks(rows: Iterable[Row], devices: Sequence[str]) -> list[Streak]:
    """From the outcomes of one test, newest first; the failing ones first. It failed in a run if any outcome did."""
    by_place: defaultdict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        of_run = by_place[row["workflow"], row["device"]]
        if row["run_id"] not in of_run or row["outcome"] in RED:
            of_run[row["run_id"]] = row
    found: list[Streak] = []
    for (workflow, device), of_run in by_place.items():
        outcomes = list(of_run.values())
        fails = outcomes[0]["outcome"] in RED
        same = next((n for n, row in enumerate(outcomes) if (row["outcome"] in RED) != fails), len(outcomes))
        found.append(Streak(workflow, device, outcomes, fails, outcomes[same - 1], same == len(outcomes)))
    return sorted(found, key=lambda streak: (not streak.fails, streak.workflow, _place(streak.device, devices)))


class CiRuns:
    """Asks the warehouse. Every method raises `WarehouseUnavailable`."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def latest(self, limit: int, *, head_sha: str = "") -> list[RunPage]:
        """The newest runs, newest first, without their tests; all, or those of one commit."""
        with warehouse(self.services) as client:
            runs = history.latest_runs(client, limit, head_sha=head_sha)
            pages: dict[CiRun, RunPage] = {}
            for repository in {known.run.repository for known in runs}:
                of_repository = {known.run.run_id: known for known in runs if known.run.repository == repository}
                results = _by(history.job_results(client, repository, list(of_repository)), "run_id")
                counts = _by(history.change_counts(client, repository, list(of_repository)), "run_id")
                for run_id, known in of_repository.items():
                    page = run_page(known, results[run_id], self.services.profile)
                    pages[known.run] = _with_changes(page, counts[run_id])
        return [pages[known.run] for known in runs]

    def run(self, run_id: int) -> RunPage | None:
        """One run without its tests; None where it is not known."""
        with warehouse(self.services) as client:
            known = history.find_run(client, run_id)
            if known is None:
                return None
            repository = known.run.repository
            page = run_page(known, history.job_results(client, repository, [run_id]), self.services.profile)
            counts = history.change_counts(client, repository, [run_id])
            others = dict.fromkeys(row["against_run_id"] for row in counts)
            known_others = (history.find_run(client, other, repository=repository) for other in others)
            return replace(_with_changes(page, counts), against=[other.run for other in known_others if other])

    def tests(self, run: CiRun, where: TestFilter, page: int = 1) -> TestsPage:
        """The tests of a run that changed or fail, a page at a time."""
        changes, offset = list(CHANGES), (page - 1) * TESTS
        with warehouse(self.services) as client:
            rows = history.run_tests(
                client, run.repository, run.run_id, changes=changes, limit=TESTS, offset=offset, **where.model_dump()
            )
        found = [TestOfRun(**{name: row[name] for name in TestOfRun.__dataclass_fields__}) for row in rows]
        order = list(self.services.profile.devices)
        for test in found:
            test.devices.sort(key=lambda device: _place(device, order))
        matching = rows[0]["matching"] if rows else 0
        return TestsPage(matching, page, -(-matching // TESTS), found)

    def common(self, run: CiRun) -> dict[str, list[Common]]:
        """What failing tests have in common, by "folder", "device" and "error"; by "change" all that changed too."""
        with warehouse(self.services) as client:
            rows = history.run_test_counts(client, run.repository, run.run_id, limit=COMMON)
        found: defaultdict[str, list[Common]] = defaultdict(list)
        profile, order = self.services.profile, list(CHANGES)
        for row in sorted(rows, key=lambda row: _place(row["value"] if row["common"] == "change" else "", order)):
            of, value, job = row["common"], row["value"], row["test_job"]
            about = infrastructure(value) if of == "error" else ""
            ask = profile.oncall_of(job, value) or profile.oncall.get(job, "") if of == "folder" else ""
            found[of].append(Common(value, row["tests"], about, ask))
        return found

    def test(self, node_id: str, device: str) -> list[Row]:
        """How a test ended in the latest runs, newest first."""
        profile = self.services.profile
        with warehouse(self.services) as client:
            rows = history.history_of_test(client, profile.repository, node_id, device=device, limit=HISTORY)
        known = ("workflow_id", "workflow_path", "workflow_name")
        return [{**row, "workflow": profile.workflow_title(*(row[name] for name in known))} for row in rows]


@contextmanager
def warehouse(services: Services) -> Generator[Client]:
    """
    Raises:
        WarehouseUnavailable: there is none, or it stopped answering.
    """
    try:
        client = services.warehouse
        if client is None:
            raise WarehouseUnavailable("No warehouse is configured: set CI_PIPELINE_WAREHOUSE_URL.")
        yield client
    except WarehouseError as error:
        raise WarehouseUnavailable(f"The warehouse cannot be asked: {error}.") from error


def _by(rows: Iterable[Row], column: str) -> defaultdict[Any, list[Row]]:
    found: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[column]].append(row)
    return found


def _with_changes(page: RunPage, counts: Iterable[Row]) -> RunPage:
    changes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in counts:
        changes[row["test_job"]][row["change"]] += row["tests"]
    return replace(page, jobs=[replace(job, changes=changes[job.test_job]) for job in page.jobs])
