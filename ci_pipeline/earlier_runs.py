"""Which runs a CI run is compared with, and what is known of those: from our tables, the warehouse, or the source."""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ci_pipeline.model import RED, CiRun, EarlierRun, Outcome, TestKey
from ci_pipeline.sources import SourceError
from ci_pipeline.sources.github_json import run_from, run_payload
from ci_pipeline.warehouse import WarehouseError, history

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from ci_pipeline.services import Services

log = logging.getLogger(__name__)

T = TypeVar("T")

CANDIDATES = 100
"""Runs of a workflow among which the source is asked for the one to compare with."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run to compare with: the `previous` one makes the diff, an `other` tells whose failure it is."""

    role: Literal["previous", "other"]
    label: str
    run: CiRun


def comparisons(run: CiRun, services: Services, known: Sequence[CiRun] = ()) -> list[Comparison]:
    """The runs that the profile's rules compare this one with; the warehouse is asked first, then the source.

    `known`: of a run that is processed together with others, what `known_together` says of them.
    """
    from ci_pipeline.analysis.previous import previous_run, reference_run

    profile = services.profile
    found: list[Comparison] = []
    reference = profile.reference
    rule = profile.previous.get(run.event)
    if rule and rule.workflow != "none":
        workflow_id = run.workflow_id if rule.workflow == "same" else reference.workflow_id if reference else 0
        # A source can be asked for one event alone: a run that another started may follow on runs of both.
        event = rule.event if run.event == rule.event or rule.workflow == "reference" else ""
        for candidates in _candidates(run, workflow_id, services, known, event):
            if previous := previous_run(run, candidates, profile):
                found.append(Comparison("previous", "previous run", previous))
                break
    if reference and run.event in reference.events and run.workflow_id != reference.workflow_id:
        for candidates in _candidates(run, reference.workflow_id, services, known):
            if other := reference_run(run, candidates, profile):
                found.append(Comparison("other", reference.label, other))
                break
    return found


def _candidates(
    run: CiRun, workflow_id: int, services: Services, known: Sequence[CiRun], event: str = ""
) -> Iterator[Sequence[CiRun]]:
    """Runs of one workflow, from the nearest place to the furthest; a place that does not answer costs a warning."""
    yield known
    yield ask_warehouse(services, lambda client: history.previous_runs(client, run, workflow_id)) or []
    try:
        yield services.source.workflow_runs(
            workflow_id, event=event, branch=services.profile.default_branch, limit=CANDIDATES
        )
    except SourceError as error:
        log.warning("CI run %s: no earlier runs from the source: %s", run.key, error)


def known_together(runs: Sequence[CiRun], services: Services) -> list[CiRun]:
    """Runs that are processed together, and those that the warehouse knows between and before them."""
    known = [*runs]
    for run in {run.workflow_id: run for run in sorted(runs, key=lambda run: run.run_id)}.values():
        before = partial(history.previous_runs, run=run, workflow_id=run.workflow_id, limit=len(runs) + CANDIDATES)
        known += ask_warehouse(services, before) or []
    return known


def ask_warehouse(services: Services, question: Callable[[Client], T]) -> T | None:
    """None where there is no warehouse, or it does not answer: the report need not wait for it."""
    try:
        return question(services.warehouse) if services.warehouse else None
    except WarehouseError as error:
        log.warning("%s", error)
        return None


def dump(comparison: Sequence[Comparison]) -> str:
    return json.dumps([{"role": c.role, "label": c.label, "run": run_payload(c.run)} for c in comparison])


def parse(text: str) -> list[Comparison]:
    """What `dump` wrote."""
    return [Comparison(c["role"], c["label"], run_from(c["run"])) for c in json.loads(text)]


# --- what is known of them ------------------------------------------------------------------------------------------


def load(comparison: Comparison, test_job: str, services: Services) -> EarlierRun | None:
    """What is known of a test job of that run; None where nothing is: it was never processed, and left no results."""
    run, label = comparison.run, comparison.label
    return services.earlier(run.key, label, test_job, lambda: _load(run, label, test_job, services))


def _load(run: CiRun, label: str, test_job: str, services: Services) -> EarlierRun | None:
    if services.tables.has("test_outcomes", run.key):
        return from_table(run, label, test_job, services)
    known = ask_warehouse(services, lambda client: history.earlier_run(client, run, test_job, label))
    return known or from_source(run, label, test_job, services)


def from_table(run: CiRun, label: str, test_job: str, services: Services) -> EarlierRun:
    """What is known of a run that was read here, but for since when its tests fail: its run diff says that."""
    from ci_pipeline.tables import rows_of, where

    columns = ("matrix_entry", "device", "node_id", "outcome", "trace")
    rows = rows_of(where(services.outcomes(run.key), "test_job", test_job), *columns)
    return _earlier(run, label, (((e, d, n), outcome, trace) for e, d, n, outcome, trace in rows))


def from_source(run: CiRun, label: str, test_job: str, services: Services) -> EarlierRun | None:
    """What the run itself left: the results that a reporter uploaded, else its reports, read again."""
    from ci_pipeline.publish.hub_files import NoResults, read_results, results_folder
    from ci_pipeline.reports.artifacts import available_artifacts, parse_artifact_name
    from ci_pipeline.reports.read import read_reports

    def wanted(name: str) -> bool:
        artifact = parse_artifact_name(name, services.profile)
        return artifact is not None and artifact.test_job == test_job

    job = services.profile.test_jobs.get(test_job)
    with tempfile.TemporaryDirectory() as folder:
        try:
            results = services.source.artifact(run.run_id, results_folder(test_job), Path(folder))
            known = read_results(results, job.result_name if job else test_job)
            return EarlierRun(run, label, known.failures, has_errors=known.has_errors)
        except (SourceError, NoResults) as error:
            log.debug("CI run %s: no results of %s: %s", run.key, test_job, error)
        try:
            services.source.fetch(run, Path(folder, run.key), wanted=wanted)
        except SourceError as error:
            log.warning("CI run %s cannot be compared with: %s", run.key, error)
            return None
        root = Path(folder, run.key, "artifacts")
        reports = read_reports(root, available_artifacts(root, services.profile), every_outcome=True)
    tests: Iterator[tuple[TestKey, Outcome, str]] = (
        ((report.artifact.matrix_entry, report.artifact.device, test.node_id), test.outcome, test.trace)
        for report in reports
        for test in report.outcomes
    )
    return _earlier(run, label, tests) if reports else None


def _earlier(run: CiRun, label: str, tests: Iterable[tuple[TestKey, Outcome, str]]) -> EarlierRun:
    failures: dict[TestKey, str] = {}
    outcomes: dict[TestKey, Outcome] = {}
    for key, outcome, trace in tests:
        if outcome in RED:
            failures.setdefault(key, trace)
        if outcome in RED or (outcome != "rerun" and key not in failures):
            outcomes[key] = outcome
    return EarlierRun(run, label, failures, outcomes)
