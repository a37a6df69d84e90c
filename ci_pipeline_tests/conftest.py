"""Fixtures of the whole suite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client


@pytest.fixture(scope="session")
def embedded_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A running embedded warehouse; its databases are the tests' own."""
    with Embedded(tmp_path_factory.mktemp("warehouse")) as warehouse:
        yield warehouse


@pytest.fixture
def warehouse_url(embedded_warehouse: Embedded) -> str:
    """The URL of a database that nobody else uses, and that does not exist yet."""
    return embedded_warehouse.url.removesuffix("default") + f"test_{uuid4().hex}"


@pytest.fixture
def warehouse(warehouse_url: str) -> Iterator[Client]:
    """An empty warehouse with all tables."""
    client = connect(warehouse_url)
    migrate(client)
    yield client
    client.command(f"DROP DATABASE {client.database}", use_database=False)


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
