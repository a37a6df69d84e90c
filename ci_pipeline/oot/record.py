"""The record of an out-of-tree job: one callback and what the relay vouches for, flattened."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from ci_pipeline.oot.lifecycle import Step
from ci_pipeline.oot.payload import MAX_FAILED_TESTS, Callback, CiMetrics, FailedTest, Trusted, count, cut

Record = dict[str, str | int | float]
"""The fields of one record that one callback sets; what is absent stays as it was."""

FIELDS: dict[str, type] = {
    "dynamoKey": str,
    "status": str,
    "conclusion": str,
    "downstream_repo": str,
    "downstream_repo_level": str,
    "upstream_repo": str,
    "event_type": str,
    "delivery_id": str,
    "pr_number": int,
    "pr_author": str,
    "pytorch_head_sha": str,
    "workflow_name": str,
    "workflow_run_url": str,
    "job_name": str,
    "check_run_id": str,
    "run_id": str,
    "run_attempt": int,
    "started_at": str,
    "completed_at": str,
    "queue_time": float,
    "execution_time": float,
    "passed_tests": int,
    "failed_tests": int,
    "skipped_tests": int,
    "total_tests": int,
    "failed_tests_json": str,
    "artifact_url": str,
    "environment": str,
}
"""Every field that a record may have. The key is `dynamoKey`."""

_ENVIRONMENT_BYTES = 4096


def flatten(trusted: Trusted, callback: Callback, upstream: str) -> Record:
    """The record that a callback sets. Identity, level and times come from `trusted` alone."""
    workflow, about = callback.workflow, callback.about
    repo = trusted.verified_repo
    record: dict[str, Any] = {
        "dynamoKey": f"{repo}/{callback.delivery_id}/{workflow.name}/{workflow.job_name}/{workflow.check_run_id}",
        "status": workflow.status,
        "downstream_repo": repo,
        "upstream_repo": (about.repository and about.repository.full_name) or upstream,
        "pr_number": about.pr_number or 0,
        "pr_author": about.pr_author or None,
        "pytorch_head_sha": about.stated_sha or callback.delivery_id,
        "delivery_id": callback.delivery_id,
        "workflow_name": workflow.name,
        "job_name": workflow.job_name,
        "check_run_id": workflow.check_run_id,
        "run_id": workflow.run_id,
        "workflow_run_url": workflow.url,
        "run_attempt": workflow.run_attempt,
        "downstream_repo_level": trusted.downstream_repo_level or None,
        "event_type": callback.event_type or None,
        **(trusted.ci_metrics or CiMetrics()).model_dump(),
        "started_at": workflow.started_at or None,
        "artifact_url": workflow.artifact_url or None,
        "environment": _environment(workflow.environment),
        "failed_tests_json": _failed_tests(workflow.failed_tests),
    }
    if workflow.status == "completed":
        record |= {"conclusion": workflow.conclusion, "completed_at": workflow.completed_at or None}
        record |= _counts(workflow.test_results)
    return {name: value for name, value in record.items() if value is not None}


def began_at(record: Record, now: float) -> str:
    """When a job began as far as its first report says, in ISO 8601. Stores keep it: what is sorted by it stays put."""
    said = record.get("started_at") or record.get("completed_at")
    return str(said or datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"))


def step(callback: Callback, record: Record) -> Step:
    """What the lifecycle needs to know of a callback; `record` is without what was measured here."""
    workflow, about = callback.workflow, callback.about
    repo = str(record["downstream_repo"])
    # Its sender's retry is the same story even if the allowlist's level changed in between.
    content = json.dumps({**record, "downstream_repo_level": ""}, sort_keys=True)
    run = (callback.delivery_id, repo, workflow.run_id, workflow.run_attempt)
    return Step(
        delivery_id=callback.delivery_id,
        repo=repo,
        job=json.dumps([*run, workflow.job_name, workflow.check_run_id], ensure_ascii=False),
        status=workflow.status,
        digest=hashlib.sha256(content.encode()).hexdigest(),
        dynamo_key=str(record["dynamoKey"]),
        run_attempt=workflow.run_attempt,
        self_report=callback.self_report,
        pr_number=about.pr_number,
        head_sha=about.stated_sha,
    )


def _counts(test_results: dict[str, Any] | None) -> dict[str, int]:
    results = test_results or {}
    counts = {
        f"{name}_tests": number
        for name in ("passed", "failed", "skipped")
        if (number := count(results.get(name))) is not None
    }
    total = count(results.get("total"))
    if total is None and counts:
        total = count(sum(counts.values()))
    return counts if total is None else counts | {"total_tests": total}


def _failed_tests(failed_tests: list[FailedTest] | None) -> str | None:
    if failed_tests is None:
        return None
    return failed_tests_json([test.model_dump() for test in failed_tests[:MAX_FAILED_TESTS]], len(failed_tests))


def failed_tests_json(tests: list[dict[str, Any]], total: int) -> str:
    """The field's text; the last entry says how many were omitted."""
    if total > len(tests):
        tests = [*tests[:-1], {**tests[-1], "omitted": total - len(tests)}]
    return json.dumps(tests, ensure_ascii=False, separators=(",", ":"))


def _environment(environment: dict[str, Any] | None) -> str | None:
    """JSON of at most 4 KB: the first entries that fit, long texts cut."""
    if not environment:
        return None
    text = json.dumps(environment, ensure_ascii=False)
    if len(text.encode()) <= _ENVIRONMENT_BYTES:
        return text
    kept: dict[str, Any] = {}
    for name, value in environment.items():
        entry = {name: cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 256)}
        text = json.dumps({**kept, **entry, "cut": len(environment)}, ensure_ascii=False)
        if len(text.encode()) > _ENVIRONMENT_BYTES:
            break
        kept |= entry
    return json.dumps({**kept, "cut": len(environment) - len(kept)}, ensure_ascii=False)
