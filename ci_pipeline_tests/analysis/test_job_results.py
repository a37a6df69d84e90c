from __future__ import annotations

from dataclasses import replace

import pytest

from ci_pipeline.analysis.job_results import job_links, job_report, warnings_link
from ci_pipeline.model import (
    ArtifactName,
    CiJob,
    CiRun,
    CiStep,
    Counts,
    EarlierRun,
    JobReport,
    JobResult,
    Outcome,
    Problem,
    TestOutcome,
    TestReport,
)
from ci_pipeline.profile import load_profile
from ci_pipeline.reports.artifacts import parse_artifact_name

PROFILE = load_profile("transformers")
RUN = CiRun("huggingface/transformers", 7)
MODELS = "run_models_gpu"


def name_of(device: str, entry: str = "", test_job: str = MODELS, postfix: str = "") -> str:
    name = "_".join(filter(None, (device and f"{device}-gpu", test_job, entry, "test_reports")))
    return name + (f"_postfix_{postfix}" if postfix else "")


def artifact(device: str, entry: str = "", test_job: str = MODELS, postfix: str = "") -> ArtifactName:
    found = parse_artifact_name(name_of(device, entry, test_job, postfix), PROFILE)
    assert found is not None
    return found


def outcome(node_id: str, outcome: Outcome = "failed", trace: str = "(line 1)  E: m") -> TestOutcome:
    return TestOutcome(node_id, outcome, trace=trace)


def ci_job(artifact: str, number: int, name: str = "", conclusion: str | None = "failure", captured: int = 0) -> CiJob:
    steps = [CiStep("Captured information", captured)] if captured else []
    if artifact:
        steps.insert(0, CiStep("Run all tests", 3))
        steps.append(CiStep(f"Test suite reports artifacts: {artifact}", 11))
    return CiJob(number, name, "completed", conclusion, f"https://ci/{number}", steps=tuple(steps))


def result(report: JobReport, entry: str = "models_bert") -> JobResult:
    return report.results[entry]


def reported(*reports: TestReport, jobs: tuple[CiJob, ...] = (), test_job: str = MODELS, **more: object) -> JobReport:
    return job_report(RUN, test_job, reports, jobs, PROFILE, **more)  # pyright: ignore[reportArgumentType]


def test_a_matrix_entry_has_the_result_structure_key_for_key() -> None:
    single = TestReport(
        artifact("single", "models_bert"),
        Counts(10, 2, 1, 4, xpassed=1, seconds=1.5),
        (
            outcome("tests/models/bert/test_modeling_bert.py::T::passes", "passed", ""),
            outcome("tests/models/bert/test_modeling_bert.py::T::t"),
            outcome("tests/models/bert/test_tokenization_bert.py::T::t", trace="(line 2)  E: n"),
            outcome("tests/models/bert/test_modeling_bert.py::T::broken", "error", "(line 3)  OSError: x"),
        ),
        "captured",
    )
    multi = TestReport(artifact("multi", "models_bert"), Counts(11, seconds=2.5))
    jobs = (
        ci_job(single.artifact.name, 1, captured=9),
        ci_job(multi.artifact.name, 2, conclusion="success", captured=9),
    )
    report = reported(multi, single, jobs=jobs, matrix=["models/bert"])
    zeros = {"unclassified": 0, "single": 0, "multi": 0}
    expected = {
        "failed": {
            **dict.fromkeys(PROFILE.categories, zeros),
            "PyTorch": {**zeros, "single": 1},
            "Tokenizers": {**zeros, "single": 1},
        },
        "errors": 1,
        "success": 22,
        "skipped": 4,
        "time_spent": [2.5, 1.5],
        "error": False,
        "failures": {
            "single": [
                {"line": "tests/models/bert/test_modeling_bert.py::T::t", "trace": "(line 1)  E: m"},
                {"line": "tests/models/bert/test_tokenization_bert.py::T::t", "trace": "(line 2)  E: n"},
                {"line": "tests/models/bert/test_modeling_bert.py::T::broken", "trace": "(line 3)  OSError: x"},
            ]
        },
        "job_link": {"multi": "https://ci/2", "single": "https://ci/1"},
        "captured_info": {"single": "https://ci/1#step:9:1"},
    }
    assert report.results == {"models_bert": expected}
    assert list(result(report)) == list(expected)
    assert report.problems == []


