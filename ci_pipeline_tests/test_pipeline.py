"""A CI run from the inbox to its report, without Dagster."""

from __future__ import annotations

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ci_pipeline import earlier_runs, pipeline, whole_runs
from ci_pipeline.model import CiRun, FetchedRun
from ci_pipeline.profile import load_profile
from ci_pipeline.publish.hub import HubClient
from ci_pipeline.publish.slack import SlackRefused
from ci_pipeline.publish.thread import SlackMessage, SlackThread
from ci_pipeline.services import TABLES, Services
from ci_pipeline.settings import load_settings
from ci_pipeline.sources import SourceError
from ci_pipeline.warehouse import WarehouseError, client, history
from ci_pipeline.whole_runs import process_run
from ci_pipeline_tests.ci_runs import AMD, NIGHTLY, artifact_name, node_id, put_run, write_report
from ci_pipeline_tests.servers.hub import HubServer
from ci_pipeline_tests.servers.slack import SlackServer

ASSERT = "AssertionError: 1 != 2"
FIRST, SECOND, THIRD = date(2026, 2, 1), date(2026, 2, 2), date(2026, 2, 3)

Deployment = Callable[..., Services]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def deployment(tmp_path: Path, inbox: Path) -> Deployment:
    """Services whose settings are those of one machine, and what a test adds to them."""

    def services(**settings: object) -> Services:
        return Services(load_settings(CI_PIPELINE_HOME=str(tmp_path), **settings), load_profile("transformers"))

    return services


def changes(processed: whole_runs.ProcessedRun) -> dict[str, str]:
    rows = processed.tables["run_diff"].to_pylist()
    return {row["node_id"].rpartition("::")[2]: row["change"] for row in rows}


def test_a_failing_test_goes_all_the_way_to_the_message(inbox: Path, deployment: Deployment, tmp_path: Path) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    services = deployment()
    done = process_run(services.source.run(101), services)
    assert [report.test_job for report in done.reports] == ["run_models_gpu"]
    assert done.tables["test_outcomes"].num_rows == 2
    assert done.tables["test_reports"].to_pylist()[0]["failed"] == 1
    thread = next(tmp_path.glob("outbox/slack/*/101/run_models_gpu/thread.md")).read_text()
    assert "1 failure" in thread
    assert "test_b" in thread
    results = json.loads(next(tmp_path.glob("outbox/hub/**/model_results.json")).read_text())
    assert results["models_bert"]["failures"]["single"][0]["trace"] == f"(line 42)  {ASSERT}"


def test_the_report_links_to_the_runs_page_where_people_find_the_pages(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    services = deployment(CI_PIPELINE_PAGES_URL="https://hud.example/ci/")
    done = process_run(services.source.run(101), services)
    buttons = done.threads["run_models_gpu"].main.blocks[-1]["elements"]
    assert {b["text"]["text"]: b["url"] for b in buttons}["HUD"] == "https://hud.example/ci/runs/101"


def test_each_run_is_compared_with_the_one_before_it(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT, "test_c": ASSERT})}, day=FIRST)
    put_run(inbox, 102, {"models_bert": (["test_c"], {"test_a": ASSERT, "test_b": ASSERT})}, day=SECOND)
    put_run(inbox, 103, {"models_bert": (["test_c"], {"test_a": ASSERT, "test_b": "KeyError: 'x'"})}, day=THIRD)
    services = deployment()
    first, second, third = (process_run(run, services) for run in whole_runs.new_runs(services))
    assert changes(first) == {}
    assert changes(second) == {"test_a": "new_failure", "test_b": "still_failing", "test_c": "fixed"}
    assert changes(third) == {"test_a": "still_failing", "test_b": "changed_error"}
    since = {row["node_id"].rpartition("::")[2]: row["since_run_id"] for row in third.tables["run_diff"].to_pylist()}
    assert since == {"test_a": 102, "test_b": 101}


def test_the_run_before_is_found_at_the_source_where_it_was_never_processed(
    inbox: Path, deployment: Deployment
) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=FIRST)
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=SECOND)
    services = deployment()
    done = process_run(services.source.run(102), services)
    assert changes(done) == {"test_a": "new_failure", "test_b": "still_failing"}


