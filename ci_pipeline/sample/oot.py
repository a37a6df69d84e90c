"""Sample callbacks of out-of-tree CI: made up, and taken by the relay's own functions into a real store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ci_pipeline.oot import record
from ci_pipeline.oot.allowlist import Level
from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.payload import Callback, Trusted
from ci_pipeline.oot.store import Store

HOUR = 3600.0
PULL_REQUESTS = {4242: "ada", 4240: "grace", 4237: "ada", 4231: "linus", 4228: "grace"}
"""Their authors, the newest first. The in-tree sample has a CI run of the first one's commit."""
NIGHTS = 6


@dataclass(frozen=True)
class Backend:
    """`rate` of 100 jobs succeed; its jobs take `minutes`."""

    repo: str
    level: Level
    rate: int
    minutes: int
    jobs: tuple[str, ...] = ("build", "test (core, 1)", "test (core, 2)", "test (ops)")


BACKENDS = (
    Backend("aurora-chips/torch-aurora", "L4", 100, 24),
    Backend("basalt-compute/torch-basalt", "L3", 92, 41),
    Backend("cinder-ai/torch-cinder", "L2", 60, 18, ("build", "test (core)")),
)

FAILED_TESTS = [
    {
        "name": "TestOps.test_matmul_float16",
        "file": "test/test_ops.py",
        "message": "AssertionError: Tensor-likes are not close! Mismatched elements: 12 / 4096 (0.3%)",
        "stacktrace": "test/test_ops.py:311: in test_matmul_float16\n    self.assertEqual(actual, expected)\n"
        "E   AssertionError: Tensor-likes are not close!\nE   Greatest absolute difference: 0.0117 at index (3, 91)",
        "duration_seconds": 1.84,
    },
    {
        "name": "TestNN.test_conv2d_backward",
        "file": "test/test_nn.py",
        "message": "RuntimeError: device queue is not ready: kernel conv2d_bwd timed out after 30 s",
        "stacktrace": "test/test_nn.py:1290: in test_conv2d_backward\n    loss.backward()\n"
        "E   RuntimeError: device queue is not ready: kernel conv2d_bwd timed out after 30 s",
        "duration_seconds": 31.2,
    },
]


def feed(store: Store, upstream: str, now: float | None = None) -> int:
    """Dispatch to a few backends and take their jobs' callbacks, the last of which are still running at `now`.

    Again is safe: what is there stays as it is. Returns the number of callbacks.

    Raises:
        StoreUnavailable: it was not finished.
    """
    now = time.time() if now is None else now
    callbacks = list(_callbacks(upstream, now))
    if store.record(str(callbacks[0][1]["dynamoKey"])):
        return 0
    written: list[Future[Any]] = []
    for n, number in enumerate(PULL_REQUESTS):
        at = now - _hours_ago(n) * HOUR
        for backend in BACKENDS:
            dispatch = Dispatch(_delivery(number), backend.repo, at, number, _head(number))
            written.append(store.register_dispatch(dispatch))
    for callback, base, at in callbacks:
        step = record.step(callback, base)
        written.append(store.advance(step, at, lambda done, base=base: {**base, **done.measured}))
    for future in written:
        future.result()
    return len(callbacks)


