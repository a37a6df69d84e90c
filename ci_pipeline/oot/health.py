"""How each backend did, day by day: rolled up in the warehouse, so that long trends cost nothing to show."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from ci_pipeline.warehouse.client import refusals

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# A job counts on the day on which it ended or, where it does not say, on which it was reported.
_ROLL_UP = """
INSERT INTO oot_backend_health
SELECT
    toDate(if(toUnixTimestamp(completed_at) = 0, changed_at, completed_at), 'UTC') AS day,
    downstream_repo,
    event_type IN ('nightly', 'periodic') AS nightly,
    argMax(oot_workflow_job.downstream_repo_level, changed_at) AS downstream_repo_level,
    count() AS total,
    countIf(conclusion = 'success') AS success,
    countIf(conclusion = 'failure') AS failure,
    countIf(conclusion = 'timed_out') AS timed_out,
    uniqExactIf(pr_number, pr_number > 0) AS pull_requests,
    sum(oot_workflow_job.failed_tests) AS failed_tests,
    avgOrNullIf(duration_seconds, duration_seconds > 0 AND conclusion != 'timed_out') AS average_duration,
    avgOrNull(queue_time) AS average_queue_time,
    max(completed_at) AS last_run_at,
    {version:UInt64} AS version
FROM oot_workflow_job FINAL
WHERE status = 'completed' AND day BETWEEN {first:Date} AND {last:Date}
GROUP BY day, downstream_repo, nightly
"""

_OF_THIS_VERSION = """
SELECT day, downstream_repo, nightly, downstream_repo_level, total, success, failure, timed_out
FROM oot_backend_health
WHERE version = {version:UInt64}
ORDER BY day, success / total, downstream_repo, nightly
"""


def roll_up(client: Client, first: date, last: date) -> list[Mapping[str, Any]]:
    """Make the rows of `oot_backend_health` from the day `first` to the day `last` anew; some of their columns.

    Raises:
        WarehouseError: ClickHouse refuses, or cannot be reached.
    """
    parameters = {"version": time.time_ns(), "first": first, "last": last}
    with refusals("the warehouse refuses the health of backends"):
        client.command(_ROLL_UP, parameters)
        return list(client.query(_OF_THIS_VERSION, parameters).named_results())
