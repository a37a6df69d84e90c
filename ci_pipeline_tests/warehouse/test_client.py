from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from ci_pipeline import tables
from ci_pipeline.warehouse import WarehouseError
from ci_pipeline.warehouse import client as module
from ci_pipeline.warehouse.client import connect, migrate
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


def test_a_warehouse_that_is_down_is_one_line_without_the_password() -> None:
    with pytest.raises(WarehouseError) as raised:
        connect("http://me:secret@127.0.0.1:1/ci")
    assert str(raised.value) == "CI_PIPELINE_WAREHOUSE_URL: no warehouse at http://127.0.0.1:1: Connection refused"


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
