"""From a CI run to its report, step by step: Dagster's assets and the command line call the same functions.

fetch → read → job_reports → run_diff → compared → hub_files → slack_threads → keep
"""

# pyright: reportUnknownParameterType=false

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

from ci_pipeline import earlier_runs
from ci_pipeline.model import RED, CiRun, EarlierRun, FetchedRun, JobReport, JobResult, RunDiffRow
from ci_pipeline.sources import SourceError, cursor_at
from ci_pipeline.warehouse import WarehouseError

if TYPE_CHECKING:
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client

    from ci_pipeline.profile import Profile
    from ci_pipeline.publish.hub import Hub
    from ci_pipeline.publish.ledger import Delivered, Ledger
    from ci_pipeline.publish.thread import Slack, SlackThread
    from ci_pipeline.settings import Settings
    from ci_pipeline.sources import Progress, Source
    from ci_pipeline.sources.raw_store import RawStore
    from ci_pipeline.table_store import TableStore

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

Step = Callable[[str, "Services"], T]
"""Something that is done for a CI run, given its key."""

TABLES = {
    "raw_artifacts": "ci_run",
    "test_reports": "test_report",
    "test_outcomes": "test_outcome",
    "job_results": "test_job_result",
    "category_results": "category_result",
    "run_diff": "run_diff",
}
"""The tables of a processed run in the order in which they are made, and what the warehouse calls each."""

TOGETHER = 25
"""Runs whose rows are written to the warehouse together."""

PENDING_ROWS = "warehouse/pending"
"""Ledger entries of the runs that the warehouse does not have yet."""

AHEAD = 8
"""Runs that `each` works on before they are asked for: what is made and not yet taken is in memory."""

COMPARED_WITH = b"compared_with"
"""Metadata of the run diff's table: which runs were compared, as `earlier_runs.dump` writes it."""


class Services:
    """What a deployment's settings name, each opened when it is first needed. `s3` makes the S3 source's client."""

    def __init__(self, settings: Settings, profile: Profile, *, s3: Callable[[], Any] | None = None) -> None:
        self.settings = settings
        self.profile = profile
        self._s3 = s3
        self._fetched: _Recent[str, FetchedRun] = _Recent(4)
        self._earlier: _Recent[tuple[str, str, str], EarlierRun | None] = _Recent(8)

    @cached_property
    def source(self) -> Source:
        from ci_pipeline.sources import open_source

        return open_source(self.settings, self.profile, s3=self._s3() if self._s3 else None)

    @cached_property
    def raw(self) -> RawStore:
        from ci_pipeline.sources.raw_store import RawStore

        return RawStore(f"{self.settings.data_root}/raw")

    @cached_property
    def tables(self) -> TableStore:
        from ci_pipeline.table_store import TableStore

        return TableStore(f"{self.settings.data_root}/tables")

    @cached_property
    def ledger(self) -> Ledger:
        from ci_pipeline.publish.ledger import Ledger

        return Ledger(f"{self.settings.data_root}/ledger")

    @cached_property
    def slack(self) -> Slack:
        from ci_pipeline.publish.outbox import SlackOutbox
        from ci_pipeline.publish.slack import SlackClient

        token = self.settings.slack_token
        if token is None:
            return SlackOutbox(self.settings.outbox_path)
        return SlackClient(token.get_secret_value(), self.settings.slack_api_url)

    @cached_property
    def hub(self) -> Hub:
        from ci_pipeline.publish.hub import HubClient
        from ci_pipeline.publish.outbox import HubOutbox

        token = self.settings.hub_token
        if token is None:
            return HubOutbox(self.settings.outbox_path)
        return HubClient(token.get_secret_value(), self.settings.hub_endpoint)

    @cached_property
    def warehouse(self) -> Client | None:
        """None where none is configured."""
        from ci_pipeline.warehouse.client import connect, migrate

        url = self.settings.warehouse_url
        if url is None:
            return None
        client = connect(url.get_secret_value())
        migrate(client, self.settings.warehouse_engine)
        return client

    def fetched(self, run_key: str) -> FetchedRun:
        """What `fetch` brought of a CI run.

        Raises:
            SourceError: nothing; one line.
        """
        return self._fetched.get_or(run_key, lambda: _load(self.raw, run_key))

    def earlier(self, comparison: earlier_runs.Comparison, test_job: str) -> EarlierRun | None:
        """What is known of a test job of an earlier run."""
        key = (comparison.run.key, test_job, comparison.label)
        return self._earlier.get_or(key, lambda: earlier_runs.load(comparison, test_job, self))

    def forget(self, run_key: str) -> None:
        """What is known of a CI run is to be read again."""
        self._fetched.pop(run_key, None)
        for key in [key for key in self._earlier if key[0] == run_key]:
            del self._earlier[key]

    def hub_dataset(self, run: CiRun) -> str:
        return self.settings.hub_dataset or self.workflow(run, "hub_dataset") or self.profile.hub_dataset

    def channel(self, run: CiRun, test_job: str) -> str:
        """Where a test job's report goes; that of no test job goes where the first one's goes."""
        jobs = self.profile.test_jobs
        job = jobs.get(test_job) or next(iter(jobs.values()), None)
        own = self.workflow(run, "channel") or (job.channel if job else "")
        return self.settings.slack_channel or own or f"#{self.profile.name}"

    def is_processed(self, run_key: str) -> bool:
        return self.tables.has(next(reversed(TABLES)), run_key)

    def workflow(self, run: CiRun, name: str) -> Any:
        """What the profile says of the run's workflow; None where it says nothing."""
        known = (w for w in self.profile.workflows if run.workflow_id == w.id != 0 or run.workflow_path == w.path != "")
        return getattr(next(known, None), name, None)


