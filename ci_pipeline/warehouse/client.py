"""One client for every ClickHouse, embedded or not: connect, apply the migrations, insert."""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from ci_pipeline.warehouse import WarehouseError

if TYPE_CHECKING:
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client
    from clickhouse_connect.driver.query import QueryResult

log = logging.getLogger(__name__)
logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)  # what it warns of, it raises too

Engine = Literal["embedded", "replicated", "shared"]

_ENGINE_PREFIX: Mapping[Engine, str] = {"embedded": "", "replicated": "Replicated", "shared": "Shared"}
CONNECT_SECONDS = 10
_LATER_ATTEMPTS = 1 << 44  # above any number of milliseconds since 1970 in this millennium


def connect(url: str) -> Client:
    """A client for `http[s]://user:password@host:port/database`, for any number of threads.

    Without a database it is `default`; `migrate` makes one that does not exist.

    Raises:
        WarehouseError: the URL is wrong, or nobody answers there.
    """
    import clickhouse_connect

    try:
        address = urlsplit(url)
        port = address.port or (8443 if address.scheme == "https" else 8123)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError
    except ValueError:
        raise WarehouseError(
            "CI_PIPELINE_WAREHOUSE_URL: not of the form http[s]://user:password@host:port/database"
        ) from None
    with refusals(f"CI_PIPELINE_WAREHOUSE_URL: no warehouse at {address.scheme}://{address.hostname}:{port}"):
        client = clickhouse_connect.get_client(
            interface=address.scheme,
            host=address.hostname,
            port=port,
            username=unquote(address.username or ""),
            password=unquote(address.password or ""),
            # Compression costs more than it saves where nothing crosses a wire.
            compress=address.hostname not in ("127.0.0.1", "localhost", "::1"),
            autogenerate_session_id=False,  # a session runs one query at a time
            connect_timeout=CONNECT_SECONDS,
            tz_mode="aware",
            client_name="ci-pipeline",
        )
    client.database = unquote(address.path.strip("/")) or "default"
    return client


@contextmanager
def refusals(what: str) -> Generator[None]:
    """ClickHouse's errors as one line: `what`, and why.

    Raises:
        WarehouseError: in place of any error of the client or the server.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        yield
    except ClickHouseError as error:
        log.debug("%s", what, exc_info=True)
        raise WarehouseError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The cause, from a text that holds the whole of an exchange."""
    text = str(error.__cause__ or error)
    found = re.search(r"DB::Exception: (.*?)\.? \(", text) or re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return (found[1] if found else text).splitlines()[0][:300]


def migrate(client: Client, engine: Engine = "embedded") -> list[str]:
    """Apply the migrations of `schema/` that this database has not seen, in order; returns their names.

    Every statement of a migration may run twice (`IF NOT EXISTS`), so that two processes may do this at once.

    Raises:
        WarehouseError: a migration that was applied has been changed since, or ClickHouse refuses one.
    """

    def command(statement: str, **parameters: object) -> None:
        client.command(_for_engine(statement, engine), parameters)

    new: list[str] = []
    with refusals("the warehouse refuses a migration"):
        client.command(f"CREATE DATABASE IF NOT EXISTS `{client.database}`", use_database=False)
        command(
            "CREATE TABLE IF NOT EXISTS schema_migration (name String, checksum String, applied_at DateTime('UTC'))"
            " ENGINE = ReplacingMergeTree(applied_at) ORDER BY name"
        )
        applied: dict[str, str] = {
            row["name"]: row["checksum"]
            for row in client.query("SELECT name, checksum FROM schema_migration FINAL").named_results()
        }
        for name, statements in _migrations().items():
            checksum = hashlib.sha256("\n".join(statements).encode()).hexdigest()
            if applied.get(name, checksum) != checksum:
                raise WarehouseError(f"{name} was changed after it was applied: restore it, and add a new migration")
            if name not in applied:
                for statement in statements:
                    command(statement)
                command(
                    "INSERT INTO schema_migration SELECT {name:String}, {checksum:String}, now()",
                    name=name,
                    checksum=checksum,
                )
                log.info("applied %s", name)
                new.append(name)
    return new


def _for_engine(statement: str, engine: Engine) -> str:
    """The statement with the table engines that a deployment has: `ReplicatedReplacingMergeTree`."""
    return re.sub(r"\b(?=(?:Replacing|Aggregating)?MergeTree\b)", _ENGINE_PREFIX[engine], statement)


def _migrations() -> dict[str, list[str]]:
    """The statements of each file of `schema/`, in the order in which they are applied; comments may change later."""
    folder = resources.files("ci_pipeline.warehouse") / "schema"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return {file.name.removesuffix(".sql"): _statements(file.read_text("utf-8")) for file in files}


def _statements(sql: str) -> list[str]:
    sql = re.sub(r"(?m)^\s*--.*$", "", sql)
    return [statement for part in re.split(r";\s*(?:\n|$)", sql) if (statement := part.strip())]


def insert_runs(client: Client, tables: Mapping[str, pa.Table]) -> None:
    """Make these tables, by name, all that is known of the runs in `ci_run`, in place of what was there before.

    A run that is new, or a new attempt of it, is seen when all of it is there. The same call again repairs what a crash
    cut short.

    Raises:
        WarehouseError: ClickHouse refuses the rows, or cannot be reached.
    """
    now = time.time_ns() // 1_000_000
    for table in sorted(tables, key=lambda name: name == "ci_run"):  # the row in ci_run makes the others count
        insert(client, table, tables[table], now)


def insert(client: Client, table: str, rows: pa.Table, version: int) -> None:
    """Insert rows of one table. `version`: when they were made, in milliseconds since 1970.

    Rows of a later attempt of a run win over those of an earlier one, whenever they were made.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if rows.num_rows == 0:
        return
    attempts = pc.multiply(pc.cast(rows["run_attempt"], pa.int64()), _LATER_ATTEMPTS)
    versions = pc.cast(pc.add(attempts, version), pa.uint64())
    with refusals(f"the warehouse refuses rows of {table}"):
        client.insert_arrow(table, rows.append_column("version", versions))


def ask(client: Client, query: str, **parameters: object) -> QueryResult:
    """Ask what `queries/<query>.sql` says.

    Raises:
        WarehouseError: ClickHouse does not answer.
    """
    with refusals("the warehouse does not answer"):
        return client.query(_sql(query), parameters)


@cache
def _sql(query: str) -> str:
    return (resources.files("ci_pipeline.warehouse") / "queries" / f"{query}.sql").read_text("utf-8")
