"""Dagster's instance on one machine: what `dagster.yaml` names as `instance_class`."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dagster import DagsterInstance
from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.instance import InstanceRef
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage, SqliteStorageConfig
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, StaticPool, create_engine

OPEN = 8
"""SQLite databases that are kept open: there is one for each run of Dagster."""

KEEP = 5
"""Seconds for which a connection to Postgres is kept. Dagster makes one for each statement: 400 for a single CI run."""

ENVIRONMENT = {"DAGSTER_EVENT_BATCH_SIZE": "1000", "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1"}
"""Without these, Dagster writes down history 40 times as slowly."""


class Instance(DagsterInstance):
    """Dagster's own, with other defaults. Whatever `dagster.yaml` says, such as another storage, is as it is there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        super().__init__(*args, **kwargs)
        # It does nothing where the storage is SQLite. No statement has a time limit, and no number of threads waits.
        self.event_log_storage.optimize_for_webserver(statement_timeout=0, pool_recycle=KEEP, max_overflow=-1)

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        return {}

    @staticmethod
    def config_defaults(base_dir: str) -> Mapping[str, ConfigurableClassData | None]:
        storage = ConfigurableClassData(__name__, Storage.__name__, yaml.safe_dump({"base_dir": base_dir}))
        return {**InstanceRef.config_defaults(base_dir), "storage": storage}


class EventLogStorage(SqliteEventLogStorage):
    """Opens a database once, and writes a batch in two transactions. Dagster's own does both for each event."""

    def __init__(self, base_dir: str) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        super().__init__(base_dir)

    @contextmanager
    def _connect(self, shard: str) -> Generator[Connection]:
        with self._db_lock, self._engine(shard).begin() as connection:
            yield connection

    def _engine(self, shard: str) -> Engine:
        engine = self._engines.pop(shard, None)
        if engine is None:
            arguments = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
            engine = create_engine(self.conn_string_for_shard(shard), poolclass=StaticPool, connect_args=arguments)
            self._initdb(engine)
        self._engines[shard] = engine
        if len(self._engines) > OPEN:
            self._engines.popitem(last=False)[1].dispose()
        return engine

    def dispose(self) -> None:
        for engine in self._engines.values():
            engine.dispose()
        super().dispose()

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        of_assets = [event for event in events if event.dagster_event_type in ASSET_EVENTS]
        super().store_event_batch([event for event in events if event.dagster_event_type not in ASSET_EVENTS])
        if not of_assets:
            return
        insert, rows = SqlEventLogStorageTable.insert(), [self._event_to_row(event) for event in of_assets]
        with self.run_connection(of_assets[0].run_id) as run:
            run.execute(insert, rows)
        with self.index_connection() as index:
            ordered = insert.returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
            ids = list(index.execute(ordered, rows).scalars())
            self._store_asset_event_tags(index, of_assets, ids)
            # An asset's row tells of its last event.
            last = {event.get_dagster_event().asset_key: (event, id) for event, id in zip(of_assets, ids, strict=True)}
            for event, id in last.values():
                self._store_asset_event(index, event, id)


class Storage(DagsterSqliteStorage):
    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = EventLogStorage(str(Path(self._event_log_storage.path_for_shard("index")).parent))

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: SqliteStorageConfig) -> Storage:
        return cls(inst_data=inst_data, **config_value)
