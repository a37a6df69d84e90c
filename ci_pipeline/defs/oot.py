"""Out-of-tree CI in the graph: callbacks on their way to the warehouse, whether all arrived, and how backends do."""

# pyright: reportUnknownParameterType=false

import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ci_pipeline.defs import metadata as show
from ci_pipeline.services import Services
from ci_pipeline.settings import OotSettings, load_oot_settings

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from ci_pipeline.oot.replication import Replicated
    from ci_pipeline.oot.store import Store
    from ci_pipeline.warehouse.history import Row

GROUP = "out_of_tree"
OWNERS = ["team:ci"]
WATCH_SECONDS = 3.5
"""How long a tick watches the store: Dagster begins one every five seconds, if the one before has ended."""

DAYS = dg.DailyPartitionsDefinition(start_date="2026-01-01", end_offset=1)
"""Days of UTC, today's among them."""


class OutOfTree:
    """The store of callbacks and the warehouse, each opened when it is first needed."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @cached_property
    def settings(self) -> OotSettings:
        return load_oot_settings(CI_PIPELINE_HOME=self._services.settings.home)

    @cached_property
    def store(self) -> "Store":
        from ci_pipeline.oot.stores import open_store

        url = self.settings.store_url
        if url.startswith("dynamodb://"):
            from ci_pipeline.defs.dynamodb import DynamoDBResource  # dagster-aws is slow to import

            return DynamoDBResource(url=url).open_store(self.settings.oot_state_days)
        return open_store(url, self.settings.oot_state_days)

    @property
    def warehouse(self) -> "Client":
        warehouse = self._services.warehouse
        assert warehouse is not None, self.idle
        return warehouse

    @property
    def idle(self) -> str:
        """Why there is nothing to do here; "" where there is."""
        if self._services.settings.warehouse_url is None:
            return "there is no warehouse: set CI_PIPELINE_WAREHOUSE_URL"
        url = self.settings.store_url
        if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
            return "no callback ever came"
        return ""


oot_callback = dg.AssetSpec(
    "oot_callback",
    group_name=GROUP,
    kinds={"github"},
    description="What downstream CI tells the relay: a job began, a job ended.",
)


@dg.asset(
    deps=[oot_callback],
    group_name=GROUP,
    kinds={"clickhouse"},
    owners=OWNERS,
    description="Out-of-tree jobs in the warehouse. The sensor `oot_callbacks` brings each change within seconds. To "
    "materialize this by hand brings all that the store has once more: for a warehouse that is new.",
)
def oot_workflow_jobs(out_of_tree: dg.ResourceParam[OutOfTree]) -> dg.MaterializeResult[Any]:
    from ci_pipeline.oot.replication import replicate_all

    if out_of_tree.idle:
        return dg.MaterializeResult(metadata={"rows": 0, "why": out_of_tree.idle})
    return dg.MaterializeResult(metadata=_shown(replicate_all(out_of_tree.store, out_of_tree.warehouse)))


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[dg.AssetDep(oot_workflow_jobs)],
    group_name=GROUP,
    kinds={"clickhouse"},
    owners=OWNERS,
    description="Compares what changed in the store on a day with the warehouse, and brings what is missing there.",
    check_specs=[
        dg.AssetCheckSpec(
            "store_and_warehouse_agree",
            asset="oot_reconciliation",
            description="Nothing had to be repaired, and no job is in the warehouse alone.",
        )
    ],
)
def oot_reconciliation(
    context: dg.AssetExecutionContext, out_of_tree: dg.ResourceParam[OutOfTree]
) -> Iterator[dg.MaterializeResult[Any]]:
    from ci_pipeline.oot.replication import Reconciled, reconcile

    days = context.partition_time_window
    found = Reconciled(0)
    if not out_of_tree.idle:
        found = reconcile(out_of_tree.store, out_of_tree.warehouse, days.start, days.end)
    astray = {"missing": found.missing, "different": found.different, "only in the warehouse": found.strangers}
    shown: dict[str, Any] = {
        "jobs": found.jobs,
        **{what: len(keys) for what, keys in astray.items()},
        "repaired": len(found.missing) + len(found.different) - len(found.refused),
        "refused": len(found.refused),
        **({"why": out_of_tree.idle} if out_of_tree.idle else {}),
    }
    rows = [{"dynamoKey": key, "was": what} for what, keys in astray.items() for key in keys]
    yield dg.MaterializeResult(
        metadata=shown,
        check_results=[
            dg.AssetCheckResult(
                check_name="store_and_warehouse_agree",
                passed=not rows,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"found": show.table(rows)} if rows else {},
            )
        ],
    )


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[oot_reconciliation],
    group_name=GROUP,
    kinds={"clickhouse"},
    owners=OWNERS,
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=49)),
    description="How each backend did on a day, by the hours that the pages show too: the jobs that began on it by "
    "their conclusion, and their average times; nightlies apart.",
)
def oot_backend_health(
    context: dg.AssetExecutionContext, out_of_tree: dg.ResourceParam[OutOfTree]
) -> dg.MaterializeResult[Any]:
    from ci_pipeline.warehouse import oot

    if out_of_tree.idle:
        return dg.MaterializeResult(metadata={"backends": 0, "why": out_of_tree.idle})
    days, warehouse = context.partition_time_window, out_of_tree.warehouse
    oot.count_hours(warehouse)
    rows = [
        _health(row, nightly)
        for nightly in (False, True)
        for row in oot.backend_times(
            warehouse, nightly=nightly, since=days.start - timedelta(seconds=1), step=timedelta(days=1)
        )
        if row["began"] < days.end
    ]
    rows.sort(key=lambda row: (row["day"], row["pass rate"], row["downstream_repo"], row["nightly"]))
    total, success = (sum(row[name] for row in rows) for name in ("total", "success"))
    return dg.MaterializeResult(
        metadata={
            "backends": len({row["downstream_repo"] for row in rows}),
            "completed jobs": total,
            "pass rate": _pass_rate(success, total),  # a number: Dagster draws it over the days
            "worst first": show.table(rows),
        }
    )


def _health(row: "Row", nightly: bool) -> dict[str, Any]:
    """Times in seconds."""
    counts = {name: row[name] for name in ("total", "success", "failure", "timed_out", "running")}
    return {
        "day": str(row["began"].date()),
        "downstream_repo": row["downstream_repo"],
        "nightly": nightly,
        "level": row["level"],
        "pass rate": _pass_rate(row["success"], row["total"]),
        **counts,
        "average duration": round(row["duration"] / row["durations"], 1) if row["durations"] else None,
        "average queue time": round(row["queue_time"] / row["queue_times"], 1) if row["queue_times"] else None,
    }


def _pass_rate(success: int, total: int) -> float:
    """That of nothing is 1."""
    return round(success / total, 4) if total else 1.0


@dg.sensor(
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches the store of callbacks and brings what changes to the warehouse. What cannot be brought now "
    "comes with a later tick, in order.",
)
def oot_callbacks(
    context: dg.SensorEvaluationContext, out_of_tree: dg.ResourceParam[OutOfTree]
) -> dg.SensorResult | dg.SkipReason:
    from ci_pipeline.oot.replication import replicate

    if out_of_tree.idle:
        return dg.SkipReason(out_of_tree.idle)
    done = replicate(out_of_tree.store, out_of_tree.warehouse, context.cursor or "", seconds=WATCH_SECONDS)
    # No Dagster run: to start one takes longer than the work.
    arrived = dg.AssetMaterialization(oot_workflow_jobs.key, metadata=_shown(done))
    return dg.SensorResult(
        asset_events=[arrived] if done.rows else [],
        skip_reason=f"{done.rows} changes brought, {done.refused} refused" if done.rows else "nothing changed",
        cursor=done.cursor,
    )


@dg.sensor(
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Closes jobs as timed out that say nothing for CI_PIPELINE_OOT_SILENT_HOURS.",
)
def oot_silent_jobs(out_of_tree: dg.ResourceParam[OutOfTree]) -> dg.SkipReason:
    from ci_pipeline.oot.sweeper import close_silent_jobs

    if out_of_tree.idle:
        return dg.SkipReason(out_of_tree.idle)
    closed = close_silent_jobs(out_of_tree.store, out_of_tree.settings.oot_silent_hours, time.time())
    return dg.SkipReason(f"{len(closed)} timed out: {', '.join(closed[:10])}" if closed else "no job is silent")


oot_daily = dg.define_asset_job(
    "oot_daily",
    selection=[oot_reconciliation, oot_backend_health],
    description="Reconciles a day of out-of-tree CI, and rolls up how its backends did.",
)


@dg.schedule(
    job=oot_daily,
    cron_schedule="20 0 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The day before, when it is over.",
)
def oot_every_day(
    context: dg.ScheduleEvaluationContext, out_of_tree: dg.ResourceParam[OutOfTree]
) -> dg.RunRequest | dg.SkipReason:
    if out_of_tree.idle:
        return dg.SkipReason(out_of_tree.idle)
    return dg.RunRequest(partition_key=str((context.scheduled_execution_time - timedelta(days=1)).date()))


def _shown(done: "Replicated") -> dict[str, Any]:
    return {"rows": done.rows, "refused": done.refused, "lag in seconds": round(done.lag, 3)}