def test_another_vendors_run_of_the_same_commit_tells_whose_failure_it_is(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, head_sha="c0ffee")
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, workflow=AMD, head_sha="c0ffee")
    services = deployment()
    done = process_run(services.source.run(102), services)
    assert changes(done) == {"test_a": "unique_failure"}
    assert [c.label for c in pipeline.compared_with(done.tables["run_diff"])] == ["Nvidia CI run"]


def test_a_chained_run_is_compared_at_the_source_with_the_chained_one_before_it(
    inbox: Path, deployment: Deployment
) -> None:
    chained: dict[str, Any] = {"workflow": AMD, "event": "workflow_run"}
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=FIRST, **chained)
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=SECOND, **chained)
    services = deployment()
    done = process_run(services.source.run(102), services)
    assert changes(done) == {"test_a": "new_failure", "test_b": "still_failing"}


def test_a_comment_on_a_pull_request_is_compared_with_the_nightly_that_the_warehouse_knows(
    inbox: Path, deployment: Deployment, warehouse_url: str
) -> None:
    comment: dict[str, Any] = {"workflow": {"workflow_id": 8, "name": "PR CI"}, "event": "issue_comment"}
    put_run(inbox, 101, {"models_bert": (["test_a"], {})}, day=FIRST)
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT})}, day=FIRST, head_branch="topic", **comment)
    put_run(inbox, 103, {"models_bert": ([], {"test_a": ASSERT})}, day=SECOND, head_branch="topic", **comment)
    services = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    for run_id in (101, 102):
        process_run(services.source.run(run_id), services)
        (inbox / str(run_id)).rename(inbox.parent / str(run_id))
    done = process_run(services.source.run(103), services)
    assert changes(done) == {"test_a": "new_failure"}


@pytest.mark.parametrize("event", ["push", "workflow_dispatch"])
def test_a_push_and_a_run_by_hand_are_compared_with_nothing(inbox: Path, deployment: Deployment, event: str) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {})}, day=FIRST)
    put_run(inbox, 102, {"models_bert": (["test_a"], {})}, day=FIRST, event=event)
    put_run(inbox, 103, {"models_bert": ([], {"test_a": ASSERT})}, day=SECOND, event=event)
    services = deployment()
    assert changes(process_run(services.source.run(103), services)) == {}


def test_runs_that_several_places_know_are_compared_with_once(
    inbox: Path, deployment: Deployment, warehouse_url: str
) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {})}, day=FIRST, workflow=AMD)
    put_run(inbox, 102, {"models_bert": (["test_a"], {})}, day=SECOND, head_sha="c0ffee")
    put_run(inbox, 103, {"models_bert": ([], {"test_a": ASSERT})}, day=SECOND, workflow=AMD, head_sha="c0ffee")
    services = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    first, second, third = (process_run(run, services) for run in whole_runs.new_runs(services))
    compared = [(c.role, c.run.run_id) for c in pipeline.compared_with(third.tables["run_diff"])]
    assert compared == [("previous", 101), ("other", 102)]
    assert [pipeline.compared_with(done.tables["run_diff"]) for done in (first, second)] == [[], []]


def test_runs_by_hand_and_of_branches_do_not_hide_the_run_before(
    inbox: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier_runs, "CANDIDATES", 2)
    put_run(inbox, 101, {"models_bert": ([], {"test_a": ASSERT})}, day=FIRST)
    for run_id in (102, 103):
        put_run(inbox, run_id, {"models_bert": (["test_a"], {})}, day=SECOND, event="workflow_dispatch")
    for run_id in (104, 105):
        put_run(inbox, run_id, {"models_bert": (["test_a"], {})}, day=SECOND, head_branch="topic")
    put_run(inbox, 106, {"models_bert": ([], {"test_a": ASSERT})}, day=THIRD)
    services = deployment()
    assert changes(process_run(services.source.run(106), services)) == {"test_a": "still_failing"}


def unavailable(*args: Any, **options: Any) -> list[CiRun]:
    raise SourceError("GitHub answered 403")


