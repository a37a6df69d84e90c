"""A store of each kind, an OIDC issuer, and a relay between them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ci_pipeline.hud.relay import create_relay
from ci_pipeline.oot.dynamodb_store import DynamoDBStore
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Store
from ci_pipeline.settings import OotSettings, load_oot_settings
from ci_pipeline_tests.servers.oidc import OidcServer

ALLOWLIST = """\
L1: [org/watcher]
L2: [org/backend, org/other]
L3: {gpu: {org/device: [ann]}}
L4: [{org/core: "ann, bob"}]
"""
TOKENS = "relay-token-1,relay-token-2"


@pytest.fixture
def dynamodb_url(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a DynamoDB API server that takes any credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    return moto_server


@pytest.fixture
def dynamodb_store(dynamodb_url: str) -> Iterator[DynamoDBStore]:
    """Tables of its own."""
    store = DynamoDBStore.from_url(f"dynamodb://us-east-1/table-{uuid.uuid4().hex}?endpoint_url={dynamodb_url}")
    store.create_tables()
    yield store
    store.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "oot.sqlite")
    yield store
    store.close()


@pytest.fixture(params=["sqlite_store", "dynamodb_store"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def issuer() -> Iterator[OidcServer]:
    with OidcServer() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, issuer: OidcServer) -> OotSettings:
    allowlist = tmp_path / "allowlist.yml"
    allowlist.write_text(ALLOWLIST)
    return load_oot_settings(
        CI_PIPELINE_HOME=tmp_path,
        CI_PIPELINE_OOT_ALLOWLIST=str(allowlist),
        CI_PIPELINE_OIDC_ISSUERS=json.dumps([issuer.issuer]),
        CI_PIPELINE_RELAY_TOKENS=TOKENS,
        CI_PIPELINE_RATE_LIMIT_PER_MIN=1000,
    )


@pytest.fixture
def client(settings: OotSettings) -> Iterator[TestClient]:
    """The relay, over HTTP's semantics; its parts are in `client.app.state.relay`."""
    with TestClient(create_relay(settings, "org/upstream")) as client:
        yield client


def callback(status: str = "in_progress", **changes: Any) -> dict[str, Any]:
    """A callback as GitHub's clients send it; `workflow__url=None` removes or replaces a nested field."""
    completed = status == "completed"
    body: dict[str, Any] = {
        "event_type": "pull_request",
        "delivery_id": "delivery-1",
        "payload": {
            "pull_request": {"number": 7, "head": {"sha": "a" * 40}, "labels": [{"name": "ciflow/oot"}]},
            "repository": {"full_name": "org/upstream"},
        },
        "workflow": {
            "schema_version": "1",
            "status": status,
            "conclusion": "success" if completed else None,
            "name": "CI",
            "url": "https://github.com/org/backend/actions/runs/1",
            "job_name": "test (py3.12, linux)",
            "check_run_id": "101",
            "run_id": "1",
            "run_attempt": "1",
            "started_at": None if completed else "2026-04-28T10:00:00Z",
            "completed_at": "2026-04-28T10:30:00Z" if completed else None,
        },
    }
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = body
        for parent in parents:
            part = part[parent]
        if value is ABSENT:
            part.pop(name, None)
        else:
            part[name] = value
    return body


ABSENT = object()
