"""From a CI run to its report, step by step: Dagster's assets and the command line call the same functions.

    fetch → read → count → diff → upload → threads → keep

Each step takes a CI run's key, reads what those before it left in the stores, and returns tables for whoever called it
to write.
"""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ci_pipeline import earlier_runs
from ci_pipeline.model import RED, CiRun, EarlierRun, FetchedRun, JobReport, JobResult, Problem, RunDiffRow, TestReport
from ci_pipeline.services import TABLES, Services, worker_services
from ci_pipeline.sources import SourceError
from ci_pipeline.warehouse import WarehouseError, history

if TYPE_CHECKING:
    import pyarrow as pa

    from ci_pipeline.profile import Profile
    from ci_pipeline.publish.ledger import Delivered
    from ci_pipeline.publish.thread import SlackThread
    from ci_pipeline.sources import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")

Step = Callable[[str, Services], T]
"""What is done for a CI run, given its key."""

TOGETHER = 25
"""Runs whose rows are written to the warehouse together."""

PENDING_ROWS = "warehouse/pending"
"""Ledger entries of the runs that the warehouse does not have yet."""

AHEAD = 8
"""Runs that `each` works on before they are asked for: what is made and not yet taken is in memory."""

COMPARED_WITH = b"compared_with"
"""Metadata of the run diff's table: which runs were compared, as `earlier_runs.dump` writes it."""

WARNINGS = b"selected_warnings"
"""Metadata of the test reports' table: the warnings that the CI run selected, as a JSON list."""


# --- the steps ------------------------------------------------------------------------------------------------------


def fetch(run: CiRun, services: Services, progress: Progress | None = None) -> FetchedRun:
    """Bring everything that the CI run left behind into the raw store.

    Raises:
        SourceError: the source does not have it, or cannot be asked; one line.
    """
    with services.raw.new(run.key) as folder:
        fetched = services.source.fetch(run, folder, progress=progress)
    services.forget(run.key)
    return fetched


def fetch_key(run_key: str, services: Services) -> FetchedRun:
    """`fetch` for a run of which only the key is known. Raises as `fetch` and `run_at_source` do."""
    return fetch(run_at_source(run_key, services), services)


def run_at_source(run_key: str, services: Services) -> CiRun:
    """
    Raises:
        SourceError: the source does not have it, or cannot be asked; one line.
    """
    if not is_run_key(run_key):
        raise SourceError(f"{run_key!r} is no CI run: name it <run id>-<attempt>, as in 19500000001-1")
    return services.source.run(*_ids(run_key))


def is_run_key(text: str) -> bool:
    """Whether a CI run could have this key: people type keys, and other assets have other partitions."""
    run_id, _, attempt = text.partition("-")
    return run_id.isdecimal() and attempt.isdecimal()


def _ids(run_key: str) -> tuple[int, int]:
    run_id, _, attempt = run_key.partition("-")
    return int(run_id), int(attempt)


def ci_run_table(fetched: FetchedRun) -> pa.Table:
    import pyarrow as pa

    from ci_pipeline.tables import CI_RUN, run_key

    run = fetched.run
    problems = [f"{problem.subject}: {problem.reason}" for problem in fetched.problems]
    own: dict[str, Any] = {name: [getattr(run, name, None) or ""] for name in CI_RUN.names}
    own |= {"run_number": [run.run_number], "workflow_id": [run.workflow_id], "problems": [problems]}
    return pa.table(own | run_key(run, 1), schema=CI_RUN)


def read(run_key: str, services: Services) -> tuple[pa.Table, pa.Table]:
    """The reports of a fetched CI run as tables: pytest's totals, and every test's outcome.

    Raises:
        SourceError: it was not fetched; one line.
    """
    from ci_pipeline.reports.artifacts import available_artifacts, selected_warnings
    from ci_pipeline.reports.read import read_reports
    from ci_pipeline.reports.tables import report_tables
    from ci_pipeline.sources.raw_store import load_run

    services.forget(run_key)
    with services.raw.local(run_key) as folder:
        artifacts = available_artifacts(folder / "artifacts", services.profile)
        reports = read_reports(folder / "artifacts", artifacts, every_outcome=True)
        test_reports, test_outcomes = report_tables(load_run(folder), reports, services.profile)
        warnings = json.dumps(selected_warnings(folder / "artifacts"))
    return test_reports.replace_schema_metadata({WARNINGS: warnings}), test_outcomes


