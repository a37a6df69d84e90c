"""Out-of-tree CI on a real Dagster instance: ticks, materialisations, days."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from ci_pipeline.definitions import build_definitions
from ci_pipeline.defs import oot
from ci_pipeline.oot.record import Record
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.profile import load_profile
from ci_pipeline.services import Services
from ci_pipeline.settings import load_settings
from ci_pipeline.warehouse import WarehouseError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

TODAY = f"{datetime.now(UTC):%Y-%m-%d}"


def job(key: str, status: str = "completed", conclusion: str = "success", **fields: Any) -> Record:
    ended = {"conclusion": conclusion, "completed_at": f"{TODAY}T00:00:00Z"} if status == "completed" else {}
    return {"dynamoKey": key, "status": status, "downstream_repo": "org/backend", **ended, **fields}


class Deployment:
    """A home with a store, a warehouse, and a Dagster instance."""

    def __init__(self, home: Path, warehouse_url: str, instance: dg.DagsterInstance) -> None:
        settings = load_settings(CI_PIPELINE_HOME=str(home), CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
        self.services = Services(settings, load_profile("transformers"))
        self.out_of_tree = oot.OutOfTree(self.services)
        self.definitions = build_definitions(settings, self.services.profile)
        self.instance = instance

    def tick(self, sensor: dg.SensorDefinition = oot.oot_callbacks, cursor: str | None = None) -> Any:
        resources = {"out_of_tree": self.out_of_tree}
        with dg.build_sensor_context(instance=self.instance, cursor=cursor, resources=resources) as context:
            return sensor(context)

    def materialize(self, *assets: dg.AssetsDefinition, day: str | None = TODAY) -> dg.ExecuteInProcessResult:
        resources = {"out_of_tree": self.out_of_tree}
        return dg.materialize(assets, instance=self.instance, resources=resources, partition_key=day)


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    [event] = result.get_asset_materialization_events()
    shown = event.materialization.metadata
    return {name: v if isinstance(v, dg.TableMetadataValue) else v.value for name, v in shown.items()}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oot, "WATCH_SECONDS", 0.0)
    monkeypatch.delenv("CI_PIPELINE_OOT_STORE", raising=False)


@pytest.fixture
def deployment(tmp_path: Path, warehouse: Client, warehouse_url: str) -> Iterator[Deployment]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Deployment(tmp_path, warehouse_url, instance)


@pytest.fixture
def store(deployment: Deployment) -> Iterator[SqliteStore]:
    store = SqliteStore(deployment.services.settings.home / "oot.sqlite")
    yield store
    store.close()


# --- the sensor -----------------------------------------------------------------------------------------------------


def test_a_tick_brings_callbacks_to_the_warehouse_and_reports_it(
    deployment: Deployment, store: SqliteStore, warehouse: Client
) -> None:
    store.write(job("a", "in_progress")).result()
    store.write(job("b")).result()
    result = deployment.tick()
    [event] = result.asset_events
    assert event.asset_key == dg.AssetKey("oot_workflow_jobs")
    shown = {name: value.value for name, value in event.metadata.items()}
    assert (shown["rows"], shown["refused"]) == (2, 0)
    assert 0 <= shown["lag in seconds"] < 30
    assert warehouse.command("SELECT count() FROM oot_workflow_job FINAL") == 2

    quiet = deployment.tick(cursor=result.cursor)
    assert (quiet.asset_events, quiet.cursor) == ([], result.cursor)
    store.write(job("a")).result()
    assert len(deployment.tick(cursor=result.cursor).asset_events) == 1
    assert warehouse.command("SELECT count() FROM oot_workflow_job FINAL WHERE status = 'completed'") == 2


def test_a_deployment_without_callbacks_or_without_a_warehouse_is_left_alone(
    deployment: Deployment, tmp_path: Path
) -> None:
    for sensor in (oot.oot_callbacks, oot.oot_silent_jobs):
        assert deployment.tick(sensor) == dg.SkipReason("no callback ever came")
    assert not (deployment.services.settings.home / "oot.sqlite").exists()
    settings = load_settings(CI_PIPELINE_HOME=str(tmp_path / "other"))
    deployment.out_of_tree = oot.OutOfTree(Services(settings, deployment.services.profile))
    assert "CI_PIPELINE_WAREHOUSE_URL" in deployment.tick().skip_message


def test_a_tick_while_the_warehouse_is_down_fails_and_the_next_one_goes_on(
    deployment: Deployment, store: SqliteStore, warehouse: Client
) -> None:
    store.write(job("a")).result()
    warehouse.command("RENAME TABLE oot_workflow_job TO elsewhere")
    with pytest.raises(WarehouseError):
        deployment.tick()
    warehouse.command("RENAME TABLE elsewhere TO oot_workflow_job")
    assert deployment.tick().asset_events
    assert warehouse.command("SELECT dynamoKey FROM oot_workflow_job FINAL") == "a"


def test_silent_jobs_are_closed_by_their_sensor(
    deployment: Deployment, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(job("a", "in_progress")).result()
    assert deployment.tick(oot.oot_silent_jobs).skip_message == "no job is silent"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7 * 3600)
    assert deployment.tick(oot.oot_silent_jobs).skip_message == "1 timed out: a"
    record = store.record("a")
    assert record
    assert record["conclusion"] == "timed_out"


# --- assets ---------------------------------------------------------------------------------------------------------


def test_by_hand_all_that_the_store_has_comes_once_more(
    deployment: Deployment, store: SqliteStore, warehouse: Client
) -> None:
    for n in range(3):
        store.write(job(str(n))).result()
    assert metadata(deployment.materialize(oot.oot_workflow_jobs, day=None))["rows"] == 3
    assert warehouse.command("SELECT count() FROM oot_workflow_job FINAL") == 3


def test_reconciliation_repairs_a_day_and_warns_of_it(
    deployment: Deployment, store: SqliteStore, warehouse: Client
) -> None:
    for n in range(3):
        store.write(job(str(n))).result()
    deployment.tick()
    warehouse.command("ALTER TABLE oot_workflow_job DELETE WHERE dynamoKey = '1' SETTINGS mutations_sync = 1")
    day = f"{datetime.fromtimestamp(next(store.records()).changed_at, UTC):%Y-%m-%d}"
    result = deployment.materialize(oot.oot_reconciliation, day=day)
    assert metadata(result) == {
        "jobs": 3,
        "missing": 1,
        "different": 0,
        "repaired": 1,
        "refused": 0,
        "only in the warehouse": 0,
    }
    [check] = result.get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    found: Any = check.metadata["found"]
    assert [row.data for row in found.records] == [{"dynamoKey": "1", "was": "missing"}]
    assert warehouse.command("SELECT count() FROM oot_workflow_job FINAL") == 3
    [check] = deployment.materialize(oot.oot_reconciliation, day=day).get_asset_check_evaluations()
    assert check.passed


def test_health_shows_the_worst_backend_first(deployment: Deployment, store: SqliteStore) -> None:
    store.write(job("1")).result()
    store.write(job("2", conclusion="failure", downstream_repo="org/broken")).result()
    deployment.tick()
    shown = metadata(deployment.materialize(oot.oot_backend_health))
    assert (shown["backends"], shown["completed jobs"], shown["pass rate"]) == (2, 2, 0.5)
    assert [row.data["downstream_repo"] for row in shown["worst first"].records] == ["org/broken", "org/backend"]


def test_health_counts_the_jobs_of_its_day_alone_and_nightlies_apart(deployment: Deployment, store: SqliteStore):
    ended = f"{TODAY}T00:30:00Z"
    jobs = [
        job("1", started_at=f"{TODAY}T00:00:00Z", completed_at=ended, queue_time=10.0),
        job("2", conclusion="failure"),
        job("3", conclusion="timed_out"),
        job("4", event_type="nightly"),
        job("5", status="in_progress", started_at=ended),
        job("6", started_at="2026-04-28T23:59:59Z", completed_at=ended),
    ]
    for record in jobs:
        store.write(record).result()
    deployment.tick()
    for _ in range(2):  # again is safe
        rows = metadata(deployment.materialize(oot.oot_backend_health))["worst first"].records
        counts = [
            tuple(row.data[name] for name in ("nightly", "total", "success", "failure", "timed_out", "running"))
            for row in rows
        ]
        assert counts == [(False, 3, 1, 1, 1, 1), (True, 1, 1, 0, 0, 0)]
        assert (rows[0].data["average duration"], rows[0].data["average queue time"]) == (1800.0, 10.0)
    [row] = metadata(deployment.materialize(oot.oot_backend_health, day="2026-04-28"))["worst first"].records
    assert (row.data["day"], row.data["total"]) == ("2026-04-28", 1)


def test_a_range_of_days_is_one_dagster_run(deployment: Deployment, store: SqliteStore) -> None:
    store.write(job("1")).result()
    deployment.tick()
    yesterday = f"{datetime.fromisoformat(TODAY) - timedelta(days=1):%Y-%m-%d}"
    tags = {"dagster/asset_partition_range_start": yesterday, "dagster/asset_partition_range_end": TODAY}
    job_def = deployment.definitions.resolve_job_def("oot_daily")
    result = job_def.execute_in_process(tags=tags, instance=deployment.instance)
    partitions = {
        (event.asset_key.to_user_string(), event.partition)
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    assert partitions == {
        (asset, day) for asset in ("oot_reconciliation", "oot_backend_health") for day in (yesterday, TODAY)
    }


def test_every_asset_says_why_it_has_nothing_to_do(deployment: Deployment) -> None:
    assert metadata(deployment.materialize(oot.oot_workflow_jobs, day=None))["why"] == "no callback ever came"
    assert metadata(deployment.materialize(oot.oot_backend_health))["why"] == "no callback ever came"
    assert metadata(deployment.materialize(oot.oot_reconciliation))["why"] == "no callback ever came"


def test_the_schedule_asks_for_the_day_before(deployment: Deployment, store: SqliteStore) -> None:
    at = datetime(2026, 5, 2, 0, 20, tzinfo=UTC)
    resources = {"out_of_tree": deployment.out_of_tree}
    with dg.build_schedule_context(deployment.instance, at, resources=resources) as context:
        request: Any = oot.oot_every_day(context)
    assert request.partition_key == "2026-05-01"


def test_ci_runs_and_out_of_tree_jobs_are_processed_apart(deployment: Deployment) -> None:
    repository = deployment.definitions.get_repository_def()
    ci_run_assets = repository.get_job("process_ci_run").asset_layer.executable_asset_keys
    assert not any(key.to_user_string().startswith("oot_") for key in ci_run_assets)
    graph = deployment.definitions.resolve_asset_graph()
    assert graph.get(dg.AssetKey("oot_workflow_jobs")).parent_keys == {dg.AssetKey("oot_callback")}


# --- DynamoDB -------------------------------------------------------------------------------------------------------


def test_dynamodb_is_opened_through_dagster_s_own_aws_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ci_pipeline.oot.dynamodb_store import DynamoDBStore

    monkeypatch.setenv("CI_PIPELINE_OOT_STORE", "dynamodb://eu-west-1/jobs?endpoint_url=http://127.0.0.1:9")
    settings = load_settings(CI_PIPELINE_HOME=str(tmp_path), CI_PIPELINE_WAREHOUSE_URL="http://127.0.0.1:9")
    out_of_tree = oot.OutOfTree(Services(settings, load_profile("transformers")))
    assert out_of_tree.idle == ""
    assert isinstance(out_of_tree.store, DynamoDBStore)
    assert out_of_tree.store.table == "jobs"
    client: Any = out_of_tree.store._client  # pyright: ignore[reportPrivateUsage]
    assert (client.meta.region_name, client.meta.endpoint_url) == ("eu-west-1", "http://127.0.0.1:9")
