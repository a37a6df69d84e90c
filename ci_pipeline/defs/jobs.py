"""What can be run: the graph for CI runs, deliveries that had to wait, and pruning."""

import dagster as dg
from dagster._core.storage.tags import MAX_RETRIES_TAG, PARTITION_NAME_TAG

from ci_pipeline import pipeline, whole_runs
from ci_pipeline.defs.oot import GROUP as OUT_OF_TREE
from ci_pipeline.defs.partitions import ci_run
from ci_pipeline.services import Services

process_ci_run = dg.define_asset_job(
    "process_ci_run",
    selection=dg.AssetSelection.all() - dg.AssetSelection.groups(OUT_OF_TREE),
    description="Everything for one CI run, from its artifacts to its report; for a range, for one after the other.",
)


class Undelivered(Exception):
    """Something is still kept for later; one line that says why."""


@dg.op
def deliver_pending(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    delivered = pipeline.deliver_pending(services)
    for what, place in delivered:
        context.log.info(place.about(what))
    if waiting := [place.about(what) for what, place in delivered if place.where == "pending"]:
        raise Undelivered("; ".join(waiting))


@dg.job(
    tags={MAX_RETRIES_TAG: 0},  # its sensor tries again
    description="Brings to the Hub, Slack and the warehouse what could not be delivered before.",
)
def deliver() -> None:
    deliver_pending()


@dg.op
def prune_old_runs(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    keys = whole_runs.expired(services)
    busy = context.instance.get_runs(dg.RunsFilter(job_name=process_ci_run.name, statuses=UNFINISHED))
    if any(PARTITION_NAME_TAG not in run.tags for run in busy):
        context.log.info("A range of CI runs is being processed: nothing is pruned this time")
        return
    in_use = {run.tags[PARTITION_NAME_TAG] for run in busy}
    for key in sorted(keys - in_use):
        whole_runs.prune(key, services)
        context.instance.delete_dynamic_partition(ci_run.name or "", key)
    context.log.info(f"{len(keys - in_use)} CI runs pruned, {len(keys & in_use)} left alone because they are in use")


@dg.job(description="Forgets CI runs that were processed long ago. What the warehouse has of them stays.")
def prune() -> None:
    prune_old_runs()


UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