def job_reports(run_key: str, services: Services, *, every_outcome: bool = False) -> list[JobReport]:
    """The report of each test job, not yet compared with anything; of its tests the failing ones, or every one.

    A test job whose artifacts are all missing has a report as well: the CI run's jobs announce it.
    """
    return services.reports(run_key, every_outcome, lambda: _job_reports(run_key, services, every_outcome))


def _job_reports(run_key: str, services: Services, every_outcome: bool) -> list[JobReport]:
    from ci_pipeline.analysis.job_results import job_links, job_report
    from ci_pipeline.reports.artifacts import parse_artifact_name

    fetched, profile = services.fetched(run_key), services.profile
    reports, warnings = _test_reports(run_key, services, every_outcome)
    named = {*fetched.artifact_names, *job_links(fetched.jobs), *(problem.subject for problem in fetched.problems)}
    artifacts = {name: parse_artifact_name(name, profile) for name in named}
    seen = {artifact.test_job for artifact in artifacts.values() if artifact}
    unknown = [name for name in fetched.artifact_names if "_test_reports" in name and not artifacts[name]]
    problems = [*fetched.problems, *(Problem(n, "a report of no test job that the profile knows") for n in unknown)]
    return [
        job_report(fetched.run, test_job, reports, fetched.jobs, profile, problems=problems, warnings=warnings)
        for test_job in profile.test_jobs
        if test_job in seen
    ]


def _test_reports(run_key: str, services: Services, every_outcome: bool) -> tuple[list[TestReport], list[str]]:
    """What `read` wrote: the report of each artifact, and the warnings that the CI run selected."""
    from ci_pipeline.reports.tables import reports_from_tables
    from ci_pipeline.tables import where

    test_reports, outcomes = services.tables.read("test_reports", run_key), services.outcomes(run_key)
    if not every_outcome:
        outcomes = where(outcomes, "outcome", *RED)
    warnings = json.loads((test_reports.schema.metadata or {}).get(WARNINGS, b"[]"))
    return reports_from_tables(test_reports, outcomes), warnings


def count(run_key: str, services: Services) -> tuple[pa.Table, pa.Table]:
    """The job results and the category results."""
    from ci_pipeline.analysis.tables import category_result_table, test_job_result_table

    run, reports = services.fetched(run_key).run, job_reports(run_key, services)
    return test_job_result_table(run, reports), category_result_table(run, reports, services.profile)


def diff(run_key: str, services: Services, together: Sequence[str] = ()) -> pa.Table:
    """What changed since the previous run, and what fails here but not in other runs; see `with_since` as well.

    The table's metadata says which runs these are. `together`: the keys of the runs that this one is processed with:
    they are compared with one another, and the warehouse has none of them yet.
    """
    from ci_pipeline.analysis.run_diff import run_diff
    from ci_pipeline.analysis.tables import run_diff_table

    run = services.fetched(run_key).run
    known = services.together(tuple(together), lambda: _known_together(together, services)) if together else ()
    with_runs = earlier_runs.comparisons(run, services, known)
    rows: list[RunDiffRow] = []
    reports, _ = _test_reports(run_key, services, every_outcome=True) if with_runs else ((), ())
    for test_job in dict.fromkeys(report.artifact.test_job for report in reports):
        own = [report for report in reports if report.artifact.test_job == test_job]
        rows += run_diff(test_job, own, *_earlier(test_job, with_runs, services, own))
    return run_diff_table(run, rows).replace_schema_metadata({COMPARED_WITH: earlier_runs.dump(with_runs)})


def with_since(run_diff: pa.Table, services: Services) -> pa.Table:
    """The run diff with since when its failures go on: this alone needs the previous run's diff to be written."""
    from ci_pipeline.analysis.tables import OF_SINCE, with_since

    previous = next((c.run.key for c in compared_with(run_diff) if c.role == "previous"), None)
    if previous is None or not services.tables.has("run_diff", previous):
        return run_diff
    return with_since(run_diff, services.tables.read("run_diff", previous, OF_SINCE))


def _known_together(run_keys: Sequence[str], services: Services) -> list[CiRun]:
    there = [key for key in run_keys if services.tables.has("raw_artifacts", key)]
    rows = [row for key in there for row in services.tables.read("raw_artifacts", key).to_pylist()]
    return earlier_runs.known_together([history.run_of(row) for row in rows], services)


