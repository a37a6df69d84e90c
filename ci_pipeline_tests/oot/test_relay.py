"""The relay's routes: each gate with its status and its line, and what ends up in the store."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.types import Message

from ci_pipeline.hud.app import create_server
from ci_pipeline.hud.relay import create_relay
from ci_pipeline.oot import callback_token
from ci_pipeline.oot.dynamodb_store import DynamoDBStore
from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.relay import Relay
from ci_pipeline.oot.store import StoreUnavailable
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import OotSettings, SettingsError, load_oot_settings
from ci_pipeline_tests.oot.conftest import ABSENT, callback
from ci_pipeline_tests.servers.oidc import OidcServer

KEY = "org/backend/delivery-1/CI/test (py3.12, linux)/101"


def relay_of(client: TestClient) -> Relay:
    return client.app.state.relay  # pyright: ignore


def send(
    client: TestClient, issuer: OidcServer, body: Any, repo: str = "org/backend", **claims: Any
) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {issuer.token(repo, **claims)}"}
    return client.post("/github/callback", content=content, headers=headers)


@pytest.fixture
def dispatched(client: TestClient) -> TestClient:
    store = relay_of(client).store
    for repo in ("org/backend", "org/other"):
        store.register_dispatch(Dispatch("delivery-1", repo, 1000.0, pr_number=7, head_sha="a" * 40)).result()
    return client


def with_settings(settings: OotSettings, **changes: Any) -> TestClient:
    return TestClient(create_relay(settings.model_copy(update=changes), "org/upstream"))


# --- what goes through -----------------------------------------------------------------------------------------------


def test_a_job_reports_that_it_began_and_ended(dispatched: TestClient, issuer: OidcServer):
    begun = send(dispatched, issuer, callback("in_progress"))
    assert (begun.status_code, begun.json()) == (200, {"ok": True, "status": "in_progress"})
    ended = send(dispatched, issuer, callback("completed", workflow__test_results={"passed": 3, "failed": 0}))
    assert (ended.status_code, ended.json()) == (200, {"ok": True, "status": "completed"})
    record = relay_of(dispatched).store.record(KEY)
    assert record
    assert (record["status"], record["conclusion"], record["downstream_repo_level"]) == ("completed", "success", "L2")
    assert float(record["queue_time"]) > 0
    assert float(record["execution_time"]) >= 0
    assert record["started_at"] == "2026-04-28T10:00:00Z"
    assert record["total_tests"] == 3


def test_a_trailing_slash_may_be_there(dispatched: TestClient, issuer: OidcServer):
    headers = {"Authorization": f"Bearer {issuer.token()}"}
    assert dispatched.post("/github/callback/", json=callback(), headers=headers).status_code == 200


def test_a_retry_is_answered_like_the_first_time_also_after_the_end(dispatched: TestClient, issuer: OidcServer):
    first = send(dispatched, issuer, callback("in_progress"))
    assert send(dispatched, issuer, callback("in_progress")).json() == first.json()
    send(dispatched, issuer, callback("completed"))
    late = send(dispatched, issuer, callback("in_progress"))
    assert (late.status_code, late.json()) == (200, {"ok": True, "status": "in_progress"})
    assert relay_of(dispatched).store.record(KEY)["status"] == "completed"  # pyright: ignore


def test_another_story_about_the_same_step_is_refused(dispatched: TestClient, issuer: OidcServer):
    send(dispatched, issuer, callback("in_progress"))
    send(dispatched, issuer, callback("completed"))
    refused = send(dispatched, issuer, callback("completed", workflow__conclusion="failure"))
    assert refused.status_code == 409
    assert "already completed" in refused.json()["detail"]


def test_a_re_run_is_another_job(dispatched: TestClient, issuer: OidcServer):
    for attempt, check_run_id in (("1", "101"), ("2", "102")):
        changes = {"workflow__run_attempt": attempt, "workflow__check_run_id": check_run_id}
        assert send(dispatched, issuer, callback("in_progress", **changes)).status_code == 200
        assert send(dispatched, issuer, callback("completed", **changes)).status_code == 200
    rerun = relay_of(dispatched).store.record(KEY.replace("101", "102"))
    assert rerun
    assert "queue_time" not in rerun


def test_a_nightly_reports_once_and_without_a_dispatch(client: TestClient, issuer: OidcServer):
    nightly = callback(
        "completed",
        event_type="nightly",
        delivery_id="c" * 40,
        payload={"repository": {"full_name": "org/upstream"}, "head_sha": "c" * 40},
        workflow__started_at="2026-04-28T10:00:00Z",
    )
    assert send(client, issuer, nightly).json() == {"ok": True, "status": "completed"}
    [change] = relay_of(client).store.records()
    assert (change.record["pr_number"], change.record["pytorch_head_sha"]) == (0, "c" * 40)
    assert not {"queue_time", "execution_time"} & set(change.record)


def test_a_callback_that_does_not_say_what_repository_it_is_about_is_about_upstream(
    dispatched: TestClient, issuer: OidcServer
):
    assert send(dispatched, issuer, callback(payload={})).status_code == 200
    [change] = relay_of(dispatched).store.records()
    assert change.record["upstream_repo"] == "org/upstream"


def test_tokens_are_for_the_audience_of_the_deployment(settings: OotSettings, issuer: OidcServer):
    with with_settings(settings, oidc_audience="ours") as client:
        assert send(client, issuer, callback(), repo="org/watcher", aud="ours").status_code == 200
        assert send(client, issuer, callback(), repo="org/watcher").status_code == 401


def test_a_listed_repository_is_known_whatever_the_case_of_its_name(dispatched: TestClient, issuer: OidcServer):
    assert send(dispatched, issuer, callback(), repo="Org/Backend").status_code == 200
    assert relay_of(dispatched).store.record(KEY)


def test_l1_is_accepted_and_not_stored(client: TestClient, issuer: OidcServer):
    answer = send(client, issuer, callback(), repo="org/watcher")
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "status": "ignored"})
    assert list(relay_of(client).store.records()) == []
    assert send(client, issuer, callback(), repo="org/watcher", repository_id="2").status_code == 401


@pytest.mark.parametrize(("repo", "level"), [("org/device", "L3"), ("org/core", "L4")])
def test_the_level_comes_from_the_allowlist(client: TestClient, issuer: OidcServer, repo: str, level: str):
    relay_of(client).store.register_dispatch(Dispatch("delivery-1", repo, 1000.0)).result()
    assert send(client, issuer, callback(), repo=repo).status_code == 200
    [change] = relay_of(client).store.records()
    assert (change.record["downstream_repo"], change.record["downstream_repo_level"]) == (repo, level)


def test_the_body_cannot_speak_for_another_repository(dispatched: TestClient, issuer: OidcServer):
    body = callback(downstream_repo="org/victim", trusted={"verified_repo": "org/victim"})
    assert send(dispatched, issuer, body, repo="org/other").status_code == 200
    assert relay_of(dispatched).store.record(KEY.replace("org/backend", "org/other"))
    assert relay_of(dispatched).store.record(KEY) is None


# --- the gates -------------------------------------------------------------------------------------------------------


def test_the_gates_are_in_order(settings: OotSettings, issuer: OidcServer):
    """Each request fails at one gate and at every later one: the earlier answers."""
    with with_settings(settings, rate_limit_per_min=1) as client:
        bad = callback(workflow__status="queued", callback_token="forged")
        large = json.dumps(bad | {"filler": "x" * 2**21}).encode()
        anonymous = {"Authorization": "Bearer x"}
        assert client.post("/github/callback", content=large, headers=anonymous).status_code == 413
        assert client.post("/github/callback", content=b"[]", headers=anonymous).status_code == 400
        assert client.post("/github/callback", json=bad, headers=anonymous).status_code == 401
        assert send(client, issuer, bad, repo="org/unknown").status_code == 403
        assert send(client, issuer, bad, repo="org/watcher").json()["status"] == "ignored"
        assert send(client, issuer, bad).status_code == 400
        assert send(client, issuer, bad).status_code == 429


def test_every_error_is_one_clear_line(client: TestClient, issuer: OidcServer):
    answers = [
        client.post("/github/callback", json=callback()),
        send(client, issuer, b"[]"),
        send(client, issuer, callback(), repo="org/unknown"),
        send(client, issuer, callback(workflow__job_name=ABSENT)),
        send(client, issuer, callback()),
    ]
    assert [answer.status_code for answer in answers] == [401, 400, 403, 400, 409]
    details = [answer.json()["detail"] for answer in answers]
    assert details[0].startswith("send `Authorization: Bearer")
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"
    assert details[2] == "org/unknown is not on the allowlist"
    assert details[3].startswith("workflow.job_name: ")
    assert details[4].startswith("delivery delivery-1 was not dispatched to org/backend")
    assert all("\n" not in detail for detail in details)


def test_a_body_just_below_the_limit_is_taken_and_one_above_is_not(dispatched: TestClient, issuer: OidcServer):
    body = json.dumps(callback()).encode()
    assert send(dispatched, issuer, body.ljust(2 * 2**20)).status_code == 200
    assert send(dispatched, issuer, body.ljust(2 * 2**20 + 1)).status_code == 413


def test_a_body_without_a_length_is_read_no_further_than_the_limit(client: TestClient):
    read: list[int] = []
    sent: list[Message] = []

    async def receive() -> Message:
        read.append(2**17)
        return {"type": "http.request", "body": b" " * 2**17, "more_body": len(read) < 1000}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/github/callback", "query_string": b"", "headers": []}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert sum(read) == 2 * 2**20 + 2**17


def test_the_rate_limit_says_when_to_come_back(settings: OotSettings, issuer: OidcServer):
    with with_settings(settings, rate_limit_per_min=2) as client:
        assert [send(client, issuer, callback()).status_code for _ in range(3)] == [409, 409, 429]
        refused = send(client, issuer, callback())
        assert 30 <= int(refused.headers["Retry-After"]) <= 60
        assert send(client, issuer, callback(), repo="org/other").status_code == 409


def test_many_equal_callbacks_at_once_are_one_transition(dispatched: TestClient, issuer: OidcServer):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(dispatched, issuer, callback()), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    [change] = relay_of(dispatched).store.records()
    assert change.version == 1


def test_a_name_that_somebody_else_claimed_is_refused_until_confirmed(dispatched: TestClient, issuer: OidcServer):
    assert send(dispatched, issuer, callback(), repository_id="1").status_code == 200
    for spelling in ("org/backend", "org/backend", "Org/Backend"):
        refused = send(dispatched, issuer, callback(workflow__check_run_id="666"), spelling, repository_id="2")
        assert refused.status_code == 401
        assert "an operator must confirm" in refused.json()["detail"]
    relay_of(dispatched).store.confirm_repository("org/backend", "2").result()
    assert send(dispatched, issuer, callback(workflow__check_run_id="102"), repository_id="2").status_code == 200
    assert send(dispatched, issuer, callback(workflow__check_run_id="103"), repository_id="1").status_code == 401


def test_an_issuer_that_knows_no_ids_is_believed_without(dispatched: TestClient, issuer: OidcServer):
    for repository_id in ("1", None):
        assert send(dispatched, issuer, callback(), repository_id=repository_id).status_code == 200


def test_a_pull_request_that_was_not_dispatched_is_refused(dispatched: TestClient, issuer: OidcServer):
    assert send(dispatched, issuer, callback(payload__pull_request={"number": 8})).status_code == 403


def test_a_store_that_does_not_answer_is_a_503_and_not_an_acknowledgement(
    dispatched: TestClient, issuer: OidcServer, caplog: pytest.LogCaptureFixture
):
    relay_of(dispatched).store.close()
    answer = send(dispatched, issuer, callback())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert "closed" not in answer.json()["detail"]  # the detail is for the log
    assert "closed" in caplog.text


# --- the signed token ------------------------------------------------------------------------------------------------

DISPATCH = Dispatch("delivery-1", "org/backend", 1e10, pr_number=7, head_sha="a" * 40)


def minted(client: TestClient, dispatch: Dispatch = DISPATCH, key: str = "") -> str:
    return callback_token.mint(dispatch, key or relay_of(client).store.signing_key().result(), 3.0)


def test_a_token_of_the_dispatch_is_good_for_all_its_jobs(dispatched: TestClient, issuer: OidcServer):
    token = minted(dispatched)
    for check_run_id in ("101", "102"):
        for status in ("in_progress", "completed"):
            body = callback(status, callback_token=token, workflow__check_run_id=check_run_id)
            assert send(dispatched, issuer, body).status_code == 200


def test_a_token_is_consumed_by_completed(dispatched: TestClient, issuer: OidcServer):
    token = minted(dispatched)
    send(dispatched, issuer, callback("in_progress", callback_token=token))
    send(dispatched, issuer, callback("completed", callback_token=token))
    again = callback("completed", callback_token=token, workflow__conclusion="failure")
    assert send(dispatched, issuer, again).status_code == 409


@pytest.mark.parametrize(
    "changes",
    [
        {"delivery_id": "delivery-2"},
        {"repo": "org/other"},
        {"pr_number": 8},
        {"pr_number": 0},  # a push
        {"head_sha": "b" * 40},
        {"dispatched_at": 1000.0},  # too long ago
    ],
)
def test_a_token_of_something_else_is_refused(dispatched: TestClient, issuer: OidcServer, changes: dict[str, Any]):
    body = callback(callback_token=minted(dispatched, replace(DISPATCH, **changes)))
    refused = send(dispatched, issuer, body)
    assert refused.status_code == 403
    assert "callback_token" in refused.json()["detail"]


@pytest.mark.parametrize("changes", [{"repo": "Org/Backend"}, {"pr_number": None}, {"head_sha": ""}])
def test_a_token_holds_nobody_to_what_its_dispatch_did_not_know(
    dispatched: TestClient, issuer: OidcServer, changes: dict[str, Any]
):
    body = callback(callback_token=minted(dispatched, replace(DISPATCH, **changes)))
    assert send(dispatched, issuer, body).status_code == 200


def test_a_callback_with_a_token_need_not_say_what_it_is_about(dispatched: TestClient, issuer: OidcServer):
    assert send(dispatched, issuer, callback(callback_token=minted(dispatched), payload={})).status_code == 200


@pytest.mark.parametrize(("days_ago", "status"), [(2.9, 200), (3.1, 403)])
def test_a_token_is_good_for_as_many_days_as_it_was_minted_for(
    dispatched: TestClient, issuer: OidcServer, days_ago: float, status: int
):
    told = replace(DISPATCH, dispatched_at=time.time() - days_ago * 86400)
    assert send(dispatched, issuer, callback(callback_token=minted(dispatched, told))).status_code == status


def test_a_token_that_we_did_not_sign_is_refused(dispatched: TestClient, issuer: OidcServer):
    for token in ("x", minted(dispatched, key="0" * 64), issuer.token()):
        assert send(dispatched, issuer, callback(callback_token=token)).status_code == 403


def test_with_required_a_callback_without_a_token_is_refused_and_a_nightly_is_not(
    settings: OotSettings, issuer: OidcServer
):
    with with_settings(settings, callback_token="required") as client:
        refused = send(client, issuer, callback())
        assert (refused.status_code, "callback_token" in refused.json()["detail"]) == (403, True)
        nightly = callback("completed", event_type="nightly", payload={})
        assert send(client, issuer, nightly).status_code == 200


def test_with_off_a_token_is_not_looked_at(settings: OotSettings, issuer: OidcServer):
    with with_settings(settings, callback_token="off") as client:
        relay_of(client).store.register_dispatch(DISPATCH).result()
        assert send(client, issuer, callback(callback_token="whatever")).status_code == 200


# --- the HUD API -----------------------------------------------------------------------------------------------------

RESULTS = {
    "trusted": {"verified_repo": "org/backend", "downstream_repo_level": "L2", "ci_metrics": {"queue_time": 12.345}},
    "untrusted": {"callback_payload": callback("in_progress")},
}


def post_results(client: TestClient, body: Any = RESULTS, token: str = "relay-token-1") -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/api/oot/results", content=content, headers={"X-OOT-Relay-Token": token})


def test_results_of_a_relay_are_written(client: TestClient):
    answer = post_results(client)
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "status": "in_progress", "dynamoKey": KEY})
    record = relay_of(client).store.record(KEY)
    assert record
    assert record["queue_time"] == 12.345


@pytest.mark.parametrize("token", ["relay-token-1", "relay-token-2"])
def test_two_tokens_are_valid_while_one_replaces_the_other(client: TestClient, token: str):
    assert post_results(client, token=token).status_code == 200


@pytest.mark.parametrize("token", ["", "relay-token-3", "relay-token-1,relay-token-2", "é"])
def test_another_token_is_not(client: TestClient, token: str):
    content = json.dumps(RESULTS)
    headers = {"X-OOT-Relay-Token": token.encode()}
    assert client.post("/api/oot/results", content=content, headers=headers).status_code == 401
    assert list(relay_of(client).store.records()) == []


def test_without_tokens_nobody_may_write(settings: OotSettings):
    unset = load_oot_settings(CI_PIPELINE_HOME=settings.home)
    with TestClient(create_relay(unset, "org/upstream")) as client:
        assert post_results(client, token="").status_code == 401
        assert client.post("/api/oot/results", json=RESULTS).status_code == 401


def test_the_hud_answers_405_413_and_400(client: TestClient):
    assert client.get("/api/oot/results").status_code == 405
    assert post_results(client, json.dumps(RESULTS).encode().ljust(2 * 2**20 + 1)).status_code == 413
    assert post_results(client, b"nonsense").status_code == 400
    body = json.loads(json.dumps(RESULTS))
    del body["untrusted"]["callback_payload"]["workflow"]["job_name"]
    answer = post_results(client, body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("untrusted.callback_payload.workflow.job_name: ")


def test_the_routes_are_documented_and_their_schemas_complete(client: TestClient):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/github/callback", "/github/webhook", "/api/oot/results"}
    body = document["paths"]["/github/callback"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "job_name" in body["properties"]["workflow"]["properties"]
    assert "$ref" not in json.dumps(body)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CI_PIPELINE_OIDC_ISSUERS", "nonsense", "must be JSON"),
        ("CI_PIPELINE_OIDC_ISSUERS", '[{"issuer": "http://evil.example"}]', "must be an https address"),
        ("CI_PIPELINE_OIDC_ISSUERS", '[{"issuer": "https://a", "jwks_uri": "http://b/x"}]', "must be an https address"),
        ("CI_PIPELINE_OIDC_ISSUERS", '[{"issuer": "https://a", "kind": "gitlab"}]', "'github' or 'buildkite'"),
        ("CI_PIPELINE_OIDC_ISSUERS", '[{"kind": "github"}]', "required"),
        ("CI_PIPELINE_HUD_URL", "hud.example", "must be an http(s) address"),
        ("CI_PIPELINE_RATE_LIMIT_PER_MIN", "-1", "greater than or equal to 0"),
        ("CI_PIPELINE_CALLBACK_TOKEN", "maybe", "'off', 'optional' or 'required'"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_variable(variable: str, value: str, reason: str):
    with pytest.raises(SettingsError) as error:
        load_oot_settings(**{variable: value})
    assert str(error.value).startswith(variable)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_one_issuer_needs_no_list_and_its_keys_are_where_the_standard_says():
    settings = load_oot_settings(CI_PIPELINE_OIDC_ISSUERS='{"issuer": "https://ghes.example/_services/token"}')
    [issuer] = settings.oidc_issuers
    assert issuer.jwks_uri == "https://ghes.example/_services/token/.well-known/jwks"


def test_a_wrong_allowlist_stops_the_start_with_its_line(tmp_path: Path):
    (tmp_path / "allowlist.yml").write_text("L2:\n- org\n")
    settings = load_oot_settings(CI_PIPELINE_HOME=tmp_path, CI_PIPELINE_OOT_ALLOWLIST=str(tmp_path / "allowlist.yml"))
    with pytest.raises(SettingsError, match=r"CI_PIPELINE_OOT_ALLOWLIST: .*allowlist\.yml line 2"):  # noqa: SIM117
        with TestClient(create_relay(settings, "org/upstream")):
            pass


def test_what_is_wrong_is_said_before_a_server_starts(tmp_path: Path):
    settings = load_oot_settings(CI_PIPELINE_HOME=tmp_path, CI_PIPELINE_OOT_ALLOWLIST=str(tmp_path / "none.yml"))
    with pytest.raises(SettingsError, match=r"^CI_PIPELINE_OOT_ALLOWLIST: .*none\.yml: No such file or directory$"):
        create_relay(settings, "org/upstream")


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"oot_store": "dynamodb://us-east-1/x"}, "CI_PIPELINE_HUD_URL"),
        ({"relay_token_list": SecretStr(" , ")}, "CI_PIPELINE_RELAY_TOKENS"),
    ],
)
def test_a_hud_elsewhere_needs_a_disk_for_what_it_is_owed_and_a_token(
    settings: OotSettings, changes: dict[str, Any], variable: str
):
    changed = settings.model_copy(update={"hud_url": "http://127.0.0.1:9", **changes})
    with pytest.raises(SettingsError, match=f"^{variable}: "):
        create_relay(changed, "org/upstream")


def test_a_closed_store_is_unavailable(client: TestClient):
    relay_of(client).store.close()
    with pytest.raises(StoreUnavailable):
        relay_of(client).store.record("x")


@pytest.mark.parametrize("kind", ["sqlite", "dynamodb"])
def test_a_relay_is_ready_when_its_store_answers(
    settings: OotSettings, dynamodb_store: DynamoDBStore, dynamodb_url: str, kind: str
):
    url = f"dynamodb://us-east-1/{dynamodb_store.table}?endpoint_url={dynamodb_url}" if kind == "dynamodb" else ""
    changed = settings.model_copy(update={"oot_store": url})
    with TestClient(create_server(changed, load_profile("pytorch"), pages=False)) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
