"""Backfill history in one Dagster run: CI runs per second, and whether memory stays flat.

    python -m benchmarks.backfill                         500 generated CI runs of 32 artifacts, on SQLite
    python -m benchmarks.backfill --tree DIR --runs 100   a tree of your own (see benchmarks.make_tree)
    python -m benchmarks.backfill --postgres postgresql+psycopg2://user:password@host/database

Prints wall seconds of Dagster's run, as its page shows them, and of the whole process, imports included; CI runs per
second; those that were set aside; and the process's memory as it went. After the benchmark has deleted what it made,
ext4 takes minutes until it makes files as fast as before: wait, or set TMPDIR to a tmpfs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date, timedelta
from pathlib import Path

from benchmarks.inbox import put
from benchmarks.make_tree import make_tree

PROJECT = Path(__file__).parents[1]
FIRST_RUN = 42000000000


def work() -> None:
    """The Dagster run, in this process."""
    import dagster as dg
    from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

    from ci_pipeline.definitions import build_definitions
    from ci_pipeline.profile import load_profile
    from ci_pipeline.services import Services
    from ci_pipeline.settings import load_settings
    from ci_pipeline.whole_runs import new_runs

    memory: list[int] = []

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            memory.append(int(status.partition("VmRSS:")[2].split()[0]) // 1024)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()
    settings = load_settings()
    profile = load_profile(settings.profile)
    services = Services(settings, profile)
    keys = [run.key for run in new_runs(services)]
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("ci_run", keys)
        job = build_definitions(settings, profile).resolve_job_def("process_ci_run")
        tags = {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]}
        began = time.monotonic()
        result = job.execute_in_process(tags=tags, instance=instance)
        seconds = time.monotonic() - began
        steps = {}
        for event in result.all_events:
            if event.event_type_value == "STEP_SUCCESS":
                steps[event.step_key] = round(event.step_success_data.duration_ms / 1000, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    quarters = [max(memory[i * len(memory) // 4 : (i + 1) * len(memory) // 4] or [0]) for i in range(4)]
    set_aside = [key for key in keys if not services.is_processed(key)]
    said = {"runs": len(keys), "set_aside": set_aside, "seconds": seconds, "steps": steps}
    print(json.dumps(said | {"memory": quarters, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--postgres", default="", metavar="URL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.tree.parent if options.tree else None) as folder:
        tree, home = options.tree or Path(folder, "tree"), Path(folder, "home")
        if options.tree is None:
            make_tree(tree, folders=16, tests=20, fail_rate=0.05, seed=1)
        (home / "dagster").mkdir(parents=True)
        storage = f"storage:\n  postgres:\n    postgres_url: {options.postgres}\n" if options.postgres else ""
        (home / "dagster" / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text() + storage)
        for i in range(options.runs):
            put(tree, home / "inbox", FIRST_RUN + i, date(2024, 1, 1) + timedelta(i))
        env = os.environ | {"CI_PIPELINE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
        start = time.monotonic()
        command = [sys.executable, "-c", "from benchmarks.backfill import work; work()"]
        done = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True)
        seconds = time.monotonic() - start
        if done.returncode:
            sys.exit(done.stderr[-4000:])
        said = json.loads(done.stdout.splitlines()[-1])
    for what, took in ("Dagster's run", said["seconds"]), ("the whole process", seconds):
        print(f"{said['runs']} CI runs in {took:.1f} s of {what}: {said['runs'] / took:.1f} a second")
    print(f"set aside: {', '.join(said['set_aside']) or 'none'}")
    print("seconds by step: " + ", ".join(f"{step} {took}" for step, took in said["steps"].items()))
    print(f"memory by quarter of the time: {', '.join(map(str, said['memory']))} MiB; peak {said['peak']} MiB")


if __name__ == "__main__":
    main()
