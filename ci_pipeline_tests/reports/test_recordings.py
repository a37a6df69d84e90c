"""The recorded cases of the existing reporter, where they are at hand: what it got right stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ci_pipeline.analysis.job_results import job_report
from ci_pipeline.model import CiJob, CiRun, CiStep, JobReport
from ci_pipeline.profile import load_profile
from ci_pipeline.reports.artifacts import available_artifacts
from ci_pipeline.reports.read import read_reports
from ci_pipeline.workflow_step import parse_matrix

CASES = Path(__file__).parents[3] / "shared" / "conformance" / "cases"
PROFILE = load_profile("transformers")
AS_RECORDED = [
    *("all_jobs_killed", "amd_models_scheduled", "amd_no_diff", "captured_info", "classification", "deepspeed_daily"),
    *("examples_daily", "markup_characters", "models_all_failures", "models_daily_no_prev", "models_no_failures"),
    *("nightly_ci_postfix", "past_ci_postfix_models", "pipelines_daily", "prev_model_tables", "quantization_daily"),
    *("real_killed", "subprocess_lines", "summary_short_missing", "trainer_fsdp_daily", "truncate_new_failures"),
]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the recorded cases are not beside the project")


def reported(case: str) -> tuple[JobReport, Any]:
    """Our report of a case's test job, and the recorded results."""
    folder = CASES / case
    test_job = json.loads((folder / "env.json").read_text())["CI_TEST_JOB"]
    argument = json.loads((folder / "argv.json").read_text())[0]
    jobs = [
        CiJob(
            job["id"],
            job["name"],
            job["status"],
            job["conclusion"],
            job["html_url"],
            steps=tuple(CiStep(step["name"], step["number"]) for step in job["steps"]),
        )
        for page in folder.glob("github/jobs_19000000001_*.json")
        for job in json.loads(page.read_text())["jobs"]
    ]
    reports = read_reports(folder / "artifacts", available_artifacts(folder / "artifacts", PROFILE))
    matrix = parse_matrix(argument)
    report = job_report(CiRun("r", 19000000001), test_job, reports, jobs, PROFILE, matrix=matrix)
    recorded = next(folder.glob(f"golden/ci_results_*/{PROFILE.test_jobs[test_job].result_name}_results.json"))
    return report, json.loads(recorded.read_text("utf-8"))


@pytest.mark.parametrize("case", AS_RECORDED)
def test_results_without_a_fault_are_as_recorded(case: str) -> None:
    report, recorded = reported(case)
    results = report.results if PROFILE.test_jobs[report.test_job].matrix else report.results[report.test_job]
    assert json.dumps(results, indent=4) == json.dumps(recorded, indent=4)


def test_no_ghosts_of_messages_are_reported() -> None:
    report, _ = reported("failed_inside_message")
    assert [outcome.trace for outcome in report.reports[0].outcomes] == [
        "(line 5)  RuntimeError: log follows",
        "(line 6)  KeyError: 'b'",
    ]


@pytest.mark.parametrize("case", ["real_models_daily", "real_pytest9_tb", "real_one_error"])
def test_the_failing_tests_of_real_suites_are_as_many_as_pytest_counted(case: str) -> None:
    report, _ = reported(case)
    for test_report in report.reports:
        if test_report.counts:
            found = [outcome.outcome for outcome in test_report.outcomes]
            assert (found.count("failed"), found.count("error")) == (
                test_report.counts.failed,
                test_report.counts.errors,
            )
            assert all(outcome.trace for outcome in test_report.outcomes)
            assert not any(outcome.node_id.startswith(("to ", "tests/x.py")) for outcome in test_report.outcomes)
