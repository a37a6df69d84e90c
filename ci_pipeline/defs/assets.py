"""The graph for CI runs: from what one left behind to the report, the dataset and the tables."""

# pyright: reportUnknownParameterType=false

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import dagster as dg
import pyarrow as pa
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_START_TAG, BACKFILL_ID_TAG

from ci_pipeline import pipeline
from ci_pipeline.analysis import consistency
from ci_pipeline.defs import metadata as show
from ci_pipeline.defs.io_manager import RunTables
from ci_pipeline.defs.partitions import ci_run
from ci_pipeline.model import FetchedRun
from ci_pipeline.publish.thread import SlackThread
from ci_pipeline.services import Services

T = TypeVar("T")
V = TypeVar("V")

OWNERS = ["team:ci"]

ONE_RUN = dg.BackfillPolicy.single_run()
"""A range of CI runs is one Dagster run. The same on every asset: a job takes the smallest of its assets' policies."""

FIRST = {"dagster/priority": "1"}
"""People wait for the report: the warehouse comes after it."""

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


# --- the ends of the lineage ----------------------------------------------------------------------------------------

github_workflow_run = dg.AssetSpec(
    "github_workflow_run",
    group_name="ingest",
    kinds={"github"},
    description="A completed run of a GitHub Actions workflow, with its jobs and artifacts.",
)
hub_dataset = dg.AssetSpec(
    "hub_dataset",
    deps=["hub_dataset_files"],
    group_name="publish",
    kinds={"huggingface"},
    description="The dataset on the Hugging Face Hub: a folder for each day and test job.",
)
slack_channel = dg.AssetSpec(
    "slack_channel",
    deps=["slack_report"],
    group_name="publish",
    kinds={"slack"},
    description="Where people read the report.",
)


# --- what a CI run left behind --------------------------------------------------------------------------------------


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=[github_workflow_run],
    group_name="ingest",
    kinds={"github", "parquet"},
    owners=OWNERS,
    description="Everything that a CI run left behind, as it came: its jobs, and the files of its artifacts. "
    "The table says which run it was and what could not be fetched.",
    check_specs=[
        dg.AssetCheckSpec(
            "announced_artifacts_are_there",
            asset="raw_artifacts",
            description="Every artifact that the CI run's jobs announce was fetched. What is missing is in the report.",
        )
    ],
)
def raw_artifacts(context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]) -> Iterator[Any]:
    missing: list[str] = []

    def keep(key: str, run: FetchedRun) -> pa.Table:
        missing.extend(f"{key}: {name}" for name in consistency.missing_artifacts(run))
        tell(context, lambda: show.fetched(run))
        return pipeline.ci_run_table(run)

    yield dg.MaterializeResult(value=each_run(context, services, pipeline.fetch_key, keep))
    yield finding("announced_artifacts_are_there", missing, WARN)


# --- what its reports say -------------------------------------------------------------------------------------------


@dg.multi_asset(
    name="read_reports",
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=[raw_artifacts],
    group_name="reports",
    outs={
        "test_outcomes": dg.AssetOut(
            kinds={"pytest", "parquet"},
            owners=OWNERS,
            description="One row for each test on each device: how it ended and, where it failed, why.",
        ),
        "test_reports": dg.AssetOut(
            kinds={"pytest", "parquet"},
            owners=OWNERS,
            description="pytest's own totals: one row for each artifact, with what is missing from it.",
        ),
    },
    check_specs=[
        dg.AssetCheckSpec(
            "failing_tests_are_all_there",
            asset="test_outcomes",
            blocking=True,
            description="As many failing tests are listed as pytest counted. Where the report itself says that "
            "something is missing this warns; else it stops here, because the report would be wrong.",
        ),
        dg.AssetCheckSpec(
            "failing_tests_have_a_trace",
            asset="test_outcomes",
            description="Of every failing test it is known where or why it failed.",
        ),
    ],
)
def read_reports(context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]) -> Iterator[Any]:
    reports: dict[str, pa.Table] = {}
    miscounted: list[consistency.Contradiction] = []
    untraced: list[str] = []

    def keep(key: str, tables: tuple[pa.Table, pa.Table]) -> pa.Table:
        reports[key], outcomes = tables
        miscounted.extend(consistency.miscounted(reports[key], outcomes))
        untraced.extend(consistency.without_trace(outcomes))
        totals = ["passed", "failed", "errors", "skipped"]
        tell(context, lambda: show.sums(reports[key], ["test_job", "device"], totals), "test_reports")
        tell(context, lambda: show.counts(outcomes, "outcome"), "test_outcomes")
        return outcomes

    yield dg.Output(each_run(context, services, pipeline.read, keep, asset="test_outcomes"), "test_outcomes")
    yield dg.Output(reports, "test_reports")
    unsaid = [found.text for found in miscounted if not found.said]
    severity = ERROR if unsaid and not is_range(context) else WARN
    yield finding("failing_tests_are_all_there", unsaid or [found.text for found in miscounted], severity)
    yield finding("failing_tests_have_a_trace", untraced, WARN)


# --- what it comes to -----------------------------------------------------------------------------------------------


