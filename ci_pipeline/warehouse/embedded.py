"""The embedded warehouse: one process owns a chDB folder and serves ClickHouse's HTTP interface on loopback.

chDB locks its folder to one process, and several need it. Over HTTP everybody uses the client, the dialect and the URL
of production. Run as a module, it serves on an inherited socket until its standard input is closed (see `Embedded`).
"""

from __future__ import annotations

import email
import email.policy
import fcntl
import io
import ipaddress
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self, cast

from ci_pipeline.warehouse import WarehouseError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PORT = 8123
"""ClickHouse's own."""

START_SECONDS = 30.0
STOP_SECONDS = 10.0
QUERIES_AT_ONCE = 16

# Data follows the statement: `INSERT INTO t (a) FORMAT Native\n<bytes>`.
_INSERT = re.compile(
    rb"\s*(INSERT\s+INTO\s(?:(?!\bVALUES\s*\(|\bSELECT\s).)*?)\sFORMAT\s+(\w+)[ \t]*\r?\n", re.IGNORECASE | re.DOTALL
)
_MAYBE_INSERT = re.compile(rb"\s*INSERT\s", re.IGNORECASE)
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_CODE = re.compile(r"Code: (\d+)\.")
_PIECE = 1 << 20  # bytes

# Compiling a query the third time that it is asked takes longer than asking it.
_SETTINGS = "compile_expressions=0&compile_aggregate_expressions=0&compile_sort_description=0"

# Parameters of the HTTP interface that are no settings of the query.
_NO_SETTING = re.compile(
    r"param_.*|query|query_id|database|default_format|user|password|quota_key|role|stacktrace|session_(id|timeout|check)"
    r"|(de)?compress|buffer_size|wait_end_of_query|client_protocol_version"
)