def test_a_job_without_a_matrix_counts_by_device_and_by_pytest_s_totals() -> None:
    test_job = "run_examples_gpu"
    counts = Counts(10, 2, 0, 1, xfailed=3, xpassed=4, seconds=1.0)
    failing = tuple(outcome(f"examples/test_x.py::t{n}") for n in range(2))
    report = reported(TestReport(artifact("single", "", test_job), counts, failing), test_job=test_job)
    assert list(report.results) == [test_job]
    assert result(report, test_job) == {
        "failed": {"unclassified": 0, "single": 2, "multi": 0},
        "errors": 0,
        "success": 10,
        "skipped": 1,
        "time_spent": [1.0],
        "error": False,
        "failures": {"single": [{"line": f"examples/test_x.py::t{n}", "trace": "(line 1)  E: m"} for n in range(2)]},
        "job_link": {},
    }


def test_a_job_without_a_matrix_counts_what_its_artifacts_say_or_name_and_an_error_is_its_own() -> None:
    test_job = "run_examples_gpu"
    whole = TestReport(artifact("single", "", test_job, "1"), Counts(0, 3, 1), (outcome("t"),))
    seen = (outcome("u"), outcome("v"), outcome("w", "error"))
    killed = TestReport(artifact("single", "", test_job, "2"), None, seen)
    report = result(reported(killed, whole, test_job=test_job), test_job)
    assert (report["failed"]["single"], report["error"]) == (5, True)


@pytest.mark.parametrize(
    ("job", "job_link"),
    [
        (None, {}),
        (replace(ci_job(name_of("single", "models_bert"), 1, captured=9), html_url=""), {}),
        (ci_job(name_of("single", "models_bert"), 1), {"single": "https://ci/1"}),
    ],
    ids=["no CI job", "no page", "no step"],
)
def test_captured_information_that_has_no_page_has_no_link(job: CiJob | None, job_link: dict[str, str]) -> None:
    single = TestReport(artifact("single", "models_bert"), Counts(1), captured_info="captured")
    found = result(reported(single, jobs=(job,) if job else ()))
    assert (found["job_link"], found["captured_info"]) == (job_link, {})


def test_a_test_that_fails_and_whose_teardown_breaks_is_listed_once_and_counted_twice() -> None:
    both = (outcome("tests/t.py::t"), outcome("tests/t.py::t", "error", "(line 9)  teardown"))
    report = reported(TestReport(artifact("single", "models_bert"), Counts(0, 1, 1), both))
    assert result(report)["failures"] == {"single": [{"line": "tests/t.py::t", "trace": "(line 1)  E: m"}]}
    assert (result(report)["errors"], result(report)["failed"]["Unclassified"]["single"]) == (1, 1)


def test_artifacts_of_one_device_add_up() -> None:
    reports = [
        TestReport(
            artifact("single", "models_bert", postfix=f"torch-{n}"), Counts(3, 1, seconds=1.0), (outcome(f"t{n}"),)
        )
        for n in (1, 2)
    ]
    report = reported(*reports, matrix=["models/bert"])
    assert result(report)["success"] == 6
    assert result(report)["failed"]["Unclassified"]["single"] == 2
    assert [failure["line"] for failure in result(report)["failures"]["single"]] == ["t1", "t2"]


