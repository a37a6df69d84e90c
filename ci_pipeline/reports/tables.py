"""Test reports ↔ their tables: one row per artifact, and one per test outcome."""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ci_pipeline.model import ArtifactName, CiRun, Counts, TestOutcome, TestReport
from ci_pipeline.tables import TEST_OUTCOME, TEST_REPORT, rows_of, run_key

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile

_COUNTS = ("passed", "failed", "errors", "skipped", "xfailed", "xpassed", "deselected", "rerun", "warnings", "seconds")
_ARTIFACT = ("machine", "device", "test_job", "matrix_entry", "postfix")
_KEY = ("device", "test_job", "matrix_entry", "postfix")
"""What says of which artifact an outcome is."""
_OUTCOME = ("node_id", "outcome", "message", "trace", "seconds")


def report_tables(run: CiRun, reports: Sequence[TestReport], profile: Profile) -> tuple[pa.Table, pa.Table]:
    """The TEST_REPORT and the TEST_OUTCOME table of a run's reports."""
    counts = [report.counts or Counts() for report in reports]
    test_reports = pa.table(
        {
            **run_key(run, len(reports)),
            "artifact": [report.artifact.name for report in reports],
            **{name: [getattr(report.artifact, name) for report in reports] for name in _ARTIFACT},
            "complete": [report.counts is not None for report in reports],
            **{name: [getattr(count, name) for count in counts] for name in _COUNTS},
            "captured_info": [report.captured_info for report in reports],
            "problems": [[problem.reason for problem in report.problems] for report in reports],
        },
        schema=TEST_REPORT,
    )
    outcomes = [outcome for report in reports for outcome in report.outcomes]
    nth_report = pa.array(np.repeat(np.arange(len(reports)), [len(report.outcomes) for report in reports]))
    test_outcomes = pa.table(
        {
            **run_key(run, len(outcomes)),
            **{name: test_reports[name].combine_chunks().take(nth_report) for name in _KEY},
            **{name: [getattr(outcome, name) for outcome in outcomes] for name in _OUTCOME},
            "category": _categories(pa.array([outcome.node_id for outcome in outcomes], pa.string()), profile),
        },
        schema=TEST_OUTCOME,
    )
    return test_reports, test_outcomes


def reports_from_tables(test_reports: pa.Table, test_outcomes: pa.Table) -> list[TestReport]:
    """The reports of one run again, with those of their outcomes that are in the table."""
    outcomes: dict[tuple[str, ...], list[TestOutcome]] = defaultdict(list)
    for key, row in zip(rows_of(test_outcomes, *_KEY), rows_of(test_outcomes, *_OUTCOME), strict=True):
        outcomes[key].append(TestOutcome(*row))
    reports: list[TestReport] = []
    for row in test_reports.to_pylist():
        artifact = ArtifactName(row["artifact"], **{name: row[name] for name in _ARTIFACT})
        counts = Counts(**{name: row[name] for name in _COUNTS}) if row["complete"] else None
        # Two machines of one device without a postfix: the first has the outcomes of both.
        own = outcomes.pop(tuple(row[name] for name in _KEY), [])
        problems = tuple(map(artifact.problem, row["problems"]))
        reports.append(TestReport(artifact, counts, tuple(own), row["captured_info"], problems))
    return reports


def _categories(node_ids: pa.Array, profile: Profile) -> pa.Array:
    """`Profile.category_of` of every node id at once."""
    categories = pa.repeat(profile.unclassified, len(node_ids))
    for rule in reversed(profile.category_rules):
        for text in rule.contains:
            categories = pc.if_else(pc.match_substring(node_ids, text), rule.category, categories)
    return categories