class _Body(io.RawIOBase):
    """The body of a request, read by the thread that runs the query while the event loop receives it."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    async def _next(self) -> bytes:
        return await anext(self._chunks)

    def readinto(self, buffer: Any, /) -> int:
        from anyio import from_thread

        while not self._rest:
            try:
                self._rest = memoryview(from_thread.run(self._next))
            except StopAsyncIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Engine:
    """chDB on one folder. Each query has a connection to itself: they run side by side, and settings stay apart."""

    def __init__(self, path: Path) -> None:
        from chdb import _chdb

        self._connect = cast(Any, _chdb).connect
        self._path = f"{path}?{_SETTINGS}"
        self._open = self._connect(self._path)  # the engine lives as long as one connection does
        # To prepare one takes as long as a small query: they are kept, with the statements that they were prepared by.
        self._kept: deque[tuple[list[str], Any]] = deque(maxlen=QUERIES_AT_ONCE)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._open.query("KILL QUERY WHERE query_id != queryID() SYNC", "Null")
        self._kept.clear()  # a connection closes when nobody holds it
        self._open.close()

    def answer(self, method: str, query: Mapping[str, str], headers: Mapping[str, str], body: IO[bytes]) -> Response:
        from starlette.responses import PlainTextResponse

        try:
            return self._run(method, query, headers, body)
        except (RuntimeError, UnicodeDecodeError) as error:
            while body.read(_PIECE):  # a client that is still sending does not hear the answer
                pass
            code = _CODE.search(str(error))
            exception = {"X-ClickHouse-Exception-Code": code[1]} if code else {}
            return PlainTextResponse(f"{error}\n", 500, exception)

    def _connection(self, statements: list[str]) -> Any:
        """One on which these statements were run, and nothing else that lasts."""
        with self._lock:
            for kept in self._kept:
                if kept[0] == statements:
                    self._kept.remove(kept)
                    return kept[1]
        connection = self._connect(self._path)
        for statement in statements:
            connection.query(statement, "Null")
        return connection

    def _run(self, method: str, query: Mapping[str, str], headers: Mapping[str, str], body: IO[bytes]) -> Response:
        from starlette.responses import Response

        if headers.get("content-type", "").startswith("multipart/form-data"):
            query, body = {**query, **_form(headers["content-type"], body.read())}, io.BytesIO()
        if encoding := headers.get("content-encoding"):
            body = _decompressed(body, encoding)
        prepared_by: list[str] = []
        if database := query.get("database"):
            prepared_by.append(f"USE {_quoted(database, '`')}")
        settings = {name: value for name, value in query.items() if not _NO_SETTING.fullmatch(name)}
        if settings:
            assigned = ", ".join(f"{_quoted(name, '`')} = {_quoted(value)}" for name, value in settings.items())
            prepared_by.append(f"SET {assigned}")
        connection = self._connection(prepared_by)

        text = query["query"].encode() + b"\n" if query.get("query") else b""
        insert = _INSERT.match(text)
        while insert is None and (piece := body.read(_PIECE)):
            text += piece
            insert = _INSERT.match(text) if len(text) <= 2 * _PIECE and _MAYBE_INSERT.match(text) else None
        sql = (insert[0] if insert else text).decode()
        kind = connection.classify_query(sql)
        does = kind["query_class"].name
        if kind["statement_count"] > 1:
            raise RuntimeError("Code: 62. DB::Exception: more than one statement in a request. (SYNTAX_ERROR)")
        if method == "GET" and does != "READ_ONLY":
            raise RuntimeError("Code: 164. DB::Exception: a GET request only reads: use POST. (READONLY)")
        if insert:
            # Through a file: chDB's own insert of pieces reports success when the server refuses what it has read.
            with tempfile.NamedTemporaryFile() as data:
                data.write(text[insert.end() :])
                shutil.copyfileobj(body, data, _PIECE)
                data.flush()
                source = f"FROM INFILE {_quoted(data.name)} COMPRESSION 'none' FORMAT {insert[2].decode()}"
                result = connection.query(f"{insert[1].decode()} {source}", "Null")
            answer = Response(headers=_summary(result))
        else:
            found = _FORMAT.search(sql)
            default = query.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
            format = found[1] if found else default
            params = {name[6:]: value for name, value in query.items() if name.startswith("param_")}
            result = connection.query(sql, format, params=params)
            about = _summary(result) | ({"X-ClickHouse-Format": format} if does == "READ_ONLY" else {})
            answer = Response(result.bytes(), headers=about, media_type="text/plain")
        if does in ("READ_ONLY", "MUTATING"):  # what lasts on a connection, like SET, is neither
            with self._lock:
                self._kept.append((prepared_by, connection))
        return answer


def _summary(result: Any) -> dict[str, str]:
    summary = {
        "read_rows": result.rows_read(),
        "read_bytes": result.bytes_read(),
        "written_rows": result.rows_written(),
        "written_bytes": result.bytes_written(),
        "elapsed_ns": int(result.elapsed() * 1e9),
    }
    return {"X-ClickHouse-Summary": json.dumps({name: str(value) for name, value in summary.items()})}


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a form: so clickhouse-connect sends parameters that are too long for a URL."""
    message = email.message_from_bytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=email.policy.HTTP
    )
    return {
        str(part.get_param("name", header="content-disposition")): cast(bytes, part.get_payload(decode=True)).decode()
        for part in message.iter_parts()
    }


def _decompressed(body: IO[bytes], encoding: str) -> IO[bytes]:
    import pyarrow as pa

    codec = {"br": "brotli"}.get(encoding, encoding)
    if codec not in ("gzip", "zstd", "lz4", "brotli"):
        raise RuntimeError(f"Code: 48. DB::Exception: Content-Encoding {encoding} is not known. (NOT_IMPLEMENTED)")
    return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(body, mode="r"), codec))