def test_an_unknown_machine_is_a_device_of_its_own() -> None:
    report = reported(
        TestReport(artifact("single", "models_bert"), Counts(1)),
        TestReport(
            ArtifactName("tpu_run_models_gpu_models_bert_test_reports", "tpu", "tpu", MODELS, "models_bert"),
            Counts(0, 1),
            (outcome("tests/t.py::t"),),
        ),
    )
    assert result(report)["failed"]["Unclassified"] == {"unclassified": 0, "single": 0, "multi": 0, "tpu": 1}
    assert list(result(report)["failures"]) == ["tpu"]


def test_an_artifact_without_a_machine_is_of_the_unclassified_device() -> None:
    report = reported(TestReport(artifact("", "models_bert"), Counts(0, 1), (outcome("tests/t.py::t"),)))
    assert result(report)["failed"]["Unclassified"]["unclassified"] == 1
    assert list(result(report)["failures"]) == ["unclassified"]


def test_a_job_without_a_matrix_may_have_an_artifact_without_a_machine() -> None:
    test_job = "run_examples_gpu"
    report = reported(TestReport(artifact("", "", test_job), Counts(0, 1), (outcome("t"),)), test_job=test_job)
    assert result(report, test_job)["failed"] == {"unclassified": 1, "single": 0, "multi": 0}


def test_the_results_have_the_order_of_the_matrix() -> None:
    reports = [TestReport(artifact("single", entry), Counts(1)) for entry in ("trainer", "models_bert")]
    matrix = ["models/bert/", "trainer", "models/bert"]
    assert list(reported(*reports, matrix=matrix).results) == ["models_bert", "trainer"]


def test_without_a_known_matrix_the_artifacts_say_which_entries_there_are() -> None:
    reports = [TestReport(artifact("single", entry), Counts(1)) for entry in ("models_bert", "trainer")]
    assert list(reported(*reports).results) == ["models_bert", "trainer"]


def test_an_artifact_outside_of_the_matrix_counts_all_the_same() -> None:
    report = reported(TestReport(artifact("single", "trainer"), Counts(1)), matrix=["models/bert"])
    assert list(report.results) == ["models_bert", "trainer"]


def test_reports_of_other_test_jobs_do_not_count() -> None:
    other = TestReport(artifact("single", "", "run_examples_gpu"), Counts(5))
    lost = Problem(name_of("multi", "", "run_examples_gpu"), "the artifact has expired")
    report = reported(TestReport(artifact("single", "models_bert"), Counts(1)), other, problems=[lost])
    assert (len(report.reports), report.problems) == (1, [])
    assert list(report.results) == ["models_bert"]


def test_a_report_says_what_changed_since_the_previous_run_and_what_is_unique() -> None:
    failing = TestReport(artifact("single", "models_bert"), Counts(0, 1), (outcome("tests/t.py::t"),))
    earlier = EarlierRun(RUN, "an earlier run", {})
    for runs, changes in (
        ({"previous": earlier}, ["new_failure"]),
        ({"others": [earlier]}, ["unique_failure"]),
        ({"previous": earlier, "others": [earlier]}, ["new_failure", "unique_failure"]),
    ):
        assert [row.change for row in reported(failing, **runs).diff] == changes


# --- what is missing ------------------------------------------------------------------------------------------------


def test_a_killed_job_is_reported_as_incomplete() -> None:
    killed = artifact("single", "models_bert")
    problem = Problem(killed.name, "the artifact holds no report", "single", MODELS, "models_bert")
    report = reported(
        TestReport(killed, None, problems=(problem,)), jobs=(ci_job(killed.name, 1),), matrix=["models/bert"]
    )
    assert report.problems == [problem]
    assert result(report)["error"] is True
    assert (result(report)["time_spent"], result(report)["job_link"]) == ([], {})


