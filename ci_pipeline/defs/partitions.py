"""One partition for each CI run."""

import dagster as dg

ci_run = dg.DynamicPartitionsDefinition(name="ci_run")
"""Keyed by `CiRun.key`; added by the sensors, forgotten by `prune`."""
