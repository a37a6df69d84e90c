"""Who hears when something fails: Slack, once, and why, and what to do."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import dagster as dg
from dagster._core.events import JobFailureData
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.tags import PARTITION_NAME_TAG, WILL_RETRY_TAG
from dagster_shared.error import SerializableErrorInfo

from ci_pipeline import pipeline
from ci_pipeline.defs.jobs import deliver, prune
from ci_pipeline.defs.oot import oot_daily
from ci_pipeline.defs.partitions import RANGE_TAGS
from ci_pipeline.services import Services

PATIENCE = 300.0
"""Seconds for which something fails before a person hears of it: a server that starts anew takes less."""

_LIMIT = 100  # failures that are looked at: those of the time of PATIENCE, and more


@dg.run_failure_sensor(
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells Slack, once, that the report of a CI run could not be made, and why.",
)
def failed_runs(context: dg.RunFailureSensorContext, services: dg.ResourceParam[Services]) -> None:
    tags = context.dagster_run.tags
    keys = [key for name in (PARTITION_NAME_TAG, *RANGE_TAGS) if pipeline.is_run_key(key := tags.get(name, ""))]
    if not keys or _is_retried(context):
        return
    reasons = _reasons(context.get_step_failure_events()) or [context.failure_event.message or "no reason is known"]
    pipeline.report_failure(keys, reasons, services)


def _is_retried(context: dg.RunFailureSensorContext) -> bool:
    """Dagster writes the run's end, and then the tag, a moment after the event: there may be neither yet."""
    run = context.instance.get_run_by_id(context.dagster_run.run_id) or context.dagster_run
    if WILL_RETRY_TAG in run.tags or not context.instance.run_retries_enabled:
        return run.tags.get(WILL_RETRY_TAG) == "true"
    data = context.failure_event.event_specific_data
    reason = data.failure_reason if isinstance(data, JobFailureData) else None
    return auto_reexecution_should_retry_run(context.instance, run.with_status(dg.DagsterRunStatus.FAILURE), reason)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells Slack, once, that a sensor, a schedule or a job that is not about one CI run goes on failing: "
    "replication, delivery, the search for new runs. When it works again its message is edited.",
)
def breakdowns(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    told: dict[str, tuple[int, str]] = json.loads(context.cursor or "{}")
    for part in (*_automations(context), *_jobs(context.instance)):
        if part.name in told:
            since, reason = told[part.name]
            if part.worked_at > since:
                headline = f"✅ {part.name} works again: it failed from {_utc(since)} to {_utc(part.worked_at)}"
                pipeline.report_breakdown(part.name, since, headline, [reason], services)
                del told[part.name]
        elif part.since is not None and time.time() - part.since >= PATIENCE:
            since, reason = int(part.since), part.reason()
            what_to_do = f"{part.what_to_do} {services.settings.dagster_url}{part.page}"
            lines = [reason, f"What it does: {part.description}", what_to_do]
            pipeline.report_breakdown(part.name, since, f"❌ {part.name} fails since {_utc(since)}", lines, services)
            told[part.name] = since, reason
    return dg.SensorResult(
        cursor=json.dumps(told), skip_reason=f"broken: {', '.join(told)}" if told else "everything works"
    )


class _Part(NamedTuple):
    """What may break down. It worked last at `worked_at`; `since` when it fails, None where it does not: both in
    seconds since 1970."""

    name: str
    description: str
    worked_at: float
    since: float | None
    reason: Callable[[], str]
    what_to_do: str
    page: str  # of Dagster


def _automations(context: dg.SensorEvaluationContext) -> Iterator[_Part]:
    """The sensors and schedules that are switched on."""
    assert context.repository_def
    ours = {one.name: one for one in (*context.repository_def.sensor_defs, *context.repository_def.schedule_defs)}
    for state in context.instance.all_instigator_state():
        if not state.is_running or state.name not in ours:
            continue
        ticks = partial(context.instance.get_ticks, state.instigator_origin_id, state.selector_id)
        worked = ticks(limit=1, statuses=[TickStatus.SUCCESS, TickStatus.SKIPPED])
        worked_at = worked[0].timestamp if worked else 0.0
        failed = ticks(after=worked_at, limit=_LIMIT, statuses=[TickStatus.FAILURE])
        yield _Part(
            state.name,
            ours[state.name].description or "",
            worked_at,
            failed[-1].timestamp if failed else None,
            lambda failed=failed: _reason(failed[0].error),
            "Mend that, and it goes on by itself; what waits is kept. Its ticks:",
            "/automation",
        )


def _jobs(instance: dg.DagsterInstance) -> Iterator[_Part]:
    """The jobs whose runs are not about one CI run."""
    for job in (deliver, prune, oot_daily):
        of = partial(dg.RunsFilter, job_name=job.name)
        worked = instance.get_run_records(of(statuses=[dg.DagsterRunStatus.SUCCESS]), limit=1)
        worked_at = worked[0].create_timestamp if worked else datetime.fromtimestamp(0, UTC)
        failed = instance.get_run_records(
            of(statuses=[dg.DagsterRunStatus.FAILURE], created_after=worked_at), limit=_LIMIT
        )
        yield _Part(
            job.name,
            job.description or "",
            worked_at.timestamp(),
            failed[-1].create_timestamp.timestamp() if failed else None,
            lambda failed=failed: _reason_of_run(instance, failed[0].dagster_run.run_id),
            "Mend that, and re-execute the run:",
            f"/runs/{failed[0].dagster_run.run_id}" if failed else "",
        )


def _reason_of_run(instance: dg.DagsterInstance, run_id: str) -> str:
    logs = instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE})
    events = [log.get_dagster_event() for log in logs]
    return (_reasons([event for event in events if event.is_step_failure]) or [events[-1].message or ""])[0]


def _reasons(step_failures: Sequence[dg.DagsterEvent]) -> list[str]:
    return [f"{event.step_key}: {_reason(event.step_failure_data.error)}" for event in step_failures]


def _reason(error: SerializableErrorInfo | None) -> str:
    """In one line: Dagster's own errors are wrapped around the one that a person wants to see.

    What our own exceptions say needs no name in front of it.
    """
    while error and error.cause and error.message.startswith("dagster"):
        error = error.cause
    text = error.message.strip().splitlines()[0] if error and error.message.strip() else "no reason is known"
    return re.sub("^ci_pipeline[.a-zA-Z_]*: ", "", text)


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
