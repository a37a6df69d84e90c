"""What a deployment's settings name: the source, the stores, the warehouse, and where reports go."""

# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client

    from ci_pipeline.model import CiRun, EarlierRun, FetchedRun, JobReport
    from ci_pipeline.profile import Profile
    from ci_pipeline.publish.hub import Hub
    from ci_pipeline.publish.ledger import Ledger
    from ci_pipeline.publish.thread import Slack
    from ci_pipeline.settings import Settings
    from ci_pipeline.sources import Source
    from ci_pipeline.sources.raw_store import RawStore
    from ci_pipeline.table_store import TableStore

K = TypeVar("K")
V = TypeVar("V")

TABLES = {
    "raw_artifacts": "ci_run",
    "test_reports": "test_report",
    "test_outcomes": "test_outcome",
    "job_results": "test_job_result",
    "category_results": "category_result",
    "run_diff": "run_diff",
}
"""The tables of a processed run in the order in which they are made, and what the warehouse calls each."""


class Services:
    """What a deployment's settings name, each opened when it is first needed. `s3` makes the S3 source's client."""

    def __init__(self, settings: Settings, profile: Profile, *, s3: Callable[[], Any] | None = None) -> None:
        self.settings = settings
        self.profile = profile
        self._s3 = s3
        # The steps of a CI run ask for the same things, one after the other.
        self._fetched: _Recent[str, FetchedRun] = _Recent(4)
        self._outcomes: _Recent[str, pa.Table] = _Recent(2)
        self._reports: _Recent[tuple[str, bool], list[JobReport]] = _Recent(2)
        self._earlier: _Recent[tuple[str, str], dict[str, EarlierRun | None]] = _Recent(4)
        self._together: _Recent[tuple[str, ...], list[CiRun]] = _Recent(1)

    @cached_property
    def source(self) -> Source:
        from ci_pipeline.sources import open_source

        if not self.settings.source:  # the embedded default is there from the start
            (self.settings.home / "inbox").mkdir(parents=True, exist_ok=True)
        # dagster-aws takes a second to import: only for those who need it.
        s3 = self._s3() if self._s3 and self.settings.source_uri.startswith("s3:") else None
        return open_source(self.settings, self.profile, s3=s3)

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

    @cached_property
    def workers(self) -> ProcessPoolExecutor:
        """Other processes that do steps of CI runs, each with services of its own."""
        # Not forked from this process, which may have threads, as Dagster's have; but from one that has the libraries.
        context = get_context("forkserver")
        context.set_forkserver_preload(["ci_pipeline.pipeline", "pandas", "pyarrow.parquet"])
        start = (dict(os.environ), self.settings, self.profile)
        return ProcessPoolExecutor(mp_context=context, initializer=_start_worker, initargs=start)

    def fetched(self, run_key: str) -> FetchedRun:
        """What `fetch` brought of a CI run.

        Raises:
            SourceError: nothing; one line.
        """
        return self._fetched.get_or(run_key, lambda: self.raw.load(run_key))

    def outcomes(self, run_key: str) -> pa.Table:
        """The table of a CI run's test outcomes.

        Raises:
            MissingTable: it was not read; one line.
        """
        return self._outcomes.get_or(run_key, lambda: self.tables.read("test_outcomes", run_key))

    def reports(self, run_key: str, every_outcome: bool, make: Callable[[], list[JobReport]]) -> list[JobReport]:
        """What `make` makes of a CI run that was read, made once."""
        return self._reports.get_or((run_key, every_outcome), make)

    def earlier(
        self, run_key: str, label: str, test_job: str, make: Callable[[], EarlierRun | None]
    ) -> EarlierRun | None:
        """What `make` makes of a test job of an earlier run, made once."""
        test_jobs = self._earlier.get_or((run_key, label), dict)
        if test_job not in test_jobs:
            test_jobs[test_job] = make()
        return test_jobs[test_job]

    def together(self, run_keys: tuple[str, ...], make: Callable[[], list[CiRun]]) -> list[CiRun]:
        """What `make` makes of CI runs that are processed together, made once."""
        return self._together.get_or(run_keys, make)

    def forget(self, run_key: str) -> None:
        """What is known of a CI run is to be read again."""
        self._fetched.pop(run_key, None)
        self._outcomes.pop(run_key, None)
        for every_outcome in (False, True):
            self._reports.pop((run_key, every_outcome), None)
        for key in [key for key in self._earlier if key[0] == run_key]:
            del self._earlier[key]

    def hub_dataset(self, run: CiRun) -> str:
        return self.settings.hub_dataset or self.workflow(run, "hub_dataset") or self.profile.hub_dataset

    def channel(self, run: CiRun, test_job: str) -> str:
        """Where a test job's report goes, and what is about none of them."""
        own = self.profile.channel_of(run.workflow_id, run.workflow_path, test_job)
        return self.settings.slack_channel or own or f"#{self.profile.name}"

    def is_processed(self, run_key: str) -> bool:
        return self.tables.has(next(reversed(TABLES)), run_key)

    def workflow(self, run: CiRun, name: str) -> Any:
        """What the profile says of the run's workflow; None where it says nothing."""
        return getattr(self.profile.workflow_of(run.workflow_id, run.workflow_path), name, None)


class _Recent(OrderedDict[K, V]):
    """The last `size` values that were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def get_or(self, key: K, make: Callable[[], V]) -> V:
        if key not in self:
            self[key] = make()
            while len(self) > self._size:
                self.popitem(last=False)
        return self[key]


_worker: list[Services] = []


def worker_services() -> Services:
    """The services of the worker process that this is."""
    return _worker[0]


def _start_worker(environment: Mapping[str, str], settings: Settings, profile: Profile) -> None:
    import pyarrow as pa

    os.environ.update(environment)  # it says where S3 is, and may have changed since that one process was started
    gc.set_threshold(100_000)  # there are few cycles, and to look for them as often as usual takes a tenth of the time
    ForkingPickler.register(pa.Table, _packed)
    _worker.append(Services(settings, profile))

    def end_with_parent() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    # A pool whose owner was killed would wait for work for ever.
    Thread(target=end_with_parent, daemon=True).start()


def _packed(table: pa.Table) -> tuple[Callable[[pa.Buffer], pa.Table], tuple[pa.Buffer]]:
    """A table on its way to the process that asked for it: pickled by itself, it takes five times as long."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return _unpacked, (sink.getvalue(),)


def _unpacked(stream: pa.Buffer) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(stream).read_all()
