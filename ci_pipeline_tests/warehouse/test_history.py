from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from ci_pipeline import tables
from ci_pipeline.model import CiRun
from ci_pipeline.tables import run_key
from ci_pipeline.warehouse import WarehouseError, history
from ci_pipeline.warehouse.client import _sql, connect, insert, insert_runs

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

REPOSITORY = "octo/tests"
JOB = "run_models_gpu"
A, B, C, D = (f"tests/models/bert/test_modeling_bert.py::BertTest::test_{name}" for name in "abcd")
EMPTY: dict[str, Any] = {"string": "", "int32": 0, "int64": 0, "double": 0.0, "bool": True, "list<item: string>": []}


def a_run(day: int, **fields: Any) -> CiRun:
    defaults: dict[str, Any] = {
        "workflow_id": 5,
        "workflow_name": "Nightly",
        "event": "schedule",
        "head_sha": f"{day:040d}",
        "head_branch": "main",
        "html_url": f"https://example.org/runs/{day}",
        "title": "Nightly ≥ 'quoted'",
        "created_at": datetime(2025, 11, 1, 2, 17, tzinfo=UTC).replace(day=day),
    }
    return CiRun(REPOSITORY, 1000 + day, **defaults | fields)


def table(schema: pa.Schema, run: CiRun, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of one run; what a row does not say is empty."""
    rows = list(rows)
    own = {
        field.name: pa.array(
            [row.get(field.name, None if field.nullable else EMPTY.get(str(field.type))) for row in rows], field.type
        )
        for field in schema
        if field.name not in ("repository", "run_id", "run_attempt", "run_created_at")
    }
    return pa.table({**run_key(run, len(rows)), **own}, schema=schema)


def tables_of(
    run: CiRun,
    outcomes: Mapping[str, str] | None = None,
    *,
    problems: Iterable[str] = (),
    diff: Iterable[Mapping[str, Any]] = (),
    device: str = "single",
) -> dict[str, pa.Table]:
    row = {name: getattr(run, name, None) or "" for name in tables.CI_RUN.names[7:-1]}
    ci_run = {**row, "run_number": run.run_number, "workflow_id": run.workflow_id, "workflow_name": run.workflow_name}
    place = {"test_job": JOB, "matrix_entry": "models_bert", "device": device}
    tests = [
        {**place, "node_id": node_id, "outcome": outcome, "trace": f"{outcome} on day {run.run_id - 1000}"}
        for node_id, outcome in (outcomes or {}).items()
    ]
    failed = sum(test["outcome"] == "failed" for test in tests)
    return {
        "ci_run": table(tables.CI_RUN, run, [{**ci_run, "problems": list(problems)}]),
        "test_outcome": table(tables.TEST_OUTCOME, run, tests),
        "test_job_result": table(tables.TEST_JOB_RESULT, run, [{**place, "failed": failed}]),
        "run_diff": table(tables.RUN_DIFF, run, [{**place, **change} for change in diff]),
    }


def failing_tests(client: Client, run_id: int) -> list[history.Row]:
    where = dict.fromkeys(("test_job", "change", "folder", "device", "error", "text"), "")
    rows = history.run_tests(client, REPOSITORY, run_id, changes=[], limit=100, **where)
    return [row for row in rows if row["change"] not in ("fixed", "vanished", "newly_skipped")]


def everything(client: Client, run: CiRun) -> list[Any]:
    return [
        history.find_run(client, run.run_id, repository=run.repository),
        history.job_results(client, REPOSITORY, [run.run_id]),
        history.change_counts(client, REPOSITORY, [run.run_id]),
        failing_tests(client, run.run_id),
        history.earlier_run(client, run, JOB, "previous run"),
        history.history_of_test(client, REPOSITORY, A),
    ]


def test_a_run_comes_back_as_it_went_in(warehouse: Client) -> None:
    run = a_run(3, conclusion="failure", run_number=7)
    insert_runs(warehouse, tables_of(run, {A: "failed"}, problems=["jobs: 403"]))
    assert history.find_run(warehouse, run.run_id) == history.KnownRun(run, ("jobs: 403",))
    assert history.latest_runs(warehouse, 10) == [history.KnownRun(run, ("jobs: 403",))]
    assert history.find_run(warehouse, 1) is None


def test_a_run_without_a_date_has_none(warehouse: Client) -> None:
    run = a_run(3, created_at=None)
    insert_runs(warehouse, tables_of(run))
    known = history.find_run(warehouse, run.run_id)
    assert known
    assert known.run.created_at is None


def test_the_latest_runs_come_first(warehouse: Client) -> None:
    for day in (4, 9, 2, 7):
        insert_runs(warehouse, tables_of(a_run(day)))
    assert [known.run.run_id for known in history.latest_runs(warehouse, 3)] == [1009, 1007, 1004]
    assert history.latest_runs(warehouse, 3, repository="another/one") == []
    assert [known.run.run_id for known in history.latest_runs(warehouse, 3, head_sha=f"{7:040d}")] == [1007]


def test_of_runs_that_began_at_once_the_latest_has_the_highest_id(warehouse: Client) -> None:
    began = a_run(8).created_at
    for day in (8, 10, 9):
        insert_runs(warehouse, tables_of(a_run(day, created_at=began)))
    insert_runs(warehouse, tables_of(a_run(20, created_at=a_run(2).created_at)))
    assert [known.run.run_id for known in history.latest_runs(warehouse, 9)] == [1010, 1009, 1008, 1020]
    run = a_run(11, created_at=began)
    assert [found.run_id for found in history.previous_runs(warehouse, run, 5)] == [1010, 1009, 1008, 1020]


def test_runs_of_other_repositories_with_the_same_id_are_told_apart(warehouse: Client) -> None:
    run = a_run(3)
    older, newer = replace(run, repository="older/fork"), replace(run, repository="newer/fork")
    diff = [{"node_id": C, "change": "still_failing", "since_run_id": 1001}]
    insert_runs(warehouse, tables_of(older, {A: "failed", B: "failed", C: "failed"}, diff=diff))
    insert_runs(warehouse, tables_of(run, {A: "failed", B: "failed", C: "failed"}, diff=diff))
    insert_runs(warehouse, tables_of(run, {B: "failed"}))
    insert_runs(warehouse, tables_of(newer, {A: "error", B: "passed", C: "failed"}, diff=diff))
    known, results, changes, failing, earlier, of_a = everything(warehouse, run)
    assert (known, len(results), changes, of_a) == (history.KnownRun(run), 1, [], [])
    assert [row["node_id"] for row in failing] == [B]
    assert (earlier.outcomes, earlier.since) == ({("models_bert", "single", B): "failed"}, {})
    assert [row["outcome"] for row in history.history_of_test(warehouse, REPOSITORY, B)] == ["failed"]
    assert history.latest_runs(warehouse, 9, repository="newer/fork") == [history.KnownRun(newer)]
    assert {known.run for known in history.latest_runs(warehouse, 9)} == {older, run, newer}


def test_inserting_a_run_again_changes_nothing(warehouse: Client) -> None:
    run = a_run(3)
    diff = [{"node_id": A, "change": "new_failure", "against_run_id": 1002}]
    all_tables = tables_of(run, {A: "failed", B: "passed", C: "error"}, diff=diff)
    insert_runs(warehouse, all_tables)
    before = everything(warehouse, run)
    insert_runs(warehouse, all_tables)
    assert everything(warehouse, run) == before
    for table in all_tables:
        warehouse.command(f"OPTIMIZE TABLE {table} FINAL")
    assert everything(warehouse, run) == before


def test_an_insert_that_the_client_repeats_counts_once(warehouse: Client) -> None:
    run = a_run(3)
    all_tables = tables_of(run, {A: "failed"}, diff=[{"node_id": A, "change": "new_failure"}])
    for name in [*all_tables, *all_tables]:
        insert(warehouse, name, all_tables[name], version=1)
    _, results, changes, failing, _, outcomes = everything(warehouse, run)
    assert [len(rows) for rows in (results, changes, failing, outcomes)] == [1, 1, 1, 1]
    assert changes[0]["tests"] == 1


def test_rows_that_are_gone_the_second_time_are_gone(warehouse: Client) -> None:
    run = a_run(3)
    diff = [{"node_id": A, "change": "new_failure"}]
    insert_runs(warehouse, tables_of(run, {A: "failed", B: "failed"}, problems=["x"], diff=diff, device="multi"))
    insert_runs(warehouse, tables_of(run, {B: "passed"}))
    _, results, changes, failing, earlier, of_a = everything(warehouse, run)
    assert ([row["device"] for row in results], changes, failing, of_a) == (["single"], [], [], [])
    assert earlier.outcomes == {("models_bert", "single", B): "passed"}


def without_run(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """What is there when the process died before the last table."""
    return {name: rows for name, rows in tables.items() if name != "ci_run"}


def test_a_run_is_not_seen_before_all_of_it_is_there(warehouse: Client) -> None:
    run = a_run(3)
    whole = tables_of(run, {A: "failed"}, diff=[{"node_id": A, "change": "new_failure"}])
    insert_runs(warehouse, without_run(whole))
    unseen = [None, [], [], [], None, []]
    assert everything(warehouse, run) == unseen
    refused = whole["test_outcome"].append_column("mood", pa.array(["bad"]))
    with pytest.raises(WarehouseError, match=r"^the warehouse refuses rows of test_outcome: .*mood"):
        insert_runs(warehouse, whole | {"test_outcome": refused})
    assert everything(warehouse, run) == unseen
    insert_runs(warehouse, whole)
    assert [row["node_id"] for row in failing_tests(warehouse, run.run_id)] == [A]


def test_an_attempt_is_not_seen_before_all_of_it_is_there(warehouse: Client) -> None:
    run = a_run(3)
    diff = [{"node_id": test, "change": "still_failing", "since_run_id": 1001} for test in (A, B)]
    insert_runs(warehouse, tables_of(run, {A: "failed", B: "passed"}, diff=diff[:1]))
    before = everything(warehouse, run)
    insert_runs(warehouse, without_run(tables_of(replace(run, run_attempt=2), {A: "passed", B: "failed"}, diff=diff)))
    assert everything(warehouse, run) == before


def test_a_run_that_is_written_again_never_looks_greener_than_it_is(warehouse: Client) -> None:
    run = a_run(3)
    insert_runs(warehouse, tables_of(run, {A: "failed", B: "failed"}))
    cut_short = without_run(tables_of(run, {B: "failed"}))
    insert_runs(warehouse, cut_short)
    for table in cut_short:
        warehouse.command(f"OPTIMIZE TABLE {table} FINAL")
    assert [row["node_id"] for row in failing_tests(warehouse, run.run_id)] == [A, B]
    insert_runs(warehouse, tables_of(run, {B: "failed"}))
    assert [row["node_id"] for row in failing_tests(warehouse, run.run_id)] == [B]


def test_a_later_attempt_wins_whenever_it_came(warehouse: Client) -> None:
    run = a_run(3)
    insert_runs(warehouse, tables_of(replace(run, run_attempt=2), {A: "passed"}))
    insert_runs(warehouse, tables_of(run, {A: "failed", B: "failed"}))
    known = history.find_run(warehouse, run.run_id)
    assert known
    assert known.run.run_attempt == 2
    assert [row["run_attempt"] for row in history.job_results(warehouse, REPOSITORY, [run.run_id])] == [2]
    assert failing_tests(warehouse, run.run_id) == []
    assert [row["outcome"] for row in history.history_of_test(warehouse, REPOSITORY, A)] == ["passed"]


def test_many_runs_go_in_at_once(warehouse: Client) -> None:
    runs = [a_run(day) for day in range(1, 29)]
    each = [tables_of(run, {A: "failed" if run.run_id % 2 else "passed"}) for run in runs]
    insert_runs(warehouse, {name: pa.concat_tables(one[name] for one in each) for name in each[0]})
    rows = history.history_of_test(warehouse, REPOSITORY, A)
    assert [row["run_id"] for row in rows] == [1000 + day for day in range(28, 0, -1)]
    assert {row["run_id"] % 2: row["outcome"] for row in rows} == {0: "passed", 1: "failed"}


# --- earlier runs ---------------------------------------------------------------------------------------------------


def test_previous_runs_are_older_or_of_the_same_commit_and_of_the_workflow(warehouse: Client) -> None:
    run = a_run(10)
    later_of_commit = a_run(12, head_sha=run.head_sha)
    others = [a_run(11), a_run(4, workflow_id=6), replace(a_run(3), repository="another/one"), run]
    for other in (a_run(8), a_run(9), later_of_commit, *others):
        insert_runs(warehouse, tables_of(other))
    found = history.previous_runs(warehouse, run, 5)
    assert found == [later_of_commit, a_run(9), a_run(8)]
    assert history.previous_runs(warehouse, run, 5, limit=1) == [later_of_commit]
    assert history.previous_runs(warehouse, run, 6) == [a_run(4, workflow_id=6)]
    assert {r.run_id for r in history.previous_runs(warehouse, replace(run, created_at=None), 5)} == {
        1008,
        1009,
        1011,
        1012,
    }


def test_of_a_previous_run_the_attempt_that_counts_is_found(warehouse: Client) -> None:
    for day, attempt in ((7, 1), (7, 2), (8, 2), (8, 1)):
        insert_runs(warehouse, tables_of(a_run(day, run_attempt=attempt)))
    found = history.previous_runs(warehouse, a_run(9), 5)
    assert [(run.run_id, run.run_attempt) for run in found] == [(1008, 2), (1007, 2)]


def test_an_earlier_run_knows_its_failures_its_passes_and_since_when(warehouse: Client) -> None:
    run = a_run(9)
    since = datetime(2025, 11, 4, 2, 17, tzinfo=UTC)
    diff = [
        {"node_id": A, "change": "still_failing", "against_run_id": 1008, "since_run_id": 1004, "since": since},
        {"node_id": A, "change": "unique_failure", "against_run_id": 1777},
        {"node_id": B, "change": "changed_error", "against_run_id": 1008, "since_run_id": 1005, "since": None},
        {"node_id": D, "change": "new_failure", "against_run_id": 1008},
    ]
    insert_runs(warehouse, tables_of(run, {A: "failed", B: "error", C: "passed", D: "failed"}, diff=diff))
    earlier = history.earlier_run(warehouse, run, JOB, "previous run")
    assert earlier
    a, b, c, d = (("models_bert", "single", node_id) for node_id in (A, B, C, D))
    assert (earlier.run, earlier.label) == (run, "previous run")
    assert earlier.failures == {a: "failed on day 9", b: "error on day 9", d: "failed on day 9"}
    assert earlier.outcomes == {a: "failed", b: "error", c: "passed", d: "failed"}
    assert earlier.since == {a: (1004, since), b: (1005, None)}


def test_a_test_that_passed_but_whose_teardown_failed_has_failed(warehouse: Client) -> None:
    run = a_run(9)
    all_tables = tables_of(run, {A: "error"})
    passed = tables_of(run, {A: "passed"})["test_outcome"]
    all_tables["test_outcome"] = pa.concat_tables([all_tables["test_outcome"], passed])
    insert_runs(warehouse, all_tables)
    earlier = history.earlier_run(warehouse, run, JOB, "")
    assert earlier
    assert earlier.outcomes == {("models_bert", "single", A): "error"}
    assert len(history.history_of_test(warehouse, REPOSITORY, A)) == 2


def test_a_test_that_was_tried_again_has_ended_as_it_did_at_last(warehouse: Client) -> None:
    run = a_run(9)
    all_tables = tables_of(run, {A: "passed", B: "failed"})
    again = tables_of(run, {A: "rerun", B: "rerun"})["test_outcome"]
    all_tables["test_outcome"] = pa.concat_tables([all_tables["test_outcome"], again])
    insert_runs(warehouse, all_tables)
    earlier = history.earlier_run(warehouse, run, JOB, "")
    assert earlier
    assert {test[2]: outcome for test, outcome in earlier.outcomes.items()} == {A: "passed", B: "failed"}


def test_a_run_or_a_test_job_that_is_not_there_is_none(warehouse: Client) -> None:
    insert_runs(warehouse, tables_of(a_run(9), {A: "failed"}))
    assert history.earlier_run(warehouse, a_run(8), JOB, "") is None
    assert history.earlier_run(warehouse, a_run(9), "run_kernels_gpu", "") is None


# --- pages ----------------------------------------------------------------------------------------------------------


def test_the_history_of_a_test_is_of_one_device_and_test_job_when_asked(warehouse: Client) -> None:
    run = a_run(9)
    all_tables = tables_of(run, {A: "failed"})
    multi = tables_of(run, {A: "passed"}, device="multi")["test_outcome"]
    all_tables["test_outcome"] = pa.concat_tables([all_tables["test_outcome"], multi])
    insert_runs(warehouse, all_tables)
    insert_runs(warehouse, tables_of(a_run(8), {A: "passed"}))
    rows = history.history_of_test(warehouse, REPOSITORY, A, device="single")
    assert [(row["run_id"], row["outcome"], row["workflow_name"]) for row in rows] == [
        (1009, "failed", "Nightly"),
        (1008, "passed", "Nightly"),
    ]
    assert rows[0]["head_sha"] == run.head_sha
    assert len(history.history_of_test(warehouse, REPOSITORY, A)) == 3
    assert len(history.history_of_test(warehouse, REPOSITORY, A, limit=2)) == 2
    assert history.history_of_test(warehouse, REPOSITORY, A, test_job="run_kernels_gpu") == []


def test_nothing_that_happened_to_a_test_in_one_run_hides_anything_else(warehouse: Client) -> None:
    run = a_run(9)
    names = ("device", "matrix_entry", "postfix", "message")
    ends = product(("single", "multi"), ("models_bert", ""), ("", "flaky"), ("no GPU", "no network"))
    tests = [{"node_id": A, "outcome": "skipped", **dict(zip(names, end, strict=True))} for end in ends]
    insert_runs(warehouse, tables_of(run) | {"test_outcome": table(tables.TEST_OUTCOME, run, tests)})
    assert len(history.history_of_test(warehouse, REPOSITORY, A)) == len(tests)


def test_changes_are_counted_by_kind_and_by_the_run_compared_with(warehouse: Client) -> None:
    old = datetime(2025, 10, 1, tzinfo=UTC)
    diff = [
        {"node_id": A, "change": "still_failing", "against_run_id": 1, "since": old},
        {"node_id": B, "change": "still_failing", "against_run_id": 1, "since": old.replace(day=2)},
        {"node_id": B, "change": "unique_failure", "against_run_id": 2},
    ]
    insert_runs(warehouse, tables_of(a_run(9), diff=diff))
    insert_runs(warehouse, tables_of(a_run(8), diff=diff[:1]))
    rows = history.change_counts(warehouse, REPOSITORY, [1009, 1008])
    assert [(r["run_id"], r["change"], r["against_run_id"], r["tests"], r["since"]) for r in rows] == [
        (1009, "still_failing", 1, 2, old),
        (1009, "unique_failure", 2, 1, None),
        (1008, "still_failing", 1, 1, old),
    ]


def test_names_are_data_and_not_sql(warehouse: Client) -> None:
    node_id = "tests/x.py::test_a['; DROP TABLE test_outcome; --\\\t{x:String}]"
    insert_runs(warehouse, tables_of(a_run(9), {node_id: "failed"}))
    (row,) = failing_tests(warehouse, 1009)
    assert row["node_id"] == node_id
    assert len(history.history_of_test(warehouse, REPOSITORY, node_id)) == 1


def test_the_failing_tests_of_a_run_are_read_from_its_projection(warehouse: Client) -> None:
    for day in range(1, 4):
        insert_runs(warehouse, tables_of(a_run(day), {f"{A}[{n}]": "passed" for n in range(20_000)} | {B: "failed"}))
    plan = warehouse.query(
        "EXPLAIN projections = 1 " + _sql("run_test_counts"), {"repository": REPOSITORY, "run_id": 1002, "limit": 1}
    ).result_rows
    assert "by_run" in str(plan)


def test_a_warehouse_without_tables_is_one_line(new_warehouse_url: str) -> None:
    with pytest.raises(WarehouseError) as raised:
        history.latest_runs(connect(new_warehouse_url), 1)
    name = new_warehouse_url.rpartition("/")[2]
    assert str(raised.value) == f"the warehouse does not answer: Database {name} does not exist"
