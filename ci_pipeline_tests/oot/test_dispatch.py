"""Webhooks of the upstream repository become dispatches, and dispatches let callbacks in."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ci_pipeline.hud.relay import create_relay
from ci_pipeline.oot import dispatch
from ci_pipeline.oot.dispatch import CLIENT_PAYLOAD_BYTES, trimmed
from ci_pipeline.settings import OotSettings, SettingsError
from ci_pipeline_tests.oot.conftest import callback
from ci_pipeline_tests.oot.test_relay import relay_of, send
from ci_pipeline_tests.servers.github_app import GitHubAppServer
from ci_pipeline_tests.servers.oidc import OidcServer

SECRET = "webhook-secret"
EVERYBODY = {"org/watcher", "org/backend", "org/other", "org/device", "org/core"}


def pull_request(**changes: Any) -> dict[str, Any]:
    return {
        "action": "synchronize",
        "number": 7,
        "pull_request": {
            "number": 7,
            "title": "A title",
            "body": "A body",
            "head": {"sha": "a" * 40, "ref": "topic", "repo": {"full_name": "fork/upstream"}},
            "base": {"sha": "b" * 40, "ref": "main", "repo": {"full_name": "org/upstream"}},
            "labels": [{"name": "ciflow/oot", "color": "red"}],
            "user": {"login": "ann"},
        },
        "repository": {"full_name": "org/upstream", "html_url": "https://github.com/org/upstream"},
        "sender": {"login": "ann"},
        **changes,
    }


@pytest.fixture
def github() -> Iterator[GitHubAppServer]:
    with GitHubAppServer() as server:
        yield server


@pytest.fixture
def client(settings: OotSettings, github: GitHubAppServer) -> Iterator[TestClient]:
    app = {
        "github_api_url": github.url,
        "github_app_id": github.app_id,
        "github_app_private_key": SecretStr(github.private_key.replace("\n", "\\n")),  # as environments carry it
        "github_webhook_secret": SecretStr(SECRET),
    }
    changed = settings.model_copy(update={**app, "callback_token": "required"})
    with TestClient(create_relay(changed, "org/upstream")) as client:
        yield client


def webhook(
    client: TestClient,
    payload: Any,
    event: str = "pull_request",
    signature: str | None = None,
    delivery_id: str = "delivery-1",
) -> httpx2.Response:
    body = json.dumps(payload).encode()
    signed = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery_id,
        "X-Hub-Signature-256": signed if signature is None else signature,
    }
    return client.post("/github/webhook", content=body, headers=headers)


def test_every_listed_repository_is_told_and_its_callbacks_are_taken(
    client: TestClient, github: GitHubAppServer, issuer: OidcServer
):
    answer = webhook(client, pull_request())
    assert answer.status_code == 200
    assert set(answer.json()["dispatched"]) == EVERYBODY
    assert answer.json()["failed"] == {}
    sent = github.dispatched["org/backend"]
    assert sent["event_type"] == "pull_request"
    envelope = sent["client_payload"]
    assert (envelope["event_type"], envelope["delivery_id"]) == ("pull_request", "delivery-1")
    assert envelope["payload"] == pull_request()

    begun = callback("in_progress", **envelope)
    assert send(client, issuer, begun).json() == {"ok": True, "status": "in_progress"}
    [change] = relay_of(client).store.records()
    assert (change.record["pr_number"], change.record["pytorch_head_sha"]) == (7, "a" * 40)
    # The token of one backend is of no use to another.
    assert send(client, issuer, begun, repo="org/other").status_code == 403


def test_a_push_is_dispatched_without_a_pull_request(client: TestClient, github: GitHubAppServer, issuer: OidcServer):
    push = {"ref": "refs/heads/main", "after": "c" * 40, "repository": {"full_name": "org/upstream"}}
    assert set(webhook(client, push, "push").json()["dispatched"]) == EVERYBODY
    envelope = github.dispatched["org/backend"]["client_payload"]
    assert send(client, issuer, callback("in_progress", **envelope)).status_code == 200
    stolen = {**envelope, "payload": pull_request()}
    changes = {"workflow__check_run_id": "666"}
    assert send(client, issuer, callback("in_progress", **stolen, **changes)).status_code == 403


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("ping", {"zen": "x", "repository": {"full_name": "org/upstream"}}),
        ("pull_request", pull_request(action="labeled")),
        ("pull_request", pull_request(repository={"full_name": "org/backend"})),
        ("push", {"deleted": True, "after": "0" * 40, "repository": {"full_name": "org/upstream"}}),
        ("push", {"after": "c" * 40, "repository": {"full_name": "org/backend"}}),
        ("issues", {}),
    ],
)
def test_other_events_and_other_repositories_start_nothing(
    client: TestClient, github: GitHubAppServer, event: str, payload: dict[str, Any]
):
    answer = webhook(client, payload, event)
    assert (answer.status_code, answer.json()["dispatched"]) == (200, [])
    assert github.requests == []


@pytest.mark.parametrize("signature", ["", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "sha256=é"])
def test_a_webhook_with_a_wrong_signature_is_refused(client: TestClient, github: GitHubAppServer, signature: str):
    body = json.dumps(pull_request()).encode()
    headers = {"X-GitHub-Event": "pull_request", "X-Hub-Signature-256": signature.encode()}
    assert client.post("/github/webhook", content=body, headers=headers).status_code == 401  # pyright: ignore
    assert github.requests == []


def test_one_repository_that_cannot_be_told_holds_up_no_other(client: TestClient, github: GitHubAppServer):
    github.missing = {"org/other"}
    answer = webhook(client, pull_request())
    assert answer.status_code == 200
    assert set(answer.json()["dispatched"]) == EVERYBODY - {"org/other"}
    assert "Not Found" in answer.json()["failed"]["org/other"]


def test_a_delivery_that_comes_again_is_for_those_that_missed_it(
    client: TestClient, github: GitHubAppServer, issuer: OidcServer
):
    github.missing = {"org/other", "org/core"}
    first = webhook(client, pull_request()).json()
    assert (set(first["failed"]), first["already_dispatched"]) == ({"org/other", "org/core"}, [])
    token = github.dispatched["org/backend"]["client_payload"]["callback_token"]

    github.missing = {"org/core"}
    github.dispatched.clear()
    again = webhook(client, pull_request())
    assert again.status_code == 200
    assert again.json()["dispatched"] == ["org/other"]
    assert set(again.json()["already_dispatched"]) == EVERYBODY - {"org/other", "org/core"}
    assert set(again.json()["failed"]) == {"org/core"}
    assert set(github.dispatched) == {"org/other"}

    # What the first delivery brought is still good.
    assert send(client, issuer, callback("in_progress", callback_token=token)).status_code == 200


def test_a_delivery_that_everybody_has_is_answered_and_sent_to_nobody(client: TestClient, github: GitHubAppServer):
    webhook(client, pull_request())
    before = len(github.requests)
    again = webhook(client, pull_request())
    assert (again.status_code, again.json()["dispatched"], again.json()["failed"]) == (200, [], {})
    assert set(again.json()["already_dispatched"]) == EVERYBODY
    assert len(github.requests) == before


@pytest.mark.parametrize("delivery_id", ["", "a/b", "x" * 129])
def test_a_delivery_that_no_callback_could_name_is_refused(
    client: TestClient, github: GitHubAppServer, delivery_id: str
):
    assert webhook(client, pull_request(), delivery_id=delivery_id).status_code == 400
    assert github.requests == []


def test_of_two_deliveries_at_once_a_repository_hears_once(client: TestClient, github: GitHubAppServer):
    # GitHub gives an event one id, and sends it to the App and to the repository's own webhook.
    github.fail(path="/dispatches", status=204, delay=0.3, times=len(EVERYBODY))
    with ThreadPoolExecutor(2) as pool:
        answers = [answer.json() for answer in pool.map(lambda _: webhook(client, pull_request()), range(2))]
    assert sorted(repo for answer in answers for repo in answer["dispatched"]) == sorted(EVERYBODY)
    assert sorted(repo for answer in answers for repo in answer["already_dispatched"]) == sorted(EVERYBODY)
    assert sum(request.path.endswith("/dispatches") for request in github.requests) == len(EVERYBODY)


def test_when_nobody_can_be_told_the_delivery_fails_and_says_why_for_each(client: TestClient, github: GitHubAppServer):
    github.missing = EVERYBODY
    answer = webhook(client, pull_request())
    assert answer.status_code == 502
    for repo in EVERYBODY:
        assert f"{repo}: Not Found: is the App installed there?" in answer.json()["detail"]


def test_a_repository_that_was_renamed_is_told_to_the_operator(client: TestClient, github: GitHubAppServer):
    github.fail(path="org/other/installation", status=301, body={"message": "Moved Permanently"})
    assert "put its new name on the allowlist" in webhook(client, pull_request()).json()["failed"]["org/other"]


def test_a_repository_that_takes_too_long_is_one_line(
    client: TestClient, github: GitHubAppServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(dispatch, "_PATIENCE", 1.0)
    github.fail(path="org/other/dispatches", status=204, delay=1.5)
    assert webhook(client, pull_request()).json()["failed"] == {"org/other": "GitHub took longer than 1 s"}
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("fault", [{"status": 502}, {"status": 200, "cut": True}])
def test_a_hiccup_of_github_is_tried_again_and_not_for_ever(
    client: TestClient, github: GitHubAppServer, fault: dict[str, Any]
):
    github.fail(path="org/core/dispatches", times=2, **fault)
    github.fail(path="org/other/dispatches", times=3, **fault)
    answer = webhook(client, pull_request()).json()
    assert (set(answer["dispatched"]), set(answer["failed"])) == (EVERYBODY - {"org/other"}, {"org/other"})


@pytest.mark.parametrize(("status", "headers"), [(429, {}), (429, {"Retry-After": "1"}), (403, {"Retry-After": "1"})])
def test_a_moment_that_github_asks_for_is_waited(
    client: TestClient, github: GitHubAppServer, status: int, headers: dict[str, str]
):
    github.fail(path="org/other/dispatches", status=status, headers=headers)
    start = time.monotonic()
    assert set(webhook(client, pull_request()).json()["dispatched"]) == EVERYBODY
    assert not headers or time.monotonic() - start > 1


def test_a_minute_that_github_asks_for_is_not_waited(client: TestClient, github: GitHubAppServer):
    github.fail(path="org/other/dispatches", status=429, headers={"Retry-After": "60"}, body={"message": "slow down"})
    assert "slow down" in webhook(client, pull_request()).json()["failed"]["org/other"]


def test_a_token_that_was_withdrawn_is_asked_for_anew(client: TestClient, github: GitHubAppServer):
    webhook(client, pull_request())
    github.fail(path="org/other/dispatches", status=401)
    before = len(github.requests)
    assert set(webhook(client, pull_request(), delivery_id="delivery-2").json()["dispatched"]) == EVERYBODY
    assert sum("access_tokens" in request.path for request in github.requests[before:]) == 1


def test_a_token_that_does_not_say_how_long_it_is_good_is_used_once(client: TestClient, github: GitHubAppServer):
    github.fail(path="access_tokens", status=201, body={"token": "installation-99"}, times=2 * len(EVERYBODY))
    for delivery_id in ("delivery-1", "delivery-2"):
        assert set(webhook(client, pull_request(), delivery_id=delivery_id).json()["dispatched"]) == EVERYBODY
    assert len(github.requests) == 2 * 3 * len(EVERYBODY)


def test_all_that_an_event_needs_of_github_takes_few_connections(client: TestClient, github: GitHubAppServer):
    webhook(client, pull_request())
    assert len(github.requests) == 3 * len(EVERYBODY)
    assert github.connections <= len(EVERYBODY)


def test_tokens_of_installations_are_kept(client: TestClient, github: GitHubAppServer):
    webhook(client, pull_request())
    before = len(github.requests)
    webhook(client, pull_request(), delivery_id="delivery-2")
    assert len(github.requests) - before == len(EVERYBODY)


def test_an_event_without_its_sha_is_refused(client: TestClient):
    assert webhook(client, pull_request(pull_request={"number": 7})).status_code == 400
    assert webhook(client, ["x"]).status_code == 400


@pytest.mark.parametrize(
    ("body", "said"), [(b"payload=%7B%7D", "application/json"), (b"{", "not JSON"), (b"[" * 100_000, "not JSON")]
)
def test_a_webhook_that_is_no_json_is_told_so(client: TestClient, body: bytes, said: str):
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": signature, "X-GitHub-Event": "push", "X-GitHub-Delivery": "delivery-1"}
    answer = client.post("/github/webhook", content=body, headers=headers)
    assert (answer.status_code, said in answer.json()["detail"]) == (400, True)


def test_without_a_secret_no_webhook_is_believed(settings: OotSettings):
    with TestClient(create_relay(settings, "org/upstream")) as client:
        answer = webhook(client, pull_request())
        assert answer.status_code == 401
        assert "GITHUB_WEBHOOK_SECRET" in answer.json()["detail"]


def public(key: str) -> str:
    """The other half of a private key, as people take it for the one they were asked for."""
    half = load_pem_private_key(key.encode(), None).public_key()
    return half.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize("secret", [lambda _: "my secret", public], ids=["no key", "public key"])
def test_a_key_that_is_none_is_one_line_before_the_start(
    settings: OotSettings, github: GitHubAppServer, secret: Callable[[str], str]
):
    app = {"github_app_id": "1", "github_app_private_key": SecretStr(secret(github.private_key))}
    with pytest.raises(SettingsError, match=r"^GITHUB_APP_PRIVATE_KEY: must be the App's private key, a PEM text$"):
        create_relay(settings.model_copy(update=app), "org/upstream")


@pytest.mark.parametrize("half", [{}, {"github_app_id": "1"}])
def test_without_an_app_a_webhook_of_github_is_to_be_sent_again(settings: OotSettings, half: dict[str, str]):
    changed = settings.model_copy(update={"github_webhook_secret": SecretStr(SECRET), **half})
    with TestClient(create_relay(changed, "org/upstream")) as client:
        answer = webhook(client, pull_request())
        assert answer.status_code == 503
        assert "GITHUB_APP_ID" in answer.json()["detail"]


def test_a_large_payload_is_sent_without_its_long_texts(client: TestClient, github: GitHubAppServer):
    large = pull_request()
    large["pull_request"]["body"] = "x" * 100_000
    assert set(webhook(client, large).json()["dispatched"]) == EVERYBODY
    sent = github.dispatched["org/core"]["client_payload"]["payload"]
    assert sent["pull_request"]["labels"] == large["pull_request"]["labels"]
    assert sent["pull_request"]["body"].endswith("[cut, 100000 bytes]")


def test_a_large_push_is_sent_without_its_commits():
    push = {"ref": "refs/heads/main", "after": "c" * 40, "pusher": {"name": "ann"}}
    assert trimmed({**push, "commits": [{"message": "x" * 1000}] * 100, "organization": {"login": "org"}}) == push


def test_of_what_is_too_large_without_its_texts_a_ci_run_gets_what_it_is_about():
    essence = pull_request()
    del essence["pull_request"]["body"], essence["pull_request"]["labels"][0]["color"]
    assert trimmed(pull_request(filler="x" * 100_000)) == essence


@given(filler=st.integers(0, 200_000), labels=st.integers(0, 300), body=st.text(max_size=100))
def test_what_is_sent_fits_and_keeps_what_a_ci_run_is_about(filler: int, labels: int, body: str):
    payload = pull_request(filler="x" * filler)
    payload["pull_request"] |= {"body": body, "labels": [{"name": f"label-{n}" * 5} for n in range(labels)]}
    kept = trimmed(payload)
    assert len(json.dumps(kept).encode()) <= CLIENT_PAYLOAD_BYTES
    assert kept["pull_request"]["number"] == 7
    assert kept["pull_request"]["head"]["sha"] == "a" * 40
    assert kept["repository"]["full_name"] == "org/upstream"
    names = [label["name"] for label in kept["pull_request"]["labels"]]
    assert names == [f"label-{n}" * 5 for n in range(labels)][: len(names)]
    assert len(names) >= min(labels, 100)
