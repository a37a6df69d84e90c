"""Dagster's instance: the same answers as Dagster's own, from fewer transactions."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance import InstanceRef
from dagster._core.storage.event_log import SqliteEventLogStorage

from ci_pipeline.defs import instance as ours
from ci_pipeline_tests.defs.conftest import Machine

PROJECT = Path(__file__).parents[2]
ASSETS = ["raw_artifacts", "test_outcomes", "job_results", "run_diff", "warehouse_tables"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ours.ENVIRONMENT:
        monkeypatch.setenv(name, "0")  # the instance sets it, and the test takes it back
        monkeypatch.delenv(name)


@pytest.fixture
def instance(tmp_path: Path, dagster_home: Path) -> Iterator[dg.DagsterInstance]:
    home = shutil.copytree(dagster_home, tmp_path / "dagster")
    shutil.copy(PROJECT / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def postgres() -> Iterator[Path]:
    """The folder of a Postgres of its own: its socket is in it, and its `log` tells of each connection."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("there is no Postgres on this machine")
    user = "postgres" if os.geteuid() == 0 else None  # it does not start as root

    def run(program: str, *arguments: str) -> None:
        command = [programs[-1] / program, "--pgdata=data", *arguments]
        subprocess.run(command, cwd=folder, user=user, stdout=subprocess.DEVNULL, check=True)

    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
        run("initdb", "--auth=trust", "--username=dagster", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c log_connections=on"
        run("pg_ctl", "start", "--wait", "--log=log", f"--options={options}")
        yield Path(folder)
        run("pg_ctl", "stop", "--wait", "--mode=immediate")


def seen(instance: dg.DagsterInstance) -> dict[str, object]:
    """What Dagster's pages show of a range of CI runs."""
    shown: dict[str, object] = {"assets": sorted(key.to_user_string() for key in instance.all_asset_keys())}
    for name in ASSETS:
        key = dg.AssetKey(name)
        latest = instance.get_latest_materialization_event(key)
        assert latest is not None
        assert latest.asset_materialization is not None
        [record] = instance.get_asset_records([key])
        shown[name] = (
            sorted(instance.get_materialized_partitions(key)),
            latest.asset_materialization.partition,
            record.asset_entry.last_materialization_record is not None,
            record.asset_entry.last_run_id == instance.get_runs()[0].run_id,
            len(instance.fetch_materializations(key, limit=100).records),
        )
    check = dg.AssetCheckKey(dg.AssetKey("run_diff"), "diff_is_in_the_outcomes")
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=10)
    shown["check"] = [(record.status.value, record.partition) for record in history]
    run_id = instance.get_runs()[0].run_id
    shown["events"] = sorted(
        (event.dagster_event.event_type_value, event.dagster_event.step_key or "")
        for event in instance.all_logs(run_id)
        if event.dagster_event
    )
    return shown


def history(home: Path, instance: dg.DagsterInstance) -> dict[str, object]:
    """What is seen of a range of CI runs, one of which was processed again."""
    home.mkdir()
    machine = Machine(home, instance)
    keys = machine.history(3)
    machine.run(keys[0], keys[-1])
    machine.run(keys[1])
    return seen(instance)


def test_history_reads_as_in_dagsters_own_storage(
    tmp_path: Path, dagster_home: Path, instance: dg.DagsterInstance
) -> None:
    own_home = shutil.copytree(dagster_home, tmp_path / "own")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(own_home))) as own:
        assert history(tmp_path / "a", instance) == history(tmp_path / "b", own)
    assert isinstance(instance.event_log_storage, ours.EventLogStorage)
    assert type(own.event_log_storage) is SqliteEventLogStorage


@pytest.mark.slow
def test_history_reads_the_same_in_postgres_over_a_few_connections(
    tmp_path: Path, instance: dg.DagsterInstance, postgres: Path
) -> None:
    storage = f"\nstorage:\n  postgres:\n    postgres_url: postgresql+psycopg2://dagster@/postgres?host={postgres}\n"
    (tmp_path / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text() + storage)
    with dg.DagsterInstance.from_config(str(tmp_path)) as elsewhere:
        assert history(tmp_path / "a", instance) == history(tmp_path / "b", elsewhere)
    assert 0 < (postgres / "log").read_text().count("connection authorized") < 200


def test_a_range_is_written_in_a_few_transactions(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    machine = Machine(tmp_path, instance)
    keys = machine.history(4)
    batches: list[int] = []
    store = instance.event_log_storage.store_event_batch
    instance.event_log_storage.store_event_batch = lambda events: (batches.append(len(events)), store(events))[1]
    machine.run(keys[0], keys[-1])
    assert batches.count(len(keys)) >= len(ASSETS)


def test_more_runs_than_are_kept_open_are_all_there(instance: dg.DagsterInstance) -> None:
    for i in range(ours.OPEN * 2):
        instance.report_engine_event(str(i), run_id=f"run{i}", job_name="job")
    for i in range(ours.OPEN * 2):
        assert [event.message for event in instance.all_logs(f"run{i}")] == [str(i)]
    opened = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    events = f"{instance.root_directory}/history/runs/"
    assert 1 < len([path for path in opened if path.startswith(events) and path.endswith(".db")]) <= ours.OPEN


def test_batches_are_on_whatever_started_dagster(instance: dg.DagsterInstance) -> None:
    assert {name: os.environ[name] for name in ours.ENVIRONMENT} == ours.ENVIRONMENT


def test_another_storage_in_the_file_is_the_storage(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    another = f"\nstorage:\n  sqlite:\n    base_dir: {elsewhere}\n"
    (tmp_path / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text() + another)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert type(instance.event_log_storage) is SqliteEventLogStorage
    assert elsewhere.is_dir()


def test_the_instance_is_the_same_in_another_process(instance: dg.DagsterInstance) -> None:
    with dg.DagsterInstance.from_ref(instance.get_ref()) as again:
        assert type(again) is ours.Instance
        assert again.event_log_storage.path_for_shard("x") == instance.event_log_storage.path_for_shard("x")


def test_runs_that_are_deleted_are_gone(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    machine = Machine(tmp_path, instance)
    [key] = machine.history(1)
    machine.run(key)
    run_id = instance.get_runs()[0].run_id
    instance.delete_run(run_id)
    assert instance.get_runs() == []
    assert list(instance.all_logs(run_id)) == []