def compared_with(run_diff: pa.Table) -> list[earlier_runs.Comparison]:
    """The runs that a run diff is against."""
    return earlier_runs.parse((run_diff.schema.metadata or {}).get(COMPARED_WITH, b"[]"))


def compared_reports(run_key: str, services: Services, *, every_outcome: bool = False) -> list[JobReport]:
    """`job_reports` with what changed, and with the runs that they were compared with."""
    from ci_pipeline.tables import rows_of

    table = services.tables.read("run_diff", run_key)
    with_runs = compared_with(table)
    rows: dict[str, list[RunDiffRow]] = {}
    for row in map(RunDiffRow._make, rows_of(table, *RunDiffRow._fields)):
        rows.setdefault(row.test_job, []).append(row)
    done: list[JobReport] = []
    for report in job_reports(run_key, services, every_outcome=every_outcome):
        previous, others = _earlier(report.test_job, with_runs, services, report.reports)
        done.append(replace(report, previous=previous, others=others, diff=rows.get(report.test_job, ())))
    return done


def _earlier(
    test_job: str, with_runs: Sequence[earlier_runs.Comparison], services: Services, reports: Sequence[TestReport]
) -> tuple[EarlierRun | None, list[EarlierRun]]:
    from ci_pipeline.publish.hub_files import comparable

    known = [
        (run.role, comparable(earlier, reports))
        for run in with_runs
        if (earlier := earlier_runs.load(run, test_job, services))
    ]
    previous = next((earlier for role, earlier in known if role == "previous"), None)
    return previous, [earlier for role, earlier in known if role == "other"]


# --- out into the world ---------------------------------------------------------------------------------------------


def upload(run_key: str, services: Services) -> pa.Table:
    """Bring the run's files to the Hub's dataset in one commit; a table of them.

    While the Hub is down they are kept, and go there with the next delivery.
    """
    import pyarrow as pa

    from ci_pipeline.publish import hub
    from ci_pipeline.publish.hub_files import dataset_folder, render
    from ci_pipeline.table_store import parquet
    from ci_pipeline.tables import where

    run, outcomes = services.fetched(run_key).run, services.outcomes(run_key)
    every_outcome = services.profile.diffs_results(run.workflow_path)
    files: dict[str, bytes] = {}
    rows: list[dict[str, Any]] = []
    for report in compared_reports(run_key, services, every_outcome=every_outcome):
        folder = dataset_folder(run, report.test_job)
        contents = render(report, services.profile, previous_model_table=_model_table(report, services.profile))
        contents["test_outcomes.parquet"] = parquet(where(outcomes, "test_job", report.test_job))
        for name, content in contents.items():
            files[f"{folder}/{name}"] = content
            rows.append({"test_job": report.test_job, "folder": folder, "name": name, "bytes": len(content)})
    if files:
        delivered = hub.deliver(
            files,
            repo_id=services.hub_dataset(run),
            message=f"{services.profile.run_title(run)} ({run.key})",
            key=run_key,
            hub=services.hub,
            ledger=services.ledger,
        )
        rows = [row | {name: getattr(delivered, name) for name in _PLACE} for row in rows]
    text = [(name, pa.string()) for name in ("test_job", "folder", "name", *_PLACE)]
    return pa.Table.from_pylist(rows, schema=pa.schema([*text, ("bytes", pa.int64())]))


_PLACE = ("where", "url", "detail")


def placed(files: pa.Table) -> list[Delivered]:
    """Where the files that `upload` tells of went."""
    from ci_pipeline.publish.ledger import Delivered
    from ci_pipeline.tables import rows_of

    return [Delivered(*place) for place in dict.fromkeys(rows_of(files, *_PLACE))]


def _model_table(report: JobReport, profile: Profile) -> str:
    """The table of failures by model of the run that a report is compared with, as that run itself wrote it."""
    from ci_pipeline.publish.slack_classic import classic_report

    if report.previous is None:
        return ""
    failed: dict[str, dict[str, Counter[str]]] = {}
    outcomes = report.previous.outcomes or {}
    for key in report.previous.failures:
        if outcomes.get(key, "failed") == "failed":
            entry, device, node_id = key
            counts = failed.setdefault(entry, {}).setdefault(profile.category_of(node_id), Counter())
            counts[device] += 1
    results: dict[str, JobResult] = {entry: {"failed": counts} for entry, counts in failed.items()}
    earlier = JobReport(report.previous.run, report.test_job, results)
    return classic_report(earlier, profile).model_table.text(to_truncate=False)


