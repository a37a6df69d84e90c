"""From a body to a record: each row of the protocol's tables, and what is cut, left out or refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.oot import Refused
from ci_pipeline.oot.lifecycle import Step
from ci_pipeline.oot.payload import Callback, CiMetrics, Trusted, cut, read_callback, read_results
from ci_pipeline.oot.record import FIELDS, Record, began_at, flatten, step
from ci_pipeline_tests.oot.conftest import ABSENT, callback

TRUSTED = Trusted(verified_repo="org/backend", downstream_repo_level="L2")


def read(body: dict[str, Any]) -> Callback:
    result = read_callback(json.dumps(body).encode())
    if isinstance(result, Refused):
        raise result
    return result


def record(body: dict[str, Any], trusted: Trusted = TRUSTED) -> Record:
    return flatten(trusted, read(body), "org/default-upstream")


def test_the_record_of_an_in_progress():
    assert record(callback("in_progress")) == {
        "dynamoKey": "org/backend/delivery-1/CI/test (py3.12, linux)/101",
        "status": "in_progress",
        "downstream_repo": "org/backend",
        "downstream_repo_level": "L2",
        "upstream_repo": "org/upstream",
        "event_type": "pull_request",
        "delivery_id": "delivery-1",
        "pr_number": 7,
        "pytorch_head_sha": "a" * 40,
        "workflow_name": "CI",
        "workflow_run_url": "https://github.com/org/backend/actions/runs/1",
        "job_name": "test (py3.12, linux)",
        "check_run_id": "101",
        "run_id": "1",
        "run_attempt": 1,
        "started_at": "2026-04-28T10:00:00Z",
    }


def test_the_record_of_a_completed():
    body = callback("completed", workflow__test_results={"passed": 10, "failed": 2, "skipped": 1})
    begun = record(callback("in_progress"))
    del begun["started_at"]
    assert record(body) == {
        **begun,
        "status": "completed",
        "conclusion": "success",
        "completed_at": "2026-04-28T10:30:00Z",
        "passed_tests": 10,
        "failed_tests": 2,
        "skipped_tests": 1,
        "total_tests": 13,
    }


NOT_SET = object()

RULES: list[tuple[dict[str, Any], str, Any]] = [
    # upstream_repo
    ({"payload__repository": ABSENT}, "upstream_repo", "org/default-upstream"),
    ({"payload__repository": {"full_name": None}}, "upstream_repo", "org/default-upstream"),
    ({"payload": None}, "upstream_repo", "org/default-upstream"),
    # pr_number
    ({"payload__pull_request": ABSENT}, "pr_number", 0),
    ({"payload__pull_request": None}, "pr_number", 0),
    ({"payload": ABSENT}, "pr_number", 0),
    # pr_author
    ({"payload__pull_request": {"number": 7, "user": {"login": "ann"}}}, "pr_author", "ann"),
    ({"payload__pull_request": {"number": 7, "user": None}}, "pr_author", NOT_SET),
    # pytorch_head_sha
    ({"payload__pull_request": None, "payload__head_sha": "b" * 40}, "pytorch_head_sha", "b" * 40),
    ({"payload__head_sha": "b" * 40}, "pytorch_head_sha", "a" * 40),
    ({"payload__pull_request": {"number": 7}}, "pytorch_head_sha", "delivery-1"),
    ({"payload": None}, "pytorch_head_sha", "delivery-1"),
    # identifiers become strings
    ({"workflow__check_run_id": 9007199254740993}, "check_run_id", "9007199254740993"),
    ({"workflow__check_run_id": "0190-uuid-1"}, "check_run_id", "0190-uuid-1"),
    ({"workflow__run_id": 12}, "run_id", "12"),
    ({"workflow__run_id": ABSENT}, "run_id", ""),
    ({"workflow__run_id": None}, "run_id", ""),
    ({"workflow__name": ABSENT}, "workflow_name", ""),
    ({"workflow__name": ABSENT, "workflow__job_name": "test"}, "dynamoKey", "org/backend/delivery-1//test/101"),
    ({"workflow__schema_version": 1}, "status", "in_progress"),
    # run_attempt
    ({"workflow__run_attempt": "3"}, "run_attempt", 3),
    ({"workflow__run_attempt": 3}, "run_attempt", 3),
    ({"workflow__run_attempt": ABSENT}, "run_attempt", 1),
    ({"workflow__run_attempt": None}, "run_attempt", 1),
    ({"workflow__run_attempt": "many"}, "run_attempt", 1),
    ({"workflow__run_attempt": 0}, "run_attempt", 1),
    ({"workflow__run_attempt": -4}, "run_attempt", 1),
    ({"workflow__run_attempt": 2**32}, "run_attempt", 1),
    ({"workflow__run_attempt": [2]}, "run_attempt", 1),
    # set when present
    ({"event_type": ABSENT}, "event_type", NOT_SET),
    ({"event_type": "push"}, "event_type", "push"),
    ({"workflow__started_at": None}, "started_at", NOT_SET),
    ({"workflow__started_at": ""}, "started_at", NOT_SET),
    ({"workflow__started_at": ABSENT}, "started_at", NOT_SET),
    ({"workflow__artifact_url": "https://a.example/x"}, "artifact_url", "https://a.example/x"),
    ({"workflow__artifact_url": None}, "artifact_url", NOT_SET),
    ({"workflow__artifact_url": ""}, "artifact_url", NOT_SET),
    ({"workflow__url": None}, "workflow_run_url", ""),
    # only on completed
    ({"workflow__conclusion": "success"}, "conclusion", NOT_SET),
    ({"workflow__completed_at": "2026-04-28T10:30:00Z"}, "completed_at", NOT_SET),
    ({"workflow__test_results": {"passed": 1}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__completed_at": None}, "completed_at", NOT_SET),
    ({"status": "completed", "workflow__conclusion": "timed_out"}, "conclusion", "timed_out"),
    # counts
    ({"status": "completed", "workflow__test_results": {"passed": 5, "total": 9}}, "total_tests", 9),
    ({"status": "completed", "workflow__test_results": {"passed": 5, "skipped": 2}}, "total_tests", 7),
    ({"status": "completed", "workflow__test_results": {"passed": 5}}, "failed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": "5"}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": True}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": -1}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": 1.5}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": 2**70}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": 10**400}}, "passed_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": 2**62, "failed": 2**62}}, "total_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": {"passed": 4.0}}, "passed_tests", 4),
    ({"status": "completed", "workflow__test_results": {"passed": 0}}, "passed_tests", 0),
    ({"status": "completed", "workflow__test_results": {}}, "total_tests", NOT_SET),
    ({"status": "completed", "workflow__test_results": None}, "total_tests", NOT_SET),
    # failed tests
    ({"workflow__failed_tests": None}, "failed_tests_json", NOT_SET),
    ({"workflow__failed_tests": []}, "failed_tests_json", "[]"),
    # environment
    ({"workflow__environment": {"python": "3.12"}}, "environment", '{"python": "3.12"}'),
    ({"workflow__environment": None}, "environment", NOT_SET),
    # kept out
    ({"workflow__downstream_repo": "org/victim", "downstream_repo": "org/victim"}, "downstream_repo", "org/backend"),
    ({"downstream_repo_level": "L4"}, "downstream_repo_level", "L2"),
    ({"workflow__queue_time": 5, "ci_metrics": {"queue_time": 5}}, "queue_time", NOT_SET),
]


@pytest.mark.parametrize(("changes", "field", "value"), RULES)
def test_each_rule_of_the_record(changes: dict[str, Any], field: str, value: Any):
    fields = record(callback(**changes))
    assert fields.get(field, NOT_SET) == value
    assert set(fields) <= set(FIELDS)
    assert all(type(fields[name]) is FIELDS[name] for name in fields)


def test_times_come_from_the_relay_and_null_is_not_set():
    trusted = Trusted(verified_repo="org/backend", ci_metrics=CiMetrics(queue_time=12.345))
    fields = record(callback(), trusted)
    assert fields["queue_time"] == 12.345
    assert "execution_time" not in fields
    assert "downstream_repo_level" not in fields


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"delivery_id": ABSENT}, "delivery_id"),
    ({"delivery_id": ""}, "delivery_id"),
    ({"delivery_id": None}, "delivery_id"),
    ({"delivery_id": "a/b"}, "delivery_id"),
    ({"delivery_id": "x" * 129}, "delivery_id"),
    ({"workflow": ABSENT}, "workflow"),
    ({"workflow": []}, "workflow"),
    ({"payload": "x"}, "payload"),
    ({"workflow__status": ABSENT}, "workflow.status"),
    ({"workflow__status": "queued"}, "workflow.status"),
    ({"workflow__status": None}, "workflow.status"),
    ({"workflow__name": "a\nb"}, "workflow.name"),
    ({"workflow__job_name": ABSENT}, "workflow.job_name"),
    ({"workflow__job_name": "  "}, "workflow.job_name"),
    ({"workflow__job_name": "a\nb"}, "workflow.job_name"),
    ({"workflow__job_name": "é" * 400}, "workflow.job_name"),
    ({"workflow__check_run_id": ABSENT}, "workflow.check_run_id"),
    ({"workflow__check_run_id": None}, "workflow.check_run_id"),
    ({"workflow__check_run_id": True}, "workflow.check_run_id"),
    ({"workflow__check_run_id": {}}, "workflow.check_run_id"),
    ({"workflow__check_run_id": 1.5}, "workflow.check_run_id"),
    ({"workflow__check_run_id": -1}, "workflow.check_run_id"),
    ({"workflow__check_run_id": 10**18}, "workflow.check_run_id"),
    ({"workflow__run_id": "a/b"}, "workflow.run_id"),
    ({"status": "completed", "workflow__conclusion": None}, "workflow.conclusion"),
    ({"status": "completed", "workflow__conclusion": ""}, "workflow.conclusion"),
    ({"status": "completed", "workflow__conclusion": ABSENT}, "workflow.conclusion"),
    ({"status": "completed", "workflow__conclusion": "great"}, "workflow.conclusion"),
    ({"workflow__started_at": "yesterday"}, "workflow.started_at"),
    ({"workflow__started_at": 5}, "workflow.started_at"),
    ({"workflow__started_at": "9999-01-01T00:00:00Z"}, "workflow.started_at"),
    ({"workflow__artifact_url": "http://a.example/x"}, "workflow.artifact_url"),
    ({"workflow__artifact_url": "javascript:alert(1)"}, "workflow.artifact_url"),
    ({"workflow__artifact_url": "https://"}, "workflow.artifact_url"),
    ({"workflow__artifact_url": 'https://a.example/"onclick=x'}, "workflow.artifact_url"),
    ({"workflow__artifact_url": "https://[oops"}, "workflow.artifact_url"),
    ({"workflow__url": "javascript:alert(1)"}, "workflow.url"),
    ({"workflow__url": "data:text/html,x"}, "workflow.url"),
    ({"workflow__test_results": [1]}, "workflow.test_results"),
    ({"workflow__failed_tests": {"name": "x"}}, "workflow.failed_tests"),
    ({"workflow__failed_tests": [{"name": "x"}, "y"]}, "workflow.failed_tests.1"),
    ({"workflow__environment": "x"}, "workflow.environment"),
    ({"workflow__environment": {"x": [float("nan")]}}, "workflow.environment"),
    ({"payload__pull_request": {"number": "x"}}, "payload.pull_request.number"),
    ({"payload__pull_request": {"number": -1}}, "payload.pull_request.number"),
    ({"payload__pull_request": {"number": True}}, "payload.pull_request.number"),
    ({"payload__pull_request": {"number": 2**63}}, "payload.pull_request.number"),
    ({"event_type": "nightly"}, "workflow.status"),
    ({"status": "completed", "event_type": "nightly"}, "payload.pull_request"),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED)
def test_a_wrong_field_is_refused_by_its_name(changes: dict[str, Any], field: str):
    with pytest.raises(Refused) as refused:
        read(callback(**changes))
    assert refused.value.status == 400
    assert refused.value.detail.startswith(f"{field}: ")
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"delivery_id": ""}, "delivery_id: must not be empty"),
        ({"delivery_id": "a/b"}, "delivery_id: must be at most 128 characters of ASCII, without / and .* blanks .*"),
        ({"workflow__job_name": " "}, "workflow.job_name: must not be empty"),
        ({"workflow__job_name": "é" * 351}, "workflow.job_name: must have at most 700 bytes"),
        ({"workflow__job_name": "a\nb"}, "workflow.job_name: must have no control characters"),
        ({"workflow__url": "ftp://x"}, "workflow.url: must be an https or http address"),
        ({"workflow__started_at": "1969-12-31"}, "workflow.started_at: must be an ISO 8601 time from 1970 to 2105"),
        ({"workflow__conclusion": "great"}, "workflow.conclusion: .*'success', .* or 'stale'"),
        ({"workflow__conclusion": ""}, "workflow.conclusion: is required when workflow.status is completed"),
        ({"event_type": "periodic"}, "payload.pull_request: a periodic report belongs to no pull request"),
    ],
)
def test_a_refusal_says_what_would_be_right(changes: dict[str, Any], line: str):
    with pytest.raises(Refused, match=f"^{line}$"):
        read(callback("completed", **changes))


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"x"', b"{", b'{"\\udcff":', b"\xff\xfe", b"[" * 100_000, b'["\\udcff",' + b"[" * 100_000],
)
def test_what_is_no_json_object_is_refused_at_once(body: bytes):
    with pytest.raises(Refused) as refused:
        read_callback(body)
    assert refused.value.status == 400


def test_failed_tests_are_kept_with_their_known_fields():
    tests = [
        {"name": "t1", "file": "a.py", "message": "boom", "stacktrace": "…", "duration_seconds": 1.5, "secret": "x"},
        {"name": "t2", "duration_seconds": "fast", "message": None},
        {"duration_seconds": 10**400},
    ]
    assert json.loads(str(record(callback(workflow__failed_tests=tests))["failed_tests_json"])) == [
        {"name": "t1", "file": "a.py", "message": "boom", "stacktrace": "…", "duration_seconds": 1.5},
        {"name": "t2", "file": "", "message": "", "stacktrace": "", "duration_seconds": None},
        {"name": "", "file": "", "message": "", "stacktrace": "", "duration_seconds": None},
    ]


def test_messages_and_stack_traces_are_cut_and_the_cut_is_marked():
    tests = [{"name": "t", "message": "é" * 1000, "stacktrace": "x" * 10_000}]
    [test] = json.loads(str(record(callback(workflow__failed_tests=tests))["failed_tests_json"]))
    assert len(test["message"].encode()) <= 1024
    assert test["message"].endswith("[cut, 2000 bytes]")
    assert len(test["stacktrace"].encode()) <= 4096
    assert test["stacktrace"].endswith("[cut, 10000 bytes]")


def test_a_message_of_exactly_its_limit_is_not_cut():
    [test] = json.loads(str(record(callback(workflow__failed_tests=[{"message": "x" * 1024}]))["failed_tests_json"]))
    assert test["message"] == "x" * 1024


def test_the_first_thousand_failed_tests_are_kept_and_the_rest_is_counted_without_a_look():
    tests = [*({"name": f"t{n}"} for n in range(1000)), *["whatever"] * 234]
    kept = json.loads(str(record(callback(workflow__failed_tests=tests))["failed_tests_json"]))
    assert [test["name"] for test in kept] == [f"t{n}" for n in range(1000)]
    assert kept[-1]["omitted"] == 234


def test_a_large_environment_is_cut_to_json_of_4_kb():
    environment = {f"VARIABLE_{n}": "é" * 100 for n in range(100)}
    text = str(record(callback(workflow__environment=environment))["environment"])
    kept = json.loads(text)
    assert len(text.encode()) <= 4096
    assert kept.pop("cut") == 100 - len(kept)
    assert kept == dict(list(environment.items())[: len(kept)])
    assert kept


def test_a_byte_that_was_no_utf_8_where_the_test_ran_does_not_cost_the_callback():
    body = callback(workflow__failed_tests=[{"name": "t\udcff", "message": "\U0001f525"}])
    [test] = json.loads(str(record(body)["failed_tests_json"]))
    assert test["name"] == "t?"
    assert test["message"] == "\U0001f525"


@given(st.text(), st.integers(40, 200))
def test_a_cut_keeps_its_limit(text: str, limit: int):
    cut_text = cut(text, limit)
    assert len(cut_text.encode()) <= limit
    assert cut_text == text or "[cut" in cut_text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
paths = sorted(
    [
        f"workflow__{name}"
        for name in (*callback()["workflow"], "test_results", "failed_tests", "environment", "artifact_url")
    ]
    + ["event_type", "delivery_id", "payload__pull_request", "payload__repository", "callback_token"]
)


@given(changes=st.dictionaries(st.sampled_from(paths), json_values, max_size=4))
def test_no_body_breaks_the_reader_and_every_record_keeps_its_types(changes: dict[str, Any]):
    with contextlib.suppress(Refused):
        fields = record(callback(**changes))
        assert set(fields) <= set(FIELDS)
        assert all(type(fields[name]) is FIELDS[name] for name in fields)
        assert len(str(fields["dynamoKey"]).encode()) <= 2048
        json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("said", "began"),
    [
        ({"started_at": "2026-04-28T10:00:00Z", "completed_at": "2026-04-28T10:30:00Z"}, "2026-04-28T10:00:00Z"),
        ({"completed_at": "2026-04-28T10:30:00Z"}, "2026-04-28T10:30:00Z"),
        ({}, "1970-01-01T00:16:40+00:00"),
    ],
)
def test_a_job_began_when_it_says_else_when_it_ended_else_when_it_was_heard_of(said: Record, began: str):
    assert began_at(said, 1000.0) == began


# --- what makes two callbacks the same -------------------------------------------------------------------------------


def told(body: dict[str, Any], trusted: Trusted = TRUSTED) -> Step:
    return step(read(body), record(body, trusted))


@pytest.mark.parametrize("body", [callback(workflow__run_id=1, unknown="x"), dict(reversed(callback().items()))])
def test_the_same_content_is_the_same_story_however_it_is_spelled(body: dict[str, Any]):
    assert told(body) == told(callback())


def test_a_retry_is_the_same_story_though_the_level_changed_meanwhile():
    assert told(callback(), Trusted(verified_repo="org/backend", downstream_repo_level="L4")) == told(callback())


@pytest.mark.parametrize(
    "changes",
    [
        {"workflow__conclusion": "failure"},
        {"workflow__test_results": {"passed": 1}},
        {"workflow__artifact_url": "https://a.example/x"},
        {"workflow__completed_at": "2026-04-28T11:00:00Z"},
    ],
)
def test_other_content_is_another_story_of_the_same_job(changes: dict[str, Any]):
    one, other = told(callback("completed")), told(callback("completed", **changes))
    assert one.job == other.job
    assert one.digest != other.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"workflow__run_attempt": "2"},
        {"workflow__check_run_id": "102"},
        {"workflow__job_name": "other"},
        {"workflow__run_id": "2"},
        {"delivery_id": "delivery-2"},
    ],
)
def test_another_execution_is_another_job(changes: dict[str, Any]):
    assert told(callback()).job != told(callback(**changes)).job


def test_the_job_of_another_repository_is_another_job():
    assert told(callback()).job != told(callback(), Trusted(verified_repo="org/other")).job


# --- relay → HUD -----------------------------------------------------------------------------------------------------


def results(**trusted: Any) -> bytes:
    return json.dumps(
        {
            "trusted": {"verified_repo": "org/backend", **trusted},
            "untrusted": {"callback_payload": callback("completed")},
        }
    ).encode()


def test_results_carry_what_the_relay_vouches_for():
    read = read_results(results(downstream_repo_level="L3", ci_metrics={"queue_time": None, "execution_time": 1782.0}))
    fields = flatten(read.trusted, read.untrusted.callback_payload, "org/default-upstream")
    assert fields["downstream_repo_level"] == "L3"
    assert fields["execution_time"] == 1782.0
    assert "queue_time" not in fields


def test_a_negative_time_of_another_relay_is_none_at_all():
    assert read_results(results(ci_metrics={"queue_time": -3.0})).trusted.ci_metrics.queue_time == 0.0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"untrusted": {"callback_payload": {}}}', "trusted"),
        (b'{"trusted": {"verified_repo": "org/backend"}}', "untrusted"),
        (b'{"trusted": {"verified_repo": ""}, "untrusted": {}}', "trusted.verified_repo"),
        (b'{"trusted": {"verified_repo": "org/a/b"}, "untrusted": {}}', "trusted.verified_repo"),
        (results(ci_metrics={"queue_time": "soon"}), "trusted.ci_metrics.queue_time"),
    ],
)
def test_results_that_are_wrong_are_refused_by_the_field(body: bytes, field: str):
    with pytest.raises(Refused) as refused:
        read_results(body)
    assert refused.value.status == 400
    assert refused.value.detail.startswith(f"{field}")
