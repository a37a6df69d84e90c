from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ci_pipeline.analysis.job_results import job_report
from ci_pipeline.analysis.tables import category_result_table, run_diff_table, with_since
from ci_pipeline.analysis.tables import test_job_result_table as job_result_table
from ci_pipeline.model import (
    ArtifactName,
    CiJob,
    CiRun,
    CiStep,
    Counts,
    JobReport,
    Problem,
    RunDiffRow,
    TestOutcome,
    TestReport,
)
from ci_pipeline.profile import load_profile
from ci_pipeline.tables import CATEGORY_RESULT, RUN_DIFF, TEST_JOB_RESULT

PROFILE = load_profile("transformers")
RUN = CiRun("huggingface/transformers", 7, created_at=datetime(2026, 11, 10, tzinfo=UTC))
NAME = "single-gpu_run_models_gpu_models_bert_test_reports"
SINGLE = ArtifactName(NAME, "single-gpu", "single", "run_models_gpu", "models_bert")
STEP = "Test suite reports artifacts"
MULTI = "multi-gpu_run_models_gpu_models_bert_test_reports"


def report() -> JobReport:
    failing = (
        TestOutcome("tests/models/bert/test_modeling_bert.py::t", "failed"),
        TestOutcome("tests/models/bert/test_modeling_bert.py::u", "error"),
        TestOutcome("tests/models/bert/test_modeling_bert.py::v", "passed"),
    )
    jobs = [
        CiJob(n, "", "completed", ended, f"https://ci/{n}", steps=(CiStep(f"{STEP}: {name}", 1),))
        for n, (name, ended) in enumerate([(SINGLE.name, "failure"), (MULTI, "cancelled")])
    ]
    reports = [TestReport(SINGLE, Counts(5, 1, 1, 2, seconds=3.5), failing)]
    return job_report(RUN, "run_models_gpu", reports, jobs, PROFILE)


def test_a_device_without_a_report_has_a_row_that_says_why() -> None:
    table = job_result_table(RUN, [report()])
    assert table.schema == TEST_JOB_RESULT
    key = {"repository": RUN.repository, "run_id": 7, "run_attempt": 1, "run_created_at": RUN.created_at}
    job = {"test_job": "run_models_gpu", "matrix_entry": "models_bert"}
    counts = {"failed": 1, "errors": 1, "success": 5, "skipped": 2, "seconds": 3.5}
    assert table.to_pylist() == [
        {**key, **job, "device": "single", **counts, "complete": True, "reason": "", "job_url": "https://ci/0"},
        {
            **key,
            **job,
            "device": "multi",
            **dict.fromkeys(counts, 0),
            "complete": False,
            "reason": "no artifact: its CI job was cancelled",
            "job_url": "",
        },
    ]


def test_the_failing_tests_of_a_killed_job_are_counted_as_far_as_they_were_seen() -> None:
    seen = tuple(TestOutcome(f"tests/t.py::{n}", o) for n, o in enumerate(("failed", "error", "error", "passed")))
    problems = [Problem("jobs", "403")]
    killed = job_report(RUN, "run_models_gpu", [TestReport(SINGLE, None, seen)], [], PROFILE, problems=problems)
    (row,) = job_result_table(RUN, [killed]).to_pylist()
    assert (row["failed"], row["errors"], row["success"]) == (1, 2, 0)


def test_a_test_job_of_which_nothing_is_there_has_a_row() -> None:
    (row,) = job_result_table(RUN, [job_report(RUN, "run_models_gpu", [], [], PROFILE)]).to_pylist()
    assert (row["matrix_entry"], row["device"], row["complete"], row["job_url"]) == ("", "", False, "")


def test_every_category_has_a_row_and_errors_have_their_own_column() -> None:
    table = category_result_table(RUN, [report()], PROFILE)
    assert table.schema == CATEGORY_RESULT
    rows = table.select(["category", "device", "failed", "errors"]).to_pylist()
    assert [row["category"] for row in rows] == list(PROFILE.categories)
    assert rows[0] == {"category": "PyTorch", "device": "single", "failed": 1, "errors": 1}
    assert all(row["failed"] == row["errors"] == 0 for row in rows[1:])


def test_a_job_without_a_matrix_is_a_category_of_its_own() -> None:
    name = "single-gpu_run_examples_gpu_test_reports"
    artifact = ArtifactName(name, "single-gpu", "single", "run_examples_gpu")
    failing = (TestOutcome("examples/test_x.py::t", "failed"), TestOutcome("examples/test_x.py::u", "failed"))
    jobs = [CiJob(1, "", "completed", "failure", "https://ci/1", steps=(CiStep(f"{STEP}: {name}", 1),))]
    examples = job_report(RUN, "run_examples_gpu", [TestReport(artifact, Counts(1, 2), failing)], jobs, PROFILE)
    rows = category_result_table(RUN, [report(), examples], PROFILE).select(["category", "failed"]).to_pylist()
    assert rows[-2:] == [{"category": "Unclassified", "failed": 0}, {"category": "Examples directory", "failed": 2}]
    assert job_result_table(RUN, [examples])["job_url"].to_pylist() == ["https://ci/1"]


def test_a_diff_becomes_a_table_and_none_an_empty_one() -> None:
    row = RunDiffRow(
        "run_models_gpu", "models_bert", "single", "t.py::t", "still_failing", 6, 5, RUN.created_at, "a", "b"
    )
    table = run_diff_table(RUN, [row])
    assert table.schema == RUN_DIFF
    assert table.to_pylist()[0]["since"] == RUN.created_at
    assert run_diff_table(RUN, []).num_rows == 0


def test_since_when_a_test_fails_is_taken_over_from_the_run_before() -> None:
    row = RunDiffRow("run_models_gpu", "models_bert", "single", "t.py::t", "still_failing", 7, 7, None, "a", "a")
    before = run_diff_table(RUN, [row._replace(since_run_id=5, since=RUN.created_at)])
    (found,) = with_since(run_diff_table(RUN, [row]), before).to_pylist()
    assert (found["since_run_id"], found["since"]) == (5, RUN.created_at)
    changed = run_diff_table(RUN, [row._replace(change="changed_error", since_run_id=4)])
    assert with_since(run_diff_table(RUN, [row]), changed).to_pylist()[0]["since_run_id"] == 4
    unknown = with_since(run_diff_table(RUN, [row]), run_diff_table(RUN, []))
    assert unknown.schema == RUN_DIFF
    assert unknown.to_pylist()[0]["since"] is None


@pytest.mark.parametrize("field", ["test_job", "matrix_entry", "device", "node_id"])
def test_since_when_another_test_fails_says_nothing(field: str) -> None:
    row = RunDiffRow("run_models_gpu", "models_bert", "single", "t.py::t", "still_failing", 7, 7, None, "a", "a")
    before = run_diff_table(RUN, [row._replace(since_run_id=5, **{field: "another"})])
    assert with_since(run_diff_table(RUN, [row]), before)["since_run_id"].to_pylist() == [7]


def test_a_failure_that_is_not_an_earlier_run_s_is_not_since_then() -> None:
    row = RunDiffRow("run_models_gpu", "models_bert", "single", "t.py::t", "unique_failure", 7)
    before = run_diff_table(RUN, [row._replace(change="still_failing", since_run_id=5)])
    assert with_since(run_diff_table(RUN, [row]), before)["since_run_id"].to_pylist() == [0]
