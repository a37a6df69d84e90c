"""A deployment on one machine with a Dagster instance of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from ci_pipeline.definitions import build_definitions
from ci_pipeline.profile import load_profile
from ci_pipeline.services import Services
from ci_pipeline.settings import load_settings
from ci_pipeline_tests.ci_runs import put_run

ASSERT = "AssertionError: 1 != 2"


class Machine:
    """A deployment on one machine, and a Dagster instance of its own."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.home, self.instance = home, instance
        self.inbox = home / "inbox"
        self.inbox.mkdir()

    def services(self, **settings: object) -> Services:
        return Services(load_settings(CI_PIPELINE_HOME=str(self.home), **settings), load_profile("transformers"))

    def definitions(self, **settings: object) -> dg.Definitions:
        services = self.services(**settings)
        return build_definitions(services.settings, services.profile)

    def run(self, *keys: str, raise_on_error: bool = True, **settings: object) -> dg.ExecuteInProcessResult:
        """Process one CI run or, with two keys, the range from one to the other."""
        job = self.definitions(**settings).resolve_job_def("process_ci_run")
        if len(keys) == 1:
            self.instance.add_dynamic_partitions("ci_run", list(keys))
            return job.execute_in_process(partition_key=keys[0], instance=self.instance, raise_on_error=raise_on_error)
        tags = {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[1]}
        return job.execute_in_process(tags=tags, instance=self.instance, raise_on_error=raise_on_error)

    def history(self, runs: int, broken: int | None = None) -> list[str]:
        """Put CI runs into the inbox, one a day: in each a test fails that passed before."""
        for i in range(runs):
            tests = [f"test_{n}" for n in range(runs)]
            put_run(
                self.inbox,
                101 + i,
                {"models_bert": ([t for t in tests if t != f"test_{i}"], {f"test_{i}": ASSERT})},
                day=date(2026, 2, 1) + timedelta(i),
            )
        keys = [f"{101 + i}-1" for i in range(runs)]
        self.instance.add_dynamic_partitions("ci_run", keys)
        return keys

    def messages(self) -> dict[str, str]:
        """The text of each main message, by its place in the outbox."""
        found = self.home.glob("outbox/slack/**/main.json")
        return {str(path): json.loads(path.read_text())["text"] for path in found}


@pytest.fixture(scope="session")
def dagster_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The databases of an instance in which nothing happened yet, for tests to copy: to make them takes a second."""
    home = tmp_path_factory.mktemp("dagster")
    with dg.DagsterInstance.local_temp(str(home)):
        return home


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Machine(tmp_path, instance)
