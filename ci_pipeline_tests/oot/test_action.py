"""The action's script against a real relay: what other organisations' CI runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci_pipeline.hud.relay import create_relay
from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.relay import Relay
from ci_pipeline.settings import OotSettings
from ci_pipeline_tests.oot.conftest import callback
from ci_pipeline_tests.servers.application import serving
from ci_pipeline_tests.servers.base import Request, Response, Server
from ci_pipeline_tests.servers.oidc import OidcServer

ACTION = Path(__file__).parents[2] / "action"
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_ok" time="0.1"/>
<testcase classname="tests.test_a" name="test_bad" file="tests/test_a.py" time="1,234.5">
<failure message="boom &lt;b&gt;">Traceback</failure></testcase>
<testcase classname="tests.test_a" name="test_empty"><error message="no fixture"/></testcase>
<testcase classname="tests.test_a" name="test_skip"><skipped/></testcase>
</testsuite></testsuites>"""


class IdentityServer(Server):
    """Plays the part of GitHub's runner that hands out tokens."""

    def __init__(self, issuer: OidcServer) -> None:
        super().__init__()
        self.issuer = issuer

    def handle(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer runner-token"
        return Response(body={"value": self.issuer.token("org/backend", aud=request.query["audience"])})


@pytest.fixture
def relay(settings: OotSettings) -> Iterator[tuple[str, Relay]]:
    """The relay's address and the relay; `delivery-1` was dispatched."""
    app = create_relay(settings, "org/upstream")
    with serving(app) as url:
        relay: Relay = app.state.relay
        relay.store.register_dispatch(Dispatch("delivery-1", "org/backend", 1000.0, 7, "a" * 40)).result()
        yield f"{url}/github/callback", relay


@pytest.fixture
def job(tmp_path: Path, issuer: OidcServer, relay: tuple[str, Relay]) -> Iterator[dict[str, str]]:
    """The environment of a step that GitHub dispatched."""
    envelope = {name: value for name, value in callback().items() if name != "workflow"}
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"action": "upstream", "client_payload": envelope}))
    with IdentityServer(issuer) as identity:
        yield {
            "PATH": os.environ["PATH"],
            "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_PATH": str(event),
            "GITHUB_REPOSITORY": "org/backend",
            "GITHUB_WORKFLOW": "CI",
            "GITHUB_JOB": "test",
            "GITHUB_RUN_ID": "1",
            "GITHUB_RUN_ATTEMPT": "1",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{identity.url}/token?api=1",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner-token",
            "OOT_CALLBACK_URL": relay[0],
            "OOT_JOB_NAME": "test (py3.12)",
            "OOT_CHECK_RUN_ID": "101",
        }


def report(env: dict[str, str], **settings: str) -> subprocess.CompletedProcess[str]:
    env = env | {f"OOT_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-I", "-S", str(ACTION / "report.py")]  # the standard library alone
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_a_job_reports_its_beginning_and_its_end_with_what_failed(
    job: dict[str, str], relay: tuple[str, Relay], tmp_path: Path
):
    (tmp_path / "junit").mkdir()
    (tmp_path / "junit" / "results.xml").write_text(JUNIT)
    begun = report(job, STATUS="in_progress")
    assert (begun.returncode, json.loads(begun.stdout)) == (0, {"ok": True, "status": "in_progress"})
    ended = report(
        job,
        STATUS="completed",
        CONCLUSION="failure",
        FAILED_TESTS=str(tmp_path / "junit"),
        ARTIFACT_URL="https://example.org/logs.zip",
        ENVIRONMENT='{"driver": "1.2"}',
    )
    assert json.loads(ended.stdout)["status"] == "completed", ended.stderr
    record = relay[1].store.record("org/backend/delivery-1/CI/test (py3.12)/101")
    assert record
    assert record["conclusion"] == "failure"
    assert [record[f"{name}_tests"] for name in ("passed", "failed", "skipped", "total")] == [1, 2, 1, 4]
    failed: list[dict[str, Any]] = json.loads(str(record["failed_tests_json"]))
    assert failed == [
        {
            "name": "tests.test_a::test_bad",
            "file": "tests/test_a.py",
            "message": "boom <b>",
            "stacktrace": "Traceback",
            "duration_seconds": 1234.5,
        },
        {
            "name": "tests.test_a::test_empty",
            "file": "",
            "message": "no fixture",
            "stacktrace": "",
            "duration_seconds": None,
        },
    ]
    assert (record["artifact_url"], record["environment"]) == ("https://example.org/logs.zip", '{"driver": "1.2"}')
    assert record["workflow_run_url"] == "https://github.com/org/backend/actions/runs/1"


