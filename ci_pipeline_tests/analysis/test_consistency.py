"""What is about to be published agrees with itself, or somebody says where it does not."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from ci_pipeline.analysis import consistency
from ci_pipeline.analysis.tables import run_diff_table
from ci_pipeline.model import ArtifactName, Change, CiJob, CiRun, CiStep, Counts, FetchedRun, Problem, RunDiffRow
from ci_pipeline.model import TestOutcome as Outcome
from ci_pipeline.model import TestReport as Report
from ci_pipeline.profile import load_profile
from ci_pipeline.reports.tables import report_tables

RUN = CiRun("o/r", 1)
ARTIFACT = ArtifactName("single-gpu_run_models_gpu_models_bert_test_reports", "single-gpu", "single", "run_models_gpu")
FAILED = Outcome("tests/a.py::t", "failed", "boom", "(line 1)  boom")
REPORT = Report(ARTIFACT, Counts(passed=1, failed=1), (FAILED,))


def tables(*reports: Report) -> tuple[pa.Table, pa.Table]:
    return report_tables(RUN, reports, load_profile("transformers"))


def test_a_report_that_lists_what_it_counts_is_fine() -> None:
    assert consistency.miscounted(*tables(REPORT)) == []


def test_a_failing_test_that_is_counted_and_not_listed_is_found() -> None:
    [found] = consistency.miscounted(*tables(replace(REPORT, outcomes=())))
    assert found.text == f"{ARTIFACT.name}: 0 tests listed as failed, pytest counted 1"
    assert not found.said


def test_what_the_report_says_itself_is_known_to_be_said() -> None:
    problem = Problem(ARTIFACT.name, "the list of failures is cut off")
    [found] = consistency.miscounted(*tables(replace(REPORT, outcomes=(), problems=(problem,))))
    assert found.said


def test_the_totals_of_two_machines_of_one_device_add_up() -> None:
    other = replace(REPORT, artifact=replace(ARTIFACT, name="single-2", machine="single-2"))
    assert consistency.miscounted(*tables(REPORT, other)) == []


def test_one_machine_of_two_that_was_killed_leaves_the_totals_open() -> None:
    killed = replace(REPORT, artifact=replace(ARTIFACT, name="single-2", machine="single-2"), counts=None, outcomes=())
    assert consistency.miscounted(*tables(replace(REPORT, outcomes=()), killed)) == []


def test_what_one_machine_of_two_says_is_said() -> None:
    problem = Problem("single-2", "the list of failures is cut off")
    other = replace(REPORT, artifact=replace(ARTIFACT, name="single-2", machine="single-2"), problems=(problem,))
    [found] = consistency.miscounted(*tables(REPORT, replace(other, outcomes=())))
    assert found.said


def test_without_totals_nothing_can_be_miscounted() -> None:
    assert consistency.miscounted(*tables(replace(REPORT, counts=None))) == []


def test_a_failing_test_without_a_trace_is_named() -> None:
    _, outcomes = tables(replace(REPORT, outcomes=(FAILED._replace(trace=""), Outcome("tests/a.py::ok", "passed"))))
    assert consistency.without_trace(outcomes) == ["tests/a.py::t (single)"]


@pytest.mark.parametrize("change", ["new_failure", "still_failing", "changed_error", "unique_failure"])
def test_a_diff_about_a_test_that_does_not_fail_is_unfounded(change: Change) -> None:
    _, outcomes = tables(REPORT)
    founded = RunDiffRow("run_models_gpu", "", "single", "tests/a.py::t", change, 9)
    invented = founded._replace(node_id="tests/a.py::other")
    fixed = invented._replace(change="fixed")
    assert consistency.unfounded(run_diff_table(RUN, [founded, fixed]), outcomes) == []
    assert consistency.unfounded(run_diff_table(RUN, [invented]), outcomes) == [f"tests/a.py::other (single): {change}"]


def test_an_announced_artifact_that_is_not_there_is_missing_unless_its_job_was_skipped() -> None:
    def job(name: str, conclusion: str) -> CiJob:
        step = CiStep(f"Test suite reports artifacts: {name}", 9)
        return CiJob(1, name, "completed", conclusion, "https://github.com/o/r", steps=(step,))

    jobs = (job("there", "success"), job("lost", "failure"), job("gone", "failure"), job("never began", "skipped"))
    assert consistency.missing_artifacts(FetchedRun(RUN, jobs, ("there",))) == ["gone", "lost"]