class _Recent(OrderedDict[K, V]):
    """The last `size` values that were asked for: the steps of one CI run ask for the same ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def get_or(self, key: K, make: Callable[[], V]) -> V:
        if key not in self:
            self[key] = make()
            while len(self) > self._size:
                self.popitem(last=False)
        return self[key]


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
    run_id, _, attempt = run_key.partition("-")
    if not (run_id.isdecimal() and attempt.isdecimal()):
        raise SourceError(f"{run_key!r} is no CI run: name it <run id>-<attempt>, as in 19500000001-1")
    return services.source.run(int(run_id), int(attempt))


def _load(raw: RawStore, run_key: str) -> FetchedRun:
    from ci_pipeline.sources.raw_store import load

    with raw.local(run_key) as folder:
        return load(folder)


def ci_run_table(fetched: FetchedRun) -> pa.Table:
    import pyarrow as pa

    from ci_pipeline.tables import CI_RUN, run_key

    run = fetched.run
    problems = [f"{problem.subject}: {problem.reason}" for problem in fetched.problems]
    own: dict[str, Any] = {name: [getattr(run, name, None) or ""] for name in CI_RUN.names}
    own |= {"run_number": [run.run_number], "workflow_id": [run.workflow_id], "problems": [problems]}
    return pa.table(own | run_key(run, 1), schema=CI_RUN)


def ci_run_of(table: pa.Table) -> CiRun:
    """The run that `ci_run_table` was made of."""
    row: dict[str, Any] = table.to_pylist()[0]
    known = {name: value for name, value in row.items() if name not in ("run_created_at", "problems", "conclusion")}
    created_at = row["run_created_at"] if row["run_created_at"].timestamp() else None
    return CiRun(**known, conclusion=row["conclusion"] or None, created_at=created_at)


def read(run_key: str, services: Services) -> tuple[pa.Table, pa.Table]:
    """The reports of a fetched CI run as tables: pytest's totals, and every test's outcome.

    Raises:
        SourceError: it was not fetched; one line.
    """
    from ci_pipeline.reports.artifacts import available_artifacts
    from ci_pipeline.reports.read import read_reports
    from ci_pipeline.reports.tables import report_tables
    from ci_pipeline.sources.raw_store import load

    with services.raw.local(run_key) as folder:
        artifacts = available_artifacts(folder / "artifacts", services.profile)
        reports = read_reports(folder / "artifacts", artifacts, every_outcome=True)
        return report_tables(load(folder).run, reports, services.profile)


def each(step: Step[T], run_keys: Sequence[str], services: Services) -> Iterator[tuple[str, T | Exception]]:
    """What a step makes of each run, in order, several at once; where it fails, the error instead.

    `step` is a function of a module, since it is called in other processes.
    """
    if len(run_keys) <= AHEAD:
        yield from ((key, _attempt(step, key, services)) for key in run_keys)
        return
    # Not forked: this process has Dagster's threads.
    start = (services.settings, services.profile)
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_start_worker, initargs=start) as pool:
        waiting = iter(run_keys)
        running: deque[tuple[str, Future[T | Exception]]] = deque()
        while True:
            for key in islice(waiting, AHEAD - len(running)):
                running.append((key, pool.submit(_attempt, step, key)))
            if not running:
                return
            key, made = running.popleft()
            yield key, made.result()


_worker: list[Services] = []
"""In a process of `each`: its own services."""


def _start_worker(settings: Settings, profile: Profile) -> None:
    _worker.append(Services(settings, profile))


def _attempt(step: Step[T], run_key: str, services: Services | None = None) -> T | Exception:
    try:
        return step(run_key, services or _worker[0])
    except Exception as error:
        return error


def job_reports(
    fetched: FetchedRun,
    test_reports: pa.Table,
    test_outcomes: pa.Table,
    profile: Profile,
    *,
    every_outcome: bool = False,
) -> list[JobReport]:
    """The report of each test job, not yet compared with anything; of its tests the failing ones, or every one.

    A test job whose artifacts are all missing has a report as well: the CI run's jobs announce it.
    """
    import pyarrow.compute as pc

    from ci_pipeline.analysis.job_results import job_links, job_report
    from ci_pipeline.reports.artifacts import parse_artifact_name
    from ci_pipeline.reports.tables import reports_from_tables

    if not every_outcome:
        test_outcomes = test_outcomes.filter(pc.field("outcome").isin(sorted(RED)))
    reports = reports_from_tables(test_reports, test_outcomes)
    named = [*fetched.artifact_names, *job_links(fetched.jobs), *(problem.subject for problem in fetched.problems)]
    seen = {artifact.test_job for name in named if (artifact := parse_artifact_name(name, profile))}
    return [
        job_report(fetched.run, test_job, reports, fetched.jobs, profile, problems=fetched.problems)
        for test_job in profile.test_jobs
        if test_job in seen
    ]


def job_results(fetched: FetchedRun, reports: Sequence[JobReport]) -> pa.Table:
    from ci_pipeline.analysis.tables import test_job_result_table

    return test_job_result_table(fetched.run, reports)


def category_results(fetched: FetchedRun, reports: Sequence[JobReport], profile: Profile) -> pa.Table:
    from ci_pipeline.analysis.tables import category_result_table

    return category_result_table(fetched.run, reports, profile)


def run_diff(
    fetched: FetchedRun,
    test_reports: pa.Table,
    test_outcomes: pa.Table,
    services: Services,
    known: Sequence[CiRun] = (),
) -> pa.Table:
    """What changed since the previous run, and what fails here but not in other runs.

    The table's metadata says which runs these are. `known`: see `earlier_runs.comparisons`.
    """
    from ci_pipeline.analysis.run_diff import run_diff as diff
    from ci_pipeline.analysis.tables import run_diff_table

    with_runs = earlier_runs.comparisons(fetched.run, services, known)
    rows: list[RunDiffRow] = []
    if with_runs:
        for report in job_reports(fetched, test_reports, test_outcomes, services.profile, every_outcome=True):
            rows += diff(report.test_job, report.reports, *_earlier(report.test_job, with_runs, services))
    table = run_diff_table(fetched.run, rows)
    return table.replace_schema_metadata({COMPARED_WITH: earlier_runs.dump(with_runs)})


def known_together(run_keys: Sequence[str], services: Services) -> list[CiRun]:
    """What there is to know before the runs of a range are compared with one another: see `earlier_runs`."""
    there = [key for key in run_keys if services.tables.has("raw_artifacts", key)]
    return earlier_runs.known_together(
        [ci_run_of(services.tables.read("raw_artifacts", key)) for key in there], services
    )


def compared_with(run_diff: pa.Table) -> list[earlier_runs.Comparison]:
    """The runs that a run diff is against."""
    return earlier_runs.parse((run_diff.schema.metadata or {}).get(COMPARED_WITH, b"[]"))


def compared(reports: Sequence[JobReport], run_diff: pa.Table, services: Services) -> list[JobReport]:
    """The reports with what changed, and with the runs that they were compared with."""
    with_runs = compared_with(run_diff)
    rows: dict[str, list[RunDiffRow]] = {}
    for row in run_diff.select([field.name for field in fields(RunDiffRow)]).to_pylist():
        rows.setdefault(row["test_job"], []).append(RunDiffRow(**row))
    done: list[JobReport] = []
    for report in reports:
        previous, others = _earlier(report.test_job, with_runs, services)
        done.append(replace(report, previous=previous, others=others, diff=rows.get(report.test_job, ())))
    return done


def _earlier(
    test_job: str, with_runs: Sequence[earlier_runs.Comparison], services: Services
) -> tuple[EarlierRun | None, list[EarlierRun]]:
    known = [(run.role, earlier) for run in with_runs if (earlier := services.earlier(run, test_job))]
    previous = next((earlier for role, earlier in known if role == "previous"), None)
    return previous, [earlier for role, earlier in known if role == "other"]


# --- out into the world ---------------------------------------------------------------------------------------------


def hub_files(reports: Sequence[JobReport], test_outcomes: pa.Table, services: Services) -> pa.Table:
    """Bring the run's files to the Hub's dataset in one commit; a table of them.

    While the Hub is down they are kept, and go there with the next delivery.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from ci_pipeline.publish import hub
    from ci_pipeline.publish.hub_files import dataset_folder, render
    from ci_pipeline.table_store import parquet

    files: dict[str, bytes] = {}
    rows: list[dict[str, Any]] = []
    for report in reports:
        folder = dataset_folder(report.run, report.test_job)
        contents = render(report, services.profile, previous_model_table=_model_table(report, services.profile))
        contents["test_outcomes.parquet"] = parquet(test_outcomes.filter(pc.field("test_job") == report.test_job))
        for name, content in contents.items():
            files[f"{folder}/{name}"] = content
            rows.append({"test_job": report.test_job, "folder": folder, "name": name, "bytes": len(content)})
    if files:
        run = reports[0].run
        delivered = hub.deliver(
            files,
            repo_id=services.hub_dataset(run),
            message=f"{run.workflow_name or 'CI run'} {run.run_number or run.run_id}",
            key=run.key,
            hub=services.hub,
            ledger=services.ledger,
        )
        rows = [row | {name: getattr(delivered, name) for name in _PLACE} for row in rows]
    text = [(name, pa.string()) for name in ("test_job", "folder", "name", *_PLACE)]
    return pa.Table.from_pylist(rows, schema=pa.schema([*text, ("bytes", pa.int64())]))


