from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64encode
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import pyarrow as pa
import pytest

from ci_pipeline import tables
from ci_pipeline.warehouse import WarehouseError
from ci_pipeline.warehouse import client as module
from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded
from ci_pipeline_tests.hud.oot_rows import job, put
from ci_pipeline_tests.servers.base import Request, Response, Server

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

TABLES = {
    "ci_run": tables.CI_RUN,
    "test_report": tables.TEST_REPORT,
    "test_job_result": tables.TEST_JOB_RESULT,
    "test_outcome": tables.TEST_OUTCOME,
    "category_result": tables.CATEGORY_RESULT,
    "run_diff": tables.RUN_DIFF,
}
_TABLES_OF_OOT = ("oot_workflow_job", "oot_commit")
CLICKHOUSE_TYPES = {
    "string": "String",
    "int32": "Int32",
    "int64": "Int64",
    "double": "Float64",
    "bool": "Bool",
    "timestamp[us, tz=UTC]": "DateTime64(6, 'UTC')",
    "list<item: string>": "Array(String)",
}


def clickhouse_type(field: pa.Field[Any]) -> str:
    name = CLICKHOUSE_TYPES[str(field.type)]
    return f"Nullable({name})" if field.nullable else name


def test_every_table_has_the_columns_of_its_schema_and_a_version(warehouse: Client) -> None:
    rows = warehouse.query(
        "SELECT table, name, replaceRegexpOne(type, '^LowCardinality\\\\((.*)\\\\)$', '\\\\1') FROM system.columns"
        " WHERE database = {database:String} ORDER BY position",
        {"database": warehouse.database},
    ).result_rows
    for table, schema in TABLES.items():
        columns = [(name, type) for of, name, type in rows if of == table]
        assert columns == [*((field.name, clickhouse_type(field)) for field in schema), ("version", "UInt64")], table


def test_every_table_keeps_the_highest_version_by_month(warehouse: Client) -> None:
    rows = warehouse.query(
        "SELECT name, engine_full, partition_key FROM system.tables WHERE database = {database:String}",
        {"database": warehouse.database},
    ).result_rows
    engines = {name: (engine, partition) for name, engine, partition in rows}
    for table in TABLES:
        engine, partition = engines[table]
        assert engine.startswith("ReplacingMergeTree(version)")
        assert partition == "toYYYYMM(run_created_at)"


def test_migrations_are_applied_once(new_warehouse_url: str) -> None:
    client = connect(new_warehouse_url)
    assert migrate(client) == list(module._migrations())
    assert migrate(client) == []


def test_a_migration_has_the_checksum_of_its_statements_in_every_release(warehouse: Client) -> None:
    checksums = dict(warehouse.query("SELECT name, checksum FROM schema_migration FINAL").result_rows)
    assert checksums["0001_ci_run"] == "9103a84b5ee4f4bb3461cc9fa36dd79ec06b2e722a03872027667e045ae03e6e"
    assert module._statements("-- A;\nSELECT 1;\n\n  -- B\nSELECT 2\n") == ["SELECT 1", "SELECT 2"]


def test_two_processes_may_migrate_at_once(new_warehouse_url: str) -> None:
    code = (
        "import sys; from ci_pipeline.warehouse.client import connect, migrate;"
        "client = connect(sys.argv[1]); sys.stdin.read(1); migrate(client)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, new_warehouse_url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert migrate(connect(new_warehouse_url)) == []


def test_every_statement_of_a_migration_may_run_twice(warehouse: Client) -> None:
    put(warehouse, job(), job(conclusion="", check_run_id="2"))

    def everything() -> list[object]:
        names = [name for (name,) in warehouse.query("SHOW TABLES").result_rows]
        shown = [warehouse.command(f"SHOW CREATE TABLE {name}") for name in names]
        rows = [warehouse.query(f"SELECT * FROM {name} FINAL ORDER BY ALL").result_rows for name in _TABLES_OF_OOT]
        return [names, shown, rows]

    before = everything()
    for statements in module._migrations().values():
        for statement in statements:
            warehouse.command(statement)
    assert everything() == before


def test_a_migration_that_was_changed_later_is_refused(warehouse: Client) -> None:
    name = next(iter(module._migrations()))
    warehouse.command(
        "INSERT INTO schema_migration SELECT {name:String}, 'another', now() + 1", parameters={"name": name}
    )
    with pytest.raises(WarehouseError, match=f"{name} was changed after it was applied"):
        migrate(warehouse)


@pytest.mark.parametrize(("engine", "prefix"), [("embedded", ""), ("replicated", "Replicated"), ("shared", "Shared")])
def test_every_table_is_made_with_the_engine_of_the_deployment(engine: module.Engine, prefix: str) -> None:
    statements = [module._for_engine(text, engine) for texts in module._migrations().values() for text in texts]
    engines = re.findall(r"^ENGINE = (.*?)(?:Replacing|Aggregating)MergeTree\b", "\n".join(statements), re.MULTILINE)
    assert set(engines) == {prefix}
    assert len(engines) == sum("CREATE TABLE" in text for text in statements)


def test_an_engine_that_the_warehouse_does_not_have_is_one_line(new_warehouse_url: str) -> None:
    with pytest.raises(WarehouseError, match=r"^the warehouse refuses a migration: .*SharedReplacingMergeTree"):
        migrate(connect(new_warehouse_url), "shared")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8123", "ftp://host/", "http://host:99999/", "http:///database"])
def test_a_wrong_url_is_one_line_that_names_the_variable(url: str) -> None:
    with pytest.raises(WarehouseError, match=r"^CI_PIPELINE_WAREHOUSE_URL: not of the form"):
        connect(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://me:secret@127.0.0.1:1/ci", "http://127.0.0.1:1: Connection refused"),
        ("http://me:secret@255.255.255.255/ci", "http://255.255.255.255:8123: Network is unreachable"),
        ("https://me:secret@255.255.255.255/ci", "https://255.255.255.255:8443: Network is unreachable"),
    ],
)
def test_a_warehouse_that_is_down_is_one_line_without_the_password(
    url: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WarehouseError) as raised:
        connect(url)
    assert str(raised.value) == f"CI_PIPELINE_WAREHOUSE_URL: no warehouse at {said}"
    assert "clickhouse_connect" not in {record.name.partition(".")[0] for record in caplog.records}


