"""A HUD that takes results, and that can be made to fail."""

from __future__ import annotations

from typing import Any

from ci_pipeline_tests.servers.base import Request, Response, Server


class HudServer(Server):
    token = "relay-token-1"

    def __init__(self) -> None:
        super().__init__()
        self.results: list[dict[str, Any]] = []

    def handle(self, request: Request) -> Response:
        if request.headers.get("x-oot-relay-token") != self.token:
            return Response(401, {"detail": "wrong token"})
        if (request.method, request.path) != ("POST", "/api/oot/results"):
            return Response(404)
        self.results.append(request.json())
        return Response(200, {"ok": True})
