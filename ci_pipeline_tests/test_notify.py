"""The one-shot command on a small CI run, over real HTTP."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from benchmarks.make_tree import EARLIER, JOB, REPOSITORY, SHA, WORKFLOW, make_tree
from ci_pipeline import notify
from ci_pipeline.model import ArtifactName, CiRun, Counts, FetchedRun, TestOutcome, TestReport
from ci_pipeline.pipeline import ci_run_table
from ci_pipeline.profile import load_profile
from ci_pipeline.reports import read
from ci_pipeline.reports.tables import report_tables
from ci_pipeline.warehouse.client import insert_runs
from ci_pipeline.workflow_step import parse_matrix
from ci_pipeline_tests.servers.base import Request, Response
from ci_pipeline_tests.servers.recorded import RecordedServices

FILES = {
    "job_links.json",
    "model_results.json",
    "model_results_extra.json",
    "new_failures.json",
    "new_failures.txt",
}


DATASET = "https://huggingface.co/datasets/bench/daily_ci"


class Step:
    """A workflow step: its working directory is the current one, its environment is set."""

    def __init__(self, services: RecordedServices, matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.services = services
        self.matrix = matrix
        self.monkeypatch = monkeypatch

    def setenv(self, **environment: str | None) -> None:
        for name, value in environment.items():
            if value is None:
                self.monkeypatch.delenv(name, raising=False)
            else:
                self.monkeypatch.setenv(name, value)

    def run(self, matrix: str | None = None) -> int:
        return notify.main(self.matrix if matrix is None else matrix)

    @property
    def texts(self) -> list[str]:
        """What the blocks of the main message say."""
        blocks = self.services.messages[0]["blocks"]
        return [b["text"]["text"] for b in (json.loads(blocks) if isinstance(blocks, str) else blocks)]

    @property
    def uploaded(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.services.files}


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Step]:
    tree = tmp_path / "tree"
    make_tree(tree, folders=3, tests=40, fail_rate=0.3, seed=3)
    with RecordedServices(tree) as services:
        made = Step(services, json.loads((tree / "argv.json").read_text())[0], monkeypatch)  # pyright: ignore
        made.setenv(**json.loads((tree / "env.json").read_text()))
        made.setenv(GITHUB_API_URL=services.url, HF_ENDPOINT=services.url, SLACK_API_URL=f"{services.url}/api/")
        monkeypatch.chdir(tree / "artifacts")
        yield made


def test_the_report_and_its_replies_are_posted_and_its_files_uploaded(
    step: Step, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step.run() == 0
    main, *replies = step.services.messages
    assert main["channel"] == "#bench"
    assert step.texts[0] == "[INFO] Results of Daily CI: Models"
    assert step.texts[1] == f"<https://github.com/{REPOSITORY}/commit/{SHA}|commit: {SHA}>"
    assert len(replies) == 6
    assert all(reply["thread_ts"] for reply in replies)
    folder = f"2026-02-03/ci_results_{JOB}"
    assert set(step.services.files) == {f"{folder}/{name}" for name in FILES}
    assert re.search(rf"{DATASET}/raw/[0-9a-f]{{40}}/{folder}/new_failures\.json", json.dumps(main))
    said = capsys.readouterr().out
    assert f"5 files are in {DATASET}/tree/main/{folder}\n" in said
    assert "Posted to #bench: the report and 6 of 6 replies\n" in said


def test_what_is_uploaded_is_left_in_the_working_directory(step: Step) -> None:
    step.run()
    local = {path.name: path.read_bytes() for path in Path(f"ci_results_{JOB}").iterdir()}
    assert step.uploaded < local.keys()
    assert all(local[path.rpartition("/")[2]] == content for path, content in step.services.files.items())


def test_only_failures_that_the_previous_run_did_not_have_are_new(step: Step) -> None:
    step.run()
    known = json.loads(next((step.services.folder / "previous").rglob("model_results.json")).read_text())
    before = {f["line"] for result in known.values() for fs in result["failures"].values() for f in fs}
    results = json.loads(Path(f"ci_results_{JOB}/model_results.json").read_text())
    now = {f["line"] for result in results.values() for fs in result["failures"].values() for f in fs}
    new = json.loads(Path(f"ci_results_{JOB}/new_failures.json").read_text())
    listed = [test for devices in new.values() for tests in devices.values() for test in tests]
    assert set(listed) <= now
    assert now - before <= set(listed)
    assert f"*There are {len(listed)} new failed tests*" in step.texts[-2]
    assert f"/actions/runs/{EARLIER}|{EARLIER}>" in step.texts[-2]


def test_a_second_run_on_its_own_results_finds_nothing_new(step: Step) -> None:
    step.run()
    artifact = next((step.services.folder / "previous").iterdir())
    for file in Path(f"ci_results_{JOB}").iterdir():
        (artifact / file.name).write_bytes(file.read_bytes())
    step.services.messages.clear()
    assert step.run() == 0
    assert not [text for text in step.texts if "new failed tests" in text]


@pytest.mark.parametrize("name", ["CI_SLACK_BOT_TOKEN", "SLACK_REPORT_CHANNEL"])
def test_without_a_way_to_post_the_command_says_what_is_missing(
    step: Step, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step.setenv(**{name: "", "CI_TEST_JOB": "run_something_else"})
    assert step.run() == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith(f"ci-pipeline notify: {name} is not set")]
    assert not step.services.messages


def test_a_wrong_setting_is_one_line(step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    step.setenv(CI_PIPELINE_SLACK_STYLE="loud")
    assert step.run() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_github_that_never_answers_is_waited_for_once_and_the_report_goes_out(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "PATIENCE", 0.5)
    step.services.fail("^/repos/", delay=1, times=9)
    assert step.run() == 0
    assert len(step.services.messages) == 7
    assert sum(request.path.startswith("/repos/") for request in step.services.requests) == 1


def test_text_that_the_terminal_cannot_show_is_posted(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    step.setenv(CI_TITLE="Café au lait")
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert step.run() == 0
    assert "Café au lait" in step.texts[1]
    terminal.flush()
    assert b"Caf\\xe9 au lait" in terminal.buffer.getvalue()  # pyright: ignore


def test_a_folder_whose_name_is_not_utf_8_is_reported_with_the_others(step: Step) -> None:
    [folder, *_] = os.listdir(b".")
    os.rename(folder, folder.replace(b"_test_reports", b"_caf\xe9_test_reports"))
    assert step.run() == 0
    entries = json.loads(Path(f"ci_results_{JOB}/model_results.json").read_bytes())
    assert [entry for entry in entries if entry.endswith("_caf\udce9")]
    assert step.uploaded == FILES
    assert len(step.services.messages) == 7


def test_when_the_hub_is_down_the_report_goes_out_without_links(step: Step, caplog: pytest.LogCaptureFixture) -> None:
    step.services.fail("/preupload/", status=403, times=1000)
    assert step.run() == 0
    assert "files not uploaded" in caplog.text
    assert len(step.services.messages) == 7
    assert "huggingface.co" not in json.dumps(step.services.messages)


def test_without_a_hub_token_nothing_is_uploaded_and_the_log_says_so(
    step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    step.setenv(TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN=None, HF_TOKEN=None)
    assert step.run() == 0
    assert "TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN is not set" in caplog.text
    assert step.services.messages
    assert not step.services.files


def test_when_slack_refuses_the_report_the_command_fails_with_one_line(
    step: Step, capsys: pytest.CaptureFixture[str]
) -> None:
    step.services.fail("chat.postMessage", status=200, body={"ok": False, "error": "channel_not_found"}, times=100)
    assert step.run() == 1
    assert "channel_not_found" in capsys.readouterr().err
    assert Path(f"ci_results_{JOB}/model_results.json").exists()


def refuse_replies(step: Step, monkeypatch: pytest.MonkeyPatch, status: int, error: str) -> None:
    """Once the main message is out, Slack answers every second reply like this."""
    handle = step.services.handle

    def answer(request: Request) -> Response:
        if request.path.endswith("chat.postMessage") and len(step.services.messages) % 2:
            step.services.messages.append({"refused": True})
            return Response(status, {"ok": False, "error": error})
        return handle(request)

    monkeypatch.setattr(step.services, "handle", answer)


def test_a_reply_that_slack_refuses_does_not_cost_the_others(
    step: Step, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_replies(step, monkeypatch, 200, "restricted_action")
    assert step.run() == 0
    assert len([message for message in step.services.messages if "text" in message]) == 4
    assert caplog.text.count("restricted_action") == 3


def test_when_slack_goes_away_the_command_fails_and_says_how_much_is_missing(
    step: Step, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handle, sleep = step.services.handle, time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))

    def answer(request: Request) -> Response:
        gone = len(step.services.messages) == 3 and request.path.startswith("/api/chat")
        return Response(503) if gone else handle(request)

    monkeypatch.setattr(step.services, "handle", answer)
    assert step.run() == 1
    assert "the report is out, 4 of 6 replies are not: Slack is not available" in capsys.readouterr().err


def test_when_github_answers_nothing_the_artifacts_are_reported(step: Step) -> None:
    step.services.fail(r"^/repos/", status=403, body={"message": "no"}, times=1000)
    assert step.run() == 0
    summary = step.texts[2]
    assert summary.startswith("[INCOMPLETE] job links could not be read: GitHub: ")
    assert "There were" in summary
    assert len(step.services.messages) == 7
    assert any(text.startswith("*New failures are not known*") for text in step.texts)


def test_without_a_token_github_is_asked_without_it_and_the_log_says_so(
    step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    step.setenv(ACCESS_REPO_INFO_TOKEN=None, GITHUB_TOKEN=None, GH_TOKEN=None)
    assert step.run() == 0
    assert "ACCESS_REPO_INFO_TOKEN is not set" in caplog.text
    asked = [request for request in step.services.requests if request.path.startswith("/repos/")]
    assert not any("authorization" in request.headers for request in asked)
    assert any("new failed tests" in text for text in step.texts)


def test_without_the_id_of_the_run_the_artifacts_are_reported(step: Step) -> None:
    step.setenv(GITHUB_RUN_ID=None)
    assert step.run() == 0
    assert step.texts[2].startswith("[INCOMPLETE] job links are not known: GITHUB_RUN_ID is not set\nThere were")
    assert "/actions/runs/" not in json.dumps(step.services.messages[0]["blocks"][:3])
    assert len(step.services.messages) == 7


def test_a_workflow_that_asks_for_it_has_the_diff_of_all_results(step: Step) -> None:
    workflow = "self-scheduled-amd-mi325-caller.yml"
    step.setenv(
        GITHUB_WORKFLOW_REF=f"{REPOSITORY}/.github/workflows/{workflow}@main", PREV_WORKFLOW_RUN_ID=str(EARLIER)
    )
    assert step.run() == 0
    assert step.uploaded == {*FILES, "test_results_diff.json"}
    main = json.dumps(step.services.messages[0])
    assert re.search(rf"{DATASET}/resolve/[0-9a-f]{{40}}/[^\"]*/test_results_diff\.json", main)
    assert "*Test results diff*\n\n(compared to previous run: " in "".join(step.texts)


def test_an_earlier_run_whose_results_are_unreadable_is_said_to_be_so(step: Step) -> None:
    next((step.services.folder / "previous").rglob("model_results.json")).write_text("{")
    assert step.run() == 0
    why = f"previous run: ci_results_{JOB} of run {EARLIER}: model_results.json is not JSON"
    assert step.texts[-1] == f"*New failures are not known*\n\n({why})"


def test_a_run_of_another_vendor_is_compared_with_the_reference(step: Step) -> None:
    for answer in (step.services.folder / "github").glob("*.json"):
        run = json.loads(answer.read_text())
        if "status" in run:
            answer.write_text(json.dumps(run | {"workflow_id": 7}))
    assert step.run() == 0
    [unique] = [text for text in step.texts if "unique to this run" in text]
    assert f"(compared to Nvidia CI run: <https://github.com/{REPOSITORY}/actions/runs/{EARLIER}|{EARLIER}>)" in unique


def test_a_folder_that_cannot_be_written_costs_a_line(step: Step, caplog: pytest.LogCaptureFixture) -> None:
    Path(f"ci_results_{JOB}").touch()
    assert step.run() == 0
    assert f"ci_results_{JOB} cannot be written: File exists" in caplog.text
    assert step.uploaded == FILES
    assert len(step.services.messages) == 7


def test_another_run_that_cannot_be_had_leaves_open_only_what_is_unique_to_this_one(step: Step) -> None:
    step.setenv(OTHER_WORKFLOW_RUN_ID="4712")
    assert step.run() == 0
    [unknown] = [text for text in step.texts if "are not known" in text]
    assert unknown.startswith("*Failures unique to this run are not known*\n\n(run: GitHub: ")
    assert any("new failed tests" in text for text in step.texts)


def test_a_failed_setup_is_reported_instead(step: Step) -> None:
    step.setenv(SETUP_STATUS="failure")
    assert step.run() == 0
    assert step.texts[0] == "[INFO] Results of Daily CI"
    assert step.texts[2] == "[FAIL] Setup job failed. Tests are not run."
    assert len(step.services.messages) == 1
    assert not step.services.files


def test_a_setup_that_was_not_needed_has_not_failed(step: Step) -> None:
    step.setenv(SETUP_STATUS="skipped")
    assert step.run() == 0
    assert len(step.services.messages) == 7


@pytest.fixture
def green(step: Step) -> Step:
    """All tests of the step passed."""
    for folder in Path.cwd().iterdir():
        (folder / "stats.txt").write_text("=== 3 passed in 1.00s ===\n")
        (folder / "summary_short.txt").write_text("PASSED tests/models/x/test_x.py::test_a\n")
        (folder / "failures_line.txt").write_text("")
    return step


@pytest.mark.parametrize(
    ("workflow", "channel", "title", "dataset"),
    [
        ("self-scheduled-amd-mi325-caller", "#amd-hf-ci", "Scheduled CI (AMD) - mi325", "optimum-amd"),
        ("a-new-one", "#transformers-ci-daily-models", "schedule", "hf-internal-testing"),
    ],
)
def test_what_the_environment_does_not_say_the_profile_knows_of_the_workflow(
    green: Step, workflow: str, channel: str, title: str, dataset: str
) -> None:
    green.setenv(CI_EVENT=None, SLACK_REPORT_CHANNEL=None, REPORT_REPO_ID=None)
    green.setenv(GITHUB_WORKFLOW_REF=f"{REPOSITORY}/.github/workflows/{workflow}.yml@refs/heads/main")
    assert green.run() == 0
    assert green.services.messages[0]["channel"] == channel
    assert green.texts[0] == f"[INFO] Results of {title}: Models"
    assert [r for r in green.services.requests if f"/datasets/{dataset}/transformers_daily_ci/commit/" in r.path]


def test_a_fork_is_reported_as_itself(green: Step) -> None:
    green.setenv(GITHUB_REPOSITORY="acme/fork", GITHUB_SERVER_URL="https://github.acme.test/")
    assert green.run() == 0
    page = f"https://github.acme.test/acme/fork/actions/runs/{os.environ['GITHUB_RUN_ID']}"
    assert page in json.dumps(green.services.messages[0])
    assert [request for request in green.services.requests if request.path.startswith("/repos/acme/fork/")]


def test_warnings_that_a_job_of_the_run_selected_are_counted(green: Step) -> None:
    Path("warnings_in_ci").mkdir()
    Path("warnings_in_ci/selected_warnings.json").write_text('["huggingface_hub is old", "torch is too"]')
    assert green.run() == 0
    assert green.texts[-1] == "There are 2 warnings being selected.\n1 of them are from `huggingface_hub`."


def test_a_push_that_broke_nothing_is_no_news(green: Step) -> None:
    green.setenv(CI_EVENT="push", GITHUB_EVENT_NAME="push")
    assert green.run() == 0
    assert not green.services.messages
    assert any("/runs/7-" in path for path in green.services.files)


def test_a_push_whose_jobs_died_is_news(green: Step) -> None:
    green.setenv(CI_EVENT="push", GITHUB_EVENT_NAME="push")
    (next(iter(sorted(Path.cwd().iterdir()))) / "stats.txt").unlink()
    assert green.run() == 0
    assert green.services.messages[0]["text"].startswith("Incomplete: ")


def test_a_killed_job_is_not_taken_for_another_one_with_the_same_folder(green: Step) -> None:
    green.setenv(CI_TEST_JOB="run_trainer_and_fsdp_gpu")
    assert green.run() == 0
    assert "incomplete" in green.services.messages[0]["text"].lower()
    assert "no artifact" in green.texts[2]


def test_a_folder_without_artifacts_is_named(green: Step) -> None:
    assert green.run('["models/m00000", "models/m00001", "models/m00002", "models/never_ran"]') == 0
    assert "[INCOMPLETE] models_never_ran: no artifact on any device" in green.texts[2]


def test_one_run_may_be_both_the_previous_and_the_other_one(step: Step) -> None:
    assert step.run() == 0
    previous = next(text for text in step.texts if "compared to previous run" in text).rpartition("|")[2][:-2]
    step.services.messages.clear()
    step.setenv(PREV_WORKFLOW_RUN_ID=previous, OTHER_WORKFLOW_RUN_ID=previous)
    assert step.run() == 0
    assert [text.partition(" (")[0] for text in step.texts if "not known" in text] == []
    assert [f"|{previous}>)" in text for text in step.texts if "compared to" in text] == [True, True]


@pytest.mark.parametrize(
    ("title", "page"),
    [
        ("Fix a < b (#42)", "pull/42|Fix a &lt; b (#42)"),
        ('Revert "Fix (#41)" (#42)\n\nand (#43)', 'pull/42|Revert "Fix (#41)" (#42)'),
        ("Prepare for (#42) | again", "commit/abc|Prepare for (#42) | again"),
        ("Fix (#\u0663)", "commit/abc|Fix (#\u0663)"),
    ],
)
def test_the_title_leads_to_the_pull_request_that_was_merged(green: Step, title: str, page: str) -> None:
    green.setenv(CI_TITLE=title, CI_SHA="abc")
    assert green.run() == 0
    assert green.texts[1] == f"<https://github.com/huggingface/transformers/{page}>"


def test_a_title_without_a_commit_leads_nowhere(green: Step) -> None:
    green.setenv(CI_TITLE="Nightly & more", CI_SHA=None)
    assert green.run() == 0
    assert green.texts[1] == "Nightly &amp; more"


@pytest.mark.parametrize(
    ("title", "asked", "answer", "people"),
    [
        (
            "Fix (#42)",
            "pulls/42",
            {"user": {"login": "ann"}, "merged_by": {"login": "b<b"}},
            "GH_ann | Merged by: GH_b&lt;b",
        ),
        ("Fix (#42)", "pulls/42", {"user": {"login": "ann"}, "merged_by": None}, "GH_ann"),
        ("Fix", "commits/abc", {"author": {"login": "ann"}}, "GH_ann"),
    ],
)
def test_the_title_names_who_wrote_it_and_who_merged_it(
    green: Step, monkeypatch: pytest.MonkeyPatch, title: str, asked: str, answer: dict[str, Any], people: str
) -> None:
    handle = green.services.handle
    monkeypatch.setattr(
        green.services,
        "handle",
        lambda request: Response(200, answer) if request.path.endswith(f"/{asked}") else handle(request),
    )
    green.setenv(CI_TITLE=title, CI_SHA="abc")
    assert green.run() == 0
    assert green.texts[1].splitlines()[1:] == [f"Author: {people}"]


def test_a_run_id_that_is_none_is_not_believed(
    green: Step, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREV_WORKFLOW_RUN_ID", "latest")
    assert green.run() == 0
    assert "PREV_WORKFLOW_RUN_ID: 'latest' is no run id" in caplog.text


@pytest.mark.parametrize("matrix", ["", "[]", "[['models/m00000'", "not a list"])
def test_a_matrix_that_says_nothing_does_not_cost_the_report(green: Step, matrix: str) -> None:
    assert green.run(matrix) == 0
    assert green.texts[2].startswith("[INCOMPLETE] folders without an artifact are not known: the matrix is ")
    assert "out of 18 tests" in green.texts[2]


# Up to Python 3.11 the pool's own thread trips over a call that was cancelled, when its process is killed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_is_killed_does_not_cost_the_report(
    step: Step, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    reporter, read_report, began = os.getpid(), read.read_report, tmp_path / "began"

    def killed(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() != reporter:
            began.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 30
        while not began.exists() and time.monotonic() < until:  # else the reporter might read them all
            time.sleep(0.01)
        return read_report(*args, **kwargs)

    monkeypatch.setattr(read, "read_report", killed)
    monkeypatch.setattr(notify, "READ_AT_ONCE", 1)
    assert step.run() == 0
    assert "was killed" in caplog.text
    assert len(step.services.messages) == 7
    assert step.services.messages[0]["text"] == "69 failures out of 186 tests,"


def test_the_job_is_that_of_the_artifacts_where_nobody_names_it(step: Step) -> None:
    step.setenv(CI_TEST_JOB=None)
    assert step.run() == 0
    assert step.texts[0] == "[INFO] Results of Daily CI: Models"


def test_where_nobody_names_the_job_and_nothing_is_there_the_report_says_so(
    step: Step, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    step.setenv(CI_TEST_JOB=None)
    assert step.run() == 0
    assert "[INCOMPLETE] no report was found: CI_TEST_JOB is not set" in "\n".join(step.texts)
    assert Path("ci_results_tests/tests_results.json").exists()


def test_the_full_style_is_one_setting_away(step: Step) -> None:
    step.setenv(CI_PIPELINE_SLACK_STYLE="full", CI_PIPELINE_PAGES_URL="https://hud.example")
    assert step.run() == 0
    assert step.services.messages[0]["text"].startswith("❌ Models: ")
    assert f"https://hud.example/runs/{os.environ['GITHUB_RUN_ID']}" in json.dumps(step.services.messages[0])
    assert len(step.services.messages) <= 30


def test_the_full_style_says_why_nothing_was_compared(step: Step) -> None:
    step.setenv(CI_PIPELINE_SLACK_STYLE="full", PREV_WORKFLOW_RUN_ID="4711")
    assert step.run() == 0
    assert "cannot be told apart (previous run: GitHub: " in json.dumps(step.services.messages[0])


def test_the_full_style_links_to_the_run_also_where_github_answers_nothing(step: Step) -> None:
    step.setenv(CI_PIPELINE_SLACK_STYLE="full")
    step.services.fail(r"^/repos/", status=403, body={"message": "no"}, times=1000)
    assert step.run() == 0
    run_url = f"https://github.com/{REPOSITORY}/actions/runs/{os.environ['GITHUB_RUN_ID']}"
    assert run_url in json.dumps(step.services.messages[0]["blocks"])


def test_a_warehouse_is_asked_before_github(step: Step, warehouse: Client, warehouse_url: str) -> None:
    yesterday = datetime(2026, 2, 2, tzinfo=UTC)
    run = CiRun(REPOSITORY, EARLIER, workflow_id=WORKFLOW, event="schedule", head_branch="main", created_at=yesterday)
    known = TestOutcome("tests/models/m00000/test_modeling_m00000.py::ModelTest::test_case_00001", "failed")
    artifact = ArtifactName("a", "single-gpu", "single", JOB, "models_m00000")
    profile = load_profile("transformers")
    reports, outcomes = report_tables(run, [TestReport(artifact, Counts(failed=1), (known,))], profile)
    run_table = ci_run_table(FetchedRun(run))
    insert_runs(warehouse, {"test_report": reports, "test_outcome": outcomes, "ci_run": run_table})
    step.setenv(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    assert step.run() == 0
    assert not [r for r in step.services.requests if "/artifacts" in r.path]
    assert f"/actions/runs/{EARLIER}|{EARLIER}>" in step.texts[-2]


def test_a_warehouse_that_is_down_costs_a_line(step: Step, caplog: pytest.LogCaptureFixture) -> None:
    step.setenv(CI_PIPELINE_WAREHOUSE_URL="http://127.0.0.1:1/default")
    assert step.run() == 0
    assert "no warehouse at http://127.0.0.1:1" in caplog.text
    assert any("new failed tests" in text for text in step.texts)


def test_the_command_starts_without_what_it_does_not_need() -> None:
    code = "import sys, ci_pipeline.notify, ci_pipeline.notification_service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"dagster", "pandas", "pyarrow", "numpy", "fastapi", "chdb", "clickhouse_connect"}
    assert not loaded & {"huggingface_hub", "slack_sdk", "httpx2"}, "these load while the reports are read"


@pytest.mark.parametrize(
    ("argument", "folders"),
    [
        ('["models_bert", "models_gpt2"]', ["models_bert", "models_gpt2"]),
        ("[['models/bert'], ['trainer', 'utils']]", ["models/bert", "trainer", "utils"]),
        ("('a', ['b', ('c',)])", ["a", "b", "c"]),
        ('"models_bert"', ["models_bert"]),
        ("models_bert", ["models_bert"]),  # as a shell leaves "${{ toJson(…) }}"
        ("[\n  models/bert,\n  [trainer]\n]", ["models/bert", "trainer"]),
        ("", []),
        ("[[], [' ']]", []),
        ("[1, null, {}]".replace("null", "None"), []),
    ],
)
def test_a_matrix_is_json_or_a_list_as_python_or_a_shell_prints_it(argument: str, folders: list[str]) -> None:
    assert parse_matrix(argument) == folders


@pytest.mark.parametrize("argument", ["[", "[models/bert", "a list", "__import__('os')", "[" * 100_000])
def test_a_matrix_that_is_neither_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="neither JSON nor a list"):
        parse_matrix(argument)
