"""The graph for one CI run: from what it left behind to the report, the dataset and the tables."""

# pyright: reportUnknownParameterType=false

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_START_TAG, BACKFILL_ID_TAG

from ci_pipeline import earlier_runs, pipeline
from ci_pipeline.analysis import consistency
from ci_pipeline.defs import metadata as show
from ci_pipeline.defs.io_manager import RunTables
from ci_pipeline.defs.partitions import ci_run
from ci_pipeline.model import CiRun
from ci_pipeline.pipeline import Services

T = TypeVar("T")

OWNERS = ["team:ci"]

ONE_RUN = dg.BackfillPolicy.single_run()
"""A range of CI runs is one Dagster run. The same on every asset: a job takes the smallest of its assets' policies."""

FIRST = {"dagster/priority": "1"}
"""People wait for the report: the warehouse comes after it."""

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


# --- the ends of the lineage ----------------------------------------------------------------------------------------

github_workflow_run = dg.AssetSpec(
    "github_workflow_run",
    group_name="outside",
    kinds={"github"},
    description="A completed run of a GitHub Actions workflow, with its jobs and artifacts.",
)
hub_dataset = dg.AssetSpec(
    "hub_dataset",
    deps=["hub_dataset_files"],
    group_name="outside",
    kinds={"huggingface"},
    description="The dataset on the Hugging Face Hub: a folder for each day and test job.",
)
slack_channel = dg.AssetSpec(
    "slack_channel",
    deps=["slack_report"],
    group_name="outside",
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
    runs, failed = each_run(context, lambda key: pipeline.fetch(pipeline.run_at_source(key, services), services))
    yield dg.MaterializeResult(
        value={key: pipeline.ci_run_table(run) for key, run in runs.items()},
        metadata=show.fetched(runs.values()) | show.set_aside(failed),
    )
    missing = [f"{key}: {name}" for key, run in runs.items() for name in consistency.missing_artifacts(run)]
    yield finding("announced_artifacts_are_there", missing, WARN)


# --- what its reports say -------------------------------------------------------------------------------------------


@dg.multi_asset(
    name="read_reports",
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=[raw_artifacts],
    group_name="reports",
    outs={
        "test_reports": dg.AssetOut(
            kinds={"pytest", "parquet"},
            owners=OWNERS,
            description="pytest's own totals: one row for each artifact, with what is missing from it.",
        ),
        "test_outcomes": dg.AssetOut(
            kinds={"pytest", "parquet"},
            owners=OWNERS,
            description="One row for each test on each device: how it ended and, where it failed, why.",
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
    reports: dict[str, Any] = {}
    failed: dict[str, str] = {}
    miscounted: list[consistency.Contradiction] = []
    untraced: list[str] = []

    def outcomes() -> Iterator[tuple[str, Any]]:
        # One CI run after the other: the outcomes of a long range would fill memory.
        for key, tables in pipeline.read_many(context.partition_keys, services):
            if isinstance(tables, Exception):
                failed[key] = set_aside(context, key, tables)
                continue
            reports[key], test_outcomes = tables
            miscounted.extend(consistency.miscounted(*tables))
            untraced.extend(consistency.without_trace(test_outcomes))
            yield key, test_outcomes

    yield dg.Output(outcomes(), "test_outcomes")
    totals = show.sums(reports.values(), ["test_job", "device"], ["passed", "failed", "errors", "skipped"])
    yield dg.Output(reports, "test_reports", metadata=totals | show.set_aside(failed))
    unsaid = [found.text for found in miscounted if not found.said]
    severity = ERROR if unsaid and len(context.partition_keys) == 1 else WARN
    yield finding("failing_tests_are_all_there", unsaid or [found.text for found in miscounted], severity)
    yield finding("failing_tests_have_a_trace", untraced, WARN)


# --- what it comes to -----------------------------------------------------------------------------------------------


@dg.multi_asset(
    name="count_results",
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    group_name="analysis",
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
def count_results(
    context: dg.AssetExecutionContext,
    services: dg.ResourceParam[Services],
    test_reports: RunTables,
    test_outcomes: RunTables,
) -> Iterator[Any]:
    def results(key: str) -> tuple[Any, Any]:
        run = services.fetched(key)
        reports = pipeline.job_reports(run, test_reports[key], test_outcomes[key], services.profile)
        return pipeline.job_results(run, reports), pipeline.category_results(run, reports, services.profile)

    counted, failed = each_run(context, results)
    by_job = {key: jobs for key, (jobs, _) in counted.items()}
    by_category = {key: categories for key, (_, categories) in counted.items()}
    totals = show.sums(by_job.values(), ["test_job", "device"], ["failed", "errors", "success", "skipped"])
    yield dg.Output(by_job, "job_results", metadata=totals | show.set_aside(failed))
    totals = show.sums(by_category.values(), ["test_job", "category"], ["failed", "errors"])
    yield dg.Output(by_category, "category_results", metadata=totals)


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=["category_results"],
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
    context: dg.AssetExecutionContext,
    services: dg.ResourceParam[Services],
    raw_artifacts: RunTables,
    test_reports: RunTables,
    test_outcomes: RunTables,
) -> Iterator[Any]:
    unfounded: list[str] = []
    known: list[CiRun] = []
    if is_range(context):
        # Its runs are compared with one another, and the warehouse has none of them yet.
        runs, _ = each_run(context, lambda key: pipeline.ci_run_of(raw_artifacts[key]))
        known = earlier_runs.known_together(list(runs.values()), services)

    def diff(key: str) -> Any:
        outcomes = test_outcomes[key]
        table = pipeline.run_diff(services.fetched(key), test_reports[key], outcomes, services, known)
        unfounded.extend(consistency.unfounded(table, outcomes))
        services.tables.write("run_diff", key, table)
        return table

    tables, failed = each_run(context, diff)
    shown = show.comparisons(tables.values()) | show.counts(tables.values(), "change")
    yield dg.MaterializeResult(value=tables, metadata=shown | show.set_aside(failed))
    yield finding("diff_is_in_the_outcomes", unfounded, WARN if is_range(context) else ERROR)


# --- who hears of it ------------------------------------------------------------------------------------------------


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    op_tags=FIRST,
    group_name="publish",
    kinds={"huggingface", "json", "parquet"},
    owners=OWNERS,
    description="The result files of each test job in the layout of the dataset, uploaded in one commit. While the Hub "
    "is down they are kept, and uploaded later.",
)
def hub_dataset_files(
    context: dg.AssetExecutionContext,
    services: dg.ResourceParam[Services],
    test_reports: RunTables,
    test_outcomes: RunTables,
    run_diff: RunTables,
) -> Iterator[Any]:
    def upload(key: str) -> Any:
        run, outcomes = services.fetched(key), test_outcomes[key]
        reports = pipeline.job_reports(run, test_reports[key], outcomes, services.profile, every_outcome=True)
        return pipeline.hub_files(pipeline.compared(reports, run_diff[key], services), outcomes, services)

    tables, failed = each_run(context, upload)
    yield dg.MaterializeResult(value=tables, metadata=show.files(tables.values()) | show.set_aside(failed))


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    op_tags=FIRST,
    group_name="publish",
    kinds={"slack"},
    owners=OWNERS,
    description="A thread for each test job in its channel: posted once, edited when the CI run is processed again. A "
    "backfill posts nothing unless CI_PIPELINE_BACKFILL_POSTS is set.",
)
def slack_report(
    context: dg.AssetExecutionContext,
    services: dg.ResourceParam[Services],
    test_reports: RunTables,
    test_outcomes: RunTables,
    run_diff: RunTables,
    hub_dataset_files: RunTables,
) -> Iterator[Any]:
    if is_backfill(context) and not services.settings.backfill_posts:
        yield dg.MaterializeResult(metadata={"messages": 0, "why": "a backfill posts nothing to Slack"})
        return

    def report(key: str) -> Any:
        run = services.fetched(key)
        reports = pipeline.job_reports(run, test_reports[key], test_outcomes[key], services.profile)
        reports = pipeline.compared(reports, run_diff[key], services)
        threads = pipeline.threads(run, reports, hub_dataset_files[key], services)
        return threads, pipeline.post_threads(threads, run.run, services)

    posted, failed = each_run(context, report)
    yield dg.MaterializeResult(metadata=show.slack(posted) | show.set_aside(failed))


@dg.asset(
    partitions_def=ci_run,
    backfill_policy=ONE_RUN,
    deps=list(pipeline.TABLES),
    group_name="publish",
    kinds={"clickhouse"},
    owners=OWNERS,
    description="The tables of the CI run in the warehouse, in place of what was there of it.",
)
def warehouse_tables(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult[Any]:
    keys = [key for key in context.partition_keys if services.is_processed(key)]
    kept = pipeline.keep(keys, services)
    return dg.MaterializeResult(metadata={"CI runs": len(keys), "rows": kept})


# --- for all of them ------------------------------------------------------------------------------------------------


def each_run(context: dg.AssetExecutionContext, step: Callable[[str], T]) -> tuple[dict[str, T], dict[str, str]]:
    """What `step` makes of each CI run, and why it could not.

    In a range, a CI run that cannot be processed is set aside and the others go on; alone, it fails.
    """
    done: dict[str, T] = {}
    failed: dict[str, str] = {}
    for key in context.partition_keys:
        try:
            done[key] = step(key)
        except Exception as error:
            failed[key] = set_aside(context, key, error)
    return done, failed


def set_aside(context: dg.AssetExecutionContext, key: str, error: Exception) -> str:
    if not is_range(context):
        raise error
    context.log.error(f"CI run {key} is set aside: {error}", exc_info=error)
    return str(error)


def finding(check: str, found: Iterable[str], severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    found = list(found)
    shown = {"found": show.lines(found)} if found else {}
    return dg.AssetCheckResult(check_name=check, passed=not found, severity=severity, metadata=shown)


def is_range(context: dg.AssetExecutionContext) -> bool:
    return len(context.partition_keys) > 1


def is_backfill(context: dg.AssetExecutionContext) -> bool:
    return not {ASSET_PARTITION_RANGE_START_TAG, BACKFILL_ID_TAG}.isdisjoint(context.run.tags)