def test_runs_that_are_processed_together_are_compared_with_one_another_and_what_the_warehouse_has_between(
    inbox: Path, deployment: Deployment, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [date(2026, 2, day) for day in range(1, 6)]
    for first_id, workflow in ((101, NIGHTLY), (201, AMD)):
        for run_id, day in enumerate(days, first_id):
            put_run(inbox, run_id, {"models_bert": (["test_a"], {})}, day=day, workflow=workflow)
    services = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    runs = {run.run_id: run for run in whole_runs.new_runs(services)}
    for run_id in (101, 103, 201, 203):
        process_run(runs[run_id], services)
    monkeypatch.setattr(services.source, "workflow_runs", unavailable)
    together = [runs[run_id] for run_id in (105, 104, 204, 102, 202)]
    known = earlier_runs.known_together(together, services)
    monkeypatch.setattr(services, "warehouse", None)
    compared = {run.run_id: [c.run.run_id for c in earlier_runs.comparisons(run, services, known)] for run in together}
    assert compared == {105: [104], 104: [103], 204: [203], 102: [101], 202: [201]}


def test_a_source_that_does_not_answer_costs_the_comparison_and_not_the_report(
    inbox: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run(inbox, 101, {"models_bert": ([], {"test_a": ASSERT})}, day=FIRST)
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT})}, day=SECOND)
    services = deployment()
    monkeypatch.setattr(services.source, "workflow_runs", unavailable)
    done = process_run(services.source.run(102), services)
    assert (changes(done), len(done.reports)) == ({}, 1)


@pytest.mark.parametrize("expired", [False, True])
def test_where_the_run_before_left_nothing_no_failure_is_new(
    inbox: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, expired: bool
) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {})} if expired else {}, day=FIRST)
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT})}, day=SECOND)
    services = deployment()
    fetch = services.source.fetch

    def fetch_unless_expired(run: CiRun, *args: Any, **options: Any) -> FetchedRun:
        if expired and run.run_id == 101:
            raise SourceError(f"CI run {run.key}: its artifacts have expired")
        return fetch(run, *args, **options)

    monkeypatch.setattr(services.source, "fetch", fetch_unless_expired)
    assert changes(process_run(services.source.run(102), services)) == {}


def test_what_other_runs_left_is_fetched_once_for_each_test_job(
    inbox: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job for job in load_profile("transformers").test_jobs if job != "run_models_gpu"]
    for run_id, day, workflow in ((101, FIRST, AMD), (102, SECOND, NIGHTLY), (103, SECOND, AMD)):
        run = put_run(inbox, run_id, {}, day=day, workflow=workflow, head_sha="c0ffee")
        for job in jobs:
            write_report(run / "artifacts" / artifact_name("", job=job), "", [], {"test_a": ASSERT})
    services = deployment()
    fetched: list[int] = []
    fetch = services.source.fetch

    def counted(run: CiRun, *args: Any, **options: Any) -> FetchedRun:
        fetched.append(run.run_id)
        return fetch(run, *args, **options)

    monkeypatch.setattr(services.source, "fetch", counted)
    process_run(services.source.run(103), services)
    assert Counter(fetched) == {103: 1, 101: len(jobs), 102: len(jobs)}


@pytest.mark.parametrize("known_from", ["tables", "warehouse", "source"])
def test_what_other_test_jobs_of_the_run_before_did_is_not_compared_with(
    inbox: Path, deployment: Deployment, warehouse_url: str, known_from: str
) -> None:
    jobs = ("run_pipelines_torch_gpu", "run_examples_gpu")
    for run_id, day, failing in ((101, FIRST, jobs[:1]), (102, SECOND, jobs)):
        run = put_run(inbox, run_id, {}, day=day)
        for job in jobs:
            tests = ([], {"test_a": ASSERT}) if job in failing else (["test_a"], {})
            write_report(run / "artifacts" / artifact_name("", job=job), "", *tests)
    services = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    if known_from != "source":
        process_run(services.source.run(101), services)
    if known_from == "warehouse":
        whole_runs.prune("101-1", services)
        (inbox / "101").rename(inbox.parent / "gone")
    rows = process_run(services.source.run(102), services).tables["run_diff"].to_pylist()
    assert {row["test_job"]: row["change"] for row in rows} == {
        jobs[0]: "still_failing",
        jobs[1]: "new_failure",
    }