@dg.multi_asset(
    name="count_results",
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    group_name="analysis",
    deps=["test_reports", "test_outcomes"],
    outs={
        "job_results": dg.AssetOut(
            kinds={"parquet"},
            owners=OWNERS,
            description="One row for each test job, matrix entry and device: totals, and whether they are complete.",
        ),
        "category_results": dg.AssetOut(
            kinds={"parquet"},
            owners=OWNERS,
            description="The failing tests of each test job by category: PyTorch, Tokenizers, Trainer, …",
        ),
    },
    internal_asset_deps={
        "job_results": {dg.AssetKey("test_reports"), dg.AssetKey("test_outcomes")},
        "category_results": {dg.AssetKey("job_results")},
    },
)
def count_results(context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]) -> Iterator[Any]:
    by_category: dict[str, pa.Table] = {}

    def keep(key: str, tables: tuple[pa.Table, pa.Table]) -> pa.Table:
        by_job, by_category[key] = tables
        totals = ["failed", "errors", "success", "skipped"]
        tell(context, lambda: show.sums(by_job, ["test_job", "device"], totals), "job_results")
        tell(context, lambda: show.sums(by_category[key], ["test_job", "category"], totals[:2]), "category_results")
        return by_job

    yield dg.Output(each_run(context, services, pipeline.count, keep, asset="job_results"), "job_results")
    yield dg.Output(by_category, "category_results")


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=["category_results", "test_reports"],
    group_name="analysis",
    kinds={"parquet"},
    owners=OWNERS,
    description="What changed since the previous run, and since when, and what fails here but not in other vendors' "
    "runs of the same commit.",
    check_specs=[
        dg.AssetCheckSpec(
            "diff_is_in_the_outcomes",
            asset="run_diff",
            blocking=True,
            description="Whatever the diff calls failing fails in the outcomes. Else it stops before people read it.",
        )
    ],
)
def run_diff(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services], test_outcomes: RunTables
) -> Iterator[Any]:
    unfounded: list[str] = []

    def keep(key: str, table: pa.Table) -> pa.Table:
        table = pipeline.with_since(table, services)
        unfounded.extend(consistency.unfounded(table, test_outcomes[key]))
        tell(context, lambda: show.diff(table))
        return table

    diff = partial(pipeline.diff, together=context.partition_keys) if is_range(context) else pipeline.diff
    yield dg.MaterializeResult(value=each_run(context, services, diff, keep))
    yield finding("diff_is_in_the_outcomes", unfounded, WARN if is_range(context) else ERROR)


# --- who hears of it ------------------------------------------------------------------------------------------------


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    op_tags=FIRST,
    deps=[run_diff],
    group_name="publish",
    kinds={"huggingface", "json", "parquet"},
    owners=OWNERS,
    description="The result files of each test job in the layout of the dataset, uploaded in one commit. While the Hub "
    "is down they are kept, and uploaded later.",
)
def hub_dataset_files(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult[Any]:
    def keep(key: str, files: pa.Table) -> pa.Table:
        tell(context, lambda: show.files(files))
        return files

    return dg.MaterializeResult(value=each_run(context, services, pipeline.upload, keep))


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    op_tags=FIRST,
    deps=[run_diff, hub_dataset_files],
    group_name="publish",
    kinds={"slack"},
    owners=OWNERS,
    description="A thread for each test job in its channel: posted once, edited when the CI run is processed again. A "
    "backfill posts nothing unless CI_PIPELINE_BACKFILL_POSTS is set.",
)
def slack_report(context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]) -> dg.MaterializeResult[Any]:
    if is_backfill(context) and not services.settings.backfill_posts:
        # To Dagster, a backfill that leaves out an asset has failed.
        return dg.MaterializeResult(metadata={"posted": "nothing: a backfill is silent"})

    def post(key: str, threads: Mapping[str, SlackThread]) -> None:
        posted = pipeline.post_threads(threads, services.fetched(key).run, services)
        tell(context, lambda: show.slack(threads, posted))

    dict(each_run(context, services, pipeline.threads, post, at_once=False))
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=[run_diff],
    group_name="publish",
    kinds={"clickhouse"},
    owners=OWNERS,
    description="The tables of the CI run in the warehouse, in place of what was there of it.",
)
def warehouse_tables(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult[Any]:
    keys = [key for key in context.partition_keys if services.is_processed(key)]
    place = pipeline.keep(keys, services)
    return dg.MaterializeResult(metadata={"CI runs": len(keys), place.where: place.detail})


# --- for all of them ------------------------------------------------------------------------------------------------


def each_run(
    context: dg.AssetExecutionContext,
    services: Services,
    step: pipeline.Step[T],
    keep: Callable[[str, T], V],
    *,
    at_once: bool = True,
    asset: str | None = None,
) -> Mapping[str, V] | Iterator[tuple[str, V]]:
    """What `keep` makes of what `step` made of each CI run; of a range one after the other, when the value is taken.

    In a range, a CI run that cannot be processed is set aside, and the others go on; alone, it fails.
    """
    if not is_range(context):
        return {key: keep(key, step(key, services)) for key in context.partition_keys}

    def one_by_one() -> Iterator[tuple[str, V]]:
        for key, made in pipeline.each(step, context.partition_keys, services, at_once=at_once):
            if isinstance(made, Exception):
                context.log.error(f"CI run {key} is set aside: {made}", exc_info=made)
                context.add_asset_metadata({"set aside": str(made)}, asset_key=asset, partition_key=key)
            else:
                yield key, keep(key, made)

    return one_by_one()


def tell(context: dg.AssetExecutionContext, metadata: Callable[[], show.Metadata], asset: str | None = None) -> None:
    """Show something of a CI run. Not in a range, where Dagster takes longer to write this down than we to make it."""
    if not is_range(context):
        context.add_asset_metadata(metadata(), asset_key=asset)


def finding(check: str, found: Iterable[str], severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    found = list(found)
    shown = {"found": show.lines(found)} if found else {}
    return dg.AssetCheckResult(check_name=check, passed=not found, severity=severity, metadata=shown)


def is_range(context: dg.AssetExecutionContext) -> bool:
    return ASSET_PARTITION_RANGE_START_TAG in context.run.tags


def is_backfill(context: dg.AssetExecutionContext) -> bool:
    return is_range(context) or BACKFILL_ID_TAG in context.run.tags
