"""The rows that rooms hand to one another.

Plain frozen dataclasses, and named tuples where a run has a million of them: importing this module costs nothing, so
that the one-shot command starts fast. The same rows in bulk are pyarrow tables; their columns are in
`ci_pipeline.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypedDict

Outcome = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun"]
"""How one test ended, in pytest's words."""

RED: frozenset[Outcome] = frozenset(("failed", "error"))
"""The outcomes that a report must never lose."""

NO_DEVICE = "unclassified"
"""The device of artifacts whose name has no machine, in the Result Structure."""

TestKey = tuple[str, str, str]
"""A test of a test job: `(matrix_entry, device, node_id)`."""


# --- what CI leaves behind ------------------------------------------------------------------------------------------


class CiStep(NamedTuple):
    """One step of a CI job. Source: `steps[]` of GitHub's jobs API."""

    name: str
    number: int
    conclusion: str | None = None


@dataclass(frozen=True, slots=True)
class CiJob:
    """One job of a CI run. Source: GitHub's `GET /repos/{repo}/actions/runs/{run_id}/jobs`."""

    id: int
    name: str
    status: str = ""
    conclusion: str | None = None
    html_url: str = ""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    steps: tuple[CiStep, ...] = ()


@dataclass(frozen=True, slots=True)
class CiRun:
    """One attempt of one GitHub workflow run. Source: `GET /repos/{repo}/actions/runs/{run_id}`, or `run.json`."""

    repository: str
    run_id: int
    run_attempt: int = 1
    run_number: int = 0
    workflow_id: int = 0
    workflow_name: str = ""
    workflow_path: str = ""  # `.github/workflows/nightly.yml`
    event: str = ""
    status: str = "completed"
    conclusion: str | None = None
    head_sha: str = ""
    head_branch: str = ""
    title: str = ""  # GitHub's `display_title`
    html_url: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def key(self) -> str:
        """The Dagster partition key: `<run_id>-<run_attempt>`."""
        return f"{self.run_id}-{self.run_attempt}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was not seen, and why: a missing or refused artifact, a killed job, an API that answered 403.

    `subject` names the thing (an artifact, a folder, "jobs"); `reason` is one line for a person.
    """

    subject: str
    reason: str
    device: str = ""
    test_job: str = ""
    matrix_entry: str = ""


@dataclass(frozen=True, slots=True)
class FetchedRun:
    """One CI run in the raw store: `<root>/run.json`, `<root>/jobs.json`, `<root>/artifacts/<artifact name>/…`."""

    run: CiRun
    jobs: tuple[CiJob, ...] = ()
    artifact_names: tuple[str, ...] = ()  # those that are there
    problems: tuple[Problem, ...] = ()  # those that are not, and whatever else could not be read


# --- what a report says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArtifactName:
    """`<machine>_<job>[_<folder>]_test_reports[_postfix_<x>]`, taken apart.

    `device` is `single`, `multi`, "" (none), or the machine's own name where the profile does not know the machine.
    """

    name: str
    machine: str
    device: str
    test_job: str
    matrix_entry: str = ""
    postfix: str = ""

    def problem(self, reason: str) -> Problem:
        """What was not seen of this artifact."""
        return Problem(self.name, reason, self.device, self.test_job, self.matrix_entry)


@dataclass(frozen=True, slots=True)
class Counts:
    """pytest's own totals, from its closing line; `seconds` is the wall time that it prints."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    xfailed: int = 0
    xpassed: int = 0
    deselected: int = 0
    rerun: int = 0
    warnings: int = 0
    seconds: float = 0.0

    @property
    def tests(self) -> int:
        """How many tests ran or were to run; those that were deselected or run again are not counted."""
        return self.passed + self.failed + self.errors + self.skipped + self.xfailed + self.xpassed


class TestOutcome(NamedTuple):
    """One test on one device in one CI run.

    `message` is what pytest prints behind ` - ` in its summary: whole, where every outcome is read, else empty. `trace`
    is the line that reports show: `(line 42)  ValueError: text`. Both are empty for tests that passed.
    """

    __test__ = False  # not a test class, whatever pytest thinks of the name

    node_id: str
    outcome: Outcome
    message: str = ""
    trace: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TestReport:
    """What one artifact says: its totals, its outcomes, and what could not be read of it.

    `counts` is None where the closing line is missing or unreadable: the job was killed or its report was lost.
    `outcomes` always has every failing test; whether it has the others too is the reader's choice (see `reports`).
    """

    __test__ = False

    artifact: ArtifactName
    counts: Counts | None
    outcomes: tuple[TestOutcome, ...] = ()
    captured_info: str = ""
    problems: tuple[Problem, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by column: between processes, thousands of tests travel in a third of the time."""
        columns = list(zip(*self.outcomes, strict=True))
        return _report_of_columns, (self.artifact, self.counts, columns, self.captured_info, self.problems)


def _report_of_columns(
    artifact: ArtifactName, counts: Counts | None, columns: list[tuple[Any, ...]], *more: Any
) -> TestReport:
    return TestReport(artifact, counts, tuple(map(TestOutcome._make, zip(*columns, strict=True))), *more)


# --- what is made of it ---------------------------------------------------------------------------------------------


class Failure(TypedDict):
    """One failing test in a job result: its node id, and the trace line."""

    line: str
    trace: str


class JobResult(TypedDict, total=False):
    """The Result Structure of the `<category>_results.json` files, key for key.

    `failed` is by category and device for jobs with a matrix, else by device.
    """

    failed: dict[str, Any]
    errors: int
    success: int
    skipped: int
    time_spent: list[float]
    error: bool
    failures: dict[str, list[Failure]]
    job_link: dict[str, str]
    captured_info: dict[str, str]


Change = Literal[
    "new_failure", "still_failing", "fixed", "changed_error", "newly_skipped", "vanished", "unique_failure"
]
"""What happened to a test since an earlier run; `unique_failure`: failing here, not in another vendor's run."""


class RunDiffRow(NamedTuple):
    """One test on one device against one other run."""

    test_job: str
    matrix_entry: str
    device: str
    node_id: str
    change: Change
    against_run_id: int
    since_run_id: int = 0  # the first run of the unbroken row of failures that this one continues
    since: datetime | None = None
    trace: str = ""
    previous_trace: str = ""


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """What is known of a run that this one is compared with.

    `failures`: the traces. `outcomes` also holds the tests that did not fail; it is None
    where only the failures are known (an uploaded `<category>_results.json` has no others). `has_errors`: whether tests
    with errors are among the failures (older reporters left them out).
    """

    run: CiRun
    label: str  # "previous run", "Nvidia CI run"
    failures: Mapping[TestKey, str]
    outcomes: Mapping[TestKey, Outcome] | None = None
    since: Mapping[TestKey, tuple[int, datetime | None]] = field(default_factory=dict)
    has_errors: bool = True


@dataclass(frozen=True, slots=True)
class JobReport:
    """All that is known about one test job of one CI run: what publish/ renders.

    `results`: job results by matrix entry (for a job without a matrix: one, under the job's own name).
    `problems`: what was not seen; while it is not empty, no text may claim that everything passed.
    """

    run: CiRun
    test_job: str
    results: Mapping[str, JobResult]
    reports: Sequence[TestReport] = ()
    problems: Sequence[Problem] = ()
    previous: EarlierRun | None = None
    others: Sequence[EarlierRun] = ()
    diff: Sequence[RunDiffRow] = ()
    warnings: Sequence[str] = ()