def add_error(run: Path, others: str) -> None:
    """A test of the run's one report that could not be set up."""
    [report] = run.glob("artifacts/*_test_reports")
    (report / "stats.txt").write_text(f"== {others}, 1 error in 1.00s ==")
    with (report / "summary_short.txt").open("a") as summary:
        summary.write("ERROR tests/models/bert/test_x.py::test_c - OSError: no\n")


@pytest.mark.parametrize("processed", [False, True])
def test_errors_and_passes_of_the_run_before_are_known_wherever_they_are_read(
    inbox: Path, deployment: Deployment, processed: bool
) -> None:
    add_error(put_run(inbox, 101, {"models_bert": (["test_a", "test_b"], {})}, day=FIRST), "2 passed")
    add_error(put_run(inbox, 102, {"models_bert": (["test_a"], {})}, day=SECOND), "1 passed")
    services = deployment()
    if processed:
        process_run(services.source.run(101), services)
    done = process_run(services.source.run(102), services)
    assert changes(done) == {"test_b": "vanished", "test_c": "still_failing"}


def test_an_error_is_not_new_where_the_older_reporter_of_the_run_before_listed_no_errors(
    inbox: Path, deployment: Deployment
) -> None:
    before = put_run(inbox, 101, {}, day=FIRST)
    results = before / "artifacts" / "ci_results_run_models_gpu" / "model_results.json"
    results.parent.mkdir()
    results.write_text(json.dumps({"models_bert": {"failures": {"single": []}}}))
    run = put_run(inbox, 102, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=SECOND)
    add_error(run, "1 failed, 1 passed")
    services = deployment()
    assert changes(process_run(services.source.run(102), services)) == {
        "test_b": "new_failure",
        "test_c": "still_failing",
    }


def test_of_a_run_before_whose_results_cannot_be_read_the_reports_are_read(inbox: Path, deployment: Deployment) -> None:
    before = put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=FIRST)
    results = before / "artifacts" / "ci_results_run_models_gpu" / "model_results.json"
    results.parent.mkdir()
    results.write_text("{")
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=SECOND)
    services = deployment()
    done = process_run(services.source.run(102), services)
    assert changes(done) == {"test_a": "new_failure", "test_b": "still_failing"}


def select_warnings(run: Path, *warnings: str) -> None:
    selected = run / "artifacts" / "warnings_in_ci" / "selected_warnings.json"
    selected.parent.mkdir()
    selected.write_text(json.dumps(warnings))


def test_the_warnings_that_the_ci_run_selected_are_counted(inbox: Path, deployment: Deployment) -> None:
    select_warnings(put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}), "w1", "w2")
    services = deployment()
    done = process_run(services.source.run(101), services)
    assert "*Warnings:* 2" in json.dumps(done.threads["run_models_gpu"].main.blocks)


def test_a_killed_job_ends_as_incomplete(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {})}, killed=["models_gpt2"])
    services = deployment()
    done = process_run(services.source.run(101), services)
    assert "incomplete" in done.threads["run_models_gpu"].main.text
    rows = {row["matrix_entry"]: row["complete"] for row in done.tables["job_results"].to_pylist()}
    assert rows == {"models_bert": True, "models_gpt2": False}


def test_a_test_job_without_a_single_artifact_is_reported(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {}, killed=["models_bert", "models_gpt2"])
    services = deployment()
    done = process_run(services.source.run(101), services)
    assert "incomplete" in done.threads["run_models_gpu"].main.text


def test_a_test_job_whose_only_artifact_was_refused_is_reported(inbox: Path, deployment: Deployment) -> None:
    folder = put_run(inbox, 101, {})
    (folder / "artifacts" / f"{artifact_name('models_bert')}.zip").write_bytes(b"no zip")
    services = deployment()
    done = process_run(services.source.run(101), services)
    assert "incomplete" in done.threads["run_models_gpu"].main.text


def test_a_run_in_which_no_test_job_began_is_reported(inbox: Path, deployment: Deployment, tmp_path: Path) -> None:
    put_run(inbox, 101, {})
    services = deployment()
    process_run(services.source.run(101), services)
    messages = [json.loads(path.read_text()) for path in tmp_path.glob("outbox/slack/*/101/**/main.json")]
    assert ["There was an issue running the tests" in json.dumps(message) for message in messages] == [True]