@pytest.mark.parametrize(
    ("conclusion", "ended"),
    [
        ("success", "succeeded"),
        ("failure", "failed"),
        ("timed_out", "timed out"),
        ("startup_failure", "did not start"),
        ("stale", "ended as stale"),
        (None, "has not finished"),
    ],
)
def test_an_announced_artifact_that_is_not_there_is_named_with_its_folder_and_device(
    conclusion: str | None, ended: str
) -> None:
    there, lost = artifact("single", "models_bert"), artifact("multi", "models_bert")
    jobs = (ci_job(there.name, 1), ci_job(lost.name, 2, conclusion=conclusion))
    report = reported(TestReport(there, Counts(1)), jobs=jobs, matrix=["models/bert"])
    assert report.problems == [Problem(lost.name, f"no artifact: its CI job {ended}", "multi", MODELS, "models_bert")]
    assert result(report)["error"] is True


@pytest.mark.parametrize(("conclusion", "ended"), [("cancelled", "was cancelled"), ("timed_out", "timed out")])
def test_the_report_of_a_job_that_was_stopped_may_lack_tests(conclusion: str, ended: str) -> None:
    cut = artifact("single", "models_bert")
    report = reported(TestReport(cut, Counts(1)), jobs=(ci_job(cut.name, 1, conclusion=conclusion),))
    reason = f"perhaps not all tests ran: its CI job {ended}"
    assert report.problems == [Problem(cut.name, reason, "single", MODELS, "models_bert")]
    assert (result(report)["error"], result(report)["success"]) == (True, 1)


def test_a_refused_artifact_is_named_once() -> None:
    there, refused = artifact("single", "models_bert"), artifact("multi", "models_bert")
    report = reported(
        TestReport(there, Counts(1)),
        jobs=(ci_job(there.name, 1), ci_job(refused.name, 2)),
        problems=[Problem(refused.name, "the artifact has expired"), Problem("jobs", "page 2 answered 403")],
    )
    assert report.problems == [
        Problem(refused.name, "the artifact has expired", "multi", MODELS, "models_bert"),
        Problem("jobs", "page 2 answered 403"),
    ]
    assert list(report.results) == ["models_bert"]


def test_a_folder_without_any_artifact_is_named() -> None:
    report = reported(TestReport(artifact("single", "models_bert"), Counts(1)), matrix=["models/bert", "models/t5"])
    assert report.problems == [Problem("models/t5", "no artifact on any device", "", MODELS, "models_t5")]
    assert (result(report)["error"], result(report, "models_t5")["error"]) == (False, True)


def test_a_job_that_stopped_before_its_steps_is_named_with_its_folder() -> None:
    there = artifact("single", "models_bert")
    jobs = (
        ci_job(there.name, 1, "CI / (single) / (models/bert)"),
        ci_job("", 2, "CI / (multi) / (models/bert)", "cancelled"),
    )
    report = reported(TestReport(there, Counts(1)), jobs=jobs, matrix=["models/bert/"])
    assert report.problems == [
        Problem("CI / (multi) / (models/bert)", "no artifact: its CI job was cancelled", "", MODELS, "models_bert")
    ]


def test_a_job_that_failed_before_its_steps_is_all_that_is_said_of_its_folder() -> None:
    name = "CI / (multi) / (models/bert)"
    report = reported(jobs=(ci_job("", 2, name),), matrix=["models/bert"])
    assert report.problems == [Problem(name, "no artifact: its CI job failed", "", MODELS, "models_bert")]


@pytest.mark.parametrize(("steps", "problems"), [(0, 0), (1, 1)], ids=["steps not listed", "steps listed"])
@pytest.mark.parametrize("conclusion", ["success", "failure"])
def test_a_job_whose_steps_github_does_not_list_has_left_the_report_of_its_folder(
    conclusion: str, steps: int, problems: int
) -> None:
    jobs = (ci_job("", 2, "CI / (single) / (models/bert)", conclusion, captured=steps),)
    report = reported(TestReport(artifact("single", "models_bert"), Counts(1)), jobs=jobs, matrix=["models/bert"])
    assert len(report.problems) == problems


