"""What the pages of CI runs show, from the warehouse's rows."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ci_pipeline.model import Change, CiRun
from ci_pipeline.profile import Profile
from ci_pipeline.settings import Settings

log = logging.getLogger(__name__)


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


Row = Mapping[str, Any]


def run_page(run: CiRun, problems: Sequence[str], results: Iterable[Row], profile: Profile) -> RunPage:
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
    return RunPage(run, list(problems), jobs)


def _place(name: str, order: list[str]) -> tuple[int, str]:
    """Known names in their order, then the others by name."""
    return (order.index(name) if name in order else len(order)), name


def groups(diff: Sequence[Row], failing: Iterable[Row]) -> list[Group]:
    """The tests of one test job by what happened to them: rows of `run_diff`, and of `test_outcome` for those that fail.

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
        devices = stories[change].setdefault(test.story(), test).devices
        if device and device not in devices:
            devices.append(device)
    return [Group(change, *GROUPS[change], list(stories[change].values())) for change in GROUPS if change in stories]


def _key(row: Row) -> tuple[str, str, str]:
    return row["matrix_entry"], row["device"], row["node_id"]


class CiRuns:
    """Asks the warehouse."""

    def __init__(self, settings: Settings, profile: Profile) -> None:
        self.settings = settings
        self.profile = profile

    def latest(self, limit: int) -> list[RunPage]:
        raise WarehouseUnavailable("CI_PIPELINE_WAREHOUSE_URL is not set")

    def run(self, run_id: int) -> RunPage | None:
        raise WarehouseUnavailable("CI_PIPELINE_WAREHOUSE_URL is not set")