@pytest.mark.parametrize(
    ("junit", "counts"),
    [
        (f"{JUNIT[: JUNIT.index('</testsuite>')]}<testcase name='cut", (1, 2, 1)),
        ('<?xml version="1.0" encoding="of-our-own"?><testsuite><testcase name="a"/></testsuite>', (0, 0, 0)),
        ('<?xml version="1.0" encoding="utf-32"?><testsuite/>', (0, 0, 0)),
    ],
)
def test_a_broken_report_costs_what_cannot_be_read_and_not_the_callback(
    job: dict[str, str], relay: tuple[str, Relay], tmp_path: Path, junit: str, counts: tuple[int, ...]
):
    (tmp_path / "junit.xml").write_text(junit)
    report(job, STATUS="in_progress")
    ended = report(job, STATUS="completed", CONCLUSION="failure", FAILED_TESTS=str(tmp_path / "junit.xml"))
    assert json.loads(ended.stdout)["status"] == "completed", ended.stderr
    assert f"warning: {tmp_path}/junit.xml: " in ended.stderr
    record = relay[1].store.record("org/backend/delivery-1/CI/test (py3.12)/101")
    assert record
    assert tuple(record[f"{name}_tests"] for name in ("passed", "failed", "skipped")) == counts


@pytest.mark.parametrize("place", ["nowhere", "<testsuite/>" * 500])
def test_a_report_that_is_not_there_does_not_cost_the_callback(
    job: dict[str, str], relay: tuple[str, Relay], place: str
):
    report(job, STATUS="in_progress")
    ended = report(job, STATUS="completed", CONCLUSION="failure", FAILED_TESTS=place)
    assert json.loads(ended.stdout)["status"] == "completed", ended.stderr
    assert ended.stderr.startswith("warning: OOT_FAILED_TESTS: ")


def test_names_in_several_lines_and_words_in_capitals_are_taken(job: dict[str, str], relay: tuple[str, Relay]):
    names = {"JOB_NAME": " test 'a' \"b\"\n  $(c) é 🔥\n", "WORKFLOW_NAME": "CI\tand more"}
    report(job, STATUS="in_progress", **names)
    ended = report(job, STATUS="completed", CONCLUSION="Success", **names)
    assert json.loads(ended.stdout)["status"] == "completed", ended.stderr
    record = relay[1].store.record("org/backend/delivery-1/CI and more/test 'a' \"b\" $(c) é 🔥/101")
    assert record
    assert record["conclusion"] == "success"


def test_a_pytest_report_folder_says_what_failed(job: dict[str, str], relay: tuple[str, Relay], tmp_path: Path):
    (tmp_path / "stats.txt").write_text("=== 1 failed, 3 passed, 4 skipped, 1 error in 2.00s ===\n")
    (tmp_path / "summary_short.txt").write_text(
        "PASSED tests/test_a.py::test_ok\n"
        "FAILED tests/test_a.py::test_bad[a b] - ValueError: no\n"
        "ERROR tests/test_b.py\n"
    )
    report(job, STATUS="in_progress")
    report(job, STATUS="completed", CONCLUSION="failure", FAILED_TESTS=str(tmp_path))
    record = relay[1].store.record("org/backend/delivery-1/CI/test (py3.12)/101")
    assert record
    assert [record[f"{name}_tests"] for name in ("passed", "failed", "skipped", "total")] == [3, 2, 4, 9]
    failed = json.loads(str(record["failed_tests_json"]))
    assert [(test["name"], test["file"], test["message"]) for test in failed] == [
        ("tests/test_a.py::test_bad[a b]", "tests/test_a.py", "ValueError: no"),
        ("tests/test_b.py", "tests/test_b.py", ""),
    ]


