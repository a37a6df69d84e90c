"""When things run: new CI runs at once, history a page at a time, deliveries that had to wait, and pruning."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from ci_pipeline import pipeline
from ci_pipeline.defs.jobs import UNFINISHED, deliver, process_ci_run, prune
from ci_pipeline.defs.partitions import RANGE_TAGS, ci_run
from ci_pipeline.model import CiRun
from ci_pipeline.services import Services
from ci_pipeline.sources import cursor_at

WATCH_SECONDS = 4.0
"""How long a tick watches an inbox folder: Dagster begins one every five seconds, if the one before has ended."""

PAGE = 50
"""New CI runs that one tick takes."""

HISTORY_PAGE = 500
"""CI runs of one Dagster run that fills in history."""

KIND = "ci_pipeline/kind"
"""Tag of Dagster runs, `live` or `history`: dagster.yaml bounds how many of each go at once."""


@dg.sensor(
    target=process_ci_run,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks the source for completed CI runs, and processes each.",
)
def ci_runs(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    # Elsewhere each look is a request.
    end = time.monotonic() + (WATCH_SECONDS if services.settings.source_uri.startswith("folder:") else 0)
    while True:
        page = services.source.runs_after(context.cursor, PAGE)
        # That a partition exists does not say that a run was requested: the daemon may have died between the two.
        # Asking again is safe, since the run key is known then.
        new = [run for run in page.runs if not services.is_processed(run.key)]
        if new or time.monotonic() >= end:
            break
        time.sleep(0.25)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=run.key, partition_key=run.key, tags={KIND: "live", **_about(run)}) for run in new
        ],
        dynamic_partitions_requests=_additions(context, new),
        skip_reason=None if new else "no new CI run",
        cursor=page.cursor,
    )


@dg.sensor(
    target=process_ci_run,
    minimum_interval_seconds=5,
    description="Fills in history: all that the source has, oldest first, a page in each Dagster run. Switch it on "
    "once; when there is nothing left it waits. Slack hears nothing of it unless CI_PIPELINE_BACKFILL_POSTS is set.",
)
def ci_run_history(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    busy = dg.RunsFilter(tags={KIND: "history"}, statuses=UNFINISHED)
    if context.instance.get_runs(busy, limit=1):
        return dg.SensorResult(skip_reason="the page before is being processed", cursor=context.cursor)
    page = services.source.runs_after(context.cursor or cursor_at(datetime.fromtimestamp(0, UTC)), HISTORY_PAGE)
    missing = [run for run in page.runs if not services.is_processed(run.key)]
    if not missing:
        return dg.SensorResult(skip_reason="no CI run that is not processed yet", cursor=page.cursor)
    # A range is all between its ends in the order of insertion: a partition that is there already is one of its own.
    additions = _additions(context, missing)
    new = [key for addition in additions for key in addition.partition_keys]
    ranges = [(run.key, run.key) for run in missing if run.key not in set(new)] + ([(new[0], new[-1])] if new else [])
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key="..".join(ends), tags={KIND: "history", **dict(zip(RANGE_TAGS, ends, strict=True))})
            for ends in ranges
        ],
        dynamic_partitions_requests=additions,
        cursor=page.cursor,
    )


@dg.sensor(
    target=deliver,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tries again what could not be delivered to the Hub, Slack or the warehouse.",
)
def pending_deliveries(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.RunRequest | dg.SkipReason:
    if not pipeline.has_pending(services):
        return dg.SkipReason("everything is delivered")
    if context.instance.get_runs(dg.RunsFilter(job_name=deliver.name, statuses=UNFINISHED), limit=1):
        return dg.SkipReason("a delivery is under way")
    return dg.RunRequest()


prune_daily = dg.ScheduleDefinition(
    name="prune_daily",
    job=prune,
    cron_schedule="30 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Forgets CI runs that were processed longer ago than CI_PIPELINE_RETENTION_DAYS.",
)


def _additions(context: dg.SensorEvaluationContext, runs: Sequence[CiRun]) -> list[dg.AddDynamicPartitionsRequest]:
    name = ci_run.name or ""
    new = [run.key for run in runs if not context.instance.has_dynamic_partition(name, run.key)]
    return [ci_run.build_add_request(new)] if new else []


def _about(run: CiRun) -> dict[str, str]:
    """What a person looks for in a list of Dagster runs."""
    tags = {"ci/workflow": run.workflow_name, "ci/event": run.event, "ci/head_sha": run.head_sha}
    return {name: value for name, value in tags.items() if value}