def test_a_run_that_succeeded_and_had_nothing_to_test_is_no_news(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {}, conclusion="success")
    services = deployment()
    assert process_run(services.source.run(101), services).threads == {}


def test_a_report_of_a_test_job_that_nobody_knows_is_named(inbox: Path, deployment: Deployment) -> None:
    folder = put_run(inbox, 101, {"models_bert": (["test_a"], {})})
    (folder / "artifacts" / "single-gpu_run_new_gpu_models_bert_test_reports").mkdir()
    (folder / "artifacts" / "ci_results_run_models_gpu").mkdir()
    services = deployment()
    [report] = process_run(services.source.run(101), services).reports
    assert [(problem.subject, problem.reason) for problem in report.problems] == [
        ("single-gpu_run_new_gpu_models_bert_test_reports", "a report of no test job that the profile knows")
    ]


def test_a_run_whose_artifacts_nobody_knows_says_what_it_has(inbox: Path, deployment: Deployment) -> None:
    folder = put_run(inbox, 101, {})
    (folder / "run.json").unlink()
    (folder / "artifacts" / "logs & more").mkdir()
    (folder / "artifacts" / "<logs>").mkdir()
    services = deployment()
    done = process_run(services.source.run(101), services)
    message = done.threads[""].main
    title, about = (block["text"]["text"] for block in message.blocks[:2])
    assert title == "[INFO] Results of CI run 101"
    assert about.splitlines() == [
        "No artifact is the report of a test job that the profile knows: logs &amp; more",
        "&lt;logs&gt;: refused: its name is not a file name",
    ]
    assert done.tables["raw_artifacts"]["problems"].to_pylist() == [["<logs>: refused: its name is not a file name"]]


def test_a_push_that_broke_nothing_is_no_news(inbox: Path, deployment: Deployment, tmp_path: Path) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {})}, event="push")
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT})}, event="push")
    put_run(inbox, 103, {"models_bert": (["test_a"], {})}, event="push", killed=["models_gpt2"])
    put_run(inbox, 104, {"models_bert": (["test_a"], {})}, event="schedule")
    services = deployment()
    for run in whole_runs.new_runs(services):
        process_run(run, services)
    assert {path.name for path in tmp_path.glob("outbox/slack/*/*")} == {"102", "103", "104"}


def test_a_run_that_is_fetched_again_is_known_as_it_is_now(inbox: Path, deployment: Deployment) -> None:
    folder = put_run(inbox, 101, {"models_bert": (["test_a"], {})})
    services = deployment()
    run = services.source.run(101)
    process_run(run, services)
    write_report(folder / "artifacts" / artifact_name("models_gpt2"), "models_gpt2", [], {"test_b": ASSERT})
    pipeline.fetch(run, services)
    assert len(services.fetched(run.key).artifact_names) == 2
    assert "1 failure" in process_run(run, services).threads["run_models_gpu"].main.text


def test_again_is_safe(inbox: Path, deployment: Deployment, tmp_path: Path) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    services = deployment()
    first = process_run(services.source.run(101), services)
    files = {path: path.read_bytes() for path in (tmp_path / "outbox").rglob("*") if path.is_file()}
    again = process_run(services.source.run(101), deployment())
    assert all(first.tables[name].equals(again.tables[name]) for name in TABLES)
    assert {path: path.read_bytes() for path in (tmp_path / "outbox").rglob("*") if path.is_file()} == files


def test_without_posting_slack_hears_nothing(inbox: Path, deployment: Deployment, tmp_path: Path) -> None:
    put_run(inbox, 101, {"models_bert": ([], {"test_b": ASSERT})})
    services = deployment()
    done = process_run(services.source.run(101), services, post=False)
    assert not (tmp_path / "outbox" / "slack").exists()
    assert "1 failure" in done.threads["run_models_gpu"].main.text


def test_new_runs_are_those_that_are_not_processed(inbox: Path, deployment: Deployment) -> None:
    for run_id in (101, 102):
        put_run(inbox, run_id, {"models_bert": (["test_a"], {})})
    services = deployment()
    process_run(services.source.run(101), services)
    assert [run.run_id for run in whole_runs.new_runs(services)] == [102]
    assert whole_runs.newest_run(services).run_id == 102


