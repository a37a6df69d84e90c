"""A real HTTP server on loopback whose next answers can be made to fail."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def form(self) -> dict[str, str]:
        return {k: v[0] for k, v in parse_qs(self.body.decode(), keep_blank_values=True).items()}


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes | dict[str, Any] | list[Any] = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to the next `times` requests whose path matches `path`, instead of an answer.

    `status` answers that status; `cut` closes the connection after half of the answer; `delay` waits first, in
    seconds; `after` lets the request take effect before its answer is lost.
    """

    path: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    after: bool = False
    delay: float = 0.0
    times: int = 1
    method: str = ""


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may go away
            super().handle_error(request, client_address)


class Server:
    """Subclasses answer in `handle`. Use as a context manager; `url` has no trailing slash."""

    in_two_pieces = False
    """Whether the head of an answer is sent before its body, as Python's own small servers do."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _any(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                request = Request(
                    self.command,
                    url.path,
                    {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()},
                    {k.lower(): v for k, v in self.headers.items()},
                    body,
                )
                fault = server._take_fault(request)
                if fault and fault.delay:
                    time.sleep(fault.delay)
                answer = Response()
                if fault is None or fault.after or not (fault.status or fault.cut):
                    answer = server.handle(request)
                if fault and fault.status:
                    answer = Response(fault.status, fault.body, fault.headers)
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                headers = {
                    "content-type": "application/json",
                    **{k.lower(): v for k, v in answer.headers.items()},
                }
                headers["content-length"] = str(len(data))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if server.in_two_pieces:
                    self.wfile.flush()
                if fault and fault.cut:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    # Close with a reset, as a broken middlebox does.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

        self._http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def handle(self, request: Request) -> Response:
        raise AssertionError(f"unexpected request: {request.method} {request.path}")

    def fail(self, path: str = "", **fault: Any) -> None:
        """Make the next requests to `path` (a regular expression) fail; see `Fault`."""
        self.faults.append(Fault(path=path, **fault))

    def _take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if re.search(fault.path, request.path) and fault.method in ("", request.method):
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
