"""`make run` and `ci-pipeline up`: everything on one machine, really started and really stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
from dagster._core.storage.tags import PARTITION_NAME_TAG, WILL_RETRY_TAG

from ci_pipeline.defs.jobs import deliver
from ci_pipeline.sample import build, install
from ci_pipeline.up import RunWatch

LINUX = sys.platform == "linux"
ROOT = Path(__file__).parent.parent
UP = [sys.executable, "-m", "ci_pipeline.cli", "up"]
# The checkout as it is, with the environment that runs this test: nothing is installed again.
MAKE_RUN = ["make", "--no-print-directory", "--old-file=.venv/.ready", f"BIN={Path(sys.executable).parent}", "run"]
SECONDS = 240  # on a machine that has much else to do
FIRST, SECOND, AMD = (str(night.run_id) for night in build.NIGHTS)


class Up:
    """One `ci-pipeline up` in a home of its own, on ports that nobody else uses."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.output = home.parent / "output.txt"
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.dagster, self.hud, self.warehouse = ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        unset = {
            name for name in os.environ if name.startswith(("CI_PIPELINE_", "CI_SLACK", "SLACK_", "HF_", "GITHUB_"))
        }
        self.environment = {name: value for name, value in os.environ.items() if name not in unset}
        names = ("DAGSTER_PORT", "HUD_PORT", "WAREHOUSE_PORT")
        self.environment |= {name: str(port) for name, port in zip(names, ports, strict=True)}
        self.environment["CI_PIPELINE_HOME"] = str(home)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, command: Sequence[str] = UP) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *arguments], env=self.environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
        return self.process

    def run(self, *arguments: str, command: Sequence[str] = UP) -> int:
        return self.start(*arguments, command=command).wait(SECONDS)

    def text(self) -> str:
        return self.output.read_text("utf-8")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process
            assert self.process.poll() is None, f"it ended: {self.text()}"
            assert time.monotonic() < deadline, f"it did not happen: {self.text()}"
            time.sleep(0.2)

    def wait_until_ready(self) -> None:
        self.wait_until(lambda: "Ctrl-C stops everything" in " ".join(self.text().split()))

    def processes(self) -> list[int]:
        """All processes that know this home."""
        mark = f"CI_PIPELINE_HOME={self.home}\0".encode()
        found: list[int] = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in entry.read_bytes() and "Z" not in (entry.parent / "stat").read_text().rpartition(")")[2][:3]:
                    found.append(int(entry.parent.name))
            except OSError:
                continue
        return found

    def nothing_is_left(self) -> bool:
        return not self.processes()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(SECONDS)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "home")
    yield up
    up.stop()
    for pid in up.processes() if LINUX else []:
        os.kill(pid, signal.SIGKILL)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * SECONDS)]


def test_make_run_once_makes_the_reports_of_the_sample_and_leaves_nothing_behind(up: Up) -> None:
    assert up.run("ARGS=--once", command=MAKE_RUN) == 0, up.text()
    for number in ("#1301", "#1302", "#417"):
        assert number in up.text()
    assert up.text().count("incomplete") == 2
    assert "new failure" in up.text()
    assert len(list((up.home / "outbox" / "slack").rglob("main.json"))) == 6
    if LINUX:
        assert up.nothing_is_left()
    before = {path: path.stat().st_mtime_ns for path in (up.home / "outbox").rglob("*")}
    first = up.text()
    assert up.run("--once") == 0, up.text()
    assert up.text() == first, "a second start shows the same reports"
    assert {path: path.stat().st_mtime_ns for path in (up.home / "outbox").rglob("*")} == before, "and makes none anew"


def test_what_comes_into_the_inbox_is_reported_until_ctrl_c(up: Up) -> None:
    install(up.home / "inbox")
    shutil.rmtree(up.home / "inbox" / SECOND)
    shutil.rmtree(up.home / "inbox" / AMD)
    process = up.start()
    up.wait_until_ready()
    assert httpx2.get(f"http://127.0.0.1:{up.dagster}/server_info", timeout=30).status_code == 200
    page = f"http://127.0.0.1:{up.hud}/"
    assert "Daily CI #1301" in httpx2.get(page, timeout=30).text
    assert "Daily CI #1302" not in httpx2.get(page, timeout=30).text
    install(up.home / "inbox")
    up.wait_until(lambda: "Daily CI #1302" in httpx2.get(page, timeout=30).text)
    up.wait_until(lambda: "#1302" in up.text())
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert "Stopped" in up.text()
    if LINUX:
        assert up.nothing_is_left()


def test_a_child_that_dies_is_named_and_the_others_stop(up: Up) -> None:
    process = up.start("--no-sample")
    up.wait_until_ready()
    page = httpx2.get(f"http://127.0.0.1:{up.hud}/", timeout=30)
    assert "No CI run yet" in page.text
    [hud] = [pid for pid in up.processes() if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(hud, signal.SIGKILL)
    assert process.wait(SECONDS) == 1
    assert f"hud ended with exit code -9: see {up.home}/logs/hud.log" in up.text().replace("\n", "")
    assert up.nothing_is_left()


def test_killed_in_the_middle_it_leaves_no_child_and_goes_on_at_the_next_start(up: Up) -> None:
    install(up.home / "inbox")
    shutil.rmtree(up.home / "inbox" / AMD)
    process = up.start()
    up.wait_until(lambda: (up.home / "outbox" / "slack").exists())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while not up.nothing_is_left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert up.nothing_is_left()
    assert up.run("--once") == 0, up.text()
    assert len(list((up.home / "outbox" / "slack").rglob("main.json"))) == 4


def test_a_failure_is_shown_when_dagster_does_not_try_again() -> None:
    def failed(key: str, **tags: str) -> str:
        run = instance.create_run_for_job(deliver, tags={PARTITION_NAME_TAG: key, **tags})
        instance.report_run_failed(run)
        return run.run_id

    with dg.DagsterInstance.ephemeral() as instance:
        nothing: Any = None
        watch = RunWatch(instance, nothing, nothing, [])
        failed("101-1", **{WILL_RETRY_TAG: "true"})
        last = failed("101-1")
        failed("2026-05-01")  # a day of out-of-tree CI
        assert [run.run_id for run in watch.news()] == [last]
        assert watch.news() == []


if not LINUX:  # these look at /proc, and only there does a child hear of its parent's end
    del test_a_child_that_dies_is_named_and_the_others_stop
    del test_killed_in_the_middle_it_leaves_no_child_and_goes_on_at_the_next_start


@pytest.mark.parametrize("part", ["dagster", "hud", "warehouse"])
def test_a_port_in_use_is_one_clear_line(up: Up, part: str) -> None:
    with socket.create_server(("127.0.0.1", getattr(up, part))):
        assert up.run("--once") == 1
    assert up.text().startswith(f"Error: Port {getattr(up, part)} is in use")
    assert f"--{part}-port or {part.upper()}_PORT" in up.text()
    assert len(up.text().splitlines()) == 1
    assert not LINUX or up.nothing_is_left()


def test_one_port_for_two_is_refused_before_anything_starts(up: Up) -> None:
    assert up.run("--hud-port", str(up.dagster)) == 1
    assert up.text().startswith(f"Error: The ports must differ: --dagster-port {up.dagster}, --hud-port {up.dagster}")


def test_a_second_one_in_the_same_home_says_so(up: Up, tmp_path: Path) -> None:
    import fcntl

    up.home.mkdir()
    with (up.home / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert up.run("--once") == 1
    assert "It runs already" in up.text()
