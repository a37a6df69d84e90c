"""What a job report leaves in the Hub dataset: the files, their contents, and where they go."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json

from ci_pipeline.model import NO_DEVICE, TestKey
from ci_pipeline.publish.slack_classic import ClassicReport, classic_report

if TYPE_CHECKING:
    from ci_pipeline.model import CiRun, EarlierRun, JobReport, Outcome, TestReport
    from ci_pipeline.profile import Profile

log = logging.getLogger(__name__)

ERRORS = "errors.json"
LOCAL_ONLY = ("model_failures_report.txt", "module_failures_report.txt", ERRORS)
"""Files that only the working directory has. The workflow keeps it as an artifact, and the next run reads that."""

READABLE = 10_000_000
"""Bytes above which a file is for programs alone, and is not indented: the Hub's pages show no more of one."""


def results_folder(test_job: str) -> str:
    return f"ci_results_{test_job}"


def dataset_folder(run: CiRun, test_job: str) -> str:
    """Where the files of a run go: a run that nobody scheduled must not replace the daily one."""
    date = (run.created_at or datetime.now(UTC)).astimezone(UTC).date().isoformat()
    if run.event == "schedule":
        return f"{date}/{results_folder(test_job)}"
    return f"{date}/runs/{run.run_number}-{run.run_id}/{results_folder(test_job)}"


def render(
    report: JobReport, profile: Profile, *, previous_model_table: str = "", classic: ClassicReport | None = None
) -> dict[str, bytes]:
    """All files of a report, contents by name. `classic`: its messages, where they are known already."""
    job, results = profile.test_jobs[report.test_job], dict(report.results)
    classic = classic or classic_report(report, profile, previous_model_table=previous_model_table)
    files: dict[str, Any] = {}
    if job.matrix:
        files[f"{job.result_name}_results.json"] = results
        files[f"{job.result_name}_results_extra.json"] = captured_infos(report)
    else:
        files[f"{job.result_name}_results.json"] = next(iter(results.values()), {})
    files[ERRORS] = errors_of(report.reports)
    files["job_links.json"] = {job.short(name): result.get("job_link", {}) for name, result in sorted(results.items())}
    if job.matrix and classic.n_failures:
        files["model_failures_report.txt"] = classic.model_table.text(to_truncate=False)
        files["module_failures_report.txt"] = classic.module_table.text(to_truncate=False)
    if classic.changed_models and classic.changed_models.rows:
        files["changed_model_failures_report.txt"] = classic.changed_models.text(to_truncate=False)
    for new in (classic.new_failures, *classic.unique_failures):
        if new and new.failures:
            files[f"{new.file}.txt"] = classic.failure_list(new.failures, to_truncate=False)
            files[f"{new.file}.json"] = failures_by_module(new.failures, profile, report.test_job)
    if classic.results_diff and report.previous:
        files[f"{classic.results_diff.file}.json"] = results_diff(report.reports, report.previous)
    return {
        name: content.encode(errors="backslashreplace") if isinstance(content, str) else _json(content)
        for name, content in files.items()
    }


def _json(content: Any) -> bytes:
    try:
        compact = to_json(content)  # first: it is a millisecond for most files, and of a huge one the only rendering
    except PydanticSerializationError:  # of a folder whose name is not UTF-8
        return json.dumps(content, indent=4).encode()
    return compact if len(compact) > READABLE else to_json(content, indent=4)


def captured_infos(report: JobReport) -> dict[str, Any]:
    """`{"models_bert": {"captured_info": {"single": {"link": page of its CI job, "captured_info": text}}}}`."""
    captured = {(r.artifact.matrix_entry, r.artifact.device or NO_DEVICE): r.captured_info for r in report.reports}
    return {
        name: {
            "captured_info": {
                device: {"link": url, "captured_info": captured.get((name, device), "")}
                for device, url in result.get("captured_info", {}).items()
            }
        }
        for name, result in report.results.items()
    }


def failures_by_module(failures: Sequence[TestKey], profile: Profile, test_job: str) -> dict[str, dict[str, list[str]]]:
    """Node ids by tested module and device: `{"bert": {"single-gpu": [...], "multi-gpu": [...]}}`.

    The module is the folder of the test: `tests/models/bert/test_x.py::t` tests `bert`, `examples/test_x.py::t`
    `examples`.
    """
    prefixes = [*profile.module_folders, *(prefix.rstrip("_") for prefix in profile.test_jobs[test_job].prefixes)]

    modules: dict[str, dict[str, list[str]]] = {}

    @cache
    def failing(path: str, device: str) -> list[str]:
        path = path.removeprefix("tests/")
        for prefix in prefixes:
            path = path.removeprefix(f"{prefix}/")
        devices = modules.setdefault(path.partition("/")[0], {f"{known}-gpu": [] for known in profile.devices})
        return devices.setdefault(f"{device}-gpu" if device else NO_DEVICE, [])

    for _, device, node_id in failures:
        failing(node_id.partition("::")[0], device).append(node_id)
    return modules


