"""CI runs that somebody puts in one place, a folder for each run: what `folder` and `s3` have in common.

<run_id>/ or <run_id>-<attempt>/
    run.json  jobs.json                     GitHub's objects; both optional
    artifacts/<name>/…  artifacts/<name>.zip
    _SUCCESS                                the run is complete; else it is when nothing changed for a while
"""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from itertools import repeat
from pathlib import Path
from typing import Any

from ci_pipeline.model import CiJob, CiRun, FetchedRun, Problem
from ci_pipeline.sources import EPOCH, Progress, RunPage, SourceError, Wanted, age, raw_store
from ci_pipeline.sources.archives import ArtifactRefused, safe_name
from ci_pipeline.sources.cursor import Cursor
from ci_pipeline.sources.github_json import as_object, jobs_from, missing_jobs, run_from, run_payload

log = logging.getLogger(__name__)

PARALLEL = 8

Place = Callable[[Path], list[str]]
"""Puts one artifact into a new folder and returns the paths that were left out: links and special files."""

_RUN = re.compile(r"([1-9][0-9]{0,17})(?:-([1-9][0-9]{0,5}))?")


class InboxSource(ABC):
    """A `Source` of runs that lie ready. Subclasses know how to look; `name` is that of a run's folder."""

    parallel = True
    """Whether artifacts are placed by several threads: those that wait for a network."""

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._complete: dict[str, datetime] = {}

    @abstractmethod
    def _names(self) -> list[str]:
        """The folders. Raises: SourceError: they cannot be listed."""

    @abstractmethod
    def _completed(self, name: str) -> datetime | None:
        """When the run became complete; None while it is not."""

    @abstractmethod
    def _read(self, name: str, file: str) -> bytes | None:
        """A file of the run; None when there is none. Raises: SourceError."""

    @abstractmethod
    def _artifacts(self, name: str) -> Mapping[str, Place]:
        """The run's artifacts by their names. Raises: SourceError."""

    # --- the Source protocol ------------------------------------------------------------------------------------

    def runs_after(self, cursor: str | None, limit: int = 100) -> RunPage:
        names = self._names()
        for gone in self._complete.keys() - set(names):
            del self._complete[gone]
        with ThreadPoolExecutor(PARALLEL) as pool:
            times = pool.map(self._completed_once, names)
            completed = [(time, name, name) for name, time in zip(names, times, strict=True) if time]
        taken, after = (Cursor.load(cursor) if cursor else Cursor.since(EPOCH)).page(completed, limit)
        return RunPage.of([run for name in taken if (run := self._run(name))], after)

    def run(self, run_id: int, attempt: int | None = None) -> CiRun:
        return self._find(run_id, attempt)[1]

    def jobs(self, run: CiRun) -> tuple[CiJob, ...]:
        payload = self._json(self._find(run.run_id, run.run_attempt)[0], "jobs.json")
        jobs = jobs_from(payload)
        if missing := missing_jobs(payload):
            raise SourceError(f"run {run.key}: jobs.json: {missing}", jobs)
        return jobs

    def workflow_runs(
        self, workflow_id: int | str, *, event: str = "", branch: str = "", limit: int = 7
    ) -> list[CiRun]:
        file = str(workflow_id).rpartition("/")[2]
        runs = [
            run
            for name in self._names()
            if (run := self._run(name))
            and file in (str(run.workflow_id), run.workflow_path.rpartition("/")[2])
            and event in ("", run.event)
            and branch in ("", run.head_branch)
        ]
        return sorted(runs, key=age, reverse=True)[:limit]

    def artifact(self, run_id: int, name: str, into: Path) -> Path:
        place = self._artifacts(self._find(run_id)[0]).get(name)
        if place is None:
            raise SourceError(f"run {run_id} has no artifact {name!r}")
        if not safe_name(name):
            raise ArtifactRefused(name, "its name is not a file name")
        try:
            place(into / name)
        except OSError as error:
            raise SourceError(f"the artifact {name!r} of run {run_id} cannot be read: {error}") from error
        return into / name

    def fetch(
        self, run: CiRun, into: Path, *, wanted: Wanted | None = None, progress: Progress | None = None
    ) -> FetchedRun:
        name, run = self._find(run.run_id, run.run_attempt)
        artifacts = {a: place for a, place in self._artifacts(name).items() if wanted is None or wanted(a)}
        payload, problems = self._tolerant(name, "run.json")
        jobs, more = self._tolerant(name, "jobs.json")
        problems += more
        if missing := missing_jobs(jobs):
            problems.append(Problem("jobs", missing))
        before, more = self._tolerant(name, "problems.json")  # of a run that was fetched elsewhere
        problems += [*raw_store.problems_from(before), *more]
        with ThreadPoolExecutor(PARALLEL) as pool:
            placing = (pool.map if self.parallel else map)(
                _placed, artifacts, artifacts.values(), repeat(into / "artifacts")
            )
            for done, (artifact, problem) in enumerate(zip(artifacts, placing, strict=True), 1):
                if problem:
                    problems.append(problem)
                if progress:
                    progress(done, len(artifacts), artifact)
        return raw_store.save(into, {**as_object(payload), **run_payload(run)}, jobs or [], [*dict.fromkeys(problems)])

    # --- folders and runs ---------------------------------------------------------------------------------------

    def _find(self, run_id: int, attempt: int | None = None) -> tuple[str, CiRun]:
        likely = [name for name in self._names() if not (m := _RUN.fullmatch(name)) or int(m[1]) == run_id]
        found = [(name, run) for name in likely if (run := self._run(name)) and run.run_id == run_id]
        found = [(name, run) for name, run in found if attempt in (None, run.run_attempt)]
        if not found:
            raise SourceError(f"there is no run {run_id}{f'-{attempt}' if attempt else ''} in the inbox")
        return max(found, key=lambda item: item[1].run_attempt)

    def _run(self, name: str) -> CiRun | None:
        """The run of a folder: `run.json`, with the id and attempt that the folder's name gives."""
        payload, _ = self._tolerant(name, "run.json")
        if match := _RUN.fullmatch(name):
            named = {"id": int(match[1])} | ({"run_attempt": int(match[2])} if match[2] else {})
            run = run_from({**as_object(payload), **named}, repository=self._repository)
        else:
            try:
                run = run_from(payload, repository=self._repository)
            except ValueError:
                log.warning("%s is not a run: name the folder <run_id> or <run_id>-<attempt>, or add a run.json", name)
                return None
        time = self._completed_once(name)
        # `run.json` may have been written while the run was still going on.
        status = "completed" if time else "in_progress"
        return replace(run, status=status, created_at=run.created_at or time, updated_at=run.updated_at or time)

    def _completed_once(self, name: str) -> datetime | None:
        if name not in self._complete and (time := self._completed(name)):
            self._complete[name] = time
        return self._complete.get(name)

    def _json(self, name: str, file: str) -> Any:
        """Raises: SourceError: it is not JSON."""
        data = self._read(name, file)
        try:
            return None if data is None else _values(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{name}/{file}: not JSON: {error}") from error

    def _tolerant(self, name: str, file: str) -> tuple[Any, list[Problem]]:
        try:
            return self._json(name, file), []
        except SourceError as error:
            return None, [Problem(file.removesuffix(".json"), f"could not be read: {error}")]


def _placed(artifact: str, place: Place, into: Path) -> Problem | None:
    try:
        if not safe_name(artifact):
            raise ArtifactRefused(artifact, "its name is not a file name")
        left_out = place(into / artifact)
    except ArtifactRefused as error:
        return Problem(artifact, f"refused: {error.reason}")
    except (OSError, SourceError) as error:
        return Problem(artifact, f"could not be read: {error}")
    if left_out:
        return Problem(artifact, f"left out, not plain files: {', '.join(sorted(left_out)[:5])}")
    return None


def _values(text: str) -> Any:
    """The JSON value of a text; a list where several follow one another, as `gh api --paginate` writes them."""
    values: list[Any] = []
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        values.append(value)
        text = text[end:]
    if not values:
        raise ValueError("it is empty")
    return values[0] if len(values) == 1 else values