def placed(files: pa.Table) -> list[Delivered]:
    """Where the files of `hub_files` went."""
    from ci_pipeline.publish.ledger import Delivered

    return [Delivered(*place) for place in dict.fromkeys(zip(*(files[c].to_pylist() for c in _PLACE), strict=True))]


_PLACE = ("where", "url", "detail")


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
    return classic_report(earlier, profile).model_table().text(to_truncate=False)


def threads(
    fetched: FetchedRun, reports: Sequence[JobReport], files: pa.Table, services: Services
) -> dict[str, SlackThread]:
    """Each test job's Slack thread, by test job. A push that broke nothing has none: it is no news."""
    if not reports and fetched.run.conclusion != "success":
        return {"": _nothing_ran(fetched.run, services)}
    return {
        report.test_job: _thread(report, files, services)
        for report in reports
        if fetched.run.event != "push" or report.problems or any(test.outcomes for test in report.reports)
    }


def _nothing_ran(run: CiRun, services: Services) -> SlackThread:
    from ci_pipeline.publish.mrkdwn import link
    from ci_pipeline.publish.slack_classic import error_message
    from ci_pipeline.publish.thread import SlackThread

    return SlackThread(error_message(_title(run, services), link(run.html_url, run.title), run.html_url))


def _title(run: CiRun, services: Services) -> str:
    return f"[INFO] Results of {services.workflow(run, 'ci_event') or run.workflow_name or run.event}"


