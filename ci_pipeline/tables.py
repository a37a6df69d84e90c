"""The columns of every table, once: DDL and Parquet files are held to these schemas by a test."""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ci_pipeline.model import CiRun

_utc = pa.timestamp("us", tz="UTC")

_run_key = [
    pa.field("repository", pa.string(), nullable=False),
    pa.field("run_id", pa.int64(), nullable=False),
    pa.field("run_attempt", pa.int32(), nullable=False),
    # When the CI run was created: every table is partitioned by its month.
    pa.field("run_created_at", _utc, nullable=False),
]

_test_key = [
    pa.field("test_job", pa.string(), nullable=False),
    pa.field("matrix_entry", pa.string(), nullable=False),
    pa.field("device", pa.string(), nullable=False),
    pa.field("node_id", pa.string(), nullable=False),
]

CI_RUN = pa.schema(
    [
        *_run_key,
        pa.field("run_number", pa.int64(), nullable=False),
        pa.field("workflow_id", pa.int64(), nullable=False),
        pa.field("workflow_name", pa.string(), nullable=False),
        pa.field("workflow_path", pa.string(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("conclusion", pa.string(), nullable=False),  # "" while there is none
        pa.field("head_sha", pa.string(), nullable=False),
        pa.field("head_branch", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("html_url", pa.string(), nullable=False),
        pa.field("problems", pa.list_(pa.string()), nullable=False),  # what could not be seen, one line each
    ]
)

TEST_REPORT = pa.schema(
    [
        *_run_key,
        pa.field("artifact", pa.string(), nullable=False),
        pa.field("machine", pa.string(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("test_job", pa.string(), nullable=False),
        pa.field("matrix_entry", pa.string(), nullable=False),
        pa.field("postfix", pa.string(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),  # false: no totals, the counts below are zero
        *(
            pa.field(name, pa.int32(), nullable=False)
            for name in (
                "passed",
                "failed",
                "errors",
                "skipped",
                "xfailed",
                "xpassed",
                "deselected",
                "rerun",
                "warnings",
            )
        ),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("captured_info", pa.string(), nullable=False),
        pa.field("problems", pa.list_(pa.string()), nullable=False),
    ]
)
"""One row per artifact: pytest's own totals, and what is missing."""

TEST_OUTCOME = pa.schema(
    [
        *_run_key,
        *_test_key,
        pa.field("postfix", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("trace", pa.string(), nullable=False),
        pa.field("seconds", pa.float64()),
        pa.field("category", pa.string(), nullable=False),
    ]
)
"""One row per test × device."""

TEST_JOB_RESULT = pa.schema(
    [
        *_run_key,
        pa.field("test_job", pa.string(), nullable=False),
        pa.field("matrix_entry", pa.string(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("failed", pa.int32(), nullable=False),
        pa.field("errors", pa.int32(), nullable=False),
        pa.field("success", pa.int32(), nullable=False),
        pa.field("skipped", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # why it is not complete
        pa.field("job_url", pa.string(), nullable=False),
    ]
)
"""One row per test job × matrix entry × device."""

CATEGORY_RESULT = pa.schema(
    [
        *_run_key,
        pa.field("test_job", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("failed", pa.int32(), nullable=False),
        pa.field("errors", pa.int32(), nullable=False),
    ]
)

RUN_DIFF = pa.schema(
    [
        *_run_key,
        *_test_key,
        pa.field("change", pa.string(), nullable=False),
        pa.field("against_run_id", pa.int64(), nullable=False),
        pa.field("since_run_id", pa.int64(), nullable=False),
        pa.field("since", _utc),
        pa.field("trace", pa.string(), nullable=False),
        pa.field("previous_trace", pa.string(), nullable=False),
    ]
)


def where(rows: pa.Table, column: str, *values: str) -> pa.Table:
    """The rows that have one of the values in a column of text.

    A `pc.field` expression says the same, and starts threads for it: three times as long for the rows of one CI run.
    """
    return rows.filter(pc.is_in(rows[column], pa.array(values)))


def rows_of(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Some columns of each row, made column by column: a dict for each row takes four times as long."""
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def run_key(run: CiRun, rows: int) -> dict[str, pa.Array]:
    """The first columns of every table, which say of which run its rows are."""
    created_at = run.created_at or datetime.fromtimestamp(0, UTC)
    values = (run.repository, run.run_id, run.run_attempt, created_at)
    return {
        field.name: pa.repeat(pa.scalar(value, field.type), rows) for field, value in zip(_run_key, values, strict=True)
    }