def test_the_newest_run_of_an_empty_inbox_is_an_error_in_one_line(inbox: Path, deployment: Deployment) -> None:
    with pytest.raises(SourceError, match="no completed CI run in folder:"):
        whole_runs.newest_run(deployment())


@pytest.mark.parametrize("key", ["", "abc", "12", "12-", "-1", "12-x", "12-1-1", "²-1"])
def test_a_partition_that_names_no_run_is_refused(deployment: Deployment, key: str) -> None:
    with pytest.raises(SourceError, match="is no CI run"):
        pipeline.run_at_source(key, deployment())


def test_the_warehouse_has_the_run_and_answers_for_it(inbox: Path, deployment: Deployment, warehouse_url: str) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=FIRST)
    put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=SECOND)
    services = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    process_run(services.source.run(101), services)
    whole_runs.prune("101-1", services)
    (inbox / "101").rename(inbox.parent / "gone")
    elsewhere = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    done = process_run(elsewhere.source.run(102), elsewhere)
    assert changes(done) == {"test_a": "new_failure", "test_b": "still_failing"}
    assert [known.run.run_id for known in history.latest_runs(elsewhere.warehouse, 9)] == [102, 101]  # type: ignore[arg-type]


def test_while_the_warehouse_is_down_the_rows_are_kept_and_written_later(
    inbox: Path, deployment: Deployment, new_warehouse_url: str
) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    down = deployment(CI_PIPELINE_WAREHOUSE_URL="http://127.0.0.1:9/default")
    done = process_run(down.source.run(101), down)
    assert any(line.startswith("rows: pending (") for line in done.delivered)
    assert pipeline.has_pending(down)
    assert whole_runs.expired(down) == set()
    assert not pipeline.has_pending(deployment()), "without a warehouse there is nowhere to write them"
    up = deployment(CI_PIPELINE_WAREHOUSE_URL=new_warehouse_url)
    assert [place.about(what) for what, place in pipeline.deliver_pending(up)] == ["rows: warehouse (13 rows)"]
    assert not pipeline.has_pending(up)


def test_when_the_warehouse_goes_down_in_between_the_runs_that_it_has_do_not_wait(
    inbox: Path, deployment: Deployment, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = deployment()
    keys = [f"{run_id}-1" for run_id in range(101, 106)]
    for key in keys:
        put_run(inbox, int(key[:3]), {"models_bert": (["test_a"], {})})
        process_run(services.source.run(int(key[:3])), services)
    insert, left = client.insert_runs, [None, None]

    def insert_twice(*args: Any) -> None:
        if not left:
            raise WarehouseError("the warehouse went down")
        left.pop()
        insert(*args)

    monkeypatch.setattr(pipeline, "TOGETHER", 1)
    monkeypatch.setattr(client, "insert_runs", insert_twice)
    services = deployment(CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    assert pipeline.keep(keys, services).where == "pending"
    assert sorted(pipeline.noted(pipeline.PENDING_ROWS, services)) == keys[2:]
    assert services.warehouse
    assert len(history.latest_runs(services.warehouse, 9)) == 2


def test_a_slack_that_refuses_one_thread_gets_the_others(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {})
    with SlackServer() as slack:
        services = deployment(CI_SLACK_BOT_TOKEN="xoxb-test", SLACK_API_URL=slack.api_url, SLACK_REPORT_CHANNEL="#ci")
        threads = {test_job: SlackThread(SlackMessage("main", test_job)) for test_job in ("models", "examples")}
        slack.fail("chat.postMessage", status=200, body={"ok": False, "error": "msg_too_long"})
        with pytest.raises(SlackRefused, match="msg_too_long"):
            pipeline.post_threads(threads, services.source.run(101), services)
        assert [message["text"] for message in slack.channel()] == ["examples"]


def test_a_slack_that_is_down_is_asked_by_one_thread_of_a_run(
    inbox: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_pipeline.publish.slack.TRIES", 1)
    put_run(inbox, 101, {"models_bert": (["test_a"], {})})
    with SlackServer() as slack:
        services = deployment(CI_SLACK_BOT_TOKEN="xoxb-test", SLACK_API_URL=slack.api_url, SLACK_REPORT_CHANNEL="#ci")
        run = services.source.run(101)
        threads = {test_job: SlackThread(SlackMessage("main", test_job)) for test_job in ("models", "examples")}
        slack.fail(status=503, times=100)
        posted = pipeline.post_threads(threads, run, services)
        assert [place.where for place in posted.values()] == ["pending", "pending"]
        assert len(slack.requests) == 1
        slack.faults.clear()
        assert pipeline.has_pending(services)
        assert not pipeline.has_pending(deployment()), "without a token there is nowhere to post them"
        pipeline.deliver_pending(services)
        assert [message["text"] for message in slack.channel()] == ["models", "examples"]


def test_while_the_hub_is_down_the_report_goes_out_and_the_files_follow(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})})
    with SlackServer() as slack, HubServer("ci/results") as hub:
        services = deployment(
            CI_SLACK_BOT_TOKEN="xoxb-test",
            SLACK_API_URL=slack.api_url,
            SLACK_REPORT_CHANNEL="#ci",
            REPORT_REPO_ID="ci/results",
        )
        services.hub = HubClient("hf_test", hub.url, patience=0.1)
        hub.fail(status=503, times=100)
        process_run(services.source.run(101), services)
        assert "1 failure" in slack.channel()[0]["text"]
        assert hub.url not in json.dumps(slack.channel())
        assert pipeline.has_pending(services)
        hub.faults.clear()
        pipeline.deliver_pending(services)
        assert any(path.endswith("/model_results.json") for path in hub.repos["ci/results"])
        assert pipeline.deliver_pending(services) == []
        process_run(services.source.run(101), services)
        assert [message["text"] for message in slack.channel()].count(slack.channel()[0]["text"]) == 1
        assert hub.url in json.dumps(slack.channel())


