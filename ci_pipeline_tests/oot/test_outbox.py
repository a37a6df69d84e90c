"""A HUD that is another service: results reach it in order, whatever happens on the way."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ci_pipeline.hud.relay import create_relay
from ci_pipeline.oot import outbox
from ci_pipeline.oot.lifecycle import Dispatch, Step
from ci_pipeline.oot.outbox import Outbox
from ci_pipeline.oot.payload import MAX_BODY_BYTES
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Message
from ci_pipeline.settings import OotSettings, load_oot_settings
from ci_pipeline_tests.oot.conftest import callback
from ci_pipeline_tests.oot.test_relay import relay_of, send
from ci_pipeline_tests.servers.hud import HudServer
from ci_pipeline_tests.servers.oidc import OidcServer


@pytest.fixture
def hud() -> Iterator[HudServer]:
    with HudServer() as server:
        yield server


@pytest.fixture
def client(settings: OotSettings, hud: HudServer) -> Iterator[TestClient]:
    with TestClient(create_relay(settings.model_copy(update={"hud_url": hud.url}), "org/upstream")) as client:
        store = relay_of(client).store
        store.register_dispatch(Dispatch("delivery-1", "org/backend", 1000.0)).result()
        yield client


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def statuses(hud: HudServer) -> list[str]:
    return [result["untrusted"]["callback_payload"]["workflow"]["status"] for result in hud.results]


def test_the_hud_gets_what_the_relay_vouches_for_and_the_callback_as_it_was(
    client: TestClient, issuer: OidcServer, hud: HudServer
):
    body = callback("in_progress", unknown={"kept": ["as", "it", "was"]})
    assert send(client, issuer, body).json() == {"ok": True, "status": "in_progress"}
    [result] = hud.results
    assert result["untrusted"] == {"callback_payload": body}
    assert result["trusted"]["verified_repo"] == "org/backend"
    assert result["trusted"]["downstream_repo_level"] == "L2"
    assert result["trusted"]["ci_metrics"]["queue_time"] > 0
    assert result["trusted"]["ci_metrics"]["execution_time"] is None


def test_what_the_relay_sends_our_hud_takes(client: TestClient, issuer: OidcServer, hud: HudServer, tmp_path: Path):
    send(client, issuer, callback("in_progress"))
    [result] = hud.results
    elsewhere = load_oot_settings(CI_PIPELINE_HOME=tmp_path / "hud", CI_PIPELINE_RELAY_TOKENS="relay-token-1")
    with TestClient(create_relay(elsewhere, "org/upstream")) as hud_client:
        answer = hud_client.post("/api/oot/results", json=result, headers={"X-OOT-Relay-Token": "relay-token-1"})
        assert answer.status_code == 200
        assert relay_of(hud_client).store.record(answer.json()["dynamoKey"])


def test_while_the_hud_is_down_callbacks_are_queued_and_delivered_later_in_order(
    client: TestClient, issuer: OidcServer, hud: HudServer
):
    hud.fail(status=503, times=3)
    answers = [send(client, issuer, callback(status)).json()["status"] for status in ("in_progress", "completed")]
    assert "queued" in answers
    assert eventually(lambda: len(hud.results) == 2)
    assert statuses(hud) == ["in_progress", "completed"]
    assert eventually(lambda: send(client, issuer, callback("completed")).json()["status"] == "completed")
    jobs = (callback("in_progress", workflow__check_run_id=str(n)) for n in itertools.count(102))
    assert eventually(lambda: send(client, issuer, next(jobs)).json()["status"] == "in_progress")


def test_a_retry_of_what_waits_for_the_hud_waits_too(client: TestClient, issuer: OidcServer, hud: HudServer):
    send(client, issuer, callback("in_progress"))
    hud.fail(status=503, times=1000)
    for _ in range(2):
        assert send(client, issuer, callback("completed")).json()["status"] == "queued"
    hud.faults.clear()
    assert eventually(lambda: send(client, issuer, callback("completed")).json()["status"] == "completed")
    hud.fail(status=503, times=1000)  # of what arrived long ago
    assert send(client, issuer, callback("in_progress")).json()["status"] == "in_progress"


def test_what_is_taken_is_never_too_large_for_the_hud(client: TestClient, issuer: OidcServer, hud: HudServer):
    small = len(json.dumps(callback("in_progress", filler="")))
    statuses = [
        send(client, issuer, callback("in_progress", filler="x" * (MAX_BODY_BYTES - small - room))).status_code
        for room in (0, 1024)
    ]
    assert statuses == [413, 200]
    assert int(hud.requests[-1].headers["content-length"]) <= MAX_BODY_BYTES


def test_a_cut_connection_delivers_again_and_not_less(client: TestClient, issuer: OidcServer, hud: HudServer):
    hud.fail(cut=True, after=True)
    send(client, issuer, callback("in_progress"))
    assert eventually(lambda: len(hud.results) == 2)
    assert hud.results[0] == hud.results[1]


def test_a_retry_is_not_delivered_twice(client: TestClient, issuer: OidcServer, hud: HudServer):
    for _ in range(3):
        send(client, issuer, callback("in_progress"))
    assert len(hud.results) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_hud_refuses_for_good_is_kept_aside_and_holds_up_nobody(
    client: TestClient, issuer: OidcServer, hud: HudServer, status: int
):
    hud.fail(status=status, body={"detail": "no such thing"})
    send(client, issuer, callback("in_progress"))
    send(client, issuer, callback("completed"))
    assert eventually(lambda: statuses(hud) == ["completed"])
    store: Any = relay_of(client).store
    [kept] = store._query("SELECT body, refused FROM message")
    assert json.loads(kept["body"])["untrusted"]["callback_payload"]["workflow"]["status"] == "in_progress"
    assert "no such thing" in kept["refused"]
    assert store.resend_messages().result() == 1
    send(client, issuer, callback("in_progress", workflow__check_run_id="another"))
    assert eventually(lambda: statuses(hud) == ["completed", "in_progress", "in_progress"])


def test_a_wrong_token_is_mended_without_loss(client: TestClient, issuer: OidcServer, hud: HudServer):
    hud.token = "another"
    assert send(client, issuer, callback("in_progress")).json()["status"] == "queued"
    hud.token = "relay-token-1"
    assert eventually(lambda: len(hud.results) == 1)


def step(n: int) -> Step:
    return Step("delivery-1", "org/backend", f"job-{n}", "completed", "digest", f"key-{n}", self_report=True)


def message(n: int) -> Message:
    return Message(json.dumps({"n": n}).encode())


def test_what_was_owed_before_a_restart_is_delivered_after_it(tmp_path: Path, hud: HudServer):
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        for n in range(5):
            store.advance(step(n), 0.0, lambda _, n=n: message(n)).result()
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store, closing(Outbox(store, hud.url, hud.token)):
        assert eventually(lambda: len(hud.results) == 5)
        assert [result["n"] for result in hud.results] == [0, 1, 2, 3, 4]
        assert eventually(lambda: store.messages(1) == [])


def test_two_workers_deliver_in_turns_and_each_message_once(tmp_path: Path, hud: HudServer):
    stores = [SqliteStore(tmp_path / "oot.sqlite") for _ in range(2)]
    outboxes = [Outbox(store, hud.url, hud.token) for store in stores]

    async def load() -> list[bool]:
        deliveries = [outboxes[n % 2].advance(step(n), 0.0, lambda _, n=n: message(n)) for n in range(40)]
        return await asyncio.gather(*deliveries)

    assert all(asyncio.run(load()))
    assert sorted(result["n"] for result in hud.results) == list(range(40))
    for part in (*outboxes, *stores):
        part.close()


def test_a_slow_hud_keeps_no_caller_longer_than_its_patience(tmp_path: Path, hud: HudServer):
    hud.fail(delay=0.2, after=True, times=1000)

    async def load(outbox: Outbox) -> list[bool]:
        return await asyncio.gather(*(outbox.advance(step(n), 0.0, lambda _, n=n: message(n)) for n in range(400)))

    with (
        closing(SqliteStore(tmp_path / "oot.sqlite")) as store,
        closing(Outbox(store, hud.url, hud.token, patience=0.3)) as impatient,
    ):
        start = time.monotonic()
        assert not all(asyncio.run(load(impatient)))
        assert time.monotonic() - start < 3


def test_while_the_hud_is_known_to_be_down_no_caller_waits(tmp_path: Path):
    with (
        closing(SqliteStore(tmp_path / "oot.sqlite")) as store,
        closing(Outbox(store, "http://127.0.0.1:9", "token")) as down,
    ):
        start = time.monotonic()
        assert not any(asyncio.run(down.advance(step(n), 0.0, lambda _, n=n: message(n))) for n in range(6))
        assert time.monotonic() - start < 1.5


def test_what_another_worker_left_behind_is_delivered_though_nobody_calls(
    tmp_path: Path, hud: HudServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox, "_LOOK", 0.2)
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store, closing(Outbox(store, hud.url, hud.token)):
        store.advance(step(1), 0.0, lambda _: message(1)).result()  # and was killed
        assert eventually(lambda: hud.results == [{"n": 1}])


def test_an_answer_in_two_pieces_is_acknowledged_at_once(tmp_path: Path, hud: HudServer):
    hud.in_two_pieces = True
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        for n in range(30):
            store.advance(step(n), 0.0, lambda _, n=n: message(n)).result()
        start = time.monotonic()
        with closing(Outbox(store, hud.url, hud.token)):
            assert eventually(lambda: len(hud.results) == 30)
        assert time.monotonic() - start < 30 * 0.03  # Linux acknowledges after 0.04


def test_closing_does_not_wait_for_a_hud_that_is_down(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        store.advance(step(1), 0.0, lambda _: message(1)).result()
        outbox = Outbox(store, "http://127.0.0.1:9", "token")
        time.sleep(0.3)
        start = time.monotonic()
        outbox.close()
        assert time.monotonic() - start < 2
        assert len(store.messages(10)) == 1
