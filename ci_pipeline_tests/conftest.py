"""Fixtures of the whole suite."""

from __future__ import annotations

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
