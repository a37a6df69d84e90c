"""One partition for each CI run."""

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

ci_run = dg.DynamicPartitionsDefinition(name="ci_run")
"""Keyed by `CiRun.key`; added by the sensors, forgotten by `prune`."""

RANGE_TAGS = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
"""Tags of a Dagster run for a range of CI runs: the first and the last."""