def threads(run_key: str, services: Services) -> dict[str, SlackThread]:
    """Each test job's Slack thread, by test job. A push that broke nothing has none: it is no news."""
    run, reports = services.fetched(run_key).run, compared_reports(run_key, services)
    if not reports and run.conclusion != "success":
        return {"": _nothing_ran(run, services)}
    files = services.tables.read("hub_dataset_files", run_key)
    return {
        report.test_job: _thread(report, files, services)
        for report in reports
        if run.event != "push" or report.problems or any(test.outcomes for test in report.reports)
    }


def _nothing_ran(run: CiRun, services: Services) -> SlackThread:
    from ci_pipeline.publish.mrkdwn import escape, link
    from ci_pipeline.publish.slack_classic import error_message
    from ci_pipeline.publish.thread import SlackThread

    fetched = services.fetched(run.key)
    known = [f"{problem.subject}: {problem.reason}" for problem in fetched.problems]
    if names := ", ".join(fetched.artifact_names):
        known.insert(0, f"No artifact is the report of a test job that the profile knows: {names}")
    about = "\n".join(filter(None, [link(run.html_url, run.title), *map(escape, known)]))
    return SlackThread(error_message(_title(run, services), about, run.html_url))


def _title(run: CiRun, services: Services) -> str:
    name = services.workflow(run, "ci_event") or run.workflow_name or run.event or f"CI run {run.run_id}"
    return f"[INFO] Results of {name}"


def _thread(report: JobReport, files: pa.Table, services: Services) -> SlackThread:
    from ci_pipeline.analysis.job_results import warnings_link
    from ci_pipeline.publish import slack_classic, slack_full
    from ci_pipeline.publish.mrkdwn import link
    from ci_pipeline.tables import where

    run, profile = report.run, services.profile
    job = profile.test_jobs[report.test_job]
    uploaded = [row for row in where(files, "test_job", report.test_job).to_pylist() if row["url"]]
    folder = next((f"{row['url']}/{row['folder']}" for row in uploaded), "")
    urls = {row["name"]: f"{folder.replace('/tree/', '/blob/', 1)}/{row['name']}" for row in uploaded}

    if services.settings.slack_style == "classic":
        return slack_classic.classic_report(
            report,
            profile,
            title=f"{_title(run, services)}: {job.test}",
            ci_title=link(run.html_url, run.title),
            run_url=run.html_url,
            warnings_url=warnings_link(services.fetched(run.key).jobs, profile),
            previous_model_table=_model_table(report, profile),
        ).thread(lambda name: urls.get(name, ""))
    results = urls.get(f"{job.result_name}_results.json", "")
    page = services.settings.run_page(run.run_id)
    return slack_full.messages(report, profile, links=slack_full.Links(folder, results, page))


def post_threads(threads: Mapping[str, SlackThread], run: CiRun, services: Services) -> dict[str, Delivered]:
    """Bring each thread to its test job's channel; what is there already is edited.

    Raises:
        SlackRefused: Slack said no, and a person has to act; that thread is kept, and the others went out.
    """
    from ci_pipeline.publish.slack import SlackRefused
    from ci_pipeline.publish.thread import deliver

    posted: dict[str, Delivered] = {}
    refused: list[SlackRefused] = []
    down = ""
    for test_job, thread in threads.items():
        channel = services.channel(run, test_job)
        try:
            place = deliver(thread, run, test_job, channel, slack=services.slack, ledger=services.ledger, down=down)
        except SlackRefused as error:
            refused.append(error)
        else:
            posted[test_job], down = place, place.detail if place.where == "pending" else ""
    if refused:
        raise refused[0]
    return posted


def keep(run_keys: Sequence[str], services: Services) -> Delivered:
    """Write the tables of processed runs to the warehouse, in place of what it has of them.

    While the warehouse is down, the runs are noted and go there with the next delivery.
    """
    from ci_pipeline.publish.ledger import Delivered

    if services.settings.warehouse_url is None:
        return Delivered("warehouse", detail="none is configured")
    rows = 0
    # A few runs in one insert: many small ones are slow, and all of a long range do not fit in memory.
    for first in range(0, len(run_keys), TOGETHER):
        keys = run_keys[first : first + TOGETHER]
        try:
            rows += _insert(keys, services)
        except WarehouseError as error:
            waiting = run_keys[first:]
            log.warning("%s; %d CI runs are written to the warehouse later", error, len(waiting))
            for key in waiting:
                services.ledger.write(f"{PENDING_ROWS}/{key}", {"run_key": key})
            return Delivered("pending", detail=str(error))
        for key in keys:
            services.ledger.remove(f"{PENDING_ROWS}/{key}")
    return Delivered("warehouse", detail=f"{rows} rows")


