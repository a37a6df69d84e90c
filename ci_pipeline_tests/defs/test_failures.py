"""Who hears when something fails, and how often."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, TickData, TickStatus
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, PARTITION_NAME_TAG, ROOT_RUN_ID_TAG, WILL_RETRY_TAG
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo

from ci_pipeline.defs import failures
from ci_pipeline.warehouse import WarehouseError
from ci_pipeline_tests.ci_runs import put_run
from ci_pipeline_tests.defs.conftest import ASSERT, Machine

NOWHERE = "http://127.0.0.1:9/default"


@pytest.fixture
def machine(tmp_path: Path, dagster_home: Path) -> Iterator[Machine]:
    """With an instance that keeps ticks."""
    with dg.DagsterInstance.local_temp(str(shutil.copytree(dagster_home, tmp_path / "dagster"))) as instance:
        yield Machine(tmp_path, instance)


# --- a report that could not be made --------------------------------------------------------------------------------


def tell_of_failure(machine: Machine, result: dg.ExecuteInProcessResult, **tags: str) -> None:
    [event] = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]
    machine.instance.add_run_tags(result.run_id, tags)
    run = machine.instance.get_run_by_id(result.run_id)
    assert run
    hear_of_failure(machine, event, run)


def hear_of_failure(machine: Machine, event: DagsterEvent, run: dg.DagsterRun) -> None:
    """The failure sensor hears of it as from the daemon."""
    context = dg.build_run_status_sensor_context("failed_runs", event, machine.instance, run).for_run_failure()
    failures.failed_runs(context, services=machine.services())


def test_slack_is_told_once_that_a_report_could_not_be_made(machine: Machine) -> None:
    for _ in range(2):
        tell_of_failure(machine, machine.run("999-1", raise_on_error=False))
    [text] = machine.messages().values()
    assert text.startswith("❌ The report of CI run 999-1 could not be made.")
    assert "raw_artifacts: there is no run 999-1 in the inbox" in text


def test_slack_hears_nothing_of_a_partition_that_is_no_ci_run(machine: Machine) -> None:
    tell_of_failure(machine, machine.run("a typing error", raise_on_error=False))
    assert machine.messages() == {}


def test_slack_hears_nothing_of_a_failure_that_is_tried_again(machine: Machine) -> None:
    tell_of_failure(machine, machine.run("999-1", raise_on_error=False), **{WILL_RETRY_TAG: "true"})
    assert machine.messages() == {}


def test_slack_hears_of_the_retry_that_fails_and_not_of_the_run_before_it(tmp_path: Path, dagster_home: Path) -> None:
    home, retries = shutil.copytree(dagster_home, tmp_path / "dagster"), {"enabled": True, "max_retries": 1}
    with dg.DagsterInstance.local_temp(str(home), overrides={"run_retries": retries}) as instance:
        machine = Machine(tmp_path, instance)
        job = machine.definitions().resolve_job_def("process_ci_run")
        failure = DagsterEvent(DagsterEventType.RUN_FAILURE.value, job.name)
        killed = instance.create_run_for_job(job, tags={PARTITION_NAME_TAG: "999-1"})
        hear_of_failure(machine, failure, killed)  # before Dagster noted anything in the run
        assert machine.messages() == {}
        group = {ROOT_RUN_ID_TAG: killed.run_id, PARENT_RUN_ID_TAG: killed.run_id}
        retry = instance.create_run_for_job(
            job,
            tags={PARTITION_NAME_TAG: "999-1", **group},
            root_run_id=killed.run_id,
            parent_run_id=killed.run_id,
        )
        hear_of_failure(machine, failure, retry)
        assert len(machine.messages()) == 1


# --- what goes on failing -------------------------------------------------------------------------------------------


def look(machine: Machine, cursor: str | None = None) -> str | None:
    """One tick of the sensor; its cursor."""
    definitions = machine.definitions()
    context = dg.build_sensor_context(machine.instance, cursor=cursor, definitions=definitions)
    services = machine.services(CI_PIPELINE_DAGSTER_URL="http://dagster.example")
    result: dg.SensorResult = failures.breakdowns(context, services=services)
    return result.cursor


def switch(machine: Machine, automation: str, status: InstigatorStatus) -> InstigatorState:
    location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    state = InstigatorState(RemoteInstigatorOrigin(location, automation), InstigatorType.SENSOR, status)
    if machine.instance.get_instigator_state(state.instigator_origin_id, state.selector_id) is None:
        machine.instance.add_instigator_state(state)
    return state


def ticked(machine: Machine, automation: str, seconds_ago: float, error: SerializableErrorInfo | None = None) -> None:
    """The daemon evaluated this sensor."""
    state = switch(machine, automation, InstigatorStatus.DECLARED_IN_CODE)
    status = TickStatus.FAILURE if error else TickStatus.SKIPPED
    at = time.time() - seconds_ago
    data = TickData(state.instigator_origin_id, automation, InstigatorType.SENSOR, status, at, error=error)
    machine.instance.create_tick(data._replace(selector_id=state.selector_id))


@pytest.fixture
def down() -> SerializableErrorInfo:
    """What Dagster keeps of a tick in which the warehouse did not answer."""
    try:
        try:
            raise WarehouseError("the warehouse <at home> does not answer") from ConnectionRefusedError()
        except WarehouseError as error:
            raise dg.DagsterError("Error occurred during the execution of a sensor") from error
    except dg.DagsterError:
        return serializable_error_info_from_exc_info(sys.exc_info())


def test_slack_hears_once_that_replication_goes_on_failing_why_and_what_to_do(
    machine: Machine, down: SerializableErrorInfo
) -> None:
    ticked(machine, "oot_callbacks", 620)
    cursor = None
    for seconds_ago in (600, 300, 0):
        ticked(machine, "oot_callbacks", seconds_ago, down)
        cursor = look(machine, cursor)
    [text] = machine.messages().values()
    assert text.startswith("❌ oot_callbacks fails since ")
    assert "\nthe warehouse &lt;at home&gt; does not answer\nWhat it does: Watches the store of callbacks" in text
    assert text.endswith(
        "Mend that, and it goes on by itself; what waits is kept. Its ticks: http://dagster.example/automation"
    )


def test_a_moment_of_failure_is_nobodys_business(machine: Machine, down: SerializableErrorInfo) -> None:
    ticked(machine, "oot_callbacks", 900, down)
    ticked(machine, "oot_callbacks", 60)
    ticked(machine, "oot_callbacks", 30, down)
    look(machine)
    assert machine.messages() == {}


def test_what_works_again_is_said_in_the_same_message_and_the_next_breakdown_in_another(
    machine: Machine, down: SerializableErrorInfo
) -> None:
    ticked(machine, "oot_callbacks", 7200, down)
    cursor = look(machine)
    ticked(machine, "oot_callbacks", 3600)
    cursor = look(machine, cursor)
    [text] = machine.messages().values()
    assert text.startswith("✅ oot_callbacks works again: it failed from ")
    assert text.endswith("the warehouse &lt;at home&gt; does not answer")
    ticked(machine, "oot_callbacks", 400, down)
    look(machine, cursor)
    assert len(machine.messages()) == 2


def test_what_works_again_after_it_was_switched_off_is_said_as_well(
    machine: Machine, down: SerializableErrorInfo
) -> None:
    ticked(machine, "oot_callbacks", 7200, down)
    cursor = look(machine)
    state = switch(machine, "oot_callbacks", InstigatorStatus.DECLARED_IN_CODE)
    machine.instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    cursor = look(machine, cursor)
    machine.instance.update_instigator_state(state)
    ticked(machine, "oot_callbacks", 60)
    look(machine, cursor)
    [text] = machine.messages().values()
    assert text.startswith("✅ oot_callbacks works again: it failed from ")


def test_a_sensor_that_was_switched_off_or_is_not_ours_is_not_watched(
    machine: Machine, down: SerializableErrorInfo
) -> None:
    switch(machine, "ci_run_history", InstigatorStatus.STOPPED)
    for automation in ("ci_run_history", "of_another_project"):
        ticked(machine, automation, 900, down)
    look(machine)
    assert machine.messages() == {}


def test_slack_hears_that_what_waits_cannot_be_delivered(
    machine: Machine, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "PATIENCE", 0.0)
    put_run(machine.inbox, 101, {"models_bert": ([], {"test_b": ASSERT})})
    machine.run("101-1", CI_PIPELINE_WAREHOUSE_URL=NOWHERE)
    [report] = machine.messages()

    def deliver(warehouse_url: str) -> dg.ExecuteInProcessResult:
        job = machine.definitions(CI_PIPELINE_WAREHOUSE_URL=warehouse_url).resolve_job_def("deliver")
        return job.execute_in_process(instance=machine.instance, raise_on_error=False)

    assert not deliver(NOWHERE).success
    last = deliver(NOWHERE)
    cursor = look(machine)
    [text] = [text for path, text in machine.messages().items() if path != report]
    assert text.startswith("❌ deliver fails since ")
    assert "\ndeliver_pending: rows: pending (" in text
    assert text.endswith(f"Mend that, and re-execute the run: http://dagster.example/runs/{last.run_id}")
    assert deliver(warehouse_url).success
    look(machine, cursor)
    assert any(text.startswith("✅ deliver works again") for text in machine.messages().values())