@pytest.mark.parametrize("matrix", [[], ["models/bert", "models/t5"]])
def test_an_entry_of_which_only_the_loss_is_known_is_in_the_results(matrix: list[str]) -> None:
    lost = name_of("multi", "models_t5")
    report = reported(TestReport(artifact("single", "models_bert"), Counts(1)), jobs=(ci_job(lost, 2),), matrix=matrix)
    assert [problem.subject for problem in report.problems] == [lost]
    assert list(report.results) == ["models_bert", "models_t5"]
    assert result(report, "models_t5")["error"] is True


def test_a_job_that_announces_something_else_misses_nothing() -> None:
    there = artifact("single", "models_bert")
    jobs = (ci_job(there.name, 1), ci_job("coverage", 2), ci_job(name_of("single", "", "run_examples_gpu"), 3))
    assert reported(TestReport(there, Counts(1)), jobs=jobs).problems == []


def test_a_skipped_job_misses_nothing() -> None:
    there = artifact("single", "models_bert")
    jobs = (
        ci_job(there.name, 1),
        ci_job(name_of("multi", "models_bert"), 2, conclusion="skipped"),
        ci_job("", 3, "CI / (multi) / (models/bert)", "skipped"),
    )
    assert reported(TestReport(there, Counts(1)), jobs=jobs, matrix=["models/bert"]).problems == []


def test_a_test_job_of_which_nothing_is_there_is_a_problem() -> None:
    report = reported(test_job="run_examples_gpu")
    assert report.problems == [Problem("run_examples_gpu", "no artifact on any device", "", "run_examples_gpu")]
    assert result(report, "run_examples_gpu")["error"] is True


def test_a_test_job_of_which_nothing_is_there_is_named_where_the_jobs_are_not_known_either() -> None:
    unknown = Problem("job links could not be read", "403")
    report = reported(test_job="run_examples_gpu", problems=[unknown])
    assert report.problems == [
        unknown,
        Problem("run_examples_gpu", "no artifact on any device", "", "run_examples_gpu"),
    ]


def test_failing_tests_that_nobody_named_are_counted() -> None:
    cut = artifact("single", "models_bert")
    problem = Problem(cut.name, "summary_short.txt is empty", "single", MODELS, "models_bert")
    report = reported(TestReport(cut, Counts(5, 3), (outcome("t"),), problems=(problem,)))
    assert result(report)["failed"]["Unclassified"]["single"] == 3


def test_more_failing_tests_than_pytest_counted_are_all_counted() -> None:
    torn = artifact("single", "models_bert")
    problem = Problem(torn.name, "pytest counted 1 failed", "single", MODELS, "models_bert")
    report = reported(TestReport(torn, Counts(5, 1), (outcome("t1"), outcome("t2")), problems=(problem,)))
    assert result(report)["failed"]["Unclassified"]["single"] == 2


def test_without_the_jobs_of_the_run_the_artifacts_count_all_the_same() -> None:
    report = reported(TestReport(artifact("single", "models_bert"), Counts(5)), problems=[Problem("jobs", "403")])
    assert (result(report)["success"], result(report)["job_link"], result(report)["error"]) == (5, {}, False)


def test_job_links_are_by_artifact() -> None:
    jobs = [ci_job("a_test_reports", 1), ci_job("", 2, captured=9), replace(ci_job("no_page", 3), html_url="")]
    assert job_links(jobs) == {"a_test_reports": "https://ci/1"}


def test_warnings_are_where_the_job_that_selects_them_succeeded() -> None:
    selects = f"CI / {PROFILE.warnings_job}"
    failed, other = ci_job("", 1, selects, "failure"), ci_job("", 2, "CI / docs", "success")
    assert warnings_link([failed, other, ci_job("", 3, selects, "success")], PROFILE) == "https://ci/3"
    assert warnings_link([failed, other], PROFILE) == ""
    assert warnings_link([other], PROFILE.model_copy(update={"warnings_job": ""})) == ""
