"""The `ci-pipeline` command, as a person or a script meets it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ci_pipeline.cli import SHELLS, main
from ci_pipeline.model import CiRun, FetchedRun
from ci_pipeline.sample import build, install
from ci_pipeline.settings import OotSettings, StepSettings
from ci_pipeline.sources import SourceError
from ci_pipeline.sources.folder import FolderSource
from ci_pipeline_tests.servers.slack import SlackServer

FIRST, SECOND, _ = (night.run_id for night in build.NIGHTS)
HEAVY = ("dagster", "pandas", "pyarrow", "pydantic", "rich", "fastapi", "slack_sdk", "huggingface_hub")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing set but a home of the test's own."""
    for model in (OotSettings, StepSettings):
        for entry in model.model_fields.values():
            for variable in getattr(entry.validation_alias, "choices", ()):
                monkeypatch.delenv(str(variable), raising=False)
    monkeypatch.setenv("CI_PIPELINE_HOME", str(tmp_path / "home"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_command_starts_without_what_it_does_not_need() -> None:
    loaded = python("import sys, ci_pipeline.cli; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("command", ["", *main.commands])
def test_every_command_has_help(command: str) -> None:
    result = run(*filter(None, [command]), "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output
    if command:
        assert main.commands[command].get_short_help_str(limit=60)[-3:] != "...", "cut in the list of commands"


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_CI_PIPELINE_COMPLETE" in result.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_completion_completes_commands() -> None:
    environment = os.environ | {
        "_CI_PIPELINE_COMPLETE": "bash_complete",
        "COMP_WORDS": "ci-pipeline ch",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "from ci_pipeline.cli import main; main(prog_name='ci-pipeline')"]
    assert "check-config" in subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def test_a_wrong_setting_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PIPELINE_SOURCE", "ftp://nowhere")
    result = run("ingest")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: CI_PIPELINE_SOURCE: 'ftp://nowhere' is no source")
    assert result.stderr.count("\n") == 1


def test_a_run_that_is_not_there_is_one_line_and_exit_code_1() -> None:
    result = run("report", "42")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "42" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PIPELINE_HOME", "/dev/null/home")
    assert run("ingest").output == "Error: /dev/null/home/inbox: Not a directory\n"


def test_a_reader_that_goes_early_is_no_error() -> None:
    command = [sys.executable, "-m", "ci_pipeline.cli", "completion", "bash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_with_verbose_an_error_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PIPELINE_SOURCE", "ftp://nowhere")
    assert type(run("-v", "ingest").exception).__name__ == "SettingsError"


# --- check-config ---------------------------------------------------------------------------------------------------


def test_without_any_setting_nothing_is_wrong_and_it_says_what_follows() -> None:
    result = run("check-config")
    assert result.exit_code == 0
    assert "CI_SLACK_BOT_TOKEN is not set" in result.output
    assert "Nothing is wrong" in result.output


def test_a_variable_that_is_not_set_is_named_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PIPELINE_RETENTION_DAYS", "7")
    assert "CI_PIPELINE_RETENTION_DAYS  set  7" in run("check-config").output
    assert "GITHUB_SERVER_URL" not in run("check-config").output
    assert "GITHUB_SERVER_URL" in run("check-config", "--all").output


def test_a_check_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PIPELINE_HOME", str(tmp_path / "home"))
    assert run("check-config").exit_code == 0
    assert not (tmp_path / "home").exists()


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_SLACK_BOT_TOKEN", "xoxb-hunter2")
    monkeypatch.setenv("CI_PIPELINE_WAREHOUSE_URL", "https://me:hunter2@warehouse.example:8443/ci?password=hunter2")
    result = run("check-config", "--json")
    assert "hunter2" not in result.output
    found = {entry["variable"]: entry for entry in json.loads(result.output)["settings"]}
    assert found["CI_SLACK_BOT_TOKEN"] == {"variable": "CI_SLACK_BOT_TOKEN", "value": "********", "is_set": True}
    assert found["CI_PIPELINE_WAREHOUSE_URL"]["value"] == "https://warehouse.example:8443/ci"


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("CI_PIPELINE_PROFIL", "x", "no such setting; did you mean CI_PIPELINE_PROFILE?"),
        ("CI_PIPELINE_PROFILE", "nobody", "no profile 'nobody'"),
        ("CI_PIPELINE_SOURCE", "folder:/not/there", "there is no folder /not/there"),
        ("CI_PIPELINE_SOURCE", "ftp://x", "is no source"),
        ("CI_PIPELINE_SOURCE", "github", "ACCESS_REPO_INFO_TOKEN: not set"),
        ("CI_PIPELINE_WAREHOUSE_URL", "localhost:8123", "CI_PIPELINE_WAREHOUSE_URL: not of the form"),
        ("CI_PIPELINE_WAREHOUSE_URL", "http://[::1", "CI_PIPELINE_WAREHOUSE_URL: not of the form"),
        ("CI_PIPELINE_QUIET_SECONDS", "soon", "CI_PIPELINE_QUIET_SECONDS: "),
        ("CI_PIPELINE_OIDC_ISSUERS", "[x", "CI_PIPELINE_OIDC_ISSUERS: must be JSON"),
        ("CI_PIPELINE_OOT_ALLOWLIST", "/not/there.yml", "CI_PIPELINE_OOT_ALLOWLIST: /not/there.yml: No such file"),
        ("CI_PIPELINE_OOT_STORE", "redis://x", "CI_PIPELINE_OOT_STORE: write sqlite:///"),
    ],
)
def test_what_is_wrong_is_named_and_ends_with_1(
    variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    result = run("check-config", "--json")
    assert result.exit_code == 1
    assert any(problem in line for line in json.loads(result.output)["problems"]), result.output
    assert problem in run("check-config").output


def test_a_test_job_without_a_channel_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = tmp_path / "own.toml"
    profile.write_text(
        'name = "own"\nrepository = "me/mine"\ncategories = []\n'
        '[devices]\n[test_jobs.run_it]\ntest = "It"\nresult_name = "it"\n'
    )
    monkeypatch.setenv("CI_PIPELINE_PROFILE", str(profile))
    monkeypatch.setenv("CI_SLACK_BOT_TOKEN", "xoxb-1")
    result = run("check-config", "--json")
    assert result.exit_code == 1
    assert "no channel for run_it" in json.loads(result.output)["problems"][0]
    monkeypatch.setenv("SLACK_REPORT_CHANNEL", "#ci")
    assert run("check-config").exit_code == 0


# --- CI runs, without Dagster ---------------------------------------------------------------------------------------


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    install(tmp_path / "home" / "inbox")
    return tmp_path / "home" / "inbox"


def messages(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (home / "outbox" / "slack").rglob("*.json")}


def test_ingest_processes_what_is_new_once(inbox: Path) -> None:
    first = run("ingest")
    assert first.exit_code == 0, first.output
    assert [line for line in first.stdout.splitlines() if not line.startswith(" ")] == [
        "Daily CI #1301 (19500000001-1)",
        "Daily CI #1302 (19510000001-1)",
        "Scheduled CI (AMD) - mi325 #417 (19510000002-1)",
    ]
    before = messages(inbox.parent)
    second = run("ingest")
    assert second.exit_code == 0
    assert "No new CI run" in second.stderr
    assert messages(inbox.parent) == before


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackServer]:
    with SlackServer() as server:
        monkeypatch.setenv("CI_SLACK_BOT_TOKEN", "xoxb-test")
        monkeypatch.setenv("SLACK_API_URL", server.api_url)
        monkeypatch.setenv("SLACK_REPORT_CHANNEL", "#ci")
        yield server


def posted(slack: SlackServer, *names: str) -> list[tuple[Any, ...]]:
    payloads = [message["metadata"]["event_payload"] for message in slack.channel()]
    return [tuple(payload[name] for name in ("run_id", "test_job", *names)) for payload in payloads]


def test_an_ingest_that_was_killed_is_ended_by_the_next(inbox: Path, slack: SlackServer) -> None:
    slack.fail("/chat.postMessage", delay=0.1, times=100)
    command = [sys.executable, "-m", "ci_pipeline.cli", "ingest"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        end = time.monotonic() + 60
        while not slack.channel() and time.monotonic() < end:
            time.sleep(0.01)
        killed.kill()
    time.sleep(1)  # what was on its way arrives
    slack.faults.clear()
    result = run("ingest")
    assert result.exit_code == 0, result.output
    assert len(posted(slack, "key")) == len(set(posted(slack, "key")))
    reports = [json.loads(line) for line in run("backfill", "--json").stdout.splitlines()]
    assert set(posted(slack)) == {(report["run_id"], job) for report in reports for job in report["test_jobs"]}
    assert "No new CI run" in run("ingest").stderr


def test_a_run_that_cannot_be_fetched_does_not_stop_the_others(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = FolderSource.fetch

    def first_is_gone(source: FolderSource, run: CiRun, *others: Any, **options: Any) -> FetchedRun:
        if run.run_id == FIRST:
            raise SourceError("it is gone")
        return fetch(source, run, *others, **options)

    monkeypatch.setattr(FolderSource, "fetch", first_is_gone)
    result = run("ingest")
    assert result.exit_code == 1
    assert f"Error: CI run {FIRST}: it is gone" in result.stderr
    assert f"({SECOND}-1)" in result.stdout


def test_a_channel_that_is_unknown_costs_only_what_goes_there(
    inbox: Path, slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slack.fail("/chat.postMessage", body={"ok": False, "error": "channel_not_found"}, status=200)
    result = run("ingest", str(FIRST))
    assert result.exit_code == 1
    assert "channel_not_found: check SLACK_REPORT_CHANNEL" in result.stderr
    assert len(set(posted(slack))) == 1
    assert "Kept before: messages: slack" in run("ingest", str(FIRST)).stderr
    assert len(set(posted(slack))) == 2


def test_ingest_of_a_named_run_writes_json_for_a_script(inbox: Path) -> None:
    result = run("ingest", str(SECOND), "--no-post", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["run_id"] == SECOND
    models = found["test_jobs"]["run_models_gpu"]
    assert models["complete"] is False
    assert models["problems"][0]["matrix_entry"] == "models_ibis"
    assert models["results"]["models_wren"]["failures"]["single"]
    assert not messages(inbox.parent)


def test_report_shows_the_newest_run_and_sends_nothing(inbox: Path) -> None:
    run("ingest", "--no-post")
    result = run("report")
    assert result.exit_code == 0, result.output
    assert "mi325 #417" in result.stdout
    assert not messages(inbox.parent)


def test_report_of_a_run_that_is_not_processed_yet_processes_it(inbox: Path) -> None:
    result = run("report", str(SECOND), "--json")
    assert result.exit_code == 0, result.output
    assert {row["change"] for row in json.loads(result.stdout)["test_jobs"]["run_models_gpu"]["diff"]} >= {
        "new_failure",
        "changed_error",
        "still_failing",
        "fixed",
    }


def test_backfill_goes_from_the_oldest_run_and_posts_nothing_unless_asked(inbox: Path) -> None:
    result = run("backfill", "--limit", "2", "--json")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["run_id"] for line in result.stdout.splitlines()] == [FIRST, SECOND]
    assert not messages(inbox.parent)
    assert run("backfill", "--limit", "1", "--post").exit_code == 0
    assert messages(inbox.parent)


def test_a_port_that_is_taken_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "choose another --port" in done.stderr
