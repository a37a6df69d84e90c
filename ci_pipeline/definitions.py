"""The whole graph on one page: what Dagster loads."""

from __future__ import annotations

from typing import Any

import dagster as dg

from ci_pipeline.defs import assets, failures, jobs, oot, sensors
from ci_pipeline.defs.io_manager import ParquetIOManager
from ci_pipeline.profile import Profile, load_profile
from ci_pipeline.services import Services
from ci_pipeline.settings import Settings, load_settings


def build_definitions(settings: Settings, profile: Profile) -> dg.Definitions:
    """
         github_workflow_run
                 ↓
           raw_artifacts
                 ↓
    test_reports, test_outcomes
                 ↓
            job_results → category_results → run_diff
                                                 ↓
              hub_dataset_files → slack_report, warehouse_tables
                     ↓                  ↓
                hub_dataset        slack_channel

    oot_callback → oot_workflow_jobs → oot_reconciliation → oot_backend_health
    """
    services = Services(settings, profile, s3=_s3_client)
    return dg.Definitions(
        assets=[
            assets.github_workflow_run,
            assets.raw_artifacts,
            assets.read_reports,
            assets.count_results,
            assets.run_diff,
            assets.hub_dataset_files,
            assets.slack_report,
            assets.warehouse_tables,
            assets.hub_dataset,
            assets.slack_channel,
            oot.oot_callback,
            oot.oot_workflow_jobs,
            oot.oot_reconciliation,
            oot.oot_backend_health,
        ],
        jobs=[jobs.process_ci_run, jobs.deliver, jobs.prune, oot.oot_daily],
        sensors=[
            sensors.ci_runs,
            sensors.ci_run_history,
            sensors.pending_deliveries,
            failures.failed_runs,
            failures.breakdowns,
            oot.oot_callbacks,
            oot.oot_silent_jobs,
        ],
        schedules=[sensors.prune_daily, oot.oot_every_day],
        resources={
            "services": services,
            "out_of_tree": oot.OutOfTree(services),
            "io_manager": ParquetIOManager(services),
        },
        # A step of this graph takes less time than a process takes to start.
        executor=dg.in_process_executor,
    )


def _s3_client() -> Any:
    from dagster_aws.s3 import S3Resource

    return S3Resource().get_client()


@dg.definitions
def defs() -> dg.Definitions:
    settings = load_settings()
    return build_definitions(settings, load_profile(settings.profile))