def test_without_the_line_that_counts_them_tests_are_not_counted(
    job: dict[str, str], relay: tuple[str, Relay], tmp_path: Path
):
    (tmp_path / "summary_short.txt").write_text("FAILED tests/test_a.py::test_bad\n")
    report(job, STATUS="in_progress")
    report(job, STATUS="completed", CONCLUSION="failure", FAILED_TESTS=str(tmp_path))
    record = relay[1].store.record("org/backend/delivery-1/CI/test (py3.12)/101")
    assert record
    assert "passed_tests" not in record
    assert "test_bad" in str(record["failed_tests_json"])


def test_counts_that_are_given_are_believed(job: dict[str, str], relay: tuple[str, Relay], tmp_path: Path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    report(job, STATUS="in_progress")
    given = {"FAILED_TESTS": str(tmp_path / "junit.xml"), "TEST_RESULTS": '{"passed": 10, "failed": 1, "skipped": 2}'}
    report(job, STATUS="completed", CONCLUSION="failure", **given)
    record = relay[1].store.record("org/backend/delivery-1/CI/test (py3.12)/101")
    assert record
    assert [record[f"{name}_tests"] for name in ("passed", "failed", "skipped", "total")] == [10, 1, 2, 13]


@pytest.mark.parametrize(("given", "event_type"), [({}, "nightly"), ({"EVENT_TYPE": "periodic"}, "periodic")])
def test_a_nightly_reports_itself_without_a_dispatch(
    job: dict[str, str], relay: tuple[str, Relay], given: dict[str, str], event_type: str
):
    done = report(job, STATUS="completed", CONCLUSION="success", NIGHTLY="b" * 40, UPSTREAM="org/nightlies", **given)
    assert json.loads(done.stdout)["status"] == "completed", done.stderr
    record = relay[1].store.record(f"org/backend/{'b' * 40}/CI/test (py3.12)/101")
    assert record
    assert (record["event_type"], record["pytorch_head_sha"]) == (event_type, "b" * 40)
    assert record["upstream_repo"] == "org/nightlies"


def test_a_nightly_began_when_the_runner_wrote_its_event(job: dict[str, str], relay: tuple[str, Relay]):
    os.utime(job["GITHUB_EVENT_PATH"], (1_777_000_000, 1_777_000_000))
    report(job, STATUS="completed", CONCLUSION="success", NIGHTLY="b" * 40)
    record = relay[1].store.record(f"org/backend/{'b' * 40}/CI/test (py3.12)/101")
    assert record
    assert record["started_at"] == "2026-04-24T03:06:40Z"


def test_another_ci_system_needs_no_more_than_the_script_says(
    job: dict[str, str], relay: tuple[str, Relay], issuer: OidcServer, tmp_path: Path
):
    dispatch = tmp_path / "dispatch.json"
    dispatch.write_text(json.dumps(json.loads(Path(job["GITHUB_EVENT_PATH"]).read_text())["client_payload"]))
    elsewhere = {"PATH": job["PATH"], "OOT_CALLBACK_URL": relay[0], "OOT_TOKEN": issuer.token("org/backend")}
    done = report(elsewhere, STATUS="in_progress", RUN_ID="42", JOB_NAME="gpu", DISPATCH=str(dispatch))
    assert json.loads(done.stdout)["status"] == "in_progress", done.stderr
    assert relay[1].store.record("org/backend/delivery-1/gpu/gpu/42-1")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"STATUS": "in_progress"}, "OOT_RUN_ID and OOT_JOB_NAME are needed"),
        ({"STATUS": "in_progress", "RUN_ID": "42", "JOB_NAME": "gpu"}, "no dispatch: set OOT_DISPATCH"),
        (
            {"STATUS": "completed", "CONCLUSION": "success", "RUN_ID": "42", "JOB_NAME": "gpu", "NIGHTLY": "b" * 40},
            "no identity: ",
        ),
    ],
)
def test_another_ci_system_is_told_what_it_did_not_say(job: dict[str, str], given: dict[str, str], says: str):
    done = report({name: job[name] for name in ("PATH", "OOT_CALLBACK_URL")}, **given)
    assert (done.returncode, done.stderr[: len(says)], done.stderr.count("\n")) == (0, says, 1)


