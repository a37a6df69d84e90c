"""slack_sdk's client on one connection: a thread of 700 replies need not shake hands 700 times."""

from __future__ import annotations

import io
import time
from http.client import HTTPConnection, HTTPSConnection
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from slack_sdk import WebClient

from ci_pipeline.quick_ack import acknowledge

IDLE = 5.0
"""Seconds after which an unused connection is not trusted any more: the other side may be closing it."""


class KeepAliveClient(WebClient):
    """A `WebClient` that keeps its connection to Slack. For one thread at a time; behind a proxy nothing is kept."""

    _connection: HTTPConnection | None = None
    _used_at = 0.0

    def _perform_urllib_http_request_internal(self, url: str, req: Request) -> dict[str, Any]:
        if self.proxy is not None:
            return super()._perform_urllib_http_request_internal(url, req)
        if time.monotonic() - self._used_at > IDLE:
            self._close()
        connection = self._connection = self._connection or self._connect()
        parts = urlsplit(url)
        try:
            connection.request(
                "POST", f"{parts.path}?{parts.query}" if parts.query else parts.path, req.data, dict(req.header_items())
            )  # pyright: ignore[reportArgumentType]
            answer = connection.getresponse()
            acknowledge(connection.sock)
            body = answer.read().decode("utf-8", "replace")
        except BaseException:
            self._close()  # what comes next on it would be the answer to something else
            raise
        self._used_at = time.monotonic()
        if answer.status >= 300:
            raise HTTPError(url, answer.status, answer.reason, answer.headers, io.BytesIO(body.encode()))
        return {"status": answer.status, "headers": answer.headers, "body": body}

    def _connect(self) -> HTTPConnection:
        address = urlsplit(self.base_url)
        if address.scheme == "https":
            return HTTPSConnection(address.netloc, timeout=self.timeout, context=self.ssl)
        return HTTPConnection(address.netloc, timeout=self.timeout)

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