def _callbacks(upstream: str, now: float) -> Iterator[tuple[Callback, record.Record, float]]:
    """Callbacks, those of a job in their order, with their records and their times in seconds since 1970."""
    for backend in BACKENDS:
        for n in reversed(range(NIGHTS)):
            sha = _sha(f"night {n}")
            at = now - (24 * n + 6) * HOUR
            payload = {"repository": {"full_name": upstream}, "head_sha": sha}
            common = {"event_type": "nightly", "delivery_id": sha, "payload": payload}
            for job in backend.jobs:
                body = {**common, "workflow": _completed(backend, job, sha, 1, at, alone=True)}
                yield _read(backend, body, upstream, at)
        for n, (number, author) in reversed(list(enumerate(PULL_REQUESTS.items()))):
            sha = _head(number)
            at = now - _hours_ago(n) * HOUR
            payload = {
                "pull_request": {"number": number, "head": {"sha": sha}, "user": {"login": author}},
                "repository": {"full_name": upstream},
            }
            common = {"event_type": "pull_request", "delivery_id": _delivery(number), "payload": payload}
            for place, job in enumerate(backend.jobs):
                queued = 30 + _chance(backend.repo, job, sha) * 3
                attempts = 2 if n and _conclusion(backend, job, sha, 1) != "success" and place % 2 else 1
                for attempt in range(1, attempts + 1):
                    began = at + queued + (attempt - 1) * (backend.minutes * 60 + 300)
                    body = {**common, "workflow": _workflow(backend, job, sha, attempt, "in_progress", began)}
                    yield _read(backend, body, upstream, began)
                    ended = began + _seconds(backend, job, sha)
                    if ended > now:
                        continue  # still running
                    body = {**common, "workflow": _completed(backend, job, sha, attempt, began)}
                    yield _read(backend, body, upstream, ended)


def _read(backend: Backend, body: dict[str, Any], upstream: str, at: float) -> tuple[Callback, record.Record, float]:
    callback = Callback.model_validate_json(json.dumps(body))
    trusted = Trusted(verified_repo=backend.repo, downstream_repo_level=backend.level)
    return callback, record.flatten(trusted, callback, upstream), at


def _workflow(backend: Backend, job: str, sha: str, attempt: int, status: str, began: float) -> dict[str, Any]:
    run = 10_000_000 + _chance(backend.repo, sha) * 1000
    execution = run + backend.jobs.index(job) * 10 + attempt
    return {
        "schema_version": "1",
        "status": status,
        "name": "Out-of-tree CI",
        "job_name": job,
        "check_run_id": str(execution),
        "run_id": str(run),
        "run_attempt": str(attempt),
        "url": f"https://github.com/{backend.repo}/actions/runs/{run}",
        "started_at": _iso(began),
    }


def _completed(
    backend: Backend, job: str, sha: str, attempt: int, began: float, *, alone: bool = False
) -> dict[str, Any]:
    """The `completed` of a job, `alone` where no other callback says when it began."""
    conclusion = _conclusion(backend, job, sha, attempt)
    workflow = _workflow(backend, job, sha, attempt, "completed", began)
    failed = FAILED_TESTS if conclusion == "failure" and job != "build" else []
    return {
        **workflow,
        "started_at": workflow["started_at"] if alone else None,
        "completed_at": _iso(began + _seconds(backend, job, sha)),
        "conclusion": conclusion,
        "artifact_url": f"{workflow['url']}#artifacts",
        "environment": {"runner": f"{backend.repo.partition('/')[0]}-2x", "driver": "7.4.1"},
        **({} if job == "build" else {"test_results": {"passed": 8_412, "failed": len(failed), "skipped": 190}}),
        **({"failed_tests": failed} if failed else {}),
    }


def _conclusion(backend: Backend, job: str, sha: str, attempt: int) -> str:
    chance = _chance(backend.repo, job, sha, str(attempt))
    if chance < backend.rate or attempt > 1:
        return "success"
    return "timed_out" if chance % 7 == 0 else "cancelled" if chance % 7 == 1 else "failure"


def _seconds(backend: Backend, job: str, sha: str) -> float:
    return backend.minutes * (30 if job == "build" else 60) * (0.9 + _chance(job, sha) / 500)


def _hours_ago(n: int) -> float:
    return 0.35 + 5 * n


def _chance(*of: str) -> int:
    """0 to 99, always the same."""
    return int(_sha(" ".join(of))[:6], 16) % 100


def _delivery(number: int) -> str:
    return f"{_sha(f'delivery {number}')[:8]}-sample"


def _head(number: int) -> str:
    return _sha("nest 2" if number == 4242 else f"pull request {number}")  # as of the newest night of `build`


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
