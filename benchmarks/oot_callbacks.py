"""Callbacks per second of the out-of-tree relay, every answer durable in SQLite.

    python -m benchmarks.oot_callbacks                           16 connections, 6 KB bodies
    python -m benchmarks.oot_callbacks --body 60 --callbacks 5000
    python -m benchmarks.oot_callbacks --callbacks 100000        and how the relay's memory grows
    python -m benchmarks.oot_callbacks --kill                    kill -9 in the middle: is anything lost?

The load comes from this process, the relay is another one. Every callback has a token of its own, as on GitHub;
`--one-token` (one per repository) shows what verifying costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline_tests.servers.oidc import OidcServer

REPOS = 100
JOBS_PER_DELIVERY = 10
RELAY = "ci_pipeline.hud.relay:from_environment"


def template(status: str, kilobytes: int) -> bytes:
    """A callback of this size, mostly the upstream's webhook payload, with @DELIVERY and @JOB to be filled in."""
    completed = status == "completed"
    payload = {
        "pull_request": {"number": 7, "head": {"sha": "a" * 40}, "labels": [{"name": "ciflow/oot"}]},
        "repository": {"full_name": "org/upstream"},
        "labels": [
            {"id": n, "url": f"https://api.github.com/labels/{n}", "default": False} for n in range(kilobytes * 12)
        ],
    }
    workflow = {
        "schema_version": "1",
        "status": status,
        "conclusion": "success" if completed else None,
        "name": "CI",
        "url": "https://github.com/org/backend/actions/runs/@JOB",
        "job_name": "test (shard @JOB)",
        "check_run_id": "@JOB",
        "run_id": "4711",
        "run_attempt": "1",
        "started_at": None if completed else "2026-04-28T10:00:00Z",
        "completed_at": "2026-04-28T10:30:00Z" if completed else None,
        "test_results": {"passed": 1200, "failed": 0, "skipped": 3} if completed else None,
    }
    callback = {"event_type": "pull_request", "delivery_id": "@DELIVERY", "payload": payload, "workflow": workflow}
    return json.dumps(callback).encode().ljust(kilobytes * 1024)


