"""Time `ci-pipeline notify` as a whole process, imports and loopback HTTP included.

    python -m benchmarks.notify                          a generated tree of 800 artifacts
    python -m benchmarks.notify --tree DIR [--runs 5]    a tree of your own (see benchmarks.make_tree)
    python -m benchmarks.notify --style full

Prints the median, least and most of wall seconds, CPU seconds and peak memory, and what was posted. GitHub, Slack and
the Hub are played by one server in a second process on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.make_tree import make_tree


def start_services(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """GitHub, Slack and the Hub, as the folder's `github/routes.json` says; the process, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "ci_pipeline_tests.servers.recorded", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    return server, server.stdout.readline().strip()


def run_once(tree: Path, style: str) -> tuple[float, float, float, str]:
    """One process. Returns wall seconds, CPU seconds, peak memory in MiB, and what the services received."""
    server, url = start_services(tree)
    with tempfile.TemporaryDirectory() as home:
        env = {k: v for k, v in json.loads((tree / "env.json").read_text()).items() if v is not None}
        env |= {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", "CI_PIPELINE_SLACK_STYLE": style}
        env |= {"CI_PIPELINE_HOME": f"{home}/state"}
        env |= {"GITHUB_API_URL": url, "HF_ENDPOINT": url, "SLACK_API_URL": f"{url}/api/", "HF_HUB_DISABLE_XET": "1"}
        command = [
            str(Path(sys.executable).with_name("ci-pipeline")),
            "notify",
            *json.loads((tree / "argv.json").read_text()),
        ]
        start = time.perf_counter()
        done = subprocess.Popen(
            command, cwd=tree / "artifacts", env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert done.stderr
        errors = done.stderr.read()
        _, status, usage = os.wait4(done.pid, 0)
        wall = time.perf_counter() - start
    received = server.communicate()[0].strip()
    for leftover in (tree / "artifacts").glob("ci_results_*"):
        shutil.rmtree(leftover)
    if status:
        sys.exit(f"notify failed ({os.waitstatus_to_exitcode(status)}): {errors}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, received


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--style", choices=("classic", "full"), default="classic")
    parser.add_argument("--folders", type=int, default=400)
    parser.add_argument("--tests", type=int, default=150)
    parser.add_argument("--fail-rate", type=float, default=0.015)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tree: Path = options.tree or Path(scratch, "tree")
        if not options.tree:
            make_tree(tree, folders=options.folders, tests=options.tests, fail_rate=options.fail_rate, seed=1)
        run_once(tree, options.style)  # warm the page cache
        rows = [run_once(tree, options.style) for _ in range(options.runs)]
    print(f"{tree.name}, style {options.style}, {options.runs} runs: {rows[-1][3]}")
    for name, values in zip(("wall s", "cpu s", "peak MiB"), zip(*(row[:3] for row in rows), strict=True), strict=True):
        print(f"  {name:9s} median {statistics.median(values):8.2f}   {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
