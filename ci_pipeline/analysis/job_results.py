"""What a test job's reports come to: its job results in the Result Structure, and what is missing from them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ci_pipeline.analysis.run_diff import run_diff
from ci_pipeline.model import (
    NO_DEVICE,
    RED,
    CiJob,
    CiRun,
    EarlierRun,
    Failure,
    JobReport,
    JobResult,
    Problem,
    TestReport,
)
from ci_pipeline.reports.artifacts import matrix_entry, parse_artifact_name

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile

_ANNOUNCEMENT = "Test suite reports artifacts: "
_CAPTURED_STEP = "Captured information"
_ENDED = {
    "success": "succeeded",
    "failure": "failed",
    "cancelled": "was cancelled",
    "timed_out": "timed out",
    "startup_failure": "did not start",
    None: "has not finished",
}


def job_links(jobs: Sequence[CiJob]) -> dict[str, str]:
    """The page of the CI job that uploads each artifact, by the artifact's name."""
    return {artifact: job.html_url for artifact, job in _announced(jobs).items() if job.html_url}


def warnings_link(jobs: Sequence[CiJob], profile: Profile) -> str:
    """The page of the CI job that selected the warnings; "" where it did not succeed."""
    name = profile.warnings_job
    return next((job.html_url for job in jobs if name and name in job.name and job.conclusion == "success"), "")


def job_report(
    run: CiRun,
    test_job: str,
    reports: Sequence[TestReport],
    jobs: Sequence[CiJob],
    profile: Profile,
    *,
    matrix: Sequence[str] = (),
    problems: Sequence[Problem] = (),
    previous: EarlierRun | None = None,
    others: Sequence[EarlierRun] = (),
    warnings: Sequence[str] = (),
) -> JobReport:
    """All that is known about one test job of a CI run, from the reports of its artifacts.

    Args:
        reports: of the whole run or of this test job alone.
        jobs: of the CI run; empty where GitHub did not say.
        matrix: the folders that the test job was called with: `["models/bert", "trainer"]`. Where there are none, the
            artifacts say which entries there are.
        problems: what was not seen of the run before its reports were read.
    """
    own = [report for report in reports if report.artifact.test_job == test_job]
    announced = _announced(jobs)
    folders = list(dict.fromkeys(folder.strip("/") for folder in matrix))
    missing = _missing(test_job, own, announced, jobs, folders, problems, profile)

    if profile.test_jobs[test_job].matrix:
        by_entry: dict[str, list[TestReport]] = {matrix_entry(folder): [] for folder in folders}
        for report in own:
            by_entry.setdefault(report.artifact.matrix_entry, []).append(report)
        for problem in missing:
            if problem.matrix_entry:
                by_entry.setdefault(problem.matrix_entry, [])
        incomplete = {problem.matrix_entry for problem in missing}
        results = {
            entry: _matrix_result(entry_reports, announced, profile, incomplete=entry in incomplete)
            for entry, entry_reports in by_entry.items()
        }
    else:
        # Without a matrix, an error of pytest is an error of the job.
        errored = any(problem.test_job == test_job for problem in missing) or any(
            report.counts and report.counts.errors for report in own
        )
        results = {test_job: _result(own, announced, _failed_by_device(own, profile), incomplete=errored)}

    diff = run_diff(test_job, own, previous, others) if previous or others else ()
    return JobReport(run, test_job, results, own, missing, previous, others, diff, warnings)


# --- job results ----------------------------------------------------------------------------------------------------


def _result(
    reports: Sequence[TestReport], announced: Mapping[str, CiJob], failed: dict[str, Any], *, incomplete: bool
) -> JobResult:
    totals = [report.counts for report in reports if report.counts]
    failures: dict[str, list[Failure]] = {}
    links: dict[str, str] = {}
    for report in reports:
        device = report.artifact.device or NO_DEVICE
        # A test that failed and whose teardown broke as well is one failing test.
        lines = {o.node_id: o.trace for o in reversed(report.outcomes) if o.outcome in RED}
        if lines:
            listed = failures.setdefault(device, [])
            listed += [{"line": node_id, "trace": trace} for node_id, trace in reversed(lines.items())]
        job = announced.get(report.artifact.name)
        if job and job.html_url and report.counts:
            links[device] = job.html_url
    return {
        "failed": failed,
        "errors": sum(counts.errors for counts in totals),
        "success": sum(counts.passed for counts in totals),
        "skipped": sum(counts.skipped for counts in totals),
        "time_spent": [counts.seconds for counts in totals],
        "error": incomplete,
        "failures": failures,
        "job_link": links,
    }


