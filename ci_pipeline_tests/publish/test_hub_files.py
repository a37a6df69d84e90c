import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.model import (
    ArtifactName,
    CiRun,
    Counts,
    EarlierRun,
    JobReport,
    Outcome,
    RunDiffRow,
    TestOutcome,
    TestReport,
)
from ci_pipeline.profile import load_profile
from ci_pipeline.publish.hub_files import (
    ERRORS,
    NoResults,
    comparable,
    dataset_folder,
    failures_by_module,
    failures_of,
    read_results,
    render,
    results_diff,
)

PROFILE = load_profile("transformers")
JOB = "run_models_gpu"
AMD = ".github/workflows/self-scheduled-amd-mi325-caller.yml"
BERT = "tests/models/bert/test_modeling_bert.py::T"
LINK = "https://github.com/huggingface/transformers/actions/runs/2/job/3"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9).map(lambda x: round(x, 2)) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def run(**changed: Any) -> CiRun:
    made = {"run_number": 7, "event": "schedule", "created_at": datetime(2025, 11, 10, 2, tzinfo=UTC)}
    return CiRun("huggingface/transformers", 2, **(made | changed))


def outcome(
    node_id: str, outcome: Outcome = "failed", entry: str = "models_bert", device: str = "single"
) -> TestReport:
    name = ArtifactName(f"{device}-gpu_{JOB}_{entry}_test_reports", f"{device}-gpu", device, JOB, entry)
    return TestReport(name, Counts(), (TestOutcome(node_id, outcome, trace="(line 1)  E: x"),), captured_info="seen")


def earlier_run(failures: dict[tuple[str, str, str], str], *, has_errors: bool = True) -> EarlierRun:
    return EarlierRun(CiRun("huggingface/transformers", 1), "previous run", failures, has_errors=has_errors)


def job_report(**changed: Any) -> JobReport:
    results = {
        "models_bert": {
            "failed": {"PyTorch": {"unclassified": 0, "single": 1, "multi": 0}},
            "failures": {"single": [{"line": f"{BERT}::a", "trace": "(line 1)  E: é & <x>"}]},
            "job_link": {"single": LINK},
            "captured_info": {"single": f"{LINK}#step:9:1"},
        },
        "cli": {"failed": {"PyTorch": {"unclassified": 0, "single": 0, "multi": 0}}},
    }
    made = {"results": results, "reports": [outcome(f"{BERT}::a")]}
    return JobReport(run(), JOB, **(made | changed))


def contents(report: JobReport, **more: Any) -> dict[str, Any]:
    return {
        name: json.loads(data) if name.endswith(".json") else data.decode()
        for name, data in render(report, PROFILE, **more).items()
    }


# --- where files go


def test_a_scheduled_run_is_filed_under_its_date() -> None:
    assert dataset_folder(run(), JOB) == "2025-11-10/ci_results_run_models_gpu"


@pytest.mark.parametrize("event", ["push", "workflow_dispatch", "issue_comment", "workflow_run", ""])
def test_a_run_that_nobody_scheduled_has_a_folder_of_its_own(event: str) -> None:
    assert dataset_folder(run(event=event), JOB) == "2025-11-10/runs/7-2/ci_results_run_models_gpu"


def test_the_date_is_that_of_utc() -> None:
    midnight = datetime(2025, 11, 10, 1, tzinfo=timezone(timedelta(hours=2)))
    assert dataset_folder(run(created_at=midnight), JOB).startswith("2025-11-09/")


# --- what they hold


def test_a_matrix_job_has_results_what_was_captured_and_links() -> None:
    report = job_report()
    files = contents(report)
    assert files["model_results.json"] == report.results
    assert files["model_results_extra.json"] == {
        "models_bert": {"captured_info": {"single": {"link": f"{LINK}#step:9:1", "captured_info": "seen"}}},
        "cli": {"captured_info": {}},
    }
    assert files["job_links.json"] == {"cli": {}, "bert": {"single": LINK}}
    assert files["model_failures_report.txt"].endswith("\n        1 |         0 |         0 | bert\n```\n")
    assert files["module_failures_report.txt"] == ""
    assert files[ERRORS] == []


def test_what_a_machine_without_a_device_left_is_there_too() -> None:
    report = job_report(
        results={"models_bert": {"captured_info": {"unclassified": LINK}}},
        reports=[outcome(f"{BERT}::e", "error", device=""), outcome(f"{BERT}::a")],
    )
    files = contents(report)
    captured = {"captured_info": {"unclassified": {"link": LINK, "captured_info": "seen"}}}
    assert files["model_results_extra.json"] == {"models_bert": captured}
    error = {"matrix_entry": "models_bert", "device": "", "line": f"{BERT}::e", "trace": "(line 1)  E: x"}
    assert files[ERRORS] == [error]
    new = failures_by_module([("models_bert", "", f"{BERT}::e")], PROFILE, JOB)
    assert new == {"bert": {"single-gpu": [], "multi-gpu": [], "unclassified": [f"{BERT}::e"]}}