def test_a_wrong_password_is_one_line_without_it() -> None:
    class ClickHouse(Server):
        def handle(self, request: Request) -> Response:
            said = "me@x: Authentication failed: password is incorrect, or there is no user with such name"
            text = f"Code: 516. DB::Exception: {said}. (AUTHENTICATION_FAILED) (version 24.8.4.13 (official build))"
            return Response(500, text.encode(), {"x-clickhouse-exception-code": "516"})

    with ClickHouse() as server, pytest.raises(WarehouseError) as raised:
        connect(server.url.replace("//", "//me%40x:p%2Fw@"))
    assert str(raised.value) == (
        f"CI_PIPELINE_WAREHOUSE_URL: no warehouse at {server.url}:"
        " me@x: Authentication failed: password is incorrect, or there is no user with such name"
    )


class Wire(Server):
    """What lies between us and a warehouse."""

    def __init__(self, warehouse: str) -> None:
        super().__init__()
        self.warehouse = urlsplit(warehouse).netloc

    def handle(self, request: Request) -> Response:
        there = HTTPConnection(self.warehouse)
        path = f"{request.path}?{urlencode(request.query)}"
        there.request(request.method, path, request.body, request.headers | {"host": self.warehouse})
        answer = there.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
        return Response(answer.status, answer.read(), headers)


@pytest.mark.parametrize(("host", "compressed"), [("127.0.0.1", False), ("localhost", False), ("127.1", True)])
def test_the_url_says_who_asks_and_only_far_away_answers_are_compressed(
    embedded_warehouse: Embedded, host: str, compressed: bool
) -> None:
    with Wire(embedded_warehouse.url) as wire:
        client = connect(wire.url.replace("127.0.0.1", f"me%40x:p%2Fw@{host}"))
        assert client.query("SELECT currentDatabase()").first_row == ("default",)
    for request in wire.requests:
        assert request.headers["host"].rpartition(":")[0] == host
        assert request.headers["authorization"] == f"Basic {b64encode(b'me@x:p/w').decode()}"
        assert request.headers["user-agent"].startswith("ci-pipeline ")
    assert ("zstd" in wire.requests[-1].headers["accept-encoding"]) is compressed


def test_what_is_said_over_https_is_never_said_in_the_clear(embedded_warehouse: Embedded) -> None:
    with pytest.raises(WarehouseError, match=r"^CI_PIPELINE_WAREHOUSE_URL: no warehouse at https://.*SSL"):
        connect(embedded_warehouse.url.replace("http:", "https:"))


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>It works!</html>"), (404, b"not here"), (200, b"")])
def test_a_server_that_is_no_warehouse_is_one_line(status: int, body: bytes) -> None:
    class Web(Server):
        def handle(self, request: Request) -> Response:
            return Response(status, body)

    with Web() as server, pytest.raises(WarehouseError, match=r"^CI_PIPELINE_WAREHOUSE_URL: no warehouse at .*[^\n]$"):
        connect(server.url)


def test_the_warehouse_costs_the_one_shot_command_nothing() -> None:
    code = "import sys, json; from ci_pipeline.warehouse import client, history; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"pyarrow", "pandas", "clickhouse_connect", "chdb", "starlette", "dagster"} & set(loaded)
