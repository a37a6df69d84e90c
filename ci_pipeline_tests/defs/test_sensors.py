"""What starts Dagster runs: new CI runs, history, deliveries that had to wait, and time."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from ci_pipeline.defs import sensors
from ci_pipeline.sources import SourceError
from ci_pipeline_tests.ci_runs import put_run
from ci_pipeline_tests.defs.conftest import ASSERT, Machine

REPORTS = {"models_bert": (["test_a"], {"test_b": ASSERT})}


@pytest.fixture(autouse=True)
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that finds nothing does not wait for something to come."""
    monkeypatch.setattr(sensors, "WATCH_SECONDS", 0.0)


def tick(machine: Machine, sensor: str, cursor: str | None = None, **settings: object) -> dg.SensorResult:
    """Evaluate a sensor; what it asks for is done as the daemon does it."""
    context = dg.build_sensor_context(machine.instance, cursor=cursor)
    result = getattr(sensors, sensor)(context, services=machine.services(**settings))
    for request in result.dynamic_partitions_requests or []:
        machine.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    return result


# --- new CI runs ----------------------------------------------------------------------------------------------------


def test_a_new_ci_run_becomes_a_partition_and_a_request(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    data = tick(machine, "ci_runs")
    [request] = data.run_requests
    assert (request.run_key, request.partition_key) == ("101-1", "101-1")
    assert request.tags["ci_pipeline/kind"] == "live"
    assert machine.instance.has_dynamic_partition("ci_run", "101-1")
    assert data.cursor


def test_from_the_inbox_to_the_message(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    for request in tick(machine, "ci_runs").run_requests:
        machine.run(request.partition_key)
    assert list(machine.messages().values()) == ["❌ Models: 1 failure"]


def test_a_run_that_comes_while_the_tick_watches_is_taken_by_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "WATCH_SECONDS", 30.0)
    with ThreadPoolExecutor(1) as pool:
        ticking = pool.submit(tick, machine, "ci_runs")
        time.sleep(0.5)
        put_run(machine.inbox, 101, REPORTS)
        assert [request.run_key for request in ticking.result(20).run_requests] == ["101-1"]


def test_nothing_new_is_skipped_and_the_cursor_stays_useful(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    cursor = tick(machine, "ci_runs").cursor
    again = tick(machine, "ci_runs", cursor)
    assert again.run_requests == []
    assert again.skip_reason
    assert again.skip_reason.skip_message == "no new CI run"
    put_run(machine.inbox, 102, REPORTS)
    assert [request.run_key for request in tick(machine, "ci_runs", again.cursor).run_requests] == ["102-1"]


def test_a_run_whose_partition_was_added_and_that_was_never_requested_is_requested_again(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    tick(machine, "ci_runs")
    # The daemon was killed: neither the request nor the cursor was written.
    assert [request.run_key for request in tick(machine, "ci_runs").run_requests] == ["101-1"]


def test_a_run_that_was_processed_already_is_not_requested(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    machine.run("101-1")
    assert tick(machine, "ci_runs").run_requests == []


def test_another_attempt_is_another_partition(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    put_run(machine.inbox, 101, REPORTS, attempt=2)
    keys = {request.run_key for request in tick(machine, "ci_runs").run_requests}
    assert keys == {"101-1", "101-2"}


def test_a_page_is_bounded_and_the_rest_comes_with_the_next_tick(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_pipeline.defs.sensors.PAGE", 2)
    for run_id in (101, 102, 103):
        put_run(machine.inbox, run_id, REPORTS)
    first = tick(machine, "ci_runs")
    second = tick(machine, "ci_runs", first.cursor)
    assert [len(data.run_requests) for data in (first, second)] == [2, 1]


def test_a_source_that_cannot_be_read_fails_the_tick_and_is_not_an_empty_inbox(machine: Machine) -> None:
    with pytest.raises(SourceError, match="not a cursor"):
        tick(machine, "ci_runs", cursor="what an older version wrote")


# --- history --------------------------------------------------------------------------------------------------------


def test_history_is_one_request_for_a_page_oldest_first(machine: Machine) -> None:
    for run_id in (101, 102, 103):
        put_run(machine.inbox, run_id, REPORTS)
    data = tick(machine, "ci_run_history")
    [request] = data.run_requests
    assert request.tags[ASSET_PARTITION_RANGE_START_TAG] == "101-1"
    assert request.tags[ASSET_PARTITION_RANGE_END_TAG] == "103-1"
    assert machine.instance.get_dynamic_partitions("ci_run") == ["101-1", "102-1", "103-1"]
    machine.run("101-1", "103-1")
    assert tick(machine, "ci_run_history", data.cursor).run_requests == []
    assert machine.messages() == {}


def test_history_waits_for_the_page_before(machine: Machine) -> None:
    put_run(machine.inbox, 101, REPORTS)
    job = machine.definitions().resolve_job_def("process_ci_run")
    machine.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={"ci_pipeline/kind": "history"})
    data = tick(machine, "ci_run_history", "somewhere")
    assert (data.run_requests, data.cursor) == ([], "somewhere")


def test_history_leaves_out_what_was_processed(machine: Machine) -> None:
    for run_id in (101, 102, 103):
        put_run(machine.inbox, run_id, REPORTS)
    machine.run("101-1")
    [request] = tick(machine, "ci_run_history").run_requests
    assert request.tags[ASSET_PARTITION_RANGE_START_TAG] == "102-1"


def test_a_partition_that_is_there_already_is_a_range_of_its_own(machine: Machine) -> None:
    # 102 was requested as a new run and failed: its partition stands before those of the older history.
    machine.instance.add_dynamic_partitions("ci_run", ["102-1"])
    for run_id in (101, 102, 103):
        put_run(machine.inbox, run_id, REPORTS)
    requests = tick(machine, "ci_run_history").run_requests or []
    ends = [(r.tags[ASSET_PARTITION_RANGE_START_TAG], r.tags[ASSET_PARTITION_RANGE_END_TAG]) for r in requests]
    assert ends == [("102-1", "102-1"), ("101-1", "103-1")]
    for start, end in ends:
        assert machine.run(start, end).success
    assert machine.messages() == {}


# --- later, and no longer -------------------------------------------------------------------------------------------


def test_what_could_not_be_delivered_is_tried_again(machine: Machine, warehouse_url: str) -> None:
    put_run(machine.inbox, 101, REPORTS)
    down = "http://127.0.0.1:9/default"
    machine.run("101-1", CI_PIPELINE_WAREHOUSE_URL=down)
    assert isinstance(deliveries(machine, CI_PIPELINE_WAREHOUSE_URL=down), dg.RunRequest)
    up = machine.definitions(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    assert up.resolve_job_def("deliver").execute_in_process(instance=machine.instance).success
    assert isinstance(deliveries(machine, CI_PIPELINE_WAREHOUSE_URL=warehouse_url), dg.SkipReason)


def test_old_runs_are_pruned_with_their_partitions(machine: Machine) -> None:
    keys = machine.history(2)
    machine.run(keys[0], keys[1])
    make_old(machine, *keys)
    prune = machine.definitions().resolve_job_def("prune")
    assert prune.execute_in_process(instance=machine.instance).success
    assert machine.instance.get_dynamic_partitions("ci_run") == []
    assert not any(map(machine.services().raw.has, keys))


def test_a_run_that_is_being_processed_is_not_pruned(machine: Machine) -> None:
    keys = machine.history(2)
    machine.run(keys[0], keys[1])
    make_old(machine, *keys)
    defs = machine.definitions()
    job = defs.resolve_job_def("process_ci_run")
    machine.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": keys[1]})
    defs.resolve_job_def("prune").execute_in_process(instance=machine.instance)
    assert machine.instance.get_dynamic_partitions("ci_run") == [keys[1]]
    assert machine.services().is_processed(keys[1])


def test_nothing_is_pruned_while_a_range_is_being_processed(machine: Machine) -> None:
    keys = machine.history(2)
    machine.run(keys[0], keys[1])
    make_old(machine, *keys)
    defs = machine.definitions()
    job = defs.resolve_job_def("process_ci_run")
    tags = {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[1]}
    machine.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTING, tags=tags)
    defs.resolve_job_def("prune").execute_in_process(instance=machine.instance)
    assert machine.instance.get_dynamic_partitions("ci_run") == keys


def deliveries(machine: Machine, **settings: object) -> object:
    services = machine.services(**settings)
    return sensors.pending_deliveries(dg.build_sensor_context(machine.instance), services=services)


def make_old(machine: Machine, *keys: str) -> None:
    for key in keys:
        os.utime(machine.home / "data" / "tables" / "raw_artifacts" / f"{key}.parquet", (1_700_000_000,) * 2)
