"""Runs of Dagster in processes that did their imports before: what becomes of a run whose process does not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import LaunchRunContext, WorkerStatus

from ci_pipeline.defs.run_launcher import WarmRunLauncher
from ci_pipeline.run_worker import PROCESS, identity

PROJECT = Path(__file__).parents[2]


@dg.op
def work(context: dg.OpExecutionContext) -> None:
    time.sleep(float(context.run_tags.get("seconds", 0)))


@dg.job(executor_def=dg.in_process_executor)
def waiting() -> None:
    work()


@pytest.fixture(scope="module")
def instance(dagster_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """All tests have one, since a worker does its imports for seconds."""
    home = shutil.copytree(dagster_home, tmp_path_factory.mktemp("home"), dirs_exist_ok=True)
    shutil.copy(PROJECT / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def launch(instance: dg.DagsterInstance, **tags: str) -> str:
    """A run on its way, as the daemon starts it; its id."""
    origin = dg.reconstructable(waiting).get_python_origin()
    run = instance.create_run_for_job(waiting, job_code_origin=origin, tags=tags, status=dg.DagsterRunStatus.STARTING)
    assert isinstance(instance.run_launcher, WarmRunLauncher)
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
    return run.run_id


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + 90
    while not what():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)


def run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found


def process(instance: dg.DagsterInstance, run_id: str) -> int:
    wait_for(lambda: PROCESS in run(instance, run_id).tags)
    return int(run(instance, run_id).tags[PROCESS].partition(":")[0])


def worker(instance: dg.DagsterInstance) -> subprocess.Popen[str]:
    """What makes the processes of this instance's runs."""
    launcher = instance.run_launcher
    assert isinstance(launcher, WarmRunLauncher)
    assert launcher._worker
    return launcher._worker


@pytest.mark.slow
def test_each_run_has_a_process_of_its_own_and_one_worker_makes_them(instance: dg.DagsterInstance) -> None:
    first, second = launch(instance), launch(instance)
    made_by = worker(instance)
    for run_id in (first, second):
        wait_for(lambda run_id=run_id: run(instance, run_id).is_finished)
        assert run(instance, run_id).status == dg.DagsterRunStatus.SUCCESS
    third = launch(instance)
    wait_for(lambda: run(instance, third).status == dg.DagsterRunStatus.SUCCESS)
    assert len({made_by.pid, *(process(instance, run_id) for run_id in (first, second, third))}) == 4
    assert worker(instance) == made_by
    instance.run_launcher.dispose()
    assert not is_running(made_by.pid)


@pytest.mark.slow
def test_a_worker_that_died_is_replaced(instance: dg.DagsterInstance) -> None:
    first = launch(instance)
    wait_for(lambda: run(instance, first).is_finished)
    died = worker(instance)
    died.kill()
    wait_for(lambda: died.poll() is not None)
    second = launch(instance)
    assert worker(instance) != died
    wait_for(lambda: run(instance, second).is_finished)
    assert run(instance, second).status == dg.DagsterRunStatus.SUCCESS


@pytest.mark.slow
def test_a_run_goes_on_when_the_worker_dies_and_one_that_has_no_process_yet_has_failed(
    instance: dg.DagsterInstance,
) -> None:
    working = launch(instance, seconds="3")
    wait_for(lambda: run(instance, working).status == dg.DagsterRunStatus.STARTED)
    worker(instance).send_signal(signal.SIGSTOP)
    waiting = launch(instance)
    worker(instance).kill()
    wait_for(lambda: run(instance, waiting).is_finished)
    assert run(instance, waiting).status == dg.DagsterRunStatus.FAILURE
    assert any("SIGKILL" in event.message for event in instance.all_logs(waiting))
    wait_for(lambda: run(instance, working).is_finished)
    assert run(instance, working).status == dg.DagsterRunStatus.SUCCESS


def test_a_run_whose_process_is_killed_has_failed_and_says_how(instance: dg.DagsterInstance) -> None:
    run_id = launch(instance, seconds="60")
    wait_for(lambda: run(instance, run_id).status == dg.DagsterRunStatus.STARTED)
    assert instance.run_launcher.check_run_worker_health(run(instance, run_id)).status == WorkerStatus.RUNNING
    os.kill(process(instance, run_id), signal.SIGKILL)
    wait_for(lambda: run(instance, run_id).is_finished)
    assert run(instance, run_id).status == dg.DagsterRunStatus.FAILURE
    assert any("SIGKILL" in event.message for event in instance.all_logs(run_id))


def test_a_run_whose_process_is_killed_before_it_began_has_failed(instance: dg.DagsterInstance) -> None:
    run_id = launch(instance)
    os.kill(process(instance, run_id), signal.SIGKILL)
    wait_for(lambda: run(instance, run_id).is_finished)
    assert run(instance, run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_run_that_somebody_stops_is_canceled(instance: dg.DagsterInstance) -> None:
    run_id = launch(instance, seconds="60")
    wait_for(lambda: run(instance, run_id).status == dg.DagsterRunStatus.STARTED)
    with dg.DagsterInstance.from_ref(instance.get_ref()) as webserver:
        assert webserver.run_launcher.terminate(run_id)
        wait_for(lambda: run(instance, run_id).is_finished)
        assert not webserver.run_launcher.terminate(run_id)
    assert run(instance, run_id).status == dg.DagsterRunStatus.CANCELED


@pytest.mark.slow
def test_a_run_that_somebody_stops_before_it_has_a_process_is_canceled(instance: dg.DagsterInstance) -> None:
    instance.run_launcher.dispose()  # another worker has its imports to do
    run_id = launch(instance)
    assert not instance.run_launcher.terminate(run_id)
    wait_for(lambda: run(instance, run_id).is_finished)
    assert run(instance, run_id).status == dg.DagsterRunStatus.CANCELED


def test_a_run_is_gone_with_its_process_also_when_the_number_is_used_again(instance: dg.DagsterInstance) -> None:
    def health(**tags: str) -> WorkerStatus:
        run = instance.create_run_for_job(waiting, tags=tags, status=dg.DagsterRunStatus.STARTED)
        return instance.run_launcher.check_run_worker_health(run).status

    assert health(**{PROCESS: identity(os.getpid())}) == WorkerStatus.RUNNING
    assert health(**{PROCESS: f"{os.getpid()}:1"}) == WorkerStatus.NOT_FOUND
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert health(**{PROCESS: f"{ended.pid}:"}) == WorkerStatus.NOT_FOUND
    assert health() == WorkerStatus.RUNNING  # it was not started by this launcher


def test_no_worker_waits_for_a_daemon_that_was_killed() -> None:
    code = (
        "import sys, time; from ci_pipeline.defs import run_launcher;"
        "print(run_launcher._start_worker().pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        daemon.kill()
    wait_for(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
