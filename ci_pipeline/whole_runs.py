"""A CI run as a whole: which are new, all steps for one of them, and how one is forgotten."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ci_pipeline import pipeline
from ci_pipeline.model import CiRun, JobReport
from ci_pipeline.services import TABLES, Services
from ci_pipeline.sources import SourceError, cursor_at

if TYPE_CHECKING:
    import pyarrow as pa

    from ci_pipeline.publish.thread import SlackThread
    from ci_pipeline.sources import Progress

BEGUN = "begun"
"""Ledger entries of the runs that `process_run` has begun with and not ended: it was killed, or failed."""

PRUNED = "pruned"
"""Ledger entries of the runs that were processed, and forgotten after the retention time."""


def new_runs(services: Services) -> Iterator[CiRun]:
    """What the source has and was not processed yet, or not to its end, oldest first."""
    begun, pruned = set(pipeline.noted(BEGUN, services)), set(pipeline.noted(PRUNED, services))

    def is_new(run: CiRun) -> bool:
        return run.key in begun or not (run.key in pruned or services.is_processed(run.key))

    return filter(is_new, _runs(services, None))


def newest_run(services: Services) -> CiRun:
    """
    Raises:
        SourceError: the source has none.
    """
    newest = deque(_runs(services, None), maxlen=1)
    if not newest:
        raise SourceError(f"there is no completed CI run in {services.settings.source_uri}")
    return newest[0]


def all_runs(services: Services) -> Iterator[CiRun]:
    """All that the source has, oldest first, also what was processed before."""
    return _runs(services, cursor_at(datetime.fromtimestamp(0, UTC)))


def _runs(services: Services, cursor: str | None) -> Iterator[CiRun]:
    while (page := services.source.runs_after(cursor)).runs:
        yield from page.runs
        cursor = page.cursor


@dataclass(frozen=True)
class ProcessedRun:
    """One CI run after all steps. `tables` by their names in `TABLES`; `threads` by test job.

    `delivered`: one line for each thing that went out, or is kept for later.
    """

    run: CiRun
    reports: Sequence[JobReport]
    tables: Mapping[str, pa.Table]
    threads: Mapping[str, SlackThread]
    delivered: Sequence[str] = ()


def process_run(run: CiRun, services: Services, *, post: bool = True, progress: Progress | None = None) -> ProcessedRun:
    """All steps for one CI run. Doing it again gives the same tables and files, and edits the messages.

    `post=False` leaves Slack alone.

    Raises:
        SourceError: the run cannot be fetched; one line.
        SlackRefused: Slack said no, and a person has to act; everything else is done.
    """
    from ci_pipeline.publish.slack import SlackRefused

    key = run.key
    services.ledger.write(f"{BEGUN}/{key}", {"run_key": key})

    def write(names: Sequence[str], *tables: pa.Table) -> None:
        for name, table in zip(names, tables, strict=True):
            services.tables.write(name, key, table)

    write(["raw_artifacts"], pipeline.ci_run_table(pipeline.fetch(run, services, progress)))
    write(["test_reports", "test_outcomes"], *pipeline.read(key, services))
    write(["job_results", "category_results"], *pipeline.count(key, services))
    write(["run_diff"], pipeline.with_since(pipeline.diff(key, services), services))
    files = pipeline.upload(key, services)
    write(["hub_dataset_files"], files)
    lines = [place.about("files") for place in pipeline.placed(files)]
    lines.append(pipeline.keep([key], services).about("rows"))
    done = processed_run(key, services)
    try:
        posted = pipeline.post_threads(done.threads, done.run, services) if post else {}
    except SlackRefused:
        services.ledger.remove(f"{BEGUN}/{key}")  # to do all of it again would not help
        raise
    services.ledger.remove(f"{BEGUN}/{key}")
    return replace(done, delivered=lines + [place.about(test_job) for test_job, place in posted.items()])


def processed_run(run_key: str, services: Services) -> ProcessedRun:
    """A CI run after all steps, from what they left behind: nothing is fetched, and nothing goes out.

    Raises:
        MissingTable, SourceError: it was not processed; one line.
    """
    return ProcessedRun(
        services.fetched(run_key).run,
        pipeline.compared_reports(run_key, services),
        {name: services.tables.read(name, run_key) for name in TABLES},
        pipeline.threads(run_key, services),
    )


def expired(services: Services) -> set[str]:
    """The CI runs that were processed longer ago than the retention time, by key; none that the warehouse lacks."""
    limit = datetime.now(UTC) - timedelta(days=services.settings.retention_days)
    written = services.tables.written(next(iter(TABLES)))
    waiting = pipeline.noted(pipeline.PENDING_ROWS, services)
    return {key for key, time in written.items() if time < limit}.difference(waiting)


def prune(run_key: str, services: Services) -> None:
    """Forget a CI run's artifacts and tables. What the warehouse has of it stays, and that it was processed."""
    services.ledger.write(f"{PRUNED}/{run_key}", {"run_key": run_key})
    services.raw.delete(run_key)
    for table in (*reversed(TABLES), "hub_dataset_files"):
        services.tables.delete(table, run_key)
