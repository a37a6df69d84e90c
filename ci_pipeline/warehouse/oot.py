"""What the pages of out-of-tree CI ask the warehouse. All raise `WarehouseError` when ClickHouse does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ci_pipeline.warehouse.client import ask
from ci_pipeline.warehouse.history import Row

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_NEWEST = 1000  # commits, of which most often enough match
_ALL = 2**32 - 1


def arrived(client: Client) -> tuple[datetime | None, datetime | None]:
    """When the newest job arrived, and up to which arrival `oot_backend_hour` is counted; None for no job."""
    [row] = ask(client, "oot_arrived").named_results()
    return _moment(row["arrived"]), _moment(row["counted"])


def lag(client: Client) -> float | None:
    """Seconds from the store to the warehouse, of what arrived last."""
    rows = _rows(client, "oot_lag")
    return rows[0]["lag"] if rows else None


def count_hours(client: Client) -> None:
    """Bring `oot_backend_hour` up to what has arrived."""
    [row] = ask(client, "oot_arrived").named_results()
    if row["arrived"] > row["counted"]:
        ask(client, "oot_count", **row)


def backend_times(
    client: Client, *, nightly: bool, since: datetime, step: timedelta, downstream_repo: str = ""
) -> list[Row]:
    """Per backend and `step`: jobs by how they ended, and the sums and counts of durations and queue times in seconds.

    Jobs count when they began, in `began`; `count_hours` must have seen them.
    """
    parameters = {"nightly": nightly, "since": since, "step": int(step.total_seconds())}
    return _rows(client, "oot_backends", **parameters, downstream_repo=downstream_repo)


def commits(
    client: Client,
    *,
    downstream_repo: str = "",
    nightly: bool | None = None,
    pr_number: int = 0,
    limit: int,
    offset: int = 0,
) -> list[Row]:
    """Commits that a backend reported on, the last active first: `pytorch_head_sha`, `pr_number`, `delivery_ids`, …"""
    return _rows(
        client,
        "oot_commits",
        downstream_repo=downstream_repo,
        nightly=-1 if nightly is None else int(nightly),
        pr_number=pr_number,
        limit=limit,
        offset=offset,
    )


def matching_commits(
    client: Client,
    *,
    downstream_repo: str,
    nightly: bool,
    pr_number: int = 0,
    job: str = "",
    conclusion: str = "",
    author: str = "",
    limit: int,
    offset: int = 0,
) -> list[Row]:
    """Those `commits` of one backend that have a job like this, of which every word that is given is true.

    `job` is part of its name, `conclusion` GitHub's word or "running", `author` who wrote the pull request.
    """
    where = {"downstream_repo": downstream_repo, "nightly": nightly, "pr_number": pr_number, "job": job}
    found: list[Row] = []
    for among in (_NEWEST, _ALL):
        limits = {"among": among, "limit": limit, "offset": offset}
        found = _rows(client, "oot_matching_commits", **where, conclusion=conclusion, author=author, **limits)
        if len(found) == limit:
            break
    return found


def jobs(client: Client, of: Sequence[Row]) -> list[Row]:
    """The jobs of some rows of `commits`, in no order."""
    repos = sorted({row["downstream_repo"] for row in of})
    deliveries = sorted({delivery for row in of for delivery in row["delivery_ids"]})
    weeks = sorted({week for row in of for week in row["weeks"]})
    where = {"downstream_repos": repos, "delivery_ids": deliveries, "weeks": weeks}
    return _rows(client, "oot_jobs", **where) if deliveries else []


def job(client: Client, downstream_repo: str, delivery_id: str, check_run_id: str) -> list[Row]:
    """All about the job of these ids, which should be one: with failed tests and environment, both as JSON."""
    return _rows(client, "oot_job", downstream_repo=downstream_repo, delivery_id=delivery_id, check_run_id=check_run_id)


def _rows(client: Client, query: str, **parameters: object) -> list[Row]:
    return list(ask(client, query, **parameters).named_results())


def _moment(nanoseconds: int) -> datetime | None:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC) if nanoseconds else None
