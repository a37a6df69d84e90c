"""Every route, fuzzed from the application's own description: no server error, and every answer as it is described."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from ci_pipeline.hud.app import create_server
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import OotSettings
from ci_pipeline_tests.servers.application import serving
from ci_pipeline_tests.servers.github_app import GitHubAppServer
from ci_pipeline_tests.servers.oidc import OidcServer

SECRET = "webhook-secret"


def signing(app: ASGIApp) -> ASGIApp:
    """In the place of GitHub: the bodies of webhooks that say so are signed."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if (b"x-hub-signature-256", b"sign") in scope.get("headers", ()):
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message["body"]
                if not message.get("more_body"):
                    break
            digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest().encode()
            kept = [header for header in scope["headers"] if header[0] != b"x-hub-signature-256"]
            scope["headers"] = [*kept, (b"x-hub-signature-256", b"sha256=" + digest)]

            async def again() -> Any:
                return {"type": "http.request", "body": body}

            await app(scope, again, send)
        else:
            await app(scope, receive, send)

    return serve


@pytest.fixture
def url(settings: OotSettings, warehouse: Any, warehouse_url: str) -> Iterator[str]:
    with GitHubAppServer() as github:
        changes = {
            "warehouse_url": SecretStr(warehouse_url),
            "rate_limit_per_min": 0,
            "github_api_url": github.url,
            "github_app_id": github.app_id,
            "github_app_private_key": SecretStr(github.private_key),
            "github_webhook_secret": SecretStr(SECRET),
        }
        app = create_server(settings.model_copy(update=changes), load_profile("transformers"))
        with serving(signing(app)) as url:
            yield url


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["a stranger", "somebody who may"])
def test_every_answer_is_as_described_and_none_is_a_server_error(
    url: str, issuer: OidcServer, known: bool, tmp_path: Path
) -> None:
    headers = {
        "Authorization": f"Bearer {issuer.token()}",
        "X-OOT-Relay-Token": "relay-token-1",
        "X-Hub-Signature-256": "sign",
    }
    credentials = [part for name, value in headers.items() for part in ("--header", f"{name}: {value}") if known]
    fuzz = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json", *credentials]
    # A stranger may read as anybody, and what he posts is not looked into.
    tried = ["--phases=coverage,fuzzing"] if known else ["--phases=fuzzing", "--include-method=POST"]
    options = [*tried, "--max-examples=8", "--generation-deterministic", "--no-color"]
    found = subprocess.run([*fuzz, *options], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stdout
