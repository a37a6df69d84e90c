from __future__ import annotations

from datetime import UTC, datetime

from ci_pipeline.analysis.job_results import job_report
from ci_pipeline.analysis.tables import category_result_table, run_diff_table, with_since
from ci_pipeline.analysis.tables import test_job_result_table as job_result_table
from ci_pipeline.model import ArtifactName, CiJob, CiRun, CiStep, Counts, JobReport, RunDiffRow, TestOutcome, TestReport
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
        CiJob(n, "", "completed", ended, f"https://ci/{n}", steps=(CiStep(f"Test suite reports artifacts: {name}", 1),))
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
    seen = (TestOutcome("tests/models/bert/test_modeling_bert.py::t", "failed"),)
    killed = job_report(RUN, "run_models_gpu", [TestReport(SINGLE, None, seen)], [], PROFILE)
    (row,) = job_result_table(RUN, [killed]).to_pylist()
    assert (row["failed"], row["success"]) == (1, 0)


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
    failing = (TestOutcome("examples/test_x.py::t", "failed"),)
    examples = job_report(RUN, "run_examples_gpu", [TestReport(artifact, Counts(1, 1), failing)], [], PROFILE)
    rows = category_result_table(RUN, [examples], PROFILE).select(["category", "failed"]).to_pylist()
    assert rows == [{"category": "Examples directory", "failed": 1}]


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
    assert with_since(run_diff_table(RUN, [row]), before).to_pylist()[0]["since_run_id"] == 5
    unknown = with_since(run_diff_table(RUN, [row]), run_diff_table(RUN, []))
    assert unknown.schema == RUN_DIFF
    assert unknown.to_pylist()[0]["since"] is None
