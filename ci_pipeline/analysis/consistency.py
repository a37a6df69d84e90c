"""Whether what we are about to publish agrees with itself: every function answers a line for each contradiction."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ci_pipeline.analysis.job_results import job_links
from ci_pipeline.model import RED, FetchedRun

if TYPE_CHECKING:
    import pyarrow as pa


class Contradiction(NamedTuple):
    """`said`: the report itself mentions it as a problem, so that nobody is misled."""

    text: str
    said: bool = False


def missing_artifacts(fetched: FetchedRun) -> list[str]:
    """The artifacts that the CI run's jobs announce, and that are not there."""
    ran = [job for job in fetched.jobs if job.conclusion != "skipped"]
    return sorted(job_links(ran).keys() - set(fetched.artifact_names))


def miscounted(test_reports: pa.Table, test_outcomes: pa.Table) -> list[Contradiction]:
    """The artifacts whose failing tests are not as many as pytest's own totals say."""
    from ci_pipeline.tables import rows_of

    by = ["test_job", "matrix_entry", "device", "postfix"]
    seen = Counter(rows_of(_red(test_outcomes, *by), *by, "outcome"))
    # Machines that are one device share a place, and there their totals add up.
    places: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for report in test_reports.select([*by, "artifact", "complete", "failed", "errors", "problems"]).to_pylist():
        places.setdefault(tuple(report[name] for name in by), []).append(report)
    found: list[Contradiction] = []
    for place, reports in places.items():
        for outcome, column in (("failed", "failed"), ("error", "errors")):
            listed, counted = seen[(*place, outcome)], sum(report[column] for report in reports)
            if listed != counted and all(report["complete"] for report in reports):
                names = ", ".join(report["artifact"] for report in reports)
                text = f"{names}: {listed} tests listed as {outcome}, pytest counted {counted}"
                found.append(Contradiction(text, said=any(report["problems"] for report in reports)))
    return found


def without_trace(test_outcomes: pa.Table) -> list[str]:
    """The failing tests of which nobody can say why."""
    from ci_pipeline.tables import where

    rows = where(_red(test_outcomes, "node_id", "device", "trace"), "trace", "")
    return [_test(row) for row in rows.to_pylist()]


def unfounded(run_diff: pa.Table, test_outcomes: pa.Table) -> list[str]:
    """What the diff says is failing, and the outcomes do not have."""
    from ci_pipeline.tables import rows_of, where

    test = ["test_job", "matrix_entry", "device", "node_id"]
    says = where(run_diff.select([*test, "change"]), "change", *_FAILING).to_pylist()
    if not says:
        return []
    failing = set(rows_of(_red(test_outcomes, *test), *test))
    return [f"{_test(row)}: {row['change']}" for row in says if tuple(row[name] for name in test) not in failing]


def _red(test_outcomes: pa.Table, *columns: str) -> pa.Table:
    """Some columns of the failing tests, and how they ended."""
    from ci_pipeline.tables import where

    return where(test_outcomes.select([*columns, "outcome"]), "outcome", *RED)


_FAILING = ["new_failure", "still_failing", "changed_error", "unique_failure"]


def _test(row: dict[str, str]) -> str:
    return f"{row['node_id']} ({row['device'] or 'no device'})"