def _thread(report: JobReport, files: pa.Table, services: Services) -> SlackThread:
    import pyarrow.compute as pc

    from ci_pipeline.publish import slack_classic, slack_full
    from ci_pipeline.publish.mrkdwn import link

    run, profile = report.run, services.profile
    job = profile.test_jobs.get(report.test_job)
    uploaded = files.filter((pc.field("test_job") == report.test_job) & (pc.field("url") != "")).to_pylist()
    folder = next((f"{row['url']}/{row['folder']}" for row in uploaded), "")
    urls = {row["name"]: f"{folder.replace('/tree/', '/blob/', 1)}/{row['name']}" for row in uploaded}

    if services.settings.slack_style == "classic":
        return slack_classic.classic_report(
            report,
            profile,
            title=f"{_title(run, services)}: {job.test if job else report.test_job}",
            ci_title=link(run.html_url, run.title),
            run_url=run.html_url,
            file_url=lambda name: urls.get(name, ""),
        ).thread()
    results = urls.get(f"{job.result_name if job else report.test_job}_results.json", "")
    return slack_full.messages(report, profile, links=slack_full.Links(hub=folder, failures=results))


def post_threads(threads: Mapping[str, SlackThread], run: CiRun, services: Services) -> dict[str, Delivered]:
    """Bring each thread to its test job's channel; what is there already is edited.

    Raises:
        SlackRefused: Slack said no, and a person has to act; the thread is kept.
    """
    from ci_pipeline.publish.thread import deliver

    return {
        test_job: deliver(
            thread, run, test_job, services.channel(run, test_job), slack=services.slack, ledger=services.ledger
        )
        for test_job, thread in threads.items()
    }