class Load:
    """Sends both callbacks of every job over connections that stay open, and remembers what was acknowledged."""

    def __init__(
        self, port: int, jobs: list[tuple[str, str, int]], tokens: dict[str, list[str]], kilobytes: int
    ) -> None:
        self.port = port
        self.jobs = iter(jobs)
        self.tokens = tokens
        self.templates = {status: template(status, kilobytes) for status in ("in_progress", "completed")}
        self.acknowledged: dict[str, str] = {}
        self.seconds: list[float] = []
        self.refused: list[bytes] = []

    async def run(self, connections: int) -> None:
        await asyncio.gather(*(self.connection() for _ in range(connections)))

    async def connection(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # killed
            for repo, delivery, job in self.jobs:
                for status, text in self.templates.items():
                    tokens = self.tokens[repo]
                    token = tokens.pop() if len(tokens) > 1 else tokens[0]
                    body = text.replace(b"@DELIVERY", delivery.encode()).replace(b"@JOB", b"%d" % job)
                    head = f"POST /github/callback HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {token}\r\n"
                    start = time.perf_counter()
                    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                    answer = await reader.readuntil(b"\r\n\r\n")
                    length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    content = await reader.readexactly(int(length))
                    self.seconds.append(time.perf_counter() - start)
                    if answer.startswith(b"HTTP/1.1 200"):
                        self.acknowledged[f"{repo}/{delivery}/CI/test (shard {job})/{job}"] = status
                    else:
                        self.refused.append(content)
        writer.close()


@contextlib.contextmanager
def serving(
    store: Path, repos: Sequence[str], issuer: OidcServer, workers: int = 1
) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """A relay that takes callbacks of these repositories into the store: its process, and its port."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "allowlist.yml").write_text("L2:\n" + "".join(f"- {repo}\n" for repo in repos))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "CI_PIPELINE_OOT_STORE": f"sqlite:///{store}",
            "CI_PIPELINE_OOT_ALLOWLIST": f"{folder}/allowlist.yml",
            "CI_PIPELINE_OIDC_ISSUERS": json.dumps(issuer.issuer),
            "CI_PIPELINE_RATE_LIMIT_PER_MIN": "10000000",
        }
        uvicorn = [sys.executable, "-m", "uvicorn", "--factory", RELAY, "--no-access-log", "--log-level", "warning"]
        relay = subprocess.Popen([*uvicorn, "--port", str(port), "--workers", str(workers)], env=environment)
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.1)
            yield relay, port
        finally:
            relay.terminate()
            relay.wait()


def processes(relay: subprocess.Popen[bytes]) -> list[int]:
    """The relay and its workers."""
    children = Path(f"/proc/{relay.pid}/task/{relay.pid}/children").read_text().split()
    return [relay.pid, *map(int, children)]


def cpu_seconds(relay: subprocess.Popen[bytes]) -> float:
    ticks = 0
    for pid in processes(relay):
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(relay: subprocess.Popen[bytes]) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes(relay))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def drive(load: Load, relay: subprocess.Popen[bytes], connections: int, kill: bool, total: int) -> list[float]:
    memory: list[float] = []
    running = asyncio.create_task(load.run(connections))
    while not running.done():
        if len(load.seconds) * 10 >= total * (len(memory) + 1):
            memory.append(resident_mib(relay))
            if kill and len(memory) == 5:
                for pid in processes(relay):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.wait([running], timeout=0.05)
    await running
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callbacks", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--body", type=int, default=6, help="KB")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one-token", action="store_true")
    parser.add_argument("--kill", action="store_true")
    args = parser.parse_args()

    repos = [f"org{n}/backend" for n in range(REPOS)]
    jobs = [(repos[n % REPOS], f"delivery-{n // REPOS // JOBS_PER_DELIVERY}", n) for n in range(args.callbacks // 2)]
    with tempfile.TemporaryDirectory() as folder, OidcServer() as issuer:
        path = Path(folder, "oot.sqlite")
        store = SqliteStore(path)
        for repo, delivery in sorted({(repo, delivery) for repo, delivery, _ in jobs}):
            store.register_dispatch(Dispatch(delivery, repo, time.time()))
        store.close()
        each = 1 if args.one_token else args.callbacks // REPOS + 2
        expires = int(time.time()) + 86400
        tokens = {repo: [issuer.token(repo, jti=str(n), exp=expires) for n in range(each)] for repo in repos}

        with serving(path, repos, issuer, args.workers) as (relay, port):
            started = cpu_seconds(relay)
            load = Load(port, jobs, tokens, args.body)
            start = time.perf_counter()
            memory = asyncio.run(drive(load, relay, args.connections, args.kill, args.callbacks))
            wall = time.perf_counter() - start
            cpu = (0.0 if args.kill else cpu_seconds(relay)) - started

        ranked = sorted(load.seconds)
        print(f"{len(ranked)} callbacks of {args.body} KB, {args.connections} connections: {len(ranked) / wall:.0f}/s")
        quantiles = ", ".join(f"p{q} {ranked[len(ranked) * q // 100] * 1000:.1f} ms" for q in (50, 90, 99))
        print(f"{quantiles}, slowest {ranked[-1] * 1000:.0f} ms; {len(load.refused)} refused {load.refused[:1]}")
        if not args.kill:
            print(f"relay's CPU: {cpu / len(ranked) * 1000:.2f} ms per callback")
        print("relay's memory, MiB, at each tenth: " + " ".join(f"{value:.0f}" for value in memory))
        store = SqliteStore(path)
        rank = {"in_progress": 1, "completed": 2}
        stored = {str(change.record["dynamoKey"]): rank[str(change.record["status"])] for change in store.records()}
        store.close()
        lost = [key for key, status in load.acknowledged.items() if stored.get(key, 0) < rank[status]]
        print(f"{len(load.acknowledged)} jobs acknowledged, {len(stored)} stored, {len(lost)} lost {lost[:3]}")


if __name__ == "__main__":
    main()