def _insert(run_keys: Sequence[str], services: Services) -> int:
    import pyarrow as pa

    from ci_pipeline.warehouse.client import insert_runs

    warehouse = services.warehouse
    assert warehouse is not None, "keep() has looked"
    tables = {
        there: pa.concat_tables([services.tables.read(here, key) for key in run_keys]) for here, there in TABLES.items()
    }
    insert_runs(warehouse, tables)
    return sum(table.num_rows for table in tables.values())


def deliver_pending(services: Services) -> list[tuple[str, Delivered]]:
    """Try again what could not be delivered: what became of rows, files and messages."""
    from ci_pipeline.publish import hub, thread

    run_keys = noted(PENDING_ROWS, services)
    delivered = [("rows", keep(run_keys, services))] if run_keys else []
    delivered += [("files", place) for place in hub.deliver_pending(hub=services.hub, ledger=services.ledger)]
    messages = thread.deliver_pending(slack=services.slack, ledger=services.ledger)
    return delivered + [("messages", place) for place in messages]


def noted(folder: str, services: Services) -> list[str]:
    """The runs that the ledger has an entry of in a folder, by key."""
    return [name.rpartition("/")[2] for name in services.ledger.names(folder)]


def has_pending(services: Services) -> bool:
    """Whether there is something to deliver again, and where to."""
    folders = ["hub/pending", f"{services.slack.where}/pending"]
    if services.settings.warehouse_url:
        folders.append(PENDING_ROWS)
    return any(map(services.ledger.names, folders))


def report_failure(run_keys: Sequence[str], reasons: Sequence[str], services: Services) -> Delivered:
    """Tell Slack, in one message, that the report of a CI run, or of a range of them, could not be made."""
    which = run_keys[0] if len(run_keys) == 1 else f"{run_keys[0]} to {run_keys[-1]}"
    run = CiRun(services.profile.repository, *_ids(run_keys[0]))
    return _tell(f"❌ The report of CI run {which} could not be made.", reasons, run, "pipeline failure", services)


def report_breakdown(part: str, since: int, headline: str, lines: Sequence[str], services: Services) -> Delivered:
    """Tell Slack how a part of the pipeline does that has failed `since` then, in seconds since 1970: in one message,
    which is edited when this is called again."""
    return _tell(headline, lines, CiRun(services.profile.repository, since), part, services)


def _tell(headline: str, lines: Sequence[str], run: CiRun, what: str, services: Services) -> Delivered:
    from ci_pipeline.publish.mrkdwn import escape
    from ci_pipeline.publish.slack_classic import header, section
    from ci_pipeline.publish.thread import SlackMessage, SlackThread, deliver

    lines = [escape(line) for line in lines]
    message = SlackMessage("main", "\n".join((headline, *lines)), [header(headline), *map(section, lines)])
    channel = services.channel(run, "")
    return deliver(SlackThread(message), run, what, channel, slack=services.slack, ledger=services.ledger)


# --- a step for many runs -------------------------------------------------------------------------------------------


def each(
    step: Step[T], run_keys: Sequence[str], services: Services, *, at_once: bool = True
) -> Iterator[tuple[str, T | Exception]]:
    """What a step makes of each run, in order, several at once; where it fails, the error instead.

    With `at_once`, `step` is a function of a module, since it is called in other processes.
    """
    if len(run_keys) <= AHEAD or not at_once:
        yield from ((key, _attempt(step, key, services)) for key in run_keys)
        return
    waiting = iter(run_keys)
    running: deque[tuple[str, Future[T | Exception]]] = deque()
    while True:
        for key in islice(waiting, AHEAD - len(running)):
            running.append((key, services.workers.submit(_attempt, step, key)))
        if not running:
            return
        key, made = running.popleft()
        yield key, made.result()


def _attempt(step: Step[T], run_key: str, services: Services | None = None) -> T | Exception:
    try:
        return step(run_key, services or worker_services())
    except Exception as error:
        return error