def results_diff(reports: Sequence[TestReport], previous: EarlierRun) -> dict[str, dict[str, dict[str, Any]]]:
    """Every test whose outcome is not what it was: `{"models_bert": {"single": {node id: {"previous", "current"}}}}`.

    null: the test did not run, or was skipped, of which pytest names only the place.
    """
    now, before = outcomes_of(reports), previous.outcomes or {}
    diff: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for where in sorted(now.keys() | before.keys()):
        entry, device, node_id = where
        if "::" in node_id and now.get(where) != before.get(where):
            change = {"previous": before.get(where), "current": now.get(where)}
            diff[entry or "tests"].setdefault(device or NO_DEVICE, {})[node_id] = change
    return dict(diff)


def outcomes_of(reports: Iterable[TestReport]) -> dict[TestKey, Outcome]:
    """How each test ended: that it was run again before is no end."""
    return {
        (report.artifact.matrix_entry, report.artifact.device, test.node_id): test.outcome
        for report in reports
        for test in report.outcomes
        if test.outcome != "rerun"
    }


def errors_of(reports: Sequence[TestReport]) -> list[dict[str, str]]:
    """The tests that did not get as far as failing: errors at setup, teardown and collection."""
    return [
        {
            "matrix_entry": report.artifact.matrix_entry,
            "device": report.artifact.device,
            "line": outcome.node_id,
            "trace": outcome.trace,
        }
        for report in reports
        for outcome in report.outcomes
        if outcome.outcome == "error"
    ]


# --- an earlier run's files -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EarlierResults:
    """What the `ci_results_<job>` folder of an earlier run says; `failures` and `has_errors` as in `EarlierRun`."""

    failures: Mapping[TestKey, str]
    has_errors: bool
    model_table: str


class NoResults(ValueError):
    """A folder has no readable `<x>_results.json`. The text is one line."""


def read_results(folder: Path, result_name: str) -> EarlierResults:
    """Read the results that an earlier run left in `folder`.

    Raises:
        NoResults: the results are missing, or are none.
    """
    path = folder / f"{result_name}_results.json"
    try:
        results = json.loads(path.read_bytes())
    except OSError as error:
        raise NoResults(f"{path.name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise NoResults(f"{path.name} is not JSON") from None
    if not isinstance(results, dict):
        raise NoResults(f"{path.name} holds no results")
    try:
        table = (folder / "model_failures_report.txt").read_text("utf-8", "replace")
    except OSError:
        table = ""
    return EarlierResults(failures_of(results), (folder / ERRORS).exists(), table)


def comparable(earlier: EarlierRun, reports: Iterable[TestReport]) -> EarlierRun:
    """The earlier run with its failures as `reports` would name them.

    Older reporters cut node ids at their first space and left errors out: a test whose beginning is named was known,
    and of an error nobody can say that it is new.
    """
    failures = earlier.failures
    cut = {where for where in failures if where[2].count("[") > where[2].count("]")}
    if earlier.has_errors and not cut:
        return earlier
    known: dict[TestKey, str] = {}
    completed: set[TestKey] = set()
    for report in reports:
        failed = {outcome.node_id for outcome in report.outcomes if outcome.outcome == "failed"}
        for outcome in report.outcomes:
            if not cut and outcome.outcome != "error":
                continue
            where = (report.artifact.matrix_entry, report.artifact.device, outcome.node_id)
            if (begins := (*where[:2], where[2].partition(" ")[0])) in cut:
                known[where] = failures[begins]
                completed.add(begins)
            elif outcome.outcome == "error" and not earlier.has_errors and outcome.node_id not in failed:
                known[where] = failures.get(where, outcome.trace)
    return replace(
        earlier, failures={where: trace for where, trace in failures.items() if where not in completed} | known
    )


def failures_of(results: Mapping[str, Any]) -> dict[TestKey, str]:
    """The failing tests of job results, by whatever of other people's JSON has that shape."""
    found: dict[TestKey, str] = {}
    entries = {"": results} if "failures" in results else results
    for entry, result in entries.items():
        by_device = result.get("failures") if isinstance(result, dict) else None
        for device, failures in by_device.items() if isinstance(by_device, dict) else ():
            for failure in failures if isinstance(failures, list) else ():
                if isinstance(failure, dict) and isinstance(line := failure.get("line"), str):
                    where = (entry, "" if device in ("null", NO_DEVICE) else device, line)
                    found[where] = str(failure.get("trace") or "")
    return found
