import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ci_pipeline.model import CiRun
from ci_pipeline.publish.ledger import Ledger
from ci_pipeline.publish.slack import SlackClient
from ci_pipeline_tests.servers.hub import HubServer
from ci_pipeline_tests.servers.slack import SlackServer


@pytest.fixture
def slack_server() -> Iterator[SlackServer]:
    with SlackServer() as server:
        yield server


@pytest.fixture
def slack(slack_server: SlackServer) -> SlackClient:
    return SlackClient("xoxb-test", slack_server.api_url)


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with HubServer("acme/ci") as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))


@pytest.fixture
def run() -> CiRun:
    return CiRun("acme/widgets", 19000000001, created_at=datetime(2025, 11, 10, tzinfo=UTC))


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting before a call is tried again takes no time to speak of."""
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.01)))
