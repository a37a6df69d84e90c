"""Small CI runs for an inbox, written as pytest and GitHub write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path

JOB = "run_models_gpu"
NIGHTLY = {"workflow_id": 90575235, "name": "Nvidia CI", "path": ".github/workflows/self-scheduled-caller.yml"}
AMD = {"workflow_id": 7, "name": "AMD CI", "path": ".github/workflows/self-scheduled-amd-mi325-caller.yml"}


def artifact_name(entry: str, device: str = "single", job: str = JOB) -> str:
    return f"{device}-gpu_{job}{entry and f'_{entry}'}_test_reports"


def node_id(entry: str, test: str) -> str:
    name = entry.removeprefix("models_")
    return f"tests/models/{name}/test_modeling_{name}.py::{test}"


def write_report(folder: Path, entry: str, passed: Iterable[str], failed: Mapping[str, str]) -> None:
    """pytest's report files. `failed`: what each failing test raised, in one line."""
    passed = list(passed)
    folder.mkdir(parents=True)
    counts = [f"{len(tests)} {word}" for tests, word in ((failed, "failed"), (passed, "passed")) if tests]
    files = {
        "stats": f"=== {', '.join(counts) or 'no tests ran'} in 1.50s ===",
        "summary_short": "\n".join(
            [
                "=== short test summary info ===",
                *(f"PASSED {node_id(entry, test)}" for test in passed),
                *(f"FAILED {node_id(entry, test)} - {error}" for test, error in failed.items()),
            ]
        ),
        "failures_line": "\n".join(
            f"/repo/{node_id(entry, test).partition('::')[0]}:42: {error}" for test, error in failed.items()
        ),
    }
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(f"{text}\n" if text else "", "utf-8")


def put_run(
    inbox: Path,
    run_id: int,
    reports: Mapping[str, tuple[Iterable[str], Mapping[str, str]]],
    *,
    day: date = date(2026, 2, 1),
    workflow: Mapping[str, object] = NIGHTLY,
    killed: Iterable[str] = (),
    device: str = "single",
    attempt: int = 1,
    **run: object,
) -> Path:
    """A completed CI run, whole at once.

    Args:
        reports: by matrix entry, the tests that passed and those that failed.
        killed: matrix entries whose job ended without an artifact.
    """
    folder = inbox / f".{run_id}"
    jobs: list[dict[str, object]] = []
    for entry in [*reports, *killed]:
        name = artifact_name(entry, device)
        jobs.append(
            {
                "id": run_id * 100 + len(jobs),
                "name": f"Model CI / ({device}) / ({entry.replace('_', '/', 1)})",
                "status": "completed",
                "conclusion": "cancelled" if entry in killed else "success",
                "html_url": f"https://github.com/huggingface/transformers/actions/runs/{run_id}/job/{len(jobs)}",
                "steps": [{"name": f"Test suite reports artifacts: {name}", "number": 9, "conclusion": "success"}],
            }
        )
    for entry, (passed, failed) in reports.items():
        write_report(folder / "artifacts" / artifact_name(entry, device), entry, passed, failed)
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    created = datetime(day.year, day.month, day.day, 2, tzinfo=UTC).isoformat()
    payload = {
        "id": run_id,
        "run_attempt": attempt,
        "run_number": run_id % 1000,
        "event": "schedule",
        "status": "completed",
        "conclusion": "failure",
        "head_branch": "main",
        "head_sha": f"{run_id:040x}",
        "html_url": f"https://github.com/huggingface/transformers/actions/runs/{run_id}",
        "created_at": created,
        "updated_at": created,
        "repository": {"full_name": "huggingface/transformers"},
        **workflow,
        **run,
    }
    (folder / "run.json").write_text(json.dumps(payload))
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    (folder / "_SUCCESS").touch()
    return folder.rename(inbox / (str(run_id) if attempt == 1 else f"{run_id}-{attempt}"))
