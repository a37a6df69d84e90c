"""The relay as a process of its own: what it acknowledged is there, also when it is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline_tests.oot.conftest import callback
from ci_pipeline_tests.servers.oidc import OidcServer

SERVE = """
import socket, uvicorn
from ci_pipeline.hud.relay import create_relay
from ci_pipeline.settings import load_oot_settings
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(create_relay(load_oot_settings(), "org/upstream"), log_level="warning")).run([listening])
"""


@contextmanager
def relay_process(folder: Path, issuer: OidcServer) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (folder / "allowlist.yml").write_text("L2: [org/backend]")
    settings = {
        "CI_PIPELINE_HOME": str(folder),
        "CI_PIPELINE_OOT_ALLOWLIST": str(folder / "allowlist.yml"),
        "CI_PIPELINE_OIDC_ISSUERS": json.dumps(issuer.issuer),
        "CI_PIPELINE_RATE_LIMIT_PER_MIN": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}/github/callback"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_nothing_that_was_acknowledged_is_lost_by_kill_9(tmp_path: Path, issuer: OidcServer):
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        store.register_dispatch(Dispatch("delivery-1", "org/backend", time.time())).result()
    token = issuer.token()
    acknowledged: dict[str, str] = {}

    with relay_process(tmp_path, issuer) as (process, url):

        def report(worker: int) -> None:
            with httpx2.Client(headers={"Authorization": f"Bearer {token}"}) as client, suppress(httpx2.HTTPError):
                for n in range(10_000):
                    check_run_id = f"{worker}-{n}"
                    for status in ("in_progress", "completed"):
                        client.post(url, json=callback(status, workflow__check_run_id=check_run_id)).raise_for_status()
                        acknowledged[check_run_id] = status

        threads = [threading.Thread(target=report, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while len(acknowledged) < 200 and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        for thread in threads:
            thread.join()

    assert len(acknowledged) >= 200
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        stored = {str(change.record["check_run_id"]): str(change.record["status"]) for change in store.records()}
        page = store.changes_after("", 100_000)
    # A callback may be stored whose answer was lost, never the other way round.
    lost = {id: status for id, status in acknowledged.items() if stored.get(id) not in (status, "completed")}
    assert lost == {}
    # The change feed is written in the same transaction.
    assert {str(change.record["check_run_id"]) for change in page.changes} == set(stored)


@pytest.mark.slow
def test_after_a_kill_a_retry_is_answered_like_the_first_time(tmp_path: Path, issuer: OidcServer):
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        store.register_dispatch(Dispatch("delivery-1", "org/backend", time.time())).result()
    headers = {"Authorization": f"Bearer {issuer.token()}"}
    for status in ("in_progress", "in_progress", "completed", "completed"):
        with relay_process(tmp_path, issuer) as (process, url):
            answer = httpx2.post(url, json=callback(status), headers=headers)
            assert answer.json() == {"ok": True, "status": status}
            process.kill()
