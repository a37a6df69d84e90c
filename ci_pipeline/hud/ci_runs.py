"""What the pages of CI runs show, from the warehouse's rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ci_pipeline.model import Change, CiRun
from ci_pipeline.pipeline import Services
from ci_pipeline.profile import Profile
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


@dataclass(frozen=True)
class TestOnDevices:
    """One test that changed or fails, with the devices on which it does so in the same way."""

    __test__ = False

    node_id: str
    devices: list[str]
    category: str = ""
    trace: str = ""
    previous_trace: str = ""
    since: datetime | None = None
    since_run_id: int = 0
    only_here: bool = False  # it does not fail in the other vendor's run

    def story(self) -> tuple[Any, ...]:
        """Equal for the same story on another device."""
        return (self.node_id, self.trace, self.previous_trace, self.since_run_id, self.only_here)


@dataclass(frozen=True)
class Group:
    """Tests with the same change since the previous run; "failing" where there is no earlier run to compare with."""

    change: Change | str
    title: str
    symbol: str
    kind: str  # of the chip: bad, warn, good
    open: bool
    tests: list[TestOnDevices]


GROUPS = {
    "new_failure": ("New failures", "✗", "bad", True),
    "changed_error": ("Fails with another error", "≠", "warn", True),
    "failing": ("Failing", "✗", "bad", True),
    "still_failing": ("Still failing", "●", "bad", False),
    "fixed": ("Fixed", "✓", "good", False),
    "newly_skipped": ("Newly skipped", "⊘", "warn", False),
    "vanished": ("Vanished", "?", "warn", False),
}


@dataclass(frozen=True)
class TestJobPage:
    """One test job of one CI run."""

    __test__ = False

    test_job: str
    label: str
    has_matrix: bool
    results: list[Part] = field(default_factory=list[Part])
    changes: dict[str, int] = field(default_factory=dict[str, int])
    groups: list[Group] = field(default_factory=list[Group])

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


@dataclass(frozen=True)
class RunPage:
    """One CI run. `problems`: what was not seen, one line each."""

    run: CiRun
    problems: list[str] = field(default_factory=list[str])
    jobs: list[TestJobPage] = field(default_factory=list[TestJobPage])

    @property
    def red(self) -> int:
        return sum(job.red for job in self.jobs)

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
    unseen = [
        f"{job.label}: {' on '.join(filter(None, (part.matrix_entry, part.device)))}: {part.reason}"
        for job in jobs
        for part in job.results
        if not part.complete
    ]
    return RunPage(known.run, [*known.problems, *unseen], jobs)


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Known names in their order, then the others by name."""
    return (order.index(name) if name in order else len(order)), name


def groups(diff: Sequence[Row], failing: Iterable[Row], devices: Sequence[str]) -> list[Group]:
    """The tests of one test job by what happened to them: rows of `run_diff`, and of `test_outcome` where they fail.

    A failing test is in exactly one group, whether there was a run to compare with or not.
    """
    of_key = {_key(row): row for row in failing}
    changed = {_key(row): row for row in diff if row["change"] != "unique_failure"}
    only_here = {_key(row) for row in diff if row["change"] == "unique_failure"}
    stories: dict[str, dict[tuple[Any, ...], TestOnDevices]] = defaultdict(dict)
    for key in dict.fromkeys((*of_key, *changed)):
        _, device, node_id = key
        row, outcome = changed.get(key, {}), of_key.get(key, {})
        change = row.get("change", "failing")
        test = TestOnDevices(
            node_id=node_id,
            devices=[],
            category=outcome.get("category", ""),
            trace=row.get("trace") or outcome.get("trace") or outcome.get("message", ""),
            previous_trace=row.get("previous_trace", "") if change in ("changed_error", "fixed") else "",
            since=row.get("since"),
            since_run_id=row.get("since_run_id", 0),
            only_here=key in only_here,
        )
        on = stories[change].setdefault(test.story(), test).devices
        on[:] = sorted({*on, device} - {""}, key=lambda name: _place(name, devices))
    return [Group(change, *GROUPS[change], list(stories[change].values())) for change in GROUPS if change in stories]


def _key(row: Row) -> tuple[str, str, str]:
    return row["matrix_entry"], row["device"], row["node_id"]


class CiRuns:
    """Asks the warehouse. Every method raises `WarehouseUnavailable`."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def latest(self, limit: int, *, head_sha: str = "") -> list[RunPage]:
        """The newest runs, newest first, without their tests; all, or those of one commit."""
        with warehouse(self.services) as client:
            runs = history.latest_runs(client, limit, head_sha=head_sha)
            pages: dict[int, RunPage] = {}
            for repository in {known.run.repository for known in runs}:
                ids = [known.run.run_id for known in runs if known.run.repository == repository]
                results = _by(history.job_results(client, repository, ids), "run_id")
                counts = _by(history.change_counts(client, repository, ids), "run_id")
                for known in runs:
                    if known.run.repository == repository:
                        page = run_page(known, results[known.run.run_id], self.services.profile)
                        pages[known.run.run_id] = _with_changes(page, counts[known.run.run_id])
        return [pages[known.run.run_id] for known in runs]

    def run(self, run_id: int) -> RunPage | None:
        """One run with its tests; None where it is not known."""
        with warehouse(self.services) as client:
            known = history.find_run(client, run_id)
            if known is None:
                return None
            repository = known.run.repository
            page = run_page(known, history.job_results(client, repository, [run_id]), self.services.profile)
            diff = _by(history.run_changes(client, repository, run_id), "test_job")
            failing = _by(history.failing_tests(client, repository, run_id), "test_job")
        devices = list(self.services.profile.devices)
        jobs = [replace(job, groups=groups(diff[job.test_job], failing[job.test_job], devices)) for job in page.jobs]
        return replace(page, jobs=jobs)

    def test(self, node_id: str, device: str) -> list[Row]:
        """How a test ended in the latest runs, newest first."""
        with warehouse(self.services) as client:
            return history.history_of_test(client, self.services.profile.repository, node_id, device=device)


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
