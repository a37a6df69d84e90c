"""What the warehouse knows of earlier CI runs: the queries of `queries/`, asked with bound parameters.

Every function answers from what counts of each run (see `schema/0001_ci_run.sql`), and raises `WarehouseError` when
ClickHouse does not answer. Rows are mappings with the columns of `ci_pipeline.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from ci_pipeline.model import RED, CiRun, EarlierRun, Outcome, TestKey
from ci_pipeline.warehouse.client import ask

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client
    from clickhouse_connect.driver.query import QueryResult

Row = Mapping[str, Any]

_NEVER = datetime.fromtimestamp(0, UTC)  # a run that does not say when it was created
_FOREVER = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A CI run in the warehouse. `problems`: what was not seen of it, one line each."""

    run: CiRun
    problems: tuple[str, ...] = ()


def latest_runs(client: Client, limit: int, *, repository: str = "", head_sha: str = "") -> list[KnownRun]:
    """The newest runs, newest first."""
    return _runs(ask(client, "latest_runs", repository=repository, run_id=0, head_sha=head_sha, limit=limit))


def find_run(client: Client, run_id: int, *, repository: str = "") -> KnownRun | None:
    """One run; `repository` tells apart the runs of several GitHub instances with the same id."""
    found = _runs(ask(client, "latest_runs", repository=repository, run_id=run_id, head_sha="", limit=1))
    return found[0] if found else None


def previous_runs(client: Client, run: CiRun, workflow_id: int, *, limit: int = 100) -> list[CiRun]:
    """Runs of a workflow that `run` may be compared with: those before it, and those of its commit; newest first."""
    result = ask(
        client,
        "previous_runs",
        repository=run.repository,
        run_id=run.run_id,
        workflow_id=workflow_id,
        created_at=run.created_at or _FOREVER,
        head_sha=run.head_sha,
        limit=limit,
    )
    return [known.run for known in _runs(result)]


def earlier_run(client: Client, run: CiRun, test_job: str, label: str) -> EarlierRun | None:
    """What is known of a test job of a run; None where nothing is."""
    key = {"repository": run.repository, "run_id": run.run_id, "test_job": test_job}
    columns = ask(client, "run_outcomes", **key).result_columns
    if not columns:
        return None
    entries, devices, node_ids, outcomes, traces = columns
    tests = list(zip(entries, devices, node_ids, strict=True))
    failures = {test: trace for test, outcome, trace in zip(tests, outcomes, traces, strict=True) if outcome in RED}
    # A test that ended twice has failed: its failures come last.
    known = cast(dict[TestKey, Outcome], dict(zip(tests, outcomes, strict=True)))
    since: dict[TestKey, tuple[int, datetime | None]] = {
        (row["matrix_entry"], row["device"], row["node_id"]): (row["since_run_id"], row["since"])
        for row in ask(client, "run_changes", **key).named_results()
        if row["change"] in ("still_failing", "changed_error")
    }
    return EarlierRun(run, label, failures, known, since)


def job_results(client: Client, repository: str, run_ids: Sequence[int]) -> list[Row]:
    """The rows of `test_job_result` of some runs."""
    return _rows(ask(client, "job_results", repository=repository, run_ids=list(run_ids)))


def change_counts(client: Client, repository: str, run_ids: Sequence[int]) -> list[Row]:
    """Per run, test job, change and run compared with: how many `tests`, and `since` when the oldest of them."""
    return _rows(ask(client, "change_counts", repository=repository, run_ids=list(run_ids)))


def run_tests(
    client: Client, repository: str, run_id: int, *, changes: Sequence[str], limit: int, offset: int = 0, **where: str
) -> list[Row]:
    """The tests of one run that changed or fail, in the order of `changes`; each with the devices of its story.

    `where`: `test_job`, `change`, `folder`, `device`, `error` as they are, and `text` of the name or the trace; "" is
    any. `matching` is how many there are.
    """
    page = {"limit": limit, "offset": offset}
    return _rows(ask(client, "run_tests", repository=repository, run_id=run_id, changes=list(changes), **page, **where))


def run_test_counts(client: Client, repository: str, run_id: int, *, limit: int) -> list[Row]:
    """How many `tests` of one run have which `value` of "change", and if they fail of "folder", "device", "error"."""
    return _rows(ask(client, "run_test_counts", repository=repository, run_id=run_id, limit=limit))


def history_of_test(
    client: Client, repository: str, node_id: str, *, test_job: str = "", device: str = "", limit: int = 100
) -> list[Row]:
    """How one test ended in the latest runs, newest first, with the run's commit, workflow and page."""
    where = {"repository": repository, "node_id": node_id, "test_job": test_job, "device": device}
    return _rows(ask(client, "history_of_test", **where, limit=limit))


def _rows(result: QueryResult) -> list[Row]:
    return list(result.named_results())


def _runs(result: QueryResult) -> list[KnownRun]:
    return [KnownRun(run_of(row), tuple(row["problems"])) for row in result.named_results()]


def run_of(row: Row) -> CiRun:
    """The run that a row of `ci_run` tells of."""
    known: dict[str, Any] = {field.name: row[field.name] for field in fields(CiRun) if field.name in row}
    known["conclusion"] = row["conclusion"] or None
    known["created_at"] = row["run_created_at"] if row["run_created_at"] != _NEVER else None
    return CiRun(**known)
