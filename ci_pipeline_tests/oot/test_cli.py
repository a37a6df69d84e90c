"""`ci-pipeline oot`, as an operator meets it."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from ci_pipeline.cli import main
from ci_pipeline.oot import replication
from ci_pipeline.oot.lifecycle import Step
from ci_pipeline.oot.record import Record
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Change, Message

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

JOB: Record = {"dynamoKey": "org/backend/delivery-1/CI/tést/101", "status": "in_progress", "job_name": "tést"}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("CI_PIPELINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CI_PIPELINE_HOME", str(tmp_path))
    return tmp_path


def oot(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["oot", *arguments])


@pytest.mark.parametrize("command", ["dispatch", "confirm", "export", "replay", "create-tables"])
def test_every_command_has_help(command: str) -> None:
    assert command in oot("--help").output
    assert "Usage: " in oot(command, "--help").output


def test_a_dispatch_by_hand_opens_the_way_for_callbacks(home: Path) -> None:
    told = json.loads(oot("dispatch", "org/backend", "delivery-1", "--pr", "7", "--sha", "a" * 40).output)
    assert (told["delivery_id"], told["repo"], told["pr_number"]) == ("delivery-1", "org/backend", 7)
    assert told["callback_token"].count(".") == 2
    assert told["event_type"] == "pull_request"
    pull_request = {"number": 7, "head": {"sha": "a" * 40}}
    assert told["payload"] == {"repository": {"full_name": "huggingface/transformers"}, "pull_request": pull_request}
    store = SqliteStore(home / "oot.sqlite")
    step = Step("delivery-1", "org/backend", "job", "in_progress", "digest", str(JOB["dynamoKey"]), pr_number=7)
    assert store.advance(step, told["dispatched_at"] + 5, lambda done: {**JOB, **done.measured}).result()
    record = store.record(str(JOB["dynamoKey"]))
    store.close()
    assert record
    assert record["queue_time"] == 5.0


def test_what_is_no_repository_cannot_be_dispatched_to() -> None:
    result = oot("dispatch", "backend", "delivery-1")
    assert result.exit_code == 2
    assert "write owner/name" in result.output


def test_a_delivery_that_no_callback_could_name_is_not_dispatched() -> None:
    result = oot("dispatch", "org/backend", "a/b")
    assert result.exit_code == 2
    assert "the delivery's id must be" in result.output


def test_an_operator_confirms_a_repository_with_a_new_id(home: Path) -> None:
    with closing(SqliteStore(home / "oot.sqlite")) as store:
        assert store.repository_id("org/backend", "1").result() == "1"
    for said in ("2 from now on, instead of 1", "2 from now on"):
        result = oot("confirm", "Org/Backend", "2")
        assert (result.exit_code, result.output) == (0, f"Org/Backend is the repository {said}\n")
    with closing(SqliteStore(home / "oot.sqlite")) as store:
        assert store.repository_id("org/backend", "2").result() == "2"


def test_an_id_that_is_empty_is_not_confirmed() -> None:
    assert "REPOSITORY_ID: is empty" in oot("confirm", "org/backend", "").output


def test_export_prints_each_job_as_one_line_of_json(home: Path) -> None:
    store = SqliteStore(home / "oot.sqlite")
    store.write(JOB).result()
    store.write({**JOB, "dynamoKey": "another"}).result()
    store.close()
    jobs = [json.loads(line) for line in oot("export").output.splitlines()]
    assert sorted(job["dynamoKey"] for job in jobs) == ["another", JOB["dynamoKey"]]
    assert {job["job_name"] for job in jobs} == {"tést"}
    assert {job["version"] for job in jobs} == {1}


def test_replay_brings_dead_letters_and_names_each_that_is_refused_again_once(
    warehouse: Client, warehouse_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CI_PIPELINE_WAREHOUSE_URL", warehouse_url)
    warehouse.command("ALTER TABLE oot_workflow_job ADD COLUMN checked UInt8 MATERIALIZED throwIf(1, 'not today')")
    replication.insert(warehouse, [Change(JOB, 1, 1.0), Change({**JOB, "dynamoKey": "bad", "pr_number": -1}, 1, 1.0)])
    refused = oot("replay")
    assert (refused.exit_code, refused.output) == (1, "dead letters brought: 0\nrefused again: 2\n")
    assert "not today" in caplog.text
    warehouse.command("ALTER TABLE oot_workflow_job DROP COLUMN checked SETTINGS mutations_sync = 1")
    caplog.clear()
    assert oot("replay").output == "dead letters brought: 1\nrefused again: 1\n"
    [line] = caplog.messages
    assert line.startswith("bad is kept as a dead letter: ")
    assert warehouse.command("SELECT dynamoKey FROM oot_workflow_job FINAL") == JOB["dynamoKey"]


def test_replay_can_bring_the_whole_store(
    home: Path, warehouse: Client, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI_PIPELINE_WAREHOUSE_URL", warehouse_url)
    store = SqliteStore(home / "oot.sqlite")
    store.write(JOB).result()
    store.close()
    assert oot("replay", "--all").output == "jobs brought: 1\n"
    assert warehouse.command("SELECT count() FROM oot_workflow_job FINAL") == 1


def test_replay_gives_the_hud_another_chance(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PIPELINE_HUD_URL", "https://hud.example")
    with closing(SqliteStore(home / "oot.sqlite")) as store:
        step = Step("delivery-1", "org/backend", "job", "completed", "digest", str(JOB["dynamoKey"]), self_report=True)
        store.advance(step, 5.0, lambda done: Message(b"{}")).result()
        store.settle_message(1, refused="no such thing").result()
        assert oot("replay").output == "callbacks for the HUD to be sent again: 1\n"
        assert store.pending_messages() == 1


def test_replay_without_a_warehouse_is_one_line_that_names_the_setting() -> None:
    result = oot("replay")
    assert (result.exit_code, result.output) == (
        2,
        "Error: CI_PIPELINE_WAREHOUSE_URL: set it to the address of the warehouse\n",
    )


def test_create_tables_makes_the_tables_of_dynamodb(dynamodb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"dynamodb://us-east-1/by-hand?endpoint_url={dynamodb_url}"
    monkeypatch.setenv("CI_PIPELINE_OOT_STORE", store)
    for _ in range(2):
        assert "is ready" in oot("create-tables").output
    assert oot("export").output == ""