def test_a_job_without_a_matrix_has_its_result_alone() -> None:
    flat: Any = {"failed": {"single": 1, "multi": 0}, "success": 3}
    files = contents(JobReport(run(), "run_kernels_gpu", {"run_kernels_gpu": flat}))
    assert files == {"kernels_results.json": flat, "job_links.json": {"run_kernels_gpu": {}}, ERRORS: []}


@given(st.dictionaries(st.text(), json_values))
def test_json_is_written_as_pythons_json_writes_it(captured: Any) -> None:
    results: Any = {"models_bert": {"failed": {}, "captured": captured}}
    written = render(JobReport(run(), JOB, results), PROFILE)["model_results.json"]
    assert written.decode() == json.dumps(results, indent=4, ensure_ascii=False)


def test_json_that_no_page_shows_whole_has_no_indentation(monkeypatch: pytest.MonkeyPatch) -> None:
    report = JobReport(run(), JOB, {"models_bert": {"error": True}})
    indented = render(report, PROFILE)["model_results.json"]
    monkeypatch.setattr("ci_pipeline.publish.hub_files.READABLE", 10)
    compact = render(report, PROFILE)["model_results.json"]
    assert compact == b'{"models_bert":{"error":true}}'
    assert json.loads(compact) == json.loads(indented)


def test_new_failures_are_listed_for_people_and_for_machines() -> None:
    ids = [f"{BERT}::a", "examples/test_x.py::b[<x> - &]"]
    diff = [RunDiffRow(JOB, "models_bert", "single", node_id, "new_failure", 1) for node_id in ids]
    diff += [RunDiffRow(JOB, "models_bert", "multi", ids[0], "unique_failure", 9)]
    others = [EarlierRun(run(), "Nvidia CI run", {})]
    previous = EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {})
    others = [EarlierRun(CiRun("huggingface/transformers", 9), "Nvidia CI run", {})]
    files = contents(job_report(diff=diff, previous=previous, others=others))
    assert files["new_failures.json"] == {
        "bert": {"single-gpu": ids[:1], "multi-gpu": []},
        "examples": {"single-gpu": ids[1:], "multi-gpu": []},
    }
    assert files["new_failures.txt"] == f"<{LINK}|single> gpu\n{ids[0]}\n\n<{LINK}|single> gpu\n{ids[1]}\n\n"
    assert files["new_failures_against_9.json"] == {"bert": {"single-gpu": [], "multi-gpu": ids[:1]}}
    assert "new_failures_against_9.txt" in files


def test_without_failures_there_is_no_file_of_them() -> None:
    previous = EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {})
    table = "        2 |         0 |         0 | bert\n"
    files = contents(job_report(previous=previous), previous_model_table=table)
    assert not [name for name in files if name.startswith(("new_failures", "changed"))]
    assert not [name for name in contents(JobReport(run(), JOB, {"cli": {}})) if name.endswith(".txt")]


def test_every_new_failure_is_in_the_file_however_many() -> None:
    diff = [RunDiffRow(JOB, "models_bert", "single", f"{BERT}::{i}", "new_failure", 1) for i in range(3000)]
    previous = EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {})
    files = contents(job_report(diff=diff, previous=previous))
    assert files["new_failures.txt"].count("\n\n") == 3000


@pytest.mark.parametrize(
    ("job", "node_id", "module"),
    [
        (JOB, "tests/models/bert/test_x.py::t", "bert"),
        (JOB, "tests/trainer/test_x.py::t", "trainer"),
        (JOB, "tests/quantization/bnb/test_x.py::t", "quantization"),
        ("run_quantization_torch_gpu", "tests/quantization/bnb/test_x.py::t", "bnb"),
        ("run_pipelines_torch_gpu", "tests/models/bert/test_x.py::t", "bert"),
        (JOB, "examples/pytorch/test_x.py::t", "examples"),
        (JOB, "tests/test_x.py::t[a/b]", "test_x.py"),
    ],
)
def test_a_failure_belongs_to_the_module_in_its_path(job: str, node_id: str, module: str) -> None:
    assert list(failures_by_module([("", "single", node_id)], PROFILE, job)) == [module]


def test_changed_models_are_listed_where_the_previous_table_is_known() -> None:
    table = "T:\n```\nSingle PT |  Multi PT |     Other | Category\n        0 |         0 |         3 | bert\n```\n"
    files = contents(job_report(), previous_model_table=table)
    assert "        1 |         0 |         0 | bert (-2)" in files["changed_model_failures_report.txt"]
    assert "changed_model_failures_report.txt" not in contents(job_report())


