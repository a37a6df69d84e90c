"""What an asset shows of a CI run in Dagster's UI: counts, tables, links, and the Slack message as it reads."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from ci_pipeline import pipeline

if TYPE_CHECKING:
    import pyarrow as pa

    from ci_pipeline.model import FetchedRun
    from ci_pipeline.publish.ledger import Delivered
    from ci_pipeline.publish.thread import SlackThread

Metadata = dict[str, dg.MetadataValue[Any]]

ROWS = 30
"""Rows of a table, and lines of a list, that are shown."""


def fetched(fetched: FetchedRun) -> Metadata:
    run = fetched.run
    about = (run.workflow_name, run.event, run.head_branch, run.head_sha[:9], run.title, run.conclusion)
    shown: Metadata = {
        "CI run": link(run.html_url) or dg.MetadataValue.text(run.key),
        "what": dg.MetadataValue.text(" · ".join(part for part in about if part)),
        "jobs": dg.MetadataValue.int(len(fetched.jobs)),
        "artifacts": dg.MetadataValue.int(len(fetched.artifact_names)),
    }
    if fetched.problems:
        shown["not fetched"] = lines(f"{problem.subject}: {problem.reason}" for problem in fetched.problems)
    return shown


def sums(rows: pa.Table, by: Sequence[str], columns: Sequence[str]) -> Metadata:
    """The columns' totals, and a table of them."""
    grouped = rows.group_by(list(by)).aggregate([(name, "sum") for name in columns])
    grouped = grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])
    totals: Metadata = {name: dg.MetadataValue.int(sum(grouped[name].to_pylist())) for name in columns}
    return totals | {f"by {' and '.join(by).replace('_', ' ')}": table(grouped.to_pylist())}


def counts(rows: pa.Table, column: str) -> Metadata:
    """How many rows have each value of a column."""
    return {c["values"]: dg.MetadataValue.int(c["counts"]) for c in rows[column].value_counts().to_pylist()}


def diff(rows: pa.Table) -> Metadata:
    """The changes, and the runs that they are against."""
    runs = [f"{c.label}: [{c.run.key}]({c.run.html_url})" for c in pipeline.compared_with(rows)]
    return {"compared with": lines(runs or ["nothing: no earlier run is known"]), **counts(rows, "change")}


def files(files: pa.Table) -> Metadata:
    rows = files.select(["folder", "name", "bytes"]).to_pylist()
    shown: Metadata = {"files": dg.MetadataValue.int(len(rows)), "which": table(rows)}
    return shown | {f"is at {place.where}": _place(place) for place in pipeline.placed(files)}


def slack(threads: Mapping[str, SlackThread], delivered: Mapping[str, Delivered]) -> Metadata:
    """The main messages as they read, and where they are."""
    from ci_pipeline.publish.mrkdwn import to_markdown

    shown: Metadata = {"messages": dg.MetadataValue.int(sum(1 + len(thread.replies) for thread in threads.values()))}
    for test_job, thread in threads.items():
        name = test_job or "report"
        shown[name] = dg.MetadataValue.md(to_markdown(thread.main.blocks) or thread.main.text)
        shown[f"{name} is at"] = _place(delivered[test_job])
    return shown


def lines(texts: Iterable[str]) -> dg.MarkdownMetadataValue:
    texts = list(texts)
    more = [f"… and {len(texts) - ROWS} more"] if len(texts) > ROWS else []
    return dg.MetadataValue.md("\n".join(f"- {text}" for text in [*texts[:ROWS], *more]))


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, type(value).__name__) for name, value in rows[0].items()] if rows else []
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows[:ROWS]], dg.TableSchema(columns))


def link(url: str) -> dg.UrlMetadataValue | None:
    return dg.MetadataValue.url(url) if url.startswith(("https://", "http://")) else None


def _place(place: Delivered) -> dg.MetadataValue[Any]:
    return link(place.url) or dg.MetadataValue.text(" ".join(filter(None, (place.where, place.url, place.detail))))
