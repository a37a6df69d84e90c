"""From an acknowledged callback to the warehouse that the pages read, under `dagster dev`.

    python -m benchmarks.oot_replication                       at rest: single callbacks at random moments
    python -m benchmarks.oot_replication --callbacks 30000     and while a relay takes callbacks as fast as it can
    python -m benchmarks.oot_replication --callbacks 6000 --body 60

Everything runs on this machine: SQLite, the embedded warehouse, Dagster's daemon, the relay and the load on it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.dagster_latency import dagster_dev
from benchmarks.oot_callbacks import Load, serving
from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded
from ci_pipeline_tests.servers.oidc import OidcServer

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

REPO = "org/backend"


def wait_for(client: Client, condition: str, patience: float = 120.0) -> float:
    """Seconds until some row of `oot_workflow_job` meets the condition.

    Raises:
        TimeoutError: none does.
    """
    start = time.monotonic()
    while time.monotonic() - start < patience:
        if client.command(f"SELECT count() > 0 FROM oot_workflow_job WHERE {condition}"):
            return time.monotonic() - start
        time.sleep(0.02)
    raise TimeoutError(condition)


def at_rest(store: SqliteStore, client: Client, times: int) -> list[float]:
    seconds: list[float] = []
    rng = random.Random(1)
    for n in range(-1, times):
        key = f"rest-{n}"
        store.write({"dynamoKey": key, "status": "in_progress", "downstream_repo": REPO}).result()
        taken = wait_for(client, f"dynamoKey = '{key}'")
        if n >= 0:  # before the first, Dagster starts
            seconds.append(taken)
        time.sleep(rng.uniform(0, 6))
    return seconds


def under_load(store: SqliteStore, client: Client, callbacks: int, connections: int, kilobytes: int) -> None:
    jobs = [(REPO, f"delivery-{n // 10}", n) for n in range(callbacks // 2)]
    for delivery in sorted({delivery for _, delivery, _ in jobs}):
        store.register_dispatch(Dispatch(delivery, REPO, time.time()))
    with OidcServer() as issuer, serving(store.path, [REPO], issuer) as (_, port):
        tokens = {REPO: [issuer.token(REPO, exp=int(time.time()) + 86400)]}
        load = Load(port, jobs, tokens, kilobytes)
        start = time.monotonic()
        asyncio.run(load.run(connections))
        rate = len(load.seconds) / (time.monotonic() - start)
    acknowledged = time.monotonic()
    ours = f"startsWith(dynamoKey, '{REPO}/')"
    while client.command(f"SELECT countIf(status = 'completed') FROM oot_workflow_job FINAL WHERE {ours}") < len(jobs):
        time.sleep(0.05)
    last = time.monotonic() - acknowledged
    lag = "toUnixTimestamp64Milli(_inserted_at) - toUnixTimestamp64Milli(toDateTime64(changed_at, 3))"
    [(rows, *lags)] = client.query(
        f"SELECT count(), quantile(0.5)({lag}), quantile(0.99)({lag}), max({lag}) FROM oot_workflow_job WHERE {ours}"
    ).result_rows
    shown = ", ".join(f"{name} {ms / 1000:.1f} s" for name, ms in zip(("p50", "p99", "most"), lags, strict=True))
    print(
        f"under load: {rate:.0f} callbacks/s of {kilobytes} KB, {len(load.refused)} refused; {rows} rows, lag {shown}"
    )
    print(f"all {len(jobs)} jobs complete in the warehouse {last:.1f} s after the last answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--callbacks", type=int, default=0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--body", type=int, default=6, help="KB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder, "warehouse")) as warehouse:
        os.environ["CI_PIPELINE_WAREHOUSE_URL"] = warehouse.url
        client = connect(warehouse.url)
        migrate(client)
        home = Path(folder, "home")
        with dagster_dev(home), contextlib.closing(SqliteStore(home / "oot.sqlite")) as store:
            seconds = at_rest(store, client, options.times)
            print(f"at rest: median {statistics.median(seconds):.1f} s, {min(seconds):.1f} to {max(seconds):.1f} s")
            if options.callbacks:
                under_load(store, client, options.callbacks, options.connections, options.body)


if __name__ == "__main__":
    main()