def test_the_files_of_a_run_say_what_is_different_from_the_run_before(
    inbox: Path, deployment: Deployment, tmp_path: Path
) -> None:
    other_job = {artifact_name("", job="run_examples_gpu"): ("", ["test_x"], {})}
    ends = {101: (["test_a", "test_b"], {"test_c": ASSERT}), 102: (["test_b"], {"test_a": ASSERT, "test_c": ASSERT})}
    for run_id, day in ((101, FIRST), (102, SECOND)):
        run = put_run(inbox, run_id, {"models_bert": ends[run_id]}, day=day, workflow=AMD)
        for name, report in other_job.items():
            write_report(run / "artifacts" / name, *report)
    services = deployment()
    for run in whole_runs.new_runs(services):
        process_run(run, services)
    folder = next(tmp_path.glob(f"outbox/hub/**/{SECOND}/ci_results_run_models_gpu"))
    assert json.loads((folder / "test_results_diff.json").read_text()) == {
        "models_bert": {"single": {node_id("models_bert", "test_a"): {"previous": "passed", "current": "failed"}}}
    }
    assert "bert (+1)" in (folder / "changed_model_failures_report.txt").read_text()
    assert parquet.read_table(folder / "test_outcomes.parquet")["test_job"].unique().to_pylist() == ["run_models_gpu"]


def test_a_message_in_classic_style_tells_what_changed_and_leads_to_the_run_the_warnings_and_the_files(
    inbox: Path, deployment: Deployment
) -> None:
    dataset = "optimum-amd/transformers_daily_ci"
    put_run(inbox, 101, {"models_bert": (["test_a"], {"test_b": ASSERT})}, day=FIRST, workflow=AMD)
    night = {**AMD, "display_title": "Night 2"}
    run = put_run(inbox, 102, {"models_bert": ([], {"test_a": ASSERT, "test_b": ASSERT})}, day=SECOND, workflow=night)
    select_warnings(run, "w1")
    jobs = json.loads((run / "jobs.json").read_text())
    jobs["jobs"].append({"name": "Extract warnings in CI artifacts", "conclusion": "success", "html_url": "https://w"})
    (run / "jobs.json").write_text(json.dumps(jobs))
    with HubServer(dataset) as hub:
        services = deployment(CI_PIPELINE_SLACK_STYLE="classic")
        services.hub = HubClient("hf_test", hub.url)
        done = process_run(services.source.run(102), services).threads["run_models_gpu"].main
        blocks = json.dumps(done.blocks)
    assert "[INFO] Results of Scheduled CI (AMD) - mi325: Models" in blocks
    assert "/actions/runs/102|Night 2>" in blocks
    assert '"https://w"' in blocks
    assert re.search(r"Changed model modules failures:.* bert \(\+1\)", blocks)
    file = f"{SECOND}/ci_results_run_models_gpu/test_results_diff.json"
    assert re.search(rf'"{hub.url}/datasets/{dataset}/blob/\w+/{file}"', blocks)


