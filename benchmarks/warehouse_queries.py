"""What the embedded warehouse takes: inserting a run, and asking for a test's history and for a run's failures.

python -m benchmarks.warehouse_queries [--rows 10000000] [--path FOLDER]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ci_pipeline.model import CiRun
from ci_pipeline.tables import TEST_OUTCOME, run_key
from ci_pipeline.warehouse import history
from ci_pipeline.warehouse.client import connect, insert, migrate
from ci_pipeline.warehouse.embedded import Embedded

REPOSITORY = "huggingface/transformers"
TESTS = 123_000  # of one nightly run: 400 folders on two devices
OUTCOMES = """
INSERT INTO test_outcome
SELECT
    {repository:String} AS repository, 1000 + run AS run_id, 1 AS run_attempt,
    toDateTime64('2025-01-01 02:17:43', 6, 'UTC') + toIntervalDay(run) AS run_created_at, 'run_models_gpu' AS test_job,
    concat('models_', toString(test % 400)) AS matrix_entry, if(test % 2, 'single', 'multi') AS device,
    concat('tests/models/model_', toString(test % 400), '/test_modeling.py::ModelTest::test_case_', toString(test))
        AS node_id,
    '' AS postfix, if(cityHash64(test, intDiv(run, 7)) % 100 = 0, 'failed', 'passed') AS outcome, '' AS message,
    if(outcome = 'failed', concat('(line ', toString(run * 31 % 997), ')  AssertionError: not close!'), '') AS trace,
    run / 1000 AS seconds, 'PyTorch' AS category, bitShiftLeft(toUInt64(1), 44) AS version
FROM
(
    SELECT number % {tests:UInt64} AS test, intDiv(number, {tests:UInt64}) AS run
    FROM numbers({start:UInt64}, {count:UInt64})
)
"""
RUNS = """
INSERT INTO ci_run (repository, run_id, run_attempt, run_created_at, workflow_id, workflow_name, event, version)
SELECT DISTINCT repository, run_id, run_attempt, run_created_at, 5, 'Nightly', 'schedule', version FROM test_outcome
"""


def node_id(test: int) -> str:
    return f"tests/models/model_{test % 400}/test_modeling.py::ModelTest::test_case_{test}"


def run_table(run: CiRun) -> pa.Table:
    columns: dict[str, Any] = {
        "test_job": ["run_models_gpu"] * TESTS,
        "matrix_entry": [f"models_{n % 400}" for n in range(TESTS)],
        "device": ["single", "multi"] * (TESTS // 2),
        "node_id": [node_id(n) for n in range(TESTS)],
        "postfix": [""] * TESTS,
        "outcome": ["failed" if n % 100 == 0 else "passed" for n in range(TESTS)],
        "message": [""] * TESTS,
        "trace": ["(line 42)  AssertionError: False is not true" if n % 100 == 0 else "" for n in range(TESTS)],
        "seconds": [n / 1000 for n in range(TESTS)],
        "category": ["PyTorch"] * TESTS,
    }
    return pa.table({**run_key(run, TESTS), **columns}, schema=TEST_OUTCOME)


def measure(what: str, call: Callable[[int], Any], times: int = 50) -> None:
    found = call(0)
    took: list[float] = []
    for number in range(times):
        start = time.perf_counter()
        call(number)
        took.append((time.perf_counter() - start) * 1000)
    took.sort()
    rows = len(found.outcomes) if hasattr(found, "outcomes") else len(found)
    print(f"{what:<34} {statistics.median(took):8.1f} ms median {took[int(times * 0.95)]:8.1f} ms p95 {rows:8,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path: Path = options.path or Path(folder)
        start = time.perf_counter()
        with Embedded(path) as warehouse:
            client = connect(warehouse.url)
            migrate(client)
            print(f"start and migrate                  {(time.perf_counter() - start) * 1000:8.0f} ms")
            start, have = time.perf_counter(), client.command("SELECT count() FROM test_outcome")
            assert isinstance(have, int)
            for begin in range(have, options.rows, 1_000_000):
                where = {"tests": TESTS, "start": begin, "count": min(1_000_000, options.rows - begin)}
                client.command(OUTCOMES, {"repository": REPOSITORY, **where})
            client.command(RUNS)
            print(f"generate {options.rows - have:,} rows           {time.perf_counter() - start:8.1f} s")

            table = run_table(CiRun(REPOSITORY, 1, created_at=datetime(2024, 12, 1, tzinfo=UTC)))
            measure(f"insert {TESTS:,} outcomes", lambda n: insert(client, "test_outcome", table, n) or [()] * TESTS, 5)
            measure("history of one test", lambda n: history.history_of_test(client, REPOSITORY, node_id(n * 997)))
            run = CiRun(REPOSITORY, 1000 + options.rows // TESTS // 2)
            where = dict.fromkeys(("test_job", "change", "folder", "device", "error", "text"), "")
            of_run = partial(history.run_tests, client, REPOSITORY, changes=["failing"], limit=50, **where)
            measure("failing tests of one run, a page", lambda n: of_run(run.run_id - n % 9))
            measure(
                "all that an earlier run knows", lambda n: history.earlier_run(client, run, "run_models_gpu", ""), 5
            )
            measure("latest 50 runs", lambda n: history.latest_runs(client, 50))
            size = client.command(
                "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
            )
            assert isinstance(size, int)
            print(f"on disk                            {size / 2**20:8.0f} MiB")
            status = Path(f"/proc/{warehouse.process.pid}/status").read_text()
            print(f"memory of the server               {int(status.split('VmRSS:')[1].split()[0]) / 1024:8.0f} MiB")
            print(f"load of the machine                {os.getloadavg()[0]:8.1f}")


if __name__ == "__main__":
    main()
