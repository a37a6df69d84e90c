"""Everything on one machine: warehouse, Dagster and pages, children of one process that shows what they make."""

from __future__ import annotations

import ctypes
import fcntl
import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ci_pipeline import pipeline, whole_runs
from ci_pipeline import sample as bundled
from ci_pipeline.oot.stores import open_store
from ci_pipeline.profile import load_profile
from ci_pipeline.publish import terminal
from ci_pipeline.sample import oot as sample_callbacks
from ci_pipeline.services import Services
from ci_pipeline.settings import Settings, load_oot_settings, load_settings
from ci_pipeline.warehouse.embedded import Embedded

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

    from ci_pipeline.model import CiRun

log = logging.getLogger(__name__)

DEFINITIONS = "ci_pipeline.definitions"
LOOPBACK = "127.0.0.1"
PATIENCE = 120  # seconds in which something has to happen
GRACE = 5  # seconds that a child has to stop
TICK = 0.3  # seconds between two looks
SHOWN = 3  # CI runs whose reports are drawn at the start


class UpError(RuntimeError):
    """It cannot be started, or has ended. One line for a person."""


class Ports(NamedTuple):
    dagster: int = 3000
    hud: int = 3001
    warehouse: int = 3002


def main(*, once: bool, sample: bool, ports: Ports) -> int:
    """Run until Ctrl-C; with `once`, until the reports of what is in the inbox are made. Returns the exit code.

    Raises:
        UpError: a port is taken, another one runs already, or a child ended; nothing is left behind.
        WarehouseError: the warehouse cannot start; likewise.
    """
    console = Console(highlight=False)
    for ending in (signal.SIGINT, signal.SIGTERM):  # set both: a shell's background jobs ignore Ctrl-C
        signal.signal(ending, signal.default_int_handler)
    settings = _settings(ports)
    stopping = console.status("Stopping")
    try:
        with ExitStack() as stack:
            stack.callback(stopping.stop)
            stack.enter_context(_only_one(settings.home))
            _check_ports(settings, ports)
            with console.status("Starting"):
                watch = _start(settings, ports, stack, once=once, sample=sample)
            stack.callback(stopping.start)
            _wait(watch, console)
            failed = _show(watch, console)
            if once:
                return 1 if failed else 0
            with console.status("Opening the pages"):
                _wait_for_pages(watch.family, ports)
            _print_addresses(watch.services.settings, ports, console)
            while True:
                watch.family.check()
                for dagster_run in watch.news():
                    _draw(dagster_run, watch.services, console)
                time.sleep(1)
    except KeyboardInterrupt:
        console.print("Stopped. The next start goes on from here.")
        return 0


def _settings(ports: Ports) -> Settings:
    """This process's environment, completed for all children."""
    home = load_settings().home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        {
            "CI_PIPELINE_HOME": str(home),
            "CI_PIPELINE_DAGSTER_URL": f"http://{LOOPBACK}:{ports.dagster}",
            "CI_PIPELINE_PAGES_URL": f"http://{LOOPBACK}:{ports.hud}",
            "DAGSTER_HOME": str(home / "dagster"),
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }
    )
    return load_settings()


@contextmanager
def _only_one(home: Path) -> Generator[None]:
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpError(f"It runs already in {home}: stop it first, or set CI_PIPELINE_HOME") from None
        yield


def _check_ports(settings: Settings, ports: Ports) -> None:
    """All at once and before anything is started: later, each owner would say it in its own way."""
    if len(set(ports)) < len(ports):
        raise UpError(
            f"The ports must differ: {', '.join(f'--{name}-port {port}' for name, port in ports._asdict().items())}"
        )
    for name, port in ports._asdict().items():
        if name == "warehouse" and settings.warehouse_url:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                how = f"--{name}-port or {name.upper()}_PORT"
                raise UpError(f"Port {port} is in use: stop what uses it, or choose another: {how}") from None


