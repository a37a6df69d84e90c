"""Keeps the tables of each CI run as Parquet files, for one partition or a whole range of them."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa

    from ci_pipeline.services import Services
    from ci_pipeline.table_store import TableStore


class RunTables(Mapping[str, "pa.Table"]):
    """One table for each CI run, by run key; read when it is asked for, so that a long range does not fill memory."""

    def __init__(self, store: TableStore, table: str, run_keys: Iterable[str]) -> None:
        self._store, self._table, self._run_keys = store, table, tuple(run_keys)

    def __getitem__(self, run_key: str) -> pa.Table:
        return self._store.read(self._table, run_key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._run_keys)

    def __len__(self) -> int:
        return len(self._run_keys)


class ParquetIOManager(dg.IOManager):
    """An asset's value is one table for each CI run: a mapping or, for long ranges, pairs that are made one by one."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def handle_output(
        self, context: dg.OutputContext, obj: Mapping[str, pa.Table] | Iterator[tuple[str, pa.Table]]
    ) -> None:
        store, table = self._services.tables, context.asset_key.path[-1]
        rows = size = 0
        for run_key, value in obj if isinstance(obj, Iterator) else obj.items():
            size += store.write(table, run_key, value)
            rows += value.num_rows
        if len(keys := context.asset_partition_keys) > 1:
            return  # Dagster would say of each CI run what is true of all of them
        context.add_output_metadata(
            {
                "dagster/partition_row_count": dg.MetadataValue.int(rows),
                "dagster/uri": dg.MetadataValue.path(store.uri(table, keys[0])),
                "bytes": dg.MetadataValue.int(size),
            }
        )

    def load_input(self, context: dg.InputContext) -> RunTables:
        return RunTables(self._services.tables, context.asset_key.path[-1], context.asset_partition_keys)