def test_buildkite_is_asked_for_its_names_and_its_token(
    job: dict[str, str], relay: tuple[str, Relay], issuer: OidcServer, tmp_path: Path
):
    agent = tmp_path / "buildkite-agent"
    asked = "oidc request-token --audience pytorch-cross-repo-ci-relay"
    agent.write_text(f"#!/bin/sh\n[ \"$*\" = '{asked}' ] && echo {issuer.token('org/backend')}\n")
    agent.chmod(0o755)
    buildkite = {
        "PATH": f"{tmp_path}:{job['PATH']}",
        "BUILDKITE": "true",
        "BUILDKITE_BUILD_ID": "0190-build",
        "BUILDKITE_BUILD_URL": "https://buildkite.com/acme/ci/builds/1",
        "BUILDKITE_JOB_ID": "0190-job",
        "BUILDKITE_LABEL": ":linux: test",
        "BUILDKITE_PIPELINE_SLUG": "ci",
        "BUILDKITE_RETRY_COUNT": "1",
        "OOT_CALLBACK_URL": relay[0],
    }
    done = report(buildkite, STATUS="in_progress", DISPATCH=job["GITHUB_EVENT_PATH"])
    assert json.loads(done.stdout)["status"] == "in_progress", done.stderr
    record = relay[1].store.record("org/backend/delivery-1/ci/:linux: test/0190-job")
    assert record
    assert (record["run_id"], record["run_attempt"]) == ("0190-build", 2)
    assert record["workflow_run_url"] == buildkite["BUILDKITE_BUILD_URL"]


def test_a_run_in_which_everything_fails_is_cut_to_what_the_relay_takes(
    job: dict[str, str], relay: tuple[str, Relay], tmp_path: Path
):
    case = '<testcase name="test_{}"><failure message="{}">{}</failure></testcase>'
    cases = [case.format(n, "é" * 600, "€" * 2000) for n in range(1100)]
    (tmp_path / "junit.xml").write_text(f"<testsuite>{''.join(cases)}</testsuite>", encoding="utf-8")
    report(job, STATUS="in_progress")
    done = report(job, STATUS="completed", CONCLUSION="failure", FAILED_TESTS=str(tmp_path / "junit.xml"))
    assert json.loads(done.stdout)["status"] == "completed", done.stderr
    record = relay[1].store.record("org/backend/delivery-1/CI/test (py3.12)/101")
    assert record
    failed: list[dict[str, Any]] = json.loads(str(record["failed_tests_json"]))
    assert (record["failed_tests"], len(failed), failed[-1]["name"]) == (1100, 1000, "test_999")
    assert failed[0]["stacktrace"].endswith("…[cut]")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"CALLBACK_URL": "http://127.0.0.1:9/github/callback", "TIMEOUT": "1"}, "could not be told"),
        ({"CALLBACK_URL": "http://relay.example/github/callback"}, "https"),
        ({"CALLBACK_URL": "http://127.0.0.1.relay.example/github/callback"}, "https"),
        ({"STATUS": "done"}, "in_progress or completed"),
        ({"STATUS": "completed"}, "OOT_CONCLUSION"),
        ({"STATUS": "completed", "CONCLUSION": "success"}, "409"),
        ({"TOKEN": "forged"}, "401"),
        ({"ENVIRONMENT": "{", "STATUS": "in_progress"}, "not JSON"),
        ({"DISPATCH": __file__}, "OOT_DISPATCH"),
        ({"DISPATCH": "LIST"}, "no delivery_id"),
        ({"TIMEOUT": "soon"}, "OOT_TIMEOUT must be a number of seconds, not 'soon'"),
        ({"TIMEOUT": "0"}, "OOT_TIMEOUT"),
    ],
)
def test_what_goes_wrong_fails_the_job_only_if_asked(
    job: dict[str, str], wrong: dict[str, str], says: str, tmp_path: Path
):
    (tmp_path / "list.json").write_text("[1]")
    wrong = {name: value.replace("LIST", str(tmp_path / "list.json")) for name, value in wrong.items()}
    quiet = report(job, **{"STATUS": "in_progress", **wrong})
    assert (quiet.returncode, says in quiet.stderr) == (0, True), quiet.stderr
    assert quiet.stderr.startswith("::warning::")
    assert quiet.stderr.count("\n") == 1
    loud = report(job, **{"STATUS": "in_progress", "FAIL_ON_ERROR": "true", **wrong})
    assert (loud.returncode, loud.stderr) == (1, quiet.stderr.replace("::warning::", "::error::"))


