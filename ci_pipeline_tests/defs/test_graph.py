"""The graph on a real instance: one CI run, a range of them, again, and what goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import date, timedelta

import dagster as dg
import pyarrow as pa
import pytest

from ci_pipeline import pipeline
from ci_pipeline.pipeline import AHEAD
from ci_pipeline.services import Services
from ci_pipeline_tests.ci_runs import artifact_name, put_run
from ci_pipeline_tests.defs.conftest import ASSERT, Machine

ASSETS = {
    "raw_artifacts",
    "test_reports",
    "test_outcomes",
    "job_results",
    "category_results",
    "run_diff",
    "hub_dataset_files",
    "slack_report",
    "warehouse_tables",
}


def metadata(result: dg.ExecuteInProcessResult, asset: str, key: str = "101-1") -> dict[str, object]:
    [event] = [
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset) and event.partition == key
    ]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def made(result: dg.ExecuteInProcessResult) -> set[str]:
    return {e.asset_key.to_user_string() for e in result.get_asset_materialization_events() if e.asset_key}


def failed_checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckSeverity]:
    return {found.check_name: found.severity for found in result.get_asset_check_evaluations() if not found.passed}


def spoil(machine: Machine, run_id: int, file: str, text: str) -> None:
    folder = machine.inbox / str(run_id) / "artifacts" / artifact_name("models_bert")
    (folder / f"{file}.txt").write_text(text)


# --- one CI run -----------------------------------------------------------------------------------------------------


def test_every_asset_of_a_ci_run_is_made(machine: Machine) -> None:
    put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    result = machine.run("101-1")
    assert made(result) == ASSETS
    assert failed_checks(result) == {}
    assert list(machine.messages().values()) == ["❌ Models: 1 failure"]


def test_assets_show_what_is_worth_looking_at(machine: Machine) -> None:
    put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    result = machine.run("101-1")
    assert metadata(result, "raw_artifacts")["CI run"] == "https://github.com/huggingface/transformers/actions/runs/101"
    assert metadata(result, "test_reports")["failed"] == 1
    assert metadata(result, "test_outcomes")["dagster/partition_row_count"] == 2
    assert metadata(result, "run_diff")["compared with"] == "- nothing: no earlier run is known"
    assert "Models: 1 failure" in str(metadata(result, "slack_report")["run_models_gpu"])


def test_processing_again_edits_the_message_instead_of_posting_another(machine: Machine) -> None:
    run = put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    machine.run("101-1")
    [(place, first)] = machine.messages().items()
    shutil.rmtree(run)
    put_run(machine.inbox, 101, {"models_bert": (["test_a", "test_b"], {})})
    machine.run("101-1")
    [(same_place, second)] = machine.messages().items()
    assert same_place == place
    assert "1 failure" in first
    assert "1 failure" not in second


def test_a_single_asset_is_made_again_from_the_tables_of_the_others(machine: Machine) -> None:
    run = put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    machine.run("101-1")
    [(place, text)] = machine.messages().items()
    shutil.rmtree(run)
    shutil.rmtree(machine.home / "outbox")
    shutil.rmtree(machine.home / "data" / "ledger")
    job = machine.definitions().resolve_job_def("process_ci_run")
    result = job.execute_in_process(
        partition_key="101-1", instance=machine.instance, asset_selection=[dg.AssetKey("slack_report")]
    )
    assert made(result) == {"slack_report"}
    assert machine.messages() == {place: text}


def test_a_killed_job_ends_as_an_incomplete_report(machine: Machine) -> None:
    put_run(machine.inbox, 101, {"models_bert": (["test_a"], {})}, killed=["models_gpt2"])
    result = machine.run("101-1")
    assert made(result) == ASSETS
    assert failed_checks(result) == {"announced_artifacts_are_there": dg.AssetCheckSeverity.WARN}
    assert "incomplete" in next(iter(machine.messages().values()))


def test_an_artifact_that_a_job_announces_and_that_is_not_there_is_a_warning(machine: Machine) -> None:
    run = put_run(machine.inbox, 101, {"models_bert": (["test_a"], {}), "models_gpt2": (["test_a"], {})})
    shutil.rmtree(run / "artifacts" / artifact_name("models_gpt2"))
    result = machine.run("101-1")
    assert failed_checks(result) == {"announced_artifacts_are_there": dg.AssetCheckSeverity.WARN}
    assert "incomplete" in next(iter(machine.messages().values()))


def test_a_report_whose_list_of_failures_was_cut_off_says_so(machine: Machine) -> None:
    put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT, "test_c": ASSERT})})
    spoil(machine, 101, "summary_short", "=== short test summary info ===\n")
    spoil(machine, 101, "failures_line", "")
    result = machine.run("101-1")
    assert failed_checks(result) == {"failing_tests_are_all_there": dg.AssetCheckSeverity.WARN}
    assert "incomplete" in next(iter(machine.messages().values()))


def test_outcomes_that_contradict_pytest_without_saying_so_stop_the_report(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    read = pipeline.read

    def lose_a_failing_test(key: str, services: Services) -> tuple[pa.Table, pa.Table]:
        test_reports, test_outcomes = read(key, services)
        return test_reports, test_outcomes.slice(0, 1)

    monkeypatch.setattr(pipeline, "read", lose_a_failing_test)
    result = machine.run("101-1", raise_on_error=False)
    assert failed_checks(result) == {"failing_tests_are_all_there": dg.AssetCheckSeverity.ERROR}
    assert made(result) == {"raw_artifacts", "test_reports", "test_outcomes"}
    assert machine.messages() == {}


def test_a_diff_that_the_outcomes_do_not_bear_out_stops_the_report(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = machine.history(2)
    machine.run(keys[0])
    diff = pipeline.diff

    def invent_a_failure(key: str, services: Services) -> pa.Table:
        table = diff(key, services)
        invented = table.column("node_id").combine_chunks().to_pylist()
        column = table.schema.get_field_index("node_id")
        return table.set_column(column, table.schema.field(column), [[f"{name}_never_ran" for name in invented]])

    monkeypatch.setattr(pipeline, "diff", invent_a_failure)
    result = machine.run(keys[1], raise_on_error=False)
    assert failed_checks(result) == {"diff_is_in_the_outcomes": dg.AssetCheckSeverity.ERROR}
    assert len(machine.messages()) == 1


def test_a_run_that_the_source_does_not_have_fails_and_names_it(machine: Machine) -> None:
    result = machine.run("999-1", raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "999" in failure.step_failure_data.error_display_string
    assert made(result) == set()


def test_everything_is_kept_in_a_bucket_where_the_deployment_says_so(machine: Machine, bucket: str) -> None:
    put_run(machine.inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    result = machine.run("101-1", CI_PIPELINE_DATA_URI=f"{bucket}/ci")
    assert made(result) == ASSETS
    assert str(metadata(result, "run_diff")["dagster/uri"]) == f"{bucket}/ci/tables/run_diff/101-1.parquet"
    assert machine.services(CI_PIPELINE_DATA_URI=f"{bucket}/ci").raw.has("101-1")
    assert not (machine.home / "data").exists()
    machine.run("101-1", CI_PIPELINE_DATA_URI=f"{bucket}/ci")
    assert list(machine.messages().values()) == ["❌ Models: 1 failure"]


# --- a range of them ------------------------------------------------------------------------------------------------


def test_a_range_is_one_dagster_run_in_which_each_run_is_compared_with_the_one_before(machine: Machine) -> None:
    keys = machine.history(12)
    result = machine.run(keys[0], keys[-1])
    tables = machine.services().tables
    for key, before in zip(keys[1:], keys, strict=False):
        rows = tables.read("run_diff", key).to_pylist()
        assert {row["against_run_id"] for row in rows} == {int(before.partition("-")[0])}
        assert sorted(row["change"] for row in rows) == ["fixed", "new_failure"]
    materialized = machine.instance.get_materialized_partitions(dg.AssetKey("run_diff"))
    assert materialized == set(keys)
    assert "dagster/partition_row_count" not in metadata(result, "run_diff", keys[-1])  # 22 are those of all together
    assert made(result) == ASSETS
    assert machine.messages() == {}
    assert metadata(result, "slack_report", keys[0])["posted"] == "nothing: a backfill is silent"


def test_a_failure_goes_on_through_a_range_since_the_run_that_it_began_in(machine: Machine) -> None:
    days = [date(2026, 2, 1) + timedelta(i) for i in range(AHEAD + 2)]  # so many that other processes compare them
    for i, day in enumerate(days):
        put_run(machine.inbox, 101 + i, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=day)
    keys = [f"{101 + i}-1" for i in range(len(days))]
    machine.instance.add_dynamic_partitions("ci_run", keys)
    machine.run(keys[0], keys[-1])
    for key in keys[1:]:
        [row] = machine.services().tables.read("run_diff", key).to_pylist()
        assert (row["change"], row["since_run_id"], row["since"].date()) == ("still_failing", 101, days[0])


def test_a_range_posts_when_the_deployment_asks_for_it(machine: Machine) -> None:
    keys = machine.history(3)
    machine.run(keys[0], keys[-1], CI_PIPELINE_BACKFILL_POSTS="true")
    assert len(machine.messages()) == 3


def test_a_run_of_a_range_that_cannot_be_processed_is_set_aside_and_the_others_go_on(machine: Machine) -> None:
    keys = machine.history(4)
    shutil.rmtree(machine.inbox / "102")
    result = machine.run(keys[0], keys[-1])
    assert result.success
    services = machine.services()
    assert [services.is_processed(key) for key in keys] == [True, False, True, True]
    assert "102-1" in str(metadata(result, "raw_artifacts", "102-1")["set aside"])
    rows = services.tables.read("run_diff", keys[2]).to_pylist()
    assert {row["against_run_id"] for row in rows} == {101}


def test_a_range_again_gives_the_same_tables(machine: Machine) -> None:
    keys = machine.history(3)

    def tables() -> Iterable[tuple[str, bytes]]:
        folder = machine.home / "data" / "tables"
        return sorted((str(path), path.read_bytes()) for path in folder.rglob("*.parquet"))

    machine.run(keys[0], keys[-1])
    first = tables()
    machine.run(keys[0], keys[-1])
    assert tables() == first


def test_a_range_fills_the_warehouse(machine: Machine, warehouse_url: str) -> None:
    from ci_pipeline.warehouse import history

    keys = machine.history(3)
    machine.run(keys[0], keys[-1], CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    client = machine.services(CI_PIPELINE_WAREHOUSE_URL=warehouse_url).warehouse
    assert client
    assert [known.run.run_id for known in history.latest_runs(client, 9)] == [103, 102, 101]
    node_id = "tests/models/bert/test_modeling_bert.py::test_1"
    ends = history.history_of_test(client, "huggingface/transformers", node_id)
    assert [row["outcome"] for row in ends] == ["passed", "failed", "passed"]
