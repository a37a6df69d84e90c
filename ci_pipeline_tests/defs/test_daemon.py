"""Dagster as it runs in service: webserver, daemon and code server, with runs in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from benchmarks.dagster_latency import dagster_dev
from ci_pipeline.defs import run_launcher
from ci_pipeline_tests.ci_runs import put_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ASSERT = "AssertionError: 1 != 2"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with dagster_dev(tmp_path / "home"):
        yield tmp_path / "home"


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.2)


def messages(home: Path) -> dict[str, str]:
    """The text of each main message by its run's id."""
    found = home.glob("outbox/slack/*/*/*/main.json")
    return {path.parts[-3]: json.loads(path.read_text())["text"] for path in found}


def runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[dg.DagsterRun]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with dg.DagsterInstance.get() as instance:
        return list(instance.get_runs())


def workers(home: Path) -> set[int]:
    """The processes that do runs of Dagster, and the one that waits for a run."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = str(home).encode() in (process / "environ").read_bytes()
            if ours and run_launcher.WORKER.encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


def much_to_do(home: Path, run_id: int) -> None:
    """A CI run that takes so long that there is time to end it in the middle."""
    many = {f"test_{i}": ASSERT for i in range(20_000)}
    put_run(home / "inbox", run_id, {f"models_m{i}": ([], many) for i in range(6)})
    wait_for(lambda: (home / "data" / "raw" / f"{run_id}-1").exists())


def test_runs_of_the_inbox_become_messages_each_compared_with_the_one_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run(home / "inbox", 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=date(2026, 2, 1))
    put_run(home / "inbox", 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=date(2026, 2, 2))
    wait_for(lambda: len(messages(home)) == 2)
    assert messages(home)["101"] == "❌ Models: 1 failure"
    assert "1 new failure" in messages(home)["102"]
    wait_for(lambda: all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs(home, monkeypatch)))
    assert {run.tags["dagster/partition"] for run in runs(home, monkeypatch)} == {"101-1", "102-1"}


def test_a_run_that_is_killed_is_made_again_and_posts_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    much_to_do(home, 101)
    assert not messages(home)
    os.kill(int(runs(home, monkeypatch)[0].tags[run_launcher.PID]), signal.SIGKILL)
    wait_for(lambda: messages(home).get("101"), seconds=200)
    wait_for(lambda: runs(home, monkeypatch)[0].status == dg.DagsterRunStatus.SUCCESS)
    assert [run.status for run in runs(home, monkeypatch)][1:] == [dg.DagsterRunStatus.FAILURE]
    assert list(messages(home)) == ["101"]


def test_a_run_that_somebody_stops_is_stopped_and_the_next_one_has_a_process_waiting(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    much_to_do(home, 101)
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with dg.DagsterInstance.get() as instance:  # as the webserver has it
        [run] = instance.get_runs()
        assert instance.run_launcher.terminate(run.run_id)
        wait_for(lambda: runs(home, monkeypatch)[0].is_finished)
        assert not instance.run_launcher.terminate(run.run_id)
    assert runs(home, monkeypatch)[0].status == dg.DagsterRunStatus.CANCELED
    assert not messages(home)
    wait_for(lambda: workers(home) - {int(run.tags[run_launcher.PID])})
    [spare] = workers(home)
    put_run(home / "inbox", 102, {"models_bert": ([], {"test_a": ASSERT})})
    wait_for(lambda: "102" in messages(home))
    assert runs(home, monkeypatch)[0].tags[run_launcher.PID] == str(spare)
    assert not run_launcher.is_worker(os.getpid())


def test_no_process_waits_for_a_daemon_that_was_killed(home: Path) -> None:
    put_run(home / "inbox", 101, {"models_bert": ([], {"test_a": ASSERT})})
    wait_for(lambda: "101" in messages(home))
    done = workers(home)
    wait_for(lambda: workers(home) - done)
    [spare] = workers(home) - done
    os.kill(int(Path(f"/proc/{spare}/stat").read_text().split()[3]), signal.SIGKILL)
    wait_for(lambda: not workers(home))