def keep(run_keys: Sequence[str], services: Services) -> str:
    """Write the tables of processed runs to the warehouse, in place of what it has of them; says what became of it.

    While the warehouse is down, the runs are noted and go there with the next delivery.
    """
    if services.settings.warehouse_url is None:
        return "no warehouse is configured"
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
            return f"pending: {error}"
        for key in keys:
            services.ledger.remove(f"{PENDING_ROWS}/{key}")
    return f"{rows} rows"


def _insert(run_keys: Sequence[str], services: Services) -> int:
    import pyarrow as pa

    from ci_pipeline.warehouse.client import insert_runs

    if services.warehouse is None:
        return 0
    tables = {
        there: pa.concat_tables([services.tables.read(here, key).replace_schema_metadata() for key in run_keys])
        for here, there in TABLES.items()
    }
    insert_runs(services.warehouse, tables)
    return sum(table.num_rows for table in tables.values())


def deliver_pending(services: Services) -> list[str]:
    """Try again what could not be delivered; a line for each."""
    from ci_pipeline.publish import hub, thread

    lines: list[str] = []
    if names := services.ledger.names(PENDING_ROWS):
        lines.append(f"warehouse: {keep([name.rpartition('/')[2] for name in names], services)}")
    delivered = hub.deliver_pending(hub=services.hub, ledger=services.ledger)
    lines += [_line("files", place) for place in delivered]
    delivered = thread.deliver_pending(slack=services.slack, ledger=services.ledger)
    return lines + [_line("messages", place) for place in delivered]


def has_pending(services: Services) -> bool:
    """Whether there is something to deliver again."""
    return any(services.ledger.names(folder) for folder in ("hub/pending", "slack/pending", PENDING_ROWS))


def report_failure(run_keys: Sequence[str], reasons: Sequence[str], services: Services) -> Delivered:
    """Tell Slack, in one message, that the report of a CI run, or of a range of them, could not be made."""
    from ci_pipeline.publish.mrkdwn import escape
    from ci_pipeline.publish.slack_classic import header, section
    from ci_pipeline.publish.thread import SlackMessage, SlackThread, deliver

    which = run_keys[0] if len(run_keys) == 1 else f"{run_keys[0]} to {run_keys[-1]}"
    text = f"The report of CI run {which} could not be made."
    blocks = [header(f"❌ {text}"), *(section(escape(reason)) for reason in reasons)]
    run_id, _, attempt = run_keys[0].partition("-")
    run = CiRun(services.profile.repository, int(run_id), int(attempt))
    return deliver(
        SlackThread(SlackMessage("main", f"❌ {text} {' '.join(reasons)}", blocks)),
        run,
        "pipeline failure",
        services.channel(run, ""),
        slack=services.slack,
        ledger=services.ledger,
    )


