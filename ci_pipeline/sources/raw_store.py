"""Fetched CI runs as they came: one folder per run, on this machine or on S3.

<key>/run.json  jobs.json  problems.json  artifacts/<artifact name>/…  _SUCCESS
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci_pipeline.model import FetchedRun, Problem
from ci_pipeline.sources import SourceError
from ci_pipeline.sources.github_json import as_object, jobs_from, objects, run_from

if TYPE_CHECKING:
    pass

SUCCESS = "_SUCCESS"


def save(folder: Path, run: object, jobs: object, problems: Sequence[Problem]) -> FetchedRun:
    """Write what is known of a run beside its artifacts: GitHub's run and jobs objects, and what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artifacts").mkdir(exist_ok=True)
    for name, content in (("run", run), ("jobs", jobs), ("problems", [asdict(problem) for problem in problems])):
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=True), "utf-8")
    return load(folder)


def load(folder: Path) -> FetchedRun:
    """A run from its folder.

    Raises:
        SourceError: the folder holds no run.
    """
    try:
        run = run_from(_read(folder / "run.json"))
        jobs = jobs_from(_read(folder / "jobs.json"))
        problems = [_problem(problem) for problem in objects(_read(folder / "problems.json"))]
        names = sorted(entry.name for entry in os.scandir(folder / "artifacts") if entry.is_dir())
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder}: not a fetched run: {error}") from error
    return FetchedRun(run, jobs, tuple(names), tuple(problems))


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _problem(problem: Any) -> Problem:
    known = ("subject", "reason", "device", "test_job", "matrix_entry")
    return Problem(**{key: str(as_object(problem).get(key, "")) for key in known})
