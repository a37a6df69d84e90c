"""Queries and pages of out-of-tree CI over many jobs, on the embedded warehouse.

    python -m benchmarks.oot_pages                      1 million jobs of 30 backends in 90 days
    python -m benchmarks.oot_pages --jobs 10000000

Prints p50 and p95 of every query, and of every page its first byte, its end and its size, all over real HTTP.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from ci_pipeline.hud.app import create_app
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import load_settings
from ci_pipeline.warehouse import oot
from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded
from ci_pipeline_tests.servers.application import serving

BACKENDS = 30
JOBS_OF_COMMIT = 12
PULL_REQUESTS = 20_000
AT_ONCE = 500_000
REPO = "org3/backend"

# Every commit is dispatched to all backends and has twelve jobs at each; every tenth is a nightly's. The rows are made
# inside ClickHouse, oldest first.
GENERATE = """
INSERT INTO oot_workflow_job
(
    dynamoKey, status, conclusion, downstream_repo, downstream_repo_level, upstream_repo, event_type, delivery_id,
    pr_number, pytorch_head_sha, workflow_name, workflow_run_url, job_name, check_run_id, run_id, run_attempt,
    started_at, completed_at, queue_time, execution_time, passed_tests, failed_tests, total_tests, failed_tests_json,
    artifact_url, version, changed_at
)
WITH
    number % {jobs_of_commit:UInt64} AS job,
    intDiv(number, {jobs_of_commit:UInt64}) AS run,
    intDiv(run, {backends:UInt64}) AS commit,
    concat('org', toString(run % {backends:UInt64}), '/backend') AS repo,
    concat('test (shard ', toString(job), ')') AS name,
    lower(hex(MD5(toString(commit)))) AS delivery,
    cityHash64(number) AS chance,
    commit % 10 = 0 AS nightly,
    now64(9) - toIntervalSecond(toUInt64({days:UInt64} * 86400 * (1 - number / {total:UInt64}))) AS began
SELECT
    concat(repo, '/', delivery, '/CI/', name, '/', toString(number)),
    'completed',
    multiIf(chance % 100 < 90, 'success', chance % 100 < 97, 'failure', chance % 100 < 99, 'timed_out', 'cancelled'),
    repo, 'L2', 'pytorch/pytorch', if(nightly, 'nightly', 'pull_request'), delivery,
    if(nightly, 0, 1 + commit % {pull_requests:UInt64}), lower(hex(SHA1(toString(commit)))), 'CI',
    concat('https://github.com/', repo, '/actions/runs/', toString(run)), name, toString(number), toString(run), 1,
    began, began + toIntervalSecond(chance % 5000), chance % 300, chance % 5000, 1000, chance % 3, 1003,
    if(chance % 100 < 90, '', '[{"name": "test_x", "message": "boom"}]'), concat('https://artifacts.example/', repo),
    1, began + toIntervalSecond(chance % 5000)
FROM numbers({first:UInt64}, {count:UInt64})
"""


def quantiles(do: Callable[[], object], repeat: int) -> str:
    times: list[float] = []
    for _ in range(repeat):
        start = time.perf_counter()
        do()
        times.append((time.perf_counter() - start) * 1000)
    times.sort()
    return f"p50 {times[repeat // 2]:7.1f} ms  p95 {times[int(repeat * 0.95)]:7.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--repeat", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder, "warehouse")) as warehouse:
        client = connect(warehouse.url)
        migrate(client)
        start = time.perf_counter()
        for first in range(0, args.jobs, AT_ONCE):
            numbers = {"first": first, "count": min(AT_ONCE, args.jobs - first), "total": args.jobs, "days": args.days}
            sizes = {"backends": BACKENDS, "jobs_of_commit": JOBS_OF_COMMIT, "pull_requests": PULL_REQUESTS}
            client.command(GENERATE, {**numbers, **sizes})
        print(f"{args.jobs} jobs inserted in {time.perf_counter() - start:.1f} s")
        print("hours counted:", quantiles(lambda: oot.count_hours(client), 1))

        now, day, hour = datetime.now(UTC), timedelta(days=1), timedelta(hours=1)
        of_repo = oot.commits(client, downstream_repo=REPO, nightly=False, limit=20)
        number = of_repo[0]["pr_number"]
        of_pr = oot.commits(client, pr_number=number, limit=1000)
        [job] = oot.jobs(client, of_repo)[:1]

        def health(days: int) -> object:
            since, step = now - days * day, hour if days == 1 else day
            return oot.backend_times(client, nightly=False, since=since, step=step)

        queries: dict[str, Callable[[], object]] = {
            "what arrived": lambda: oot.arrived(client),
            "summary, 1 day": lambda: health(1),
            "summary, 7 days": lambda: health(7),
            "summary, 30 days": lambda: health(30),
            "commits of a backend": lambda: oot.commits(client, downstream_repo=REPO, nightly=False, limit=20),
            "their jobs": lambda: oot.jobs(client, of_repo),
            "commits with a failed job": lambda: oot.matching_commits(
                client, downstream_repo=REPO, nightly=False, job="shard 3", conclusion="failure", limit=20
            ),
            "commits of a pull request": lambda: oot.commits(client, pr_number=number, limit=1000),
            "its jobs": lambda: oot.jobs(client, of_pr),
            "one job": lambda: oot.job(client, REPO, job["delivery_id"], job["check_run_id"]),
        }
        for name, query in queries.items():
            query()
            print(f"{name:26} {quantiles(query, args.repeat)}")

        settings = load_settings(CI_PIPELINE_HOME=folder, CI_PIPELINE_WAREHOUSE_URL=warehouse.url)
        with serving(create_app(settings, load_profile("pytorch"))) as url:
            browser = httpx2.Client(base_url=url, timeout=60)  # as a browser does, over one connection
            for path in ("/oot", "/oot?days=30", f"/oot/{REPO}", f"/oot/{REPO}?view=nightlies", f"/pr/{number}"):
                size = len(browser.get(path).content)

                def first_byte(path: str = path) -> None:
                    with browser.stream("GET", path) as response:
                        next(response.iter_raw())

                print(f"{path:36} first byte {quantiles(first_byte, args.repeat)}  {size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
