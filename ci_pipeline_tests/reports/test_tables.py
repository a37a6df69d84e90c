from __future__ import annotations

import pickle
from datetime import UTC, datetime

import pytest

from ci_pipeline.model import ArtifactName, CiRun, Counts, Outcome, Problem, TestOutcome, TestReport
from ci_pipeline.profile import load_profile
from ci_pipeline.reports.tables import report_tables, reports_from_tables
from ci_pipeline.tables import TEST_OUTCOME, TEST_REPORT

RUN = CiRun("huggingface/transformers", 7, 2, created_at=datetime(2026, 11, 10, 2, 17, tzinfo=UTC))


def artifact(device: str, entry: str = "models_bert", postfix: str = "") -> ArtifactName:
    name = f"{device}-gpu_run_models_gpu_{entry}_test_reports" + (f"_postfix_{postfix}" if postfix else "")
    return ArtifactName(name, f"{device}-gpu", device, "run_models_gpu", entry, postfix)


FAILED = TestOutcome("tests/models/bert/test_modeling_bert.py::T::t", "failed", "E: m\nmore", "(line 3)  E: m", 1.5)
BROKEN = TestOutcome("tests/models/bert/test_x.py", "error", "", "(line 1)  ImportError: x")
LOST = Problem(artifact("multi").name, "stats.txt is missing", "multi", "run_models_gpu", "models_bert")
REPORTS = [
    TestReport(artifact("single"), Counts(3, 1, 1, seconds=2.5), (FAILED, BROKEN), "captured"),
    TestReport(artifact("single", postfix="nightly"), Counts(3, 1), (FAILED,)),
    TestReport(artifact("multi"), None, problems=(LOST,)),
]


def test_reports_come_back_from_another_process_as_they_were() -> None:
    assert pickle.loads(pickle.dumps(REPORTS)) == REPORTS


def test_reports_come_back_from_their_tables_as_they_were() -> None:
    tables = report_tables(RUN, REPORTS, load_profile("transformers"))
    assert [table.schema for table in tables] == [TEST_REPORT, TEST_OUTCOME]
    assert reports_from_tables(*tables) == REPORTS
    assert tables[1].to_pylist()[0] == {
        "repository": "huggingface/transformers",
        "run_id": 7,
        "run_attempt": 2,
        "run_created_at": RUN.created_at,
        "test_job": "run_models_gpu",
        "matrix_entry": "models_bert",
        "device": "single",
        "node_id": FAILED.node_id,
        "postfix": "",
        "outcome": "failed",
        "message": "E: m\nmore",
        "trace": "(line 3)  E: m",
        "seconds": 1.5,
        "category": "PyTorch",
    }


def test_a_run_without_reports_has_empty_tables() -> None:
    tables = report_tables(RUN, [], load_profile("transformers"))
    assert [table.num_rows for table in tables] == [0, 0]
    assert reports_from_tables(*tables) == []


@pytest.mark.parametrize("outcome", ["failed", "passed"])
def test_the_category_of_a_row_is_the_profile_s(outcome: Outcome) -> None:
    profile = load_profile("transformers")
    node_ids = [
        "tests/quantization/bnb/test_modeling_auto.py::t",
        "tests/models/auto/test_modeling_auto.py::t",
        "tests/models/auto/test_tokenization_auto.py::t",
        "tests/pipelines/test_pipelines_common.py::t",
        "tests/trainer/test_trainer.py::t",
        "tests/onnx/test_export.py::t",
        "tests/models/auto/test_processor.py::t",
        "tests/utils/test_misc.py::test_é",
    ]
    report = TestReport(artifact("single"), Counts(), tuple(TestOutcome(node_id, outcome) for node_id in node_ids))
    found = report_tables(RUN, [report], profile)[1]["category"].to_pylist()
    assert found == [profile.category_of(node_id) for node_id in node_ids]
    assert found == ["Quantization", "PyTorch", "Tokenizers", "Pipelines", "Trainer", "ONNX", "Auto", "Unclassified"]
