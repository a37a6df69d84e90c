"""The usage examples of the notification service's documentation, as they are written there."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ci_pipeline import notification_service
from ci_pipeline_tests.servers.recorded import RecordedServices

RUN = 31000000002
ROUTES = [
    {
        "url": "https://api.github.com/repos/huggingface/transformers/actions/runs/123456789/artifacts?per_page=100",
        "status": 200,
        "file": "artifacts.json",
    },
    {
        "url": "https://api.github.com/repos/huggingface/transformers/actions/artifacts/1/zip",
        "status": 302,
        "location": "https://blobs.example/1.zip",
    },
    {"url": "https://blobs.example/1.zip", "status": 200, "zip_dir": "previous"},
]
OLD, NEW = (f"tests/models/bert/test_modeling_bert.py::BertTest::test_{name}" for name in ("old", "new"))


def failing(*tests: str) -> dict[str, Any]:
    return {
        "models_bert": {
            "failed": {"PyTorch": {"single": len(tests), "multi": 0, "unclassified": 0}},
            "success": 150,
            "error": False,
            "time_spent": [61.5],
            "failures": {"single": [{"line": test, "trace": "(line 3)  ValueError: <x>"} for test in tests]},
            "job_link": {"single": "https://github.com/huggingface/transformers/actions/runs/2/job/3"},
        }
    }


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedServices]:
    """A workflow step in an empty working directory, and the services that it talks to."""
    recorded = tmp_path / "recorded"
    for folder in ("github", "previous"):
        (recorded / folder).mkdir(parents=True)
    (recorded / "previous" / "model_results.json").write_text(json.dumps(failing(OLD)))
    (recorded / "github" / "routes.json").write_text(json.dumps(ROUTES))
    artifact = {"id": 1, "name": "ci_results_run_models_gpu", "expired": False}
    (recorded / "github" / "artifacts.json").write_text(json.dumps({"total_count": 1, "artifacts": [artifact]}))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for alias in ("notification_service", "get_previous_daily_ci"):
        monkeypatch.setitem(sys.modules, alias, notification_service)
    with RecordedServices(recorded) as server:
        environment = {
            "CI_SLACK_BOT_TOKEN": "xoxb-test",
            "SLACK_REPORT_CHANNEL": "#ci",
            "ACCESS_REPO_INFO_TOKEN": "ghp-test",
            "CI_EVENT": "Nightly CI",
            "CI_TEST_JOB": "run_models_gpu",
            "GITHUB_RUN_ID": str(RUN),
            "GITHUB_API_URL": server.url,
            "SLACK_API_URL": f"{server.url}/api/",
            "HF_ENDPOINT": server.url,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield server  # pyright: ignore[reportReturnType]


def blocks(message: dict[str, Any]) -> list[str]:
    found = message["blocks"]
    return [block["text"]["text"] for block in (json.loads(found) if isinstance(found, str) else found)]


def test_example_1_the_command_of_a_workflow_step(services: RecordedServices) -> None:
    folder = Path("test_reports_models_bert")
    folder.mkdir()
    (folder / "stats.txt").write_text("=== 1 failed, 3 passed in 2.04s ===")
    (folder / "summary_short.txt").write_text(f"FAILED {NEW} - ValueError: x")
    assert notification_service.notify.main(json.dumps(["models_bert", "models_gpt2"])) == 0
    message, reply = services.messages
    assert message["text"] == "Incomplete: 1 failures out of 4 tests,"
    assert "models_gpt2: no artifact on any device" in blocks(message)[1]
    assert NEW in blocks(reply)[-1]


def test_example_2_several_types_of_tests(services: RecordedServices) -> None:
    from notification_service import Message  # pyright: ignore

    model_results = {
        "models_bert": {
            "failed": {"PyTorch": {"single": 2, "multi": 0, "unclassified": 0}},
            "success": 150,
            "error": False,
        }
    }
    additional_results = {
        "PyTorch pipelines": {
            "failed": {"single": 1, "multi": 0, "unclassified": 0},
            "success": 45,
            "error": False,
        }
    }
    message = Message(
        title="[INFO] Results of Nightly CI",
        ci_title="<https://github.com/huggingface/transformers/pull/12345|Add new model>",
        model_results=model_results,
        additional_results=additional_results,
    )
    message.post()
    message.post_reply()

    (posted,) = services.messages
    assert posted["text"] == "3 failures out of 198 tests,"
    assert blocks(posted) == [block["text"]["text"] for block in json.loads(message.payload)]
    assert blocks(posted)[1] == "<https://github.com/huggingface/transformers/pull/12345|Add new model>"
    assert "     1 |      0 | PyTorch pipelines" in blocks(posted)[-1]
    assert "        2 |         0 |         0 | bert" in blocks(posted)[-2]
    assert message.time == "0h0m0s"


def test_example_3_an_error_of_the_infrastructure(services: RecordedServices) -> None:
    from notification_service import Message  # pyright: ignore

    Message.error_out(title="[FAIL] Nightly CI", ci_title="Infrastructure Issue", runner_not_available=True)

    (posted,) = services.messages
    assert blocks(posted) == [
        "[FAIL] Nightly CI",
        "Infrastructure Issue",
        "[FAIL] CI runners are not available! Tests are not run.",
        "Let's fix it ASAP!",
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ({}, "There was an issue running the tests."),
        ({"runner_failed": True}, "CI runners have problems! Tests are not run."),
        ({"setup_failed": True}, "Setup job failed. Tests are not run."),
    ],
)
def test_an_error_out_says_what_failed(services: RecordedServices, reason: dict[str, bool], said: str) -> None:
    notification_service.Message.error_out("Nightly CI", **reason)
    assert blocks(services.messages[0]) == ["Nightly CI", f"[FAIL] {said}", "Let's fix it ASAP!"]


def test_a_message_counts_warnings_and_what_is_unique_to_this_run(services: RecordedServices) -> None:
    other = (9, {"ci_results_run_models_gpu": {"model_results.json": json.dumps(failing(OLD))}})
    warnings = ["huggingface_hub is old", "torch is too"]
    message = notification_service.Message("title", "", failing(OLD, NEW), {}, warnings, None, [other])
    said = [block["text"]["text"] for block in json.loads(message.payload)]
    assert said[-2:] == [
        "There are 2 warnings being selected.\n1 of them are from `huggingface_hub`.",
        "*There are 1 failed tests unique to this run*\n\n"
        "(compared to run: <https://github.com/huggingface/transformers/actions/runs/9|9>)",
    ]


@pytest.mark.parametrize(("job", "modules"), [("run_quantization_torch_gpu", "quantization"), ("", "model")])
def test_a_message_is_about_the_job_of_its_step(
    services: RecordedServices, monkeypatch: pytest.MonkeyPatch, job: str, modules: str
) -> None:
    monkeypatch.setenv("CI_TEST_JOB", job)
    payload = notification_service.Message("title", "", failing(OLD), {}).payload
    assert f"These following {modules} modules had failures" in payload


def test_example_4_comparing_with_a_previous_run(services: RecordedServices) -> None:
    from get_previous_daily_ci import get_last_daily_ci_reports  # pyright: ignore
    from notification_service import Message  # pyright: ignore

    prev_workflow_run_id = "123456789"
    prev_artifacts = get_last_daily_ci_reports(
        artifact_names=["ci_results_run_models_gpu"],
        output_dir="./previous_reports",
        token="ghp-test",
        workflow_run_id=prev_workflow_run_id,
    )
    message = Message(
        title="[INFO] Results of Scheduled CI",
        ci_title="Daily CI Run",
        model_results=failing(OLD, NEW),
        additional_results={},
        prev_ci_artifacts=(prev_workflow_run_id, prev_artifacts),
    )
    message.post()
    message.post_reply()

    posted, reply = services.messages
    assert services.connections == 2  # GitHub's and Slack's
    assert blocks(posted)[-2].startswith("*There are 1 new failed tests*\n\n(compared to previous run: <https://")
    assert NEW in blocks(posted)[-1]
    assert OLD not in blocks(posted)[-1]
    assert reply["thread_ts"] == message.thread_ts
    assert f"*{OLD}*\n_(line 3)  ValueError: &lt;x&gt;_" in blocks(reply)[-1]


def test_example_5_reading_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ci_pipeline.notification_service import handle_stacktraces, handle_test_results, retrieve_artifact

    folder = tmp_path / "single-gpu_models_bert_test_reports"
    (folder / "a folder").mkdir(parents=True)
    (folder / "stats.txt").write_text("=== 2 failed, 7 passed, 1 skipped, 1 error in 61.00s (0:01:01) ===\n")
    (folder / "failures_line.txt").write_bytes(b"== FAILURES ==\n/x/tests/a.py:12: ValueError: \xff\n/x/b.py:3: E\n")
    artifact = retrieve_artifact(folder, gpu="single")

    assert handle_test_results(artifact["stats"]) == (2, 1, 7, 1, "61.00s")
    assert handle_stacktraces(artifact["failures_line"]) == ["(line 12)  ValueError: \ufffd", "(line 3)  E"]
    assert retrieve_artifact(tmp_path / "none", gpu=None) == {}
    assert handle_test_results("nothing") == (0, 0, 0, 0, "")


def test_example_6_a_report_of_ones_own() -> None:
    from ci_pipeline.notification_service import prepare_reports

    model_failures = ["     5 |      2 | bert", "     3 |      0 | gpt2", "     1 |      1 | vit"]
    report = prepare_reports(
        title="Model failures detected",
        header="Single |  Multi | Model\n",
        reports=model_failures,
        to_truncate=True,
    )
    assert report == (
        "Model failures detected:\n```\nSingle |  Multi | Model\n"
        "     5 |      2 | bert\n     3 |      0 | gpt2\n     1 |      1 | vit\n```\n"
    )


def test_example_7_new_failures_for_slack_and_for_a_file(services: RecordedServices) -> None:
    tests = [f"{NEW}[{i}]" for i in range(100)]
    prev_artifacts = {"ci_results_run_models_gpu": {"model_results.json": json.dumps(failing(OLD)), "x.txt": "{"}}
    message = notification_service.Message("title", "", failing(OLD, *tests), {})
    new_failure_blocks = message.get_new_model_failure_blocks(
        prev_ci_artifacts=prev_artifacts, with_header=True, to_truncate=True
    )
    complete_failures = message.get_new_model_failure_blocks(
        prev_ci_artifacts=(1, prev_artifacts), with_header=False, to_truncate=False
    )
    assert len(new_failure_blocks) == 2
    assert message.get_new_model_failure_blocks(prev_artifacts) == new_failure_blocks
    assert message.get_new_model_failure_blocks((None, prev_artifacts)) == new_failure_blocks
    assert new_failure_blocks[0]["text"]["text"] == "*There are 100 new failed tests*\n\n(compared to previous run)"
    assert len(complete_failures) == 1
    assert new_failure_blocks[-1]["text"]["text"].endswith("[Truncated]")
    assert complete_failures[-1]["text"]["text"].count("\n\n") == len(tests)
    known = {"ci_results_run_models_gpu": {"model_results.json": json.dumps(failing(OLD, *tests))}}
    assert message.get_new_model_failure_blocks(known) == []


@pytest.mark.parametrize(("known", "blocks"), [([OLD], 0), ([], 2)])
def test_a_test_that_has_no_matrix_is_compared_by_its_name(known: list[str], blocks: int) -> None:
    now, before = (failing(*tests)["models_bert"] | {"failed": {"single": len(tests)}} for tests in ([OLD], known))
    message = notification_service.Message("title", "", {}, {"PyTorch pipelines": now})
    earlier = {"ci_results_run_pipelines_torch_gpu": {"torch_pipeline_results.json": json.dumps(before)}}
    assert len(message.get_new_model_failure_blocks(earlier)) == blocks


@pytest.mark.parametrize("nothing", [None, (None, None), (1, {}), (1, {"ci_results_run_models_gpu": {"a.txt": "b"}})])
def test_without_an_earlier_result_no_failure_is_called_new(nothing: Any) -> None:
    message = notification_service.Message("title", "", failing(OLD), {}, None, nothing, [nothing] if nothing else None)
    assert message.get_new_model_failure_blocks(nothing) == []
    assert "new failed tests" not in message.payload
    assert "unique" not in message.payload


def test_the_totals_of_a_coloured_line_are_read() -> None:
    line = "\x1b[31m=== \x1b[31m\x1b[1m1 failed\x1b[0m, \x1b[32m3 passed\x1b[0m\x1b[31m in 2.04s\x1b[0m ===\x1b[0m"
    assert notification_service.handle_test_results(line) == (1, 0, 3, 0, "2.04s")


def test_the_blocks_of_a_reply() -> None:
    message = notification_service.Message("title", "", {}, {})
    result: Any = {"job_link": {"single": "https://github.com/j"}}
    failures: Any = [{"line": "a", "trace": "b"}]
    found = message.get_reply_blocks("models_bert", result, failures, "single", text="*1*")
    assert [block["text"]["text"] for block in found] == ["MODELS_BERT (SINGLE-GPU)", "*1*", "*a*\n_b_\n\n"]
    assert message.get_reply_blocks("Examples", result, failures, None, text="1")[0]["text"]["text"] == "EXAMPLES"
    assert len(message.get_reply_blocks("Examples", result, [], None, text="")) == 1, "Slack refuses empty sections"


def test_a_reply_needs_a_message(services: RecordedServices) -> None:
    with pytest.raises(ValueError, match=r"call post\(\) first"):
        notification_service.Message("title", "", {}, {}).post_reply()


def test_artifacts_are_found_by_name_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("single-gpu_run_models_gpu_models_bert", "multi-gpu_run_models_gpu_models_bert", "run_kernels_gpu"):
        (tmp_path / f"{name}_test_reports").mkdir()
    for name in ("single-gpu_models_bert_test_reports", "utils_test_reports", "something_else"):  # of no known job
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    found = notification_service.retrieve_available_artifacts()
    assert {name: [path["gpu"] for path in artifact.paths] for name, artifact in found.items()} == {
        "run_models_gpu_models_bert_test_reports": ["multi", "single"],
        "run_kernels_gpu_test_reports": [None],
        "models_bert_test_reports": ["single"],
        "utils_test_reports": [None],
    }
    assert all(Path(path["path"]).is_dir() for artifact in found.values() for path in artifact.paths)


def test_counts_are_added_up_key_by_key() -> None:
    counts = {"PyTorch": {"single": 1, "multi": 2}, "Auto": {"single": 3}}
    assert notification_service.dicts_to_sum(counts) == Counter(single=4, multi=2)
    assert notification_service.dicts_to_sum(list(counts.values())) == Counter(single=4, multi=2)
    assert notification_service.dicts_to_sum([]) == Counter()


def test_the_constants_are_those_of_the_documentation() -> None:
    assert notification_service.job_to_test_map["run_trainer_and_fsdp_gpu"] == "Trainer & FSDP"
    assert notification_service.test_to_result_name["PyTorch pipelines"] == "torch_pipeline"
    assert notification_service.job_to_test_map.keys() == {
        "run_models_gpu",
        "run_trainer_and_fsdp_gpu",
        "run_pipelines_torch_gpu",
        "run_examples_gpu",
        "run_torch_cuda_extensions_gpu",
        "run_quantization_torch_gpu",
        "run_kernels_gpu",
    }
    assert len(notification_service.NON_MODEL_TEST_MODULES) == 13