def _matrix_result(
    reports: Sequence[TestReport], announced: Mapping[str, CiJob], profile: Profile, *, incomplete: bool
) -> JobResult:
    failed = {category: _devices(reports, profile) for category in profile.categories}
    captured: dict[str, str] = {}
    for report in reports:
        device = report.artifact.device or NO_DEVICE
        named = 0
        for outcome in report.outcomes:
            if outcome.outcome == "failed":
                named += 1
                failed[profile.category_of(outcome.node_id)][device] += 1
        if report.counts and report.counts.failed > named:
            failed[profile.unclassified][device] += report.counts.failed - named
        job = announced.get(report.artifact.name)
        if report.captured_info and job and job.html_url:
            step = next((step.number for step in job.steps if step.name == _CAPTURED_STEP), None)
            if step is not None:
                captured[device] = f"{job.html_url}#step:{step}:1"
    result = _result(reports, announced, failed, incomplete=incomplete)
    # With a matrix, a test that passed although it was expected to fail is a success.
    result["success"] = result.get("success", 0) + sum(report.counts.xpassed for report in reports if report.counts)
    result["captured_info"] = captured
    return result


def _failed_by_device(reports: Sequence[TestReport], profile: Profile) -> dict[str, int]:
    failed = _devices(reports, profile)
    for report in reports:
        named = sum(outcome.outcome == "failed" for outcome in report.outcomes)
        failed[report.artifact.device or NO_DEVICE] += report.counts.failed if report.counts else named
    return failed


def _devices(reports: Sequence[TestReport], profile: Profile) -> dict[str, int]:
    seen = (report.artifact.device for report in reports if report.artifact.device)
    return dict.fromkeys((NO_DEVICE, *profile.devices, *seen), 0)


# --- what is missing ------------------------------------------------------------------------------------------------


def _announced(jobs: Sequence[CiJob]) -> dict[str, CiJob]:
    """The CI job that uploads each artifact: the name of one of its steps says so."""
    return {
        step.name.removeprefix(_ANNOUNCEMENT).strip(): job
        for job in jobs
        for step in job.steps
        if step.name.startswith(_ANNOUNCEMENT)
    }


def _missing(
    test_job: str,
    reports: Sequence[TestReport],
    announced: Mapping[str, CiJob],
    jobs: Sequence[CiJob],
    folders: Sequence[str],
    problems: Sequence[Problem],
    profile: Profile,
) -> list[Problem]:
    """Everything that this test job's results do not hold, each with its folder and device where they are known."""
    found: list[Problem] = []
    for problem in problems:
        if artifact := parse_artifact_name(problem.subject, profile):
            problem = artifact.problem(problem.reason)
        if problem.test_job in ("", test_job):
            found.append(problem)
    found += [problem for report in reports for problem in report.problems]

    there, told = {report.artifact.name for report in reports}, {problem.subject for problem in found}
    for name, job in announced.items():
        stopped = job.conclusion in ("cancelled", "timed_out")
        if name in told or job.conclusion == "skipped" or (name in there and not stopped):
            continue
        artifact = parse_artifact_name(name, profile)
        if artifact and artifact.test_job == test_job:
            # A pytest that is interrupted ends its report as if these were all tests.
            lacks = "perhaps not all tests ran" if name in there else "no artifact"
            found.append(artifact.problem(f"{lacks}: its CI job {_ended(job)}"))

    uploading = {job.id for job in announced.values()}
    silent: defaultdict[str, list[CiJob]] = defaultdict(list)
    for job in jobs:
        if job.conclusion != "skipped" and job.id not in uploading:
            for part in set(re.split(r"\s*[(),]\s*", job.name)):
                silent[part].append(job)
    reported = {report.artifact.matrix_entry for report in reports}
    named = reported | {problem.matrix_entry for problem in found}
    for folder in folders:
        entry = matrix_entry(folder)
        stopped = silent[folder]
        if entry in reported:
            # GitHub does not always list the steps of a job: one that ended has left its report.
            stopped = [job for job in stopped if job.steps or job.conclusion not in ("success", "failure")]
        found += [Problem(job.name, f"no artifact: its CI job {_ended(job)}", "", test_job, entry) for job in stopped]
        if not stopped and entry not in named:
            found.append(Problem(folder, "no artifact on any device", "", test_job, entry))
    if not reports and not any(problem.test_job for problem in found):
        found.append(Problem(test_job, "no artifact on any device", "", test_job))
    return found


def _ended(job: CiJob) -> str:
    return _ENDED.get(job.conclusion, f"ended as {job.conclusion}")
