"""The shapes of GitHub's API, read as our rows. Any field may be missing, null or of another type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from ci_pipeline.model import CiJob, CiRun, CiStep

Json = Mapping[str, Any]


def run_from(payload: object, *, repository: str = "") -> CiRun:
    """A run from GitHub's workflow run object; `repository` where the object names none.

    Raises:
        ValueError: it has no id.
    """
    run = as_object(payload)
    run_id = number_from(run.get("id"))
    if not run_id:
        raise ValueError("a workflow run without an id")
    return CiRun(
        repository=_text(as_object(run.get("repository")).get("full_name")) or repository,
        run_id=run_id,
        run_attempt=number_from(run.get("run_attempt")) or 1,
        run_number=number_from(run.get("run_number")),
        workflow_id=number_from(run.get("workflow_id")),
        workflow_name=_text(run.get("name")),
        workflow_path=_text(run.get("path")).partition("@")[0],
        event=_text(run.get("event")),
        status=_text(run.get("status")) or "completed",
        conclusion=_text(run.get("conclusion")) or None,
        head_sha=_text(run.get("head_sha")),
        head_branch=_text(run.get("head_branch")),
        title=_text(run.get("display_title")),
        html_url=_text(run.get("html_url")),
        created_at=time_from(run.get("created_at")),
        updated_at=time_from(run.get("updated_at")),
    )


def run_payload(run: CiRun) -> dict[str, Any]:
    """The workflow run object that `run_from` reads."""
    return {
        "id": run.run_id,
        "run_attempt": run.run_attempt,
        "run_number": run.run_number,
        "workflow_id": run.workflow_id,
        "name": run.workflow_name,
        "path": run.workflow_path,
        "event": run.event,
        "status": run.status,
        "conclusion": run.conclusion,
        "head_sha": run.head_sha,
        "head_branch": run.head_branch,
        "display_title": run.title,
        "html_url": run.html_url,
        "created_at": run.created_at and run.created_at.isoformat(),
        "updated_at": run.updated_at and run.updated_at.isoformat(),
        "repository": {"full_name": run.repository},
    }


def jobs_from(payload: object) -> tuple[CiJob, ...]:
    """The jobs of a jobs object (`{"jobs": […]}`), of a list of such pages, or of a plain list of jobs."""
    return tuple(map(_job, _job_objects(payload)))


def missing_jobs(payload: object) -> str:
    """What `jobs_from` does not find in a payload, in words; "" where all is there, or there is no payload.

    People save the first of several pages, and what GitHub says in place of one.
    """
    pages = objects(payload if isinstance(payload, list) else [payload])
    if any("name" not in page and not isinstance(page.get("jobs"), list) for page in pages):
        return "no list of jobs"
    found, total = len(_job_objects(payload)), max((number_from(page.get("total_count")) for page in pages), default=0)
    return f"only {found} of {total} jobs" if found < total else ""


def _job_objects(payload: object) -> list[Json]:
    items = objects(payload, "jobs")
    return [job for item in items for job in (objects(item, "jobs") if "jobs" in item else [item])]


def _job(job: Json) -> CiJob:
    return CiJob(
        id=number_from(job.get("id")),
        name=_text(job.get("name")),
        status=_text(job.get("status")),
        conclusion=_text(job.get("conclusion")) or None,
        html_url=_text(job.get("html_url")),
        started_at=time_from(job.get("started_at")),
        completed_at=time_from(job.get("completed_at")),
        steps=tuple(
            CiStep(_text(step.get("name")), number_from(step.get("number")), _text(step.get("conclusion")) or None)
            for step in objects(job.get("steps"))
        ),
    )


def objects(payload: object, key: str = "") -> list[Json]:
    """The objects of a list, or of the list under `key`; whatever is no object is left out."""
    if key and isinstance(payload, dict):
        payload = cast(Json, payload).get(key)
    items = cast(Iterable[object], payload) if isinstance(payload, list) else ()
    return [cast(Json, item) for item in items if isinstance(item, dict)]


def as_object(value: object) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def time_from(value: object) -> datetime | None:
    """An ISO 8601 time, in UTC. GitHub writes year 1 for "never"."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC) if time and time.year > 1 else None
    except (ValueError, OverflowError):
        return None


def number_from(value: object) -> int:
    """A whole number that ClickHouse's Int64 holds; 0 for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) < 20 else 0
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