def test_the_diff_of_all_results_names_tests_and_nothing_else() -> None:
    now = [outcome(f"{BERT}::a"), outcome(f"{BERT}::same", "passed"), outcome("test_x.py:12", "skipped")]
    before: Any = {
        ("models_bert", "single", f"{BERT}::a"): "passed",
        ("models_bert", "single", f"{BERT}::same"): "passed",
        ("models_bert", "multi", f"{BERT}::gone"): "failed",
    }
    previous = EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {}, before)
    report = job_report(reports=now, previous=previous)
    amd = JobReport(run(workflow_path=AMD), JOB, report.results, now, previous=previous)
    assert contents(amd)["test_results_diff.json"] == {
        "models_bert": {
            "multi": {f"{BERT}::gone": {"previous": "failed", "current": None}},
            "single": {f"{BERT}::a": {"previous": "passed", "current": "failed"}},
        }
    }
    assert "test_results_diff.json" not in contents(report), "only for the workflows that ask for it"


def test_the_diff_of_all_results_is_sorted() -> None:
    ids = [f"{BERT}::{number:02}" for number in range(30)]
    before: Any = {("", "", node_id): "failed" for node_id in reversed(ids)}
    diff = results_diff([], EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {}, before))
    assert list(diff["tests"]["unclassified"]) == ids


def test_a_test_that_passed_when_it_was_run_again_has_passed() -> None:
    again = [outcome(f"{BERT}::flaky", "passed"), outcome(f"{BERT}::flaky", "rerun")]
    before: Any = {("models_bert", "single", f"{BERT}::flaky"): "passed"}
    previous = EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {}, before)
    assert results_diff(again, previous) == {}


# --- an earlier run's files


def write(folder: Path, results: object) -> Path:
    (folder / "model_results.json").write_text(json.dumps(results))
    return folder


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    for name, data in render(job_report(), PROFILE).items():
        (tmp_path / name).write_bytes(data)
    earlier = read_results(tmp_path, "model")
    assert earlier.failures == {("models_bert", "single", f"{BERT}::a"): "(line 1)  E: é & <x>"}
    assert earlier.has_errors
    assert "| bert\n" in earlier.model_table


def test_a_table_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / "model_failures_report.txt").write_bytes(b"1 | caf\xe9\n")
    assert read_results(write(tmp_path, {}), "model").model_table == "1 | caf\ufffd\n"


@pytest.mark.parametrize(("written", "device"), [("single", "single"), ("unclassified", ""), ("null", "")])
def test_results_of_a_job_without_a_matrix_have_no_entry(tmp_path: Path, written: str, device: str) -> None:
    flat = {"failed": {written: 2}, "failures": {written: [{"line": "a", "trace": "b"}, {"line": "c", "trace": None}]}}
    failures = read_results(write(tmp_path, flat), "model").failures
    assert failures == {("", device, "a"): "b", ("", device, "c"): ""}


@given(json_values)
def test_whatever_an_earlier_run_left_is_read_without_an_error(found: Any) -> None:
    for value in (found, {"models_bert": {"failures": found}}, {"models_bert": {"failures": {"single": found}}}):
        if isinstance(value, dict):
            assert all(isinstance(part, str) for where in failures_of(value) for part in where)


def test_missing_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoResults, match=r"model_results\.json cannot be read: No such file"):
        read_results(tmp_path, "model")
    (tmp_path / "model_results.json").write_bytes(b"\xff{")
    with pytest.raises(NoResults, match=r"model_results\.json is not JSON"):
        read_results(tmp_path, "model")
    with pytest.raises(NoResults, match=r"model_results\.json holds no results"):
        read_results(write(tmp_path, [1]), "model")


@pytest.mark.parametrize("has_errors", [True, False])
def test_a_test_whose_id_an_older_reporter_cut_is_known(has_errors: bool) -> None:
    now = [outcome(f"{BERT}::x[a b]"), outcome(f"{BERT}::y[a b]")]
    now += [outcome(f"{BERT}::fine", "passed"), outcome(f"{BERT}::e", "error")]
    earlier = earlier_run({("models_bert", "single", f"{BERT}::x[a"): "old"}, has_errors=has_errors)
    known = {("models_bert", "single", f"{BERT}::x[a b]"): "old"}
    if not has_errors:
        known["models_bert", "single", f"{BERT}::e"] = "(line 1)  E: x"
    assert comparable(earlier, now).failures == known


def test_an_error_is_not_called_new_where_errors_were_not_listed() -> None:
    now = [outcome(f"{BERT}::e", "error"), outcome(f"{BERT}::f")]
    known = comparable(earlier_run({}, has_errors=False), now).failures
    assert set(known) == {("models_bert", "single", f"{BERT}::e")}
    assert comparable(earlier_run({}), now).failures == {}


def test_a_failing_test_whose_teardown_broke_too_is_new_where_errors_were_not_listed() -> None:
    failed, broken = outcome(f"{BERT}::f"), outcome(f"{BERT}::f", "error")
    now = [replace(failed, outcomes=failed.outcomes + broken.outcomes)]
    assert comparable(earlier_run({}, has_errors=False), now).failures == {}