class BusyRelay(Server):
    def handle(self, request: Request) -> Response:
        return Response(body={"ok": True, "status": "in_progress"})


def test_a_relay_that_is_down_for_a_moment_is_told_the_same_again(job: dict[str, str]):
    with BusyRelay() as busy:
        busy.fail("/github/callback", status=503, times=2)
        done = report(job, STATUS="in_progress", CALLBACK_URL=f"{busy.url}/github/callback")
        assert json.loads(done.stdout)["status"] == "in_progress", done.stderr
        assert len({request.body for request in busy.requests}) == 1
        assert len(busy.requests) == 3


@pytest.mark.parametrize("status", [409, 302])
def test_a_relay_that_says_no_or_sends_elsewhere_was_not_told(job: dict[str, str], status: int):
    with BusyRelay() as busy:
        busy.fail("/github/callback", status=status, headers={"Location": f"{busy.url}/login"})
        done = report(job, STATUS="in_progress", CALLBACK_URL=f"{busy.url}/github/callback")
        assert (done.stdout, f"the relay answered {status}" in done.stderr) == ("", True), done.stderr
        assert len(busy.requests) == 1


def test_what_is_sent_is_json_whatever_a_report_calls_a_time(job: dict[str, str], tmp_path: Path):
    junit = tmp_path / "junit.xml"
    junit.write_text('<testsuite><testcase name="a" time="nan"><failure/></testcase></testsuite>')
    with BusyRelay() as busy:
        url = f"{busy.url}/github/callback"
        report(job, STATUS="completed", CONCLUSION="failure", FAILED_TESTS=str(junit), CALLBACK_URL=url)
        [request] = busy.requests
    [test] = json.loads(request.body, parse_constant=pytest.fail)["workflow"]["failed_tests"]
    assert (test["name"], test["duration_seconds"]) == ("a", None)


def test_whoever_gives_no_identity_is_named(job: dict[str, str], issuer: OidcServer):
    with IdentityServer(issuer) as identity:
        identity.fail(status=403)
        job["ACTIONS_ID_TOKEN_REQUEST_URL"] = f"{identity.url}/token?api=1"
        done = report(job, STATUS="in_progress")
    assert (done.returncode, "no identity token" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n" * 9, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"])
def test_what_is_no_relay_costs_the_time_that_was_given_and_no_more(job: dict[str, str], answer: bytes):
    def drip() -> None:
        with suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connection.sendall(answer)
                for _ in range(30):
                    connection.sendall(b"x")
                    time.sleep(0.2)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/github/callback"
        began = time.monotonic()
        done = report(job, STATUS="in_progress", CALLBACK_URL=url, TIMEOUT="1")
    assert (done.returncode, "could not be told" in done.stderr) == (0, True), done.stderr
    assert time.monotonic() - began < 5


def test_a_relay_that_hangs_costs_the_time_that_was_given_and_no_more(job: dict[str, str]):
    with BusyRelay() as busy:
        busy.fail("/github/callback", delay=5.0, times=3)
        began = time.monotonic()
        done = report(job, STATUS="in_progress", CALLBACK_URL=f"{busy.url}/github/callback", TIMEOUT="1")
        assert (done.returncode, "could not be told" in done.stderr) == (0, True)
        assert time.monotonic() - began < 4


def test_every_input_of_the_action_reaches_the_script():
    action = yaml.safe_load((ACTION / "action.yml").read_text())
    env = action["runs"]["steps"][0]["env"]
    used = " ".join(env.values())
    assert [name for name in action["inputs"] if f"inputs.{name} " not in used] == []
    script = (ACTION / "report.py").read_text()
    read = [name.removeprefix("OOT_") for name in env]
    assert [name for name in read if f'"{name}"' not in script] == []
