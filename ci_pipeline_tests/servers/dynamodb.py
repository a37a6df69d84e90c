"""DynamoDB's API behind a server that fails on command; the path of a fault is an operation: `TransactWriteItems`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2

from ci_pipeline_tests.servers.base import Fault, Request, Response, Server

_PASSED_ON = ("authorization", "content-type", "x-amz-target", "x-amz-date")


class DynamoDBServer(Server):
    def __init__(self, behind: str) -> None:
        super().__init__()
        self._behind = behind
        self._client = httpx2.Client(timeout=30.0)

    def handle(self, request: Request) -> Response:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        answer = self._client.post(self._behind, content=request.body, headers=headers)
        return Response(answer.status_code, answer.content, {"content-type": "application/x-amz-json-1.0"})

    def refuse(self, operation: str, error: str, times: int = 1, **fields: Any) -> None:
        """Answer the next calls of this operation with one of DynamoDB's own errors."""
        body = {"__type": f"com.amazonaws.dynamodb.v20120810#{error}", "Message": error, **fields}
        self.fail(f"^{operation}$", status=400, body=body, times=times)

    def _take_fault(self, request: Request) -> Fault | None:
        operation = request.headers.get("x-amz-target", "").rpartition(".")[2]
        return super()._take_fault(replace(request, path=operation))

    def calls(self, operation: str) -> int:
        """How often this operation was asked for."""
        return sum(request.path == operation for request in self.requests)

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._client.close()