def _start(settings: Settings, ports: Ports, stack: ExitStack, *, once: bool, sample: bool) -> RunWatch:
    """Start all parts, of Dagster and the pages with `once` only what makes reports.

    What is to be processed is there before Dagster looks for it.
    """
    # With `once`, all is done when the children are to stop: there is nothing to wait for.
    family = Family(settings.home / "logs", grace=0.5 if once else GRACE)
    dagster_home, inbox = settings.home / "dagster", settings.home / "inbox"
    if sample and not settings.source and not dagster_home.exists() and not (inbox.exists() and any(inbox.iterdir())):
        bundled.install(inbox)
        with closing(open_store(load_oot_settings().store_url)) as store:
            sample_callbacks.feed(store, load_profile(settings.profile).repository)
    with ThreadPoolExecutor(1) as pool:  # both take a second
        preparing = pool.submit(_dagster_instance, dagster_home)
        if not settings.warehouse_url:
            output = family.logs / "warehouse.log"
            warehouse = stack.enter_context(Embedded(settings.home / "warehouse", port=ports.warehouse, log=output))
            family.children["warehouse"] = warehouse.process
            os.environ["CI_PIPELINE_WAREHOUSE_URL"] = warehouse.url
            settings = load_settings()
        instance = preparing.result()
    stack.enter_context(family)
    if once:
        family.start("dagster", "dagster._daemon", "run", "-m", DEFINITIONS)
    else:
        family.start("dagster", "dagster", "dev", "-m", DEFINITIONS, "-h", LOOPBACK, "-p", str(ports.dagster))
        family.start("hud", "ci_pipeline.cli", "serve", "--port", str(ports.hud))
    services = Services(settings, load_profile(settings.profile))
    return RunWatch(instance, services, family, services.source.runs_after(None, limit=1000).runs)


def _dagster_instance(home: Path) -> DagsterInstance:
    """Dagster's storage, made or brought up to date by one process before the others open it."""
    home.mkdir(exist_ok=True)
    package = Path(__file__).parent
    checkout = package.parent / "dagster.yaml"
    shutil.copyfile(checkout if checkout.exists() else package / "dagster.yaml", home / "dagster.yaml")
    from dagster import DagsterEvent, DagsterInstance, DagsterRunStatus, RunsFilter

    instance = DagsterInstance.from_config(str(home))
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # what was upgraded is no news
        instance.upgrade()
    # Whose process ended with the last start: nobody else would ever continue them.
    for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTING, DagsterRunStatus.STARTED])):
        instance.report_dagster_event(DagsterEvent.job_enqueue(run), run.run_id)
    return instance


class Family:
    """The processes that belong together: each writes to `<logs>/<name>.log`, and all end when this one does."""

    def __init__(self, logs: Path, grace: float) -> None:
        self.logs = logs
        self.grace = grace
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(exist_ok=True)

    def start(self, name: str, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as output:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others in order
                preexec_fn=_end_with_parent,
            )

    def check(self) -> None:
        """
        Raises:
            UpError: a child has ended.
        """
        for name, child in self.children.items():
            if child.poll() is not None:
                raise UpError(f"{name} ended with exit code {child.returncode}: see {self.logs / name}.log")

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        """The last one started stops first: what is on its way to the warehouse gets there."""
        for name, child in reversed(self.children.items()):
            child.terminate()
            try:
                child.wait(self.grace)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                log.info("%s is killed", name)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # also what it may have left behind
            child.wait()


