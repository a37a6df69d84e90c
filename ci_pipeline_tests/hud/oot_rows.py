"""Out-of-tree jobs for the pages: through the store's own rows and the replication, into a real warehouse."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ci_pipeline.oot.replication import insert
from ci_pipeline.oot.store import Change

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

NOW = datetime.now(UTC).replace(microsecond=0)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "//evil.example/x",
    "</title><svg onload=alert(1)>",
)


def job(repo: str = "org/backend", hours_ago: float = 1, minutes: int = 10, **fields: Any) -> dict[str, Any]:
    """A record; `conclusion=""` for a job that runs."""
    began = NOW - timedelta(hours=hours_ago)
    completed = fields.get("conclusion", "success") != ""
    record: dict[str, Any] = {
        "status": "completed" if completed else "in_progress",
        "conclusion": "success",
        "downstream_repo": repo,
        "downstream_repo_level": "L2",
        "upstream_repo": "huggingface/transformers",
        "event_type": "pull_request",
        "delivery_id": "delivery-1",
        "pr_number": 7,
        "pytorch_head_sha": "a" * 40,
        "workflow_name": "CI",
        "workflow_run_url": f"https://github.com/{repo}/actions/runs/1",
        "job_name": "test",
        "check_run_id": "1",
        "run_id": "100",
        "run_attempt": 1,
        "started_at": began.isoformat(),
        "completed_at": (began + timedelta(minutes=minutes)).isoformat() if completed else None,
        **fields,
    }
    names = ("downstream_repo", "delivery_id", "workflow_name", "job_name", "check_run_id")
    record["dynamoKey"] = "/".join(str(record[name]) for name in names)
    return {name: value for name, value in record.items() if value is not None}


def put(client: Client, *records: dict[str, Any], version: int = 1) -> None:
    assert insert(client, [Change(record, version, time.time()) for record in records]) == []