def test_old_runs_are_forgotten_and_young_ones_are_not(inbox: Path, deployment: Deployment, tmp_path: Path) -> None:
    for run_id in (101, 102):
        put_run(inbox, run_id, {"models_bert": (["test_a"], {})})
    services = deployment(CI_PIPELINE_RETENTION_DAYS="30")
    for run in whole_runs.new_runs(services):
        process_run(run, services)
    long_ago = 1_700_000_000
    os.utime(tmp_path / "data" / "tables" / "raw_artifacts" / "101-1.parquet", (long_ago, long_ago))
    assert whole_runs.expired(services) == {"101-1"}
    whole_runs.prune("101-1", services)
    assert not list((tmp_path / "data" / "tables").rglob("*101-1*"))
    assert not services.raw.has("101-1")
    assert services.raw.has("102-1")
    assert services.is_processed("102-1")
    assert list(whole_runs.new_runs(services)) == []


def test_runs_are_read_in_parallel_and_one_that_cannot_be_read_does_not_stop_the_others(
    inbox: Path, deployment: Deployment
) -> None:
    services = deployment()
    keys = []
    for run_id in range(101, 112):
        put_run(inbox, run_id, {"models_bert": ([f"test_{run_id}"], {})})
        run = services.source.run(run_id)
        if run_id != 105:
            pipeline.fetch(run, services)
        keys.append(run.key)
    found = dict(pipeline.each(pipeline.read, keys, services))
    assert list(found) == keys
    assert "105-1" in str(found.pop("105-1"))
    for key, tables in found.items():
        assert not isinstance(tables, Exception)
        assert tables[1]["node_id"].to_pylist()[0].endswith(f"test_{key.partition('-')[0]}")


def test_tables_come_whole_from_the_processes_that_make_them(deployment: Deployment) -> None:
    table = pa.table({"node_id": ["ü", None], "trace": [[], ["a"]]}).replace_schema_metadata({"compared_with": "[]"})
    for rows in (table, table.slice(1), table.slice(2), pa.concat_tables([table, table])):
        came = deployment().workers.submit(copy.copy, rows).result()
        assert came.equals(rows, check_metadata=True)


def test_other_processes_have_the_environment_of_the_one_that_asks(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deployment().workers.submit(os.getenv, "AWS_ENDPOINT_URL_S3").result() is None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert deployment().workers.submit(os.getenv, "AWS_ENDPOINT_URL_S3").result() == "http://127.0.0.1:9"


def test_comparisons_survive_being_written_down(inbox: Path, deployment: Deployment) -> None:
    put_run(inbox, 101, {})
    run = deployment().source.run(101)
    comparisons = [earlier_runs.Comparison("previous", "previous run", run)]
    assert earlier_runs.parse(earlier_runs.dump(comparisons)) == comparisons


def test_a_failure_of_the_pipeline_is_told_in_one_message(deployment: Deployment, tmp_path: Path) -> None:
    services = deployment()
    for _ in range(2):
        pipeline.report_failure(["101-1"], ["SourceError: <gone>"], services)
    [message] = [json.loads(path.read_text()) for path in tmp_path.glob("outbox/slack/**/main.json")]
    assert "The report of CI run 101-1 could not be made" in message["text"]
    assert "&lt;gone&gt;" in json.dumps(message["blocks"])


def test_a_failure_of_a_range_names_its_first_and_last_run(deployment: Deployment, tmp_path: Path) -> None:
    pipeline.report_failure(["101-1", "102-1", "103-1"], ["SourceError: gone"], deployment())
    [message] = tmp_path.glob("outbox/slack/**/main.json")
    assert "The report of CI run 101-1 to 103-1 could not be made" in message.read_text()