# --- what is kept, and for how long ---------------------------------------------------------------------------------


def expired(services: Services) -> set[str]:
    """The CI runs that were processed longer ago than the retention time, by key; none that the warehouse lacks."""
    limit = datetime.now(UTC) - timedelta(days=services.settings.retention_days)
    written = services.tables.written(next(iter(TABLES)))
    waiting = {name.rpartition("/")[2] for name in services.ledger.names(PENDING_ROWS)}
    return {key for key, time in written.items() if time < limit} - waiting


def prune(run_key: str, services: Services) -> None:
    """Forget a CI run's artifacts and tables. What the warehouse has of it stays."""
    services.raw.delete(run_key)
    for table in (*reversed(TABLES), "hub_dataset_files"):
        services.tables.delete(table, run_key)


# --- all of them ----------------------------------------------------------------------------------------------------


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
    fetched = fetch(run, services, progress)
    test_reports, test_outcomes = read(run.key, services)
    reports = job_reports(fetched, test_reports, test_outcomes, services.profile)
    tables = {
        "raw_artifacts": ci_run_table(fetched),
        "test_reports": test_reports,
        "test_outcomes": test_outcomes,
        "job_results": job_results(fetched, reports),
        "category_results": category_results(fetched, reports, services.profile),
        "run_diff": run_diff(fetched, test_reports, test_outcomes, services),
    }
    for name, table in tables.items():
        services.tables.write(name, run.key, table)
    reports = compared(reports, tables["run_diff"], services)
    files = hub_files(reports, test_outcomes, services)
    services.tables.write("hub_dataset_files", run.key, files)
    made = threads(fetched, reports, files, services)
    lines = [_line("files", place) for place in placed(files)]
    if post:
        lines += [_line(test_job, place) for test_job, place in post_threads(made, fetched.run, services).items()]
    lines.append(f"warehouse: {keep([run.key], services)}")
    return ProcessedRun(fetched.run, reports, tables, made, lines)


def processed_run(run_key: str, services: Services) -> ProcessedRun:
    """A CI run after all steps, from what they left behind: nothing is fetched, and nothing goes out.

    Raises:
        MissingTable, SourceError: it was not processed; one line.
    """
    fetched = services.fetched(run_key)
    tables = {name: services.tables.read(name, run_key) for name in TABLES}
    reports = job_reports(fetched, tables["test_reports"], tables["test_outcomes"], services.profile)
    reports = compared(reports, tables["run_diff"], services)
    made = threads(fetched, reports, services.tables.read("hub_dataset_files", run_key), services)
    return ProcessedRun(fetched.run, reports, tables, made)


def _line(what: str, place: Delivered) -> str:
    return (
        f"{what}: {place.where}"
        + (f" {place.url}" if place.url else "")
        + (f" ({place.detail})" if place.detail else "")
    )


def new_runs(services: Services) -> Iterator[CiRun]:
    """What the source has and is not processed yet, oldest first."""
    return (run for run in _runs(services, None) if not services.is_processed(run.key))


def newest_run(services: Services) -> CiRun:
    """
    Raises:
        SourceError: the source has none.
    """
    newest = deque(_runs(services, None), maxlen=1)
    if not newest:
        raise SourceError(f"there is no completed CI run in {services.settings.source_uri}")
    return newest[0]


def backfill(
    services: Services, *, limit: int | None = None, post: bool = False, progress: Progress | None = None
) -> Iterator[ProcessedRun]:
    """Process all that the source has, oldest first, also what was processed before."""
    runs = list(islice(_runs(services, cursor_at(datetime.fromtimestamp(0, UTC))), limit))
    for done, run in enumerate(runs):
        if progress:
            progress(done, len(runs), run.key)
        yield process_run(run, services, post=post)


def _runs(services: Services, cursor: str | None) -> Iterator[CiRun]:
    while (page := services.source.runs_after(cursor)).runs:
        yield from page.runs
        cursor = page.cursor