def _end_with_parent() -> None:
    """On Linux, a child is told to stop when this process is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class RunWatch:
    """How far Dagster is with each of the CI runs that were there at the start."""

    def __init__(self, instance: DagsterInstance, services: Services, family: Family, runs: Sequence[CiRun]) -> None:
        self.instance = instance
        self.services = services
        self.family = family
        self.runs = runs
        self.dagster_runs: dict[str, DagsterRun] = {}  # the newest, by CI run key
        self.started = datetime.now(UTC)
        self.known: set[str] = set()  # runs of Dagster that were shown

    def look(self) -> None:
        """Ask Dagster about the CI runs that are not done."""
        from dagster import RunsFilter
        from dagster._core.storage.tags import PARTITION_NAME_TAG

        waiting = [run.key for run in self.runs if self.state(run) in ("waiting", "working")]
        if waiting:
            found = self.instance.get_runs(RunsFilter(tags={PARTITION_NAME_TAG: waiting}))
            self.dagster_runs |= {run.tags[PARTITION_NAME_TAG]: run for run in reversed(found)}
            self.known.update(run.run_id for run in found if run.is_finished)

    def news(self) -> list[DagsterRun]:
        """What ended of CI runs since this was asked the last time, the oldest first."""
        from dagster import RunsFilter
        from dagster._core.storage.dagster_run import FINISHED_STATUSES
        from dagster._core.storage.tags import PARTITION_NAME_TAG

        ended = RunsFilter(statuses=list(FINISHED_STATUSES), updated_after=self.started)
        new = [run for run in self.instance.get_runs(ended, limit=100) if run.run_id not in self.known]
        self.known.update(run.run_id for run in new)
        new = [run for run in new if pipeline.is_run_key(run.tags.get(PARTITION_NAME_TAG, ""))]  # others are of a day
        return [run for run in reversed(new) if not _is_made_again(run)]

    def state(self, run: CiRun) -> Literal["waiting", "working", "done", "failed"]:
        dagster_run = self.dagster_runs.get(run.key)
        if dagster_run is None:
            return "waiting"
        if not dagster_run.is_finished or _is_made_again(dagster_run):
            return "working"
        return "done" if dagster_run.is_success else "failed"

    def step(self, run: CiRun) -> str:
        """What Dagster does for it now."""
        from dagster import DagsterEventType

        started = self.instance.all_logs(self.dagster_runs[run.key].run_id, of_type=DagsterEventType.STEP_START)
        return (started[-1].step_key or "").replace("_", " ") if started else "starting"


def _is_made_again(dagster_run: DagsterRun) -> bool:
    """What failed or was interrupted, Dagster does once more by itself."""
    from dagster._core.storage.tags import WILL_RETRY_TAG

    return dagster_run.tags.get(WILL_RETRY_TAG) == "true"


def _wait(watch: RunWatch, console: Console) -> None:
    """Show each CI run until all are done.

    Raises:
        UpError: a child ended, or nothing moves any more.
    """
    spinner = Spinner("dots")
    seen: list[str] = []
    moved = time.monotonic()
    # Redrawn from this loop, since a thread would be in the way of Ctrl-C.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            watch.family.check()
            watch.look()
            states = [watch.state(run) for run in watch.runs]
            if states != seen:
                seen, moved = states, time.monotonic()
            if not {"waiting", "working"} & set(states):
                return
            if "working" not in states and time.monotonic() - moved > PATIENCE:
                raise UpError(f"No CI run was taken for {PATIENCE} s: see {watch.family.logs}/dagster.log")
            if console.is_terminal:
                live.update(_progress(watch, spinner), refresh=True)
            time.sleep(TICK)


def _progress(watch: RunWatch, spinner: Spinner) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for run in watch.runs:
        state = watch.state(run)
        if state in ("waiting", "working"):
            mark, what = spinner, "waiting for the sensor" if state == "waiting" else watch.step(run)
        else:
            mark, what = (Text("✓", "green") if state == "done" else Text("✗", "red")), state
        table.add_row(mark, Text(watch.services.profile.run_title(run)), Text(run.key, "dim"), Text(what, "dim"))
    return table


def _show(watch: RunWatch, console: Console) -> int:
    """Draw the newest reports; how many CI runs could not be processed."""
    if not watch.runs:
        console.print(Text(f"No CI run in {watch.services.settings.source_uri} yet"))
    failed = [run for run in watch.runs if watch.state(run) == "failed"]
    done = [run for run in watch.runs if watch.state(run) == "done"]
    for run in [*done[-SHOWN:], *failed]:
        _draw(watch.dagster_runs[run.key], watch.services, console)
    return len(failed)


def _draw(dagster_run: DagsterRun, services: Services, console: Console) -> None:
    """The reports that a run of Dagster made."""
    from dagster._core.storage.tags import PARTITION_NAME_TAG

    run_key = dagster_run.tags[PARTITION_NAME_TAG]
    if dagster_run.is_success:
        for thread in whole_runs.processed_run(run_key, services).threads.values():
            terminal.draw(thread, console)
    else:
        where = f"{services.settings.dagster_url}/runs/{dagster_run.run_id}"
        console.print(Text(f"✗ CI run {run_key} could not be processed: see {where}", "bold red"))


def _wait_for_pages(family: Family, ports: Ports) -> None:
    deadline = time.monotonic() + PATIENCE
    for name, port in (("dagster", ports.dagster), ("hud", ports.hud)):
        while not _answers(port):
            family.check()
            if time.monotonic() > deadline:
                raise UpError(f"{name} does not answer at {LOOPBACK}:{port}: see {family.logs / name}.log")
            time.sleep(TICK)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def _print_addresses(settings: Settings, ports: Ports, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, where in (
        ("CI runs", settings.pages_url),
        ("Out-of-tree CI", f"{settings.pages_url}/oot"),
        ("Dagster", settings.dagster_url),
        ("Messages", str(settings.outbox_path)),
        ("Source", settings.source_uri),
        ("Next", f"{sys.argv[0]} check-config says how to connect GitHub, Slack and the Hub"),
    ):
        table.add_row(Text(name, "bold"), Text(where, overflow="fold"))
    console.print(table)
    console.print("What comes into the source is reported. Ctrl-C stops everything.")
