"""Fixtures of the whole suite."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling


TOGETHER = ("test_up.py", "test_daemon.py", "test_run_launcher.py", "test_first_page.py", "test_pages_in_chromium.py")
"""Modules that start so much that one worker runs all of their tests."""


def pytest_configure() -> None:
    # In a shell's background SIGINT is ignored; Dagster then leaves SIGTERM ignored too, and children inherit both.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """The tests of `TOGETHER` begin first; the others go wherever a worker is free."""
    # Not by `--dist loadgroup`: with pytest 9.2 the marks of groups have no effect (pytest-dev/pytest-xdist#1386).
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleOrTest(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if module.endswith(TOGETHER) else nodeid

    return ByModuleOrTest(config, log)


@pytest.fixture(scope="session")
def embedded_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A running embedded warehouse; its databases are the tests' own."""
    with Embedded(tmp_path_factory.mktemp("warehouse")) as warehouse:
        yield warehouse


@pytest.fixture
def new_warehouse_url(embedded_warehouse: Embedded) -> str:
    """The URL of a database that nobody else uses, and that does not exist yet."""
    return embedded_warehouse.url.removesuffix("default") + f"test_{uuid4().hex}"


@pytest.fixture(scope="session")
def migrated() -> list[Client]:
    """A warehouse that has all tables, and nothing in them, or none."""
    return []


@pytest.fixture
def warehouse(migrated: list[Client], new_warehouse_url: str) -> Iterator[Client]:
    """A warehouse with all tables, and nothing in them: that of the test before, if it left the tables as they were."""
    if not migrated:
        migrated.append(connect(new_warehouse_url))
        migrate(migrated[0])
    client = migrated[0]
    before = client.query(SCHEMA).result_rows
    yield client
    client.command(f"TRUNCATE ALL TABLES FROM {client.database} NOT LIKE 'schema_migration'")
    if client.query(SCHEMA).result_rows != before:
        client.command(f"DROP DATABASE {migrated.pop().database}", use_database=False)


SCHEMA = """
    SELECT create_table_query, if(name = 'schema_migration', total_rows, 0)
    FROM system.tables WHERE database = currentDatabase() ORDER BY name
"""


@pytest.fixture
def warehouse_url(embedded_warehouse: Embedded, warehouse: Client) -> str:
    """The URL of `warehouse`."""
    return embedded_warehouse.url.removesuffix("default") + str(warehouse.database)


@pytest.fixture
def bucket(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://<bucket>` of an empty bucket, on a server to which the environment leads every client."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": moto_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid4().hex}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """The address of a server that speaks AWS's APIs."""
    from moto.dynamodb.responses import DynamoHandler
    from moto.server import ThreadedMotoServer

    # One request at a time: where moto refuses a transaction, it takes back what others wrote meanwhile as well.
    lock, call_action = threading.Lock(), DynamoHandler.call_action

    def one_at_a_time(handler: DynamoHandler) -> object:
        with lock:
            return call_action(handler)

    DynamoHandler.call_action = one_at_a_time  # pyright: ignore
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
