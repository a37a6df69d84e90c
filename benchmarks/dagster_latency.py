"""Time from a finished CI run in the inbox to its main message, under `dagster dev`.

    python -m benchmarks.dagster_latency                        a generated tree of 32 artifacts
    python -m benchmarks.dagster_latency --tree DIR [--runs 9]  a tree of your own (see benchmarks.make_tree)

Everything is the default of one machine: SQLite, a folder as source, an outbox instead of Slack; no warehouse. The
runs are put into the inbox at random moments, one after the other. Prints the median, least and most of wall seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

from benchmarks.inbox import put
from benchmarks.make_tree import make_tree

PROJECT = Path(__file__).parents[1]
FIRST_RUN = 41000000000


@contextmanager
def dagster_dev(home: Path) -> Generator[Path]:
    """`dagster dev` on a new home; its log file."""
    (home / "dagster").mkdir(parents=True)
    (home / "inbox").mkdir()
    shutil.copy(PROJECT / "dagster.yaml", home / "dagster")
    env = os.environ | {"CI_PIPELINE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    dagster = [sys.executable, "-m", "dagster"]
    subprocess.run([*dagster, "instance", "migrate"], env=env, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with (home / "dagster.log").open("wb") as log:
        serving = subprocess.Popen(
            [*dagster, "dev", "-w", str(PROJECT / "workspace.yaml"), "-h", "127.0.0.1", "-p", port],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield home / "dagster.log"
        finally:
            os.killpg(serving.pid, signal.SIGKILL)  # asked to stop, it takes half a minute
            serving.wait()


def seconds_to_message(tree: Path, home: Path, run_id: int, day: date, patience: float = 180.0) -> float:
    """
    Raises:
        TimeoutError: no message came.
    """
    put(tree, home / "inbox", run_id, day)
    start = time.monotonic()
    while time.monotonic() - start < patience:
        if any((home / "outbox" / "slack").glob(f"*/{run_id}/*/main.json")):
            return time.monotonic() - start
        time.sleep(0.02)
    raise TimeoutError(f"no message after {patience:.0f} s: see {home}/dagster.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.tree.parent if options.tree else None) as folder:
        tree = options.tree
        if tree is None:
            tree = Path(folder, "tree")
            make_tree(tree, folders=16, tests=20, fail_rate=0.05, seed=1)
        home = Path(folder, "home")
        day, rng = date(2026, 2, 1), random.Random(1)
        with dagster_dev(home):
            seconds_to_message(tree, home, FIRST_RUN, day)  # and Dagster has started
            taken: list[float] = []
            for i in range(1, options.runs + 1):
                time.sleep(8 + rng.uniform(0, 5))
                taken.append(seconds_to_message(tree, home, FIRST_RUN + i, day + timedelta(i)))
                print(f"{taken[-1]:6.1f} s", flush=True)
    print(f"inbox to main message: median {statistics.median(taken):.1f} s, {min(taken):.1f} to {max(taken):.1f} s")


if __name__ == "__main__":
    main()
