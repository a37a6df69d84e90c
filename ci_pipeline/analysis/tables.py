"""Job reports → their tables: results by device, by category, and what changed since other runs."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ci_pipeline.model import NO_DEVICE, CiRun, Counts, JobReport, RunDiffRow, TestReport
from ci_pipeline.tables import CATEGORY_RESULT, RUN_DIFF, TEST_JOB_RESULT, rows_of, run_key, where

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile


def test_job_result_table(run: CiRun, reports: Sequence[JobReport]) -> pa.Table:
    """The TEST_JOB_RESULT table: one row per test job × matrix entry × device, those without a report included."""
    rows: list[dict[str, Any]] = []
    for report in reports:
        by_key: dict[tuple[str, str], list[TestReport]] = defaultdict(list)
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for test_report in report.reports:
            by_key[test_report.artifact.matrix_entry, test_report.artifact.device].append(test_report)
        for problem in report.problems:
            if problem.test_job:
                reasons[problem.matrix_entry, problem.device].append(problem.reason)
        for entry, device in dict.fromkeys((*by_key, *reasons)):
            own = by_key[entry, device]
            counts = [test_report.counts or _named(test_report) for test_report in own]
            result = report.results.get(entry) or report.results.get(report.test_job) or {}
            rows.append(
                {
                    "test_job": report.test_job,
                    "matrix_entry": entry,
                    "device": device,
                    "failed": sum(count.failed for count in counts),
                    "errors": sum(count.errors for count in counts),
                    "success": sum(count.passed for count in counts),
                    "skipped": sum(count.skipped for count in counts),
                    "seconds": sum(count.seconds for count in counts),
                    "complete": not reasons[entry, device],
                    "reason": "; ".join(reasons[entry, device]),
                    "job_url": result.get("job_link", {}).get(device or NO_DEVICE, ""),
                }
            )
    return _table(run, rows, TEST_JOB_RESULT)


def category_result_table(run: CiRun, reports: Sequence[JobReport], profile: Profile) -> pa.Table:
    """The CATEGORY_RESULT table: the failing tests of each test job by category × device, zeros included."""
    rows: list[dict[str, Any]] = []
    for report in reports:
        job = profile.test_jobs[report.test_job]
        found: Counter[tuple[str, str, str]] = Counter()
        for test_report in report.reports:
            for outcome in test_report.outcomes:
                category = profile.category_of(outcome.node_id) if job.matrix else job.test
                found[category, test_report.artifact.device, outcome.outcome] += 1
        devices = dict.fromkeys(test_report.artifact.device for test_report in report.reports)
        rows += [
            {
                "test_job": report.test_job,
                "category": category,
                "device": device,
                "failed": found[category, device, "failed"],
                "errors": found[category, device, "error"],
            }
            for category in (profile.categories if job.matrix else (job.test,))
            for device in devices
        ]
    return _table(run, rows, CATEGORY_RESULT)


def _named(report: TestReport) -> Counts:
    """The totals of a report whose closing line is lost, as far as its outcomes tell: never more than was seen."""
    seen = Counter(outcome.outcome for outcome in report.outcomes)
    return Counts(failed=seen["failed"], errors=seen["error"])


def run_diff_table(run: CiRun, rows: Sequence[RunDiffRow]) -> pa.Table:
    """The RUN_DIFF table."""
    return _table(run, [row._asdict() for row in rows], RUN_DIFF)


def with_since(run_diff: pa.Table, before: pa.Table) -> pa.Table:
    """The RUN_DIFF table; what went on failing in the run before, whose run diff is `before`, does so since then."""
    going_on = where(before, "change", "still_failing", "changed_error")
    known = dict(zip(rows_of(going_on, *_TEST), _since(going_on), strict=True))
    if not known:
        return run_diff
    since = [
        known.get(test, own) if own[0] else own
        for test, own in zip(rows_of(run_diff, *_TEST), _since(run_diff), strict=True)
    ]
    for name, values in zip(_SINCE, zip(*since, strict=True), strict=False):
        column = run_diff.schema.get_field_index(name)
        field = run_diff.schema.field(column)
        run_diff = run_diff.set_column(column, field, pa.array(values, pa.int64()).cast(field.type))
    return run_diff


_TEST = ("test_job", "matrix_entry", "device", "node_id")
_SINCE = ("since_run_id", "since")
OF_SINCE = (*_TEST, *_SINCE, "change")
"""What `with_since` needs of the run diff before."""


def _since(run_diff: pa.Table) -> Iterator[tuple[int, int | None]]:
    """The time as a number: to make a `datetime` takes longer than all the rest."""
    run_ids, times = (run_diff[name] for name in _SINCE)
    return zip(run_ids.to_pylist(), times.cast(pa.int64()).to_pylist(), strict=True)


def _table(run: CiRun, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    key = run_key(run, len(rows))
    own = {name: [row[name] for row in rows] for name in schema.names if name not in key}
    return pa.table({**key, **own}, schema=schema)