def _application(engine: _Engine, host: str) -> Starlette:
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    limiter = cache(partial(CapacityLimiter, QUERIES_AT_ONCE))  # made in the event loop: outside, anyio adds an adapter

    async def ping(request: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    async def query(request: Request) -> Response:
        # Nobody asks for a password here: a page of another site must not get at the data through its reader's browser.
        if "origin" in request.headers:
            return PlainTextResponse("requests of web pages are refused\n", 403)
        if request.method == "GET" and "query" not in request.query_params:
            return PlainTextResponse("Ok.\n")
        headers = request.headers
        small = "transfer-encoding" not in headers and int(headers.get("content-length", 0)) < _PIECE
        body = io.BytesIO(await request.body()) if small else io.BufferedReader(_Body(request.stream()), _PIECE)
        return await to_thread.run_sync(
            engine.answer, request.method, request.query_params, request.headers, body, limiter=limiter()
        )

    return Starlette(
        routes=[Route("/ping", ping), Route("/", query, methods=["GET", "POST"])],
        # Names that are made to point at loopback are refused too.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])],
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; with `port` 0 on a free port.

    Raises:
        WarehouseError: the port is in use, or the address is not on loopback.
    """
    if not _is_loopback(host):
        raise WarehouseError(f"{host} is not on loopback: the embedded warehouse asks for no password, use ClickHouse")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise WarehouseError(f"cannot listen on {host}:{port}: {error.strerror}: choose another port") from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(path: Path, host: str = "127.0.0.1", port: int = PORT) -> None:
    """Serve the chDB folder at `path` (made if there is none) until SIGTERM or SIGINT.

    Raises:
        WarehouseError: the port or the folder is in use.
    """
    with listen(host, port) as listening:
        _serve(path, listening)


def _serve(path: Path, listening: socket.socket, *, while_stdin: bool = False) -> None:
    import uvicorn

    with _locked(path):
        # Times without a zone mean UTC, whatever the machine says.
        os.environ["TZ"] = "UTC"
        time.tzset()
        engine = _Engine(path)
        config = uvicorn.Config(
            _application(engine, listening.getsockname()[0]),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(STOP_SECONDS / 2),
        )
        server = uvicorn.Server(config)

        def stop_with_parent() -> None:
            while os.read(0, 1):  # not through sys.stdin, whose lock this would hold at exit
                pass
            server.should_exit = True

        if while_stdin:
            threading.Thread(target=stop_with_parent, daemon=True).start()
        # uvicorn stops on these and then raises them again: to be asked to stop is no failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)
        try:
            server.run(sockets=[listening])
        finally:
            engine.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _locked(path: Path) -> IO[str]:
    """A lock on the folder, held while the file is open; chDB's own error names no reason."""
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / "lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise WarehouseError(f"{path} is in use by process {owner}: stop it, or use its address") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


class Embedded:
    """The embedded warehouse as a child process, which ends with this one, however this one ends.

    As a context manager: `with Embedded(path) as warehouse: connect(warehouse.url)`.

    Raises:
        WarehouseError: it cannot start; the line says why.
    """

    def __init__(self, path: Path, host: str = "127.0.0.1", port: int = 0, *, log: Path | None = None) -> None:
        self._path = path
        self._host = host
        self._port = port
        self._log = log
        self.url = ""

    def __enter__(self) -> Self:
        with listen(self._host, self._port) as listening:
            host = f"[{self._host}]" if ":" in self._host else self._host
            self.url = f"http://{host}:{listening.getsockname()[1]}/default"
            self._output = open(self._log, "a+b") if self._log else tempfile.TemporaryFile()
            # In a session of its own: Ctrl-C at the terminal is for the parent, which stops what uses this first.
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._path), str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        import httpx2
        from tenacity import RetryError, retry, retry_if_exception_type, stop_after_delay, wait_fixed

        @retry(
            retry=retry_if_exception_type(httpx2.TransportError),
            stop=stop_after_delay(START_SECONDS),
            wait=wait_fixed(0.05),
        )
        def ping() -> None:
            if self.process.poll() is not None:
                self._output.seek(0)
                lines = self._output.read().decode(errors="replace").splitlines() or ["no message"]
                raise WarehouseError(lines[-1])
            # The child answers the connections that wait since the socket was opened.
            httpx2.get(self.url.replace("/default", "/ping"), timeout=START_SECONDS, trust_env=False)

        try:
            ping()
        except RetryError:
            raise WarehouseError(f"the embedded warehouse did not start within {START_SECONDS:.0f} s") from None

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()


def _main(path: str, descriptor: str) -> NoReturn:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        _serve(Path(path), socket.socket(fileno=int(descriptor)), while_stdin=True)
    except WarehouseError as error:
        sys.exit(str(error))
    sys.exit()


if __name__ == "__main__":
    _main(*sys.argv[1:])
