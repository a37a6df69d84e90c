"""Dagster as it runs in service: webserver, daemon and code server, with runs in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG

from benchmarks.dagster_latency import dagster_dev
from ci_pipeline.defs.run_launcher import PROCESS
from ci_pipeline_tests.ci_runs import put_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ASSERT = "AssertionError: 1 != 2"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("daemon") / "home"
    with dagster_dev(home):
        yield home


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.2)


def messages(home: Path) -> dict[str, str]:
    """The text of each main message by its run's id."""
    found = home.glob("outbox/slack/*/*/*/main.json")
    return {path.parts[-3]: json.loads(path.read_text())["text"] for path in found}


def runs(home: Path, *keys: str) -> list[dg.DagsterRun]:
    """Dagster's runs for these CI runs, the newest first."""
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return list(instance.get_runs(dg.RunsFilter(tags={PARTITION_NAME_TAG: keys})))


def test_runs_of_the_inbox_become_messages_each_compared_with_the_one_before(home: Path) -> None:
    put_run(home / "inbox", 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=date(2026, 2, 1))
    put_run(home / "inbox", 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=date(2026, 2, 2))
    wait_for(lambda: {"101", "102"} <= messages(home).keys())
    assert messages(home)["101"] == "❌ Models: 1 failure"
    assert "1 new failure" in messages(home)["102"]
    wait_for(lambda: all(run.is_success for run in runs(home, "101-1", "102-1")))
    assert len(runs(home, "101-1", "102-1")) == 2


def test_a_run_that_is_killed_is_made_again_and_posts_once(home: Path) -> None:
    # So much that there is time to kill it in the middle.
    many = {f"test_{i}": ASSERT for i in range(20_000)}
    put_run(home / "inbox", 103, {f"models_m{i}": ([], many) for i in range(2)}, day=date(2026, 2, 3))
    wait_for(lambda: (home / "data" / "raw" / "103-1").exists())
    assert "103" not in messages(home)
    os.kill(int(runs(home, "103-1")[0].tags[PROCESS].partition(":")[0]), signal.SIGKILL)
    wait_for(lambda: "103" in messages(home), seconds=200)
    wait_for(lambda: runs(home, "103-1")[0].is_success)
    assert [run.status for run in runs(home, "103-1")][1:] == [dg.DagsterRunStatus.FAILURE]
    assert len(list(home.glob("outbox/slack/*/103/*/main.json"))) == 1
