"""What an asset shows of itself in Dagster's UI: counts, tables, links, and the Slack message as it reads."""

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

ROWS = 50
"""Rows of a table that are shown."""


def fetched(runs: Iterable[FetchedRun]) -> Metadata:
    runs = list(runs)
    shown: Metadata = {
        "jobs": dg.MetadataValue.int(sum(len(run.jobs) for run in runs)),
        "artifacts": dg.MetadataValue.int(sum(len(run.artifact_names) for run in runs)),
    }
    if problems := [f"{problem.subject}: {problem.reason}" for run in runs for problem in run.problems]:
        shown["not fetched"] = lines(problems)
    if len(runs) == 1:
        run = runs[0].run
        shown["CI run"] = link(run.html_url) or dg.MetadataValue.text(run.key)
        shown["what"] = dg.MetadataValue.text(
            " · ".join(filter(None, (run.workflow_name, run.event, run.head_branch, run.head_sha[:9], run.title)))
        )
    return shown


def sums(tables: Iterable[pa.Table], by: Sequence[str], columns: Sequence[str]) -> Metadata:
    """The columns' totals, and a table of them."""
    import pyarrow as pa

    rows = [table.select([*by, *columns]) for table in tables]
    if not rows:
        return {}
    grouped = (
        pa.concat_tables(rows).group_by(list(by), use_threads=False).aggregate([(name, "sum") for name in columns])
    )
    grouped = grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])
    totals: Metadata = {name: dg.MetadataValue.int(sum(grouped[name].to_pylist())) for name in columns}
    return totals | {"by " + ", ".join(by).replace("_", " "): table(grouped.to_pylist())}


def counts(tables: Iterable[pa.Table], column: str) -> Metadata:
    """How many rows have each value of a column."""
    import pyarrow as pa

    columns = [chunk for table in tables for chunk in table[column].chunks]
    if not columns:
        return {}
    values = pa.chunked_array(columns).value_counts().to_pylist()
    return {row["values"]: dg.MetadataValue.int(row["counts"]) for row in values}


def comparisons(diffs: Iterable[pa.Table]) -> Metadata:
    runs = {c.run.key: c for diff in diffs for c in pipeline.compared_with(diff)}
    if not runs:
        return {"compared with": dg.MetadataValue.text("nothing: no earlier run is known")}
    described = [f"{c.label}: [{c.run.key}]({c.run.html_url}) of {c.run.created_at}" for c in runs.values()]
    return {"compared with": lines(described)}


def files(tables: Iterable[pa.Table]) -> Metadata:
    tables = list(tables)
    rows = [row for table in tables for row in table.select(["folder", "name", "bytes"]).to_pylist()]
    shown: Metadata = {"files": dg.MetadataValue.int(len(rows)), "which": table(rows)}
    return shown | _places("where", [place for table in tables for place in pipeline.placed(table)])


def slack(posted: Mapping[str, tuple[Mapping[str, SlackThread], Mapping[str, Delivered]]]) -> Metadata:
    """The main messages as they read, and where they are."""
    from ci_pipeline.publish.mrkdwn import to_markdown

    shown: Metadata = {}
    messages = 0
    for key, (threads, delivered) in posted.items():
        for test_job, thread in threads.items():
            messages += 1 + len(thread.replies)
            name = test_job if len(posted) == 1 else f"{key} {test_job}"
            if len(shown) < ROWS:
                shown[name or "report"] = dg.MetadataValue.md(to_markdown(thread.main.blocks) or thread.main.text)
                shown |= _places(f"{name} is at", [delivered[test_job]])
    return {"messages": dg.MetadataValue.int(messages), **shown}


def _places(name: str, places: Sequence[Delivered]) -> Metadata:
    if len(places) == 1 and (url := link(places[0].url)):
        return {name: url}
    return {name: lines(" ".join(filter(None, (p.where, p.url, p.detail))) for p in places)}


def set_aside(failed: Mapping[str, str]) -> Metadata:
    """The CI runs of a range that could not be processed."""
    return {"set aside": lines(f"{key}: {why}" for key, why in failed.items())} if failed else {}


def lines(texts: Iterable[str]) -> dg.MarkdownMetadataValue:
    texts = list(texts)
    more = [f"… and {len(texts) - ROWS} more"] if len(texts) > ROWS else []
    return dg.MetadataValue.md("\n".join(f"- {text}" for text in [*texts[:ROWS], *more]))


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    names = list(rows[0]) if rows else []
    schema = dg.TableSchema(
        [dg.TableColumn(name, "int" if isinstance(rows[0][name], int) else "string") for name in names]
    )
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows[:ROWS]], schema)


def link(url: str) -> dg.UrlMetadataValue | None:
    return dg.MetadataValue.url(url) if url.startswith(("https://", "http://")) else None
