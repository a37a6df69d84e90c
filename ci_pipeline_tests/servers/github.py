"""Plays GitHub's REST API for Actions, and the blob storage that it redirects downloads to."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ci_pipeline_tests.servers.base import Request, Response, Server

REPOSITORY = "octo/demo"


def zip_of(files: Mapping[str, str | bytes]) -> bytes:
    """A zip file of these names and contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class BlobStorage(Server):
    """Refuses requests with our token, as Azure does. `most_at_once` counts requests in parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, bytes] = {}
        self.delay = 0.0
        self.most_at_once = self._at_once = 0
        self._counting = threading.Lock()

    def handle(self, request: Request) -> Response:
        if "authorization" in request.headers:
            return Response(403, {"message": "this is somebody else's token"})
        with self._counting:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.delay)
        with self._counting:
            self._at_once -= 1
        blob = self.blobs.get(request.path)
        return Response(404) if blob is None else Response(200, blob, {"content-type": "application/zip"})


class GitHub(Server):
    """Runs, jobs and artifacts of one repository, behind `url`. Answers carry ETags; lists come in pages."""

    def __init__(self, repository: str = REPOSITORY) -> None:
        super().__init__()
        self.repository = repository
        self.storage = BlobStorage()
        self.runs: dict[tuple[int, int], dict[str, Any]] = {}  # by id and attempt
        self.jobs: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.artifacts: dict[int, list[dict[str, Any]]] = {}
        self.other: dict[str, dict[str, Any]] = {}  # commits, pull requests: by path behind the repository
        self.per_page = 100  # never more, as on GitHub
        self.list_limit = 1000  # where a list of runs ends that is filtered by time

    def __enter__(self) -> GitHub:
        self.storage.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self.storage.__exit__(*exc)

    def add_run(self, run_id: int, attempt: int = 1, **fields: Any) -> dict[str, Any]:
        """A completed run of workflow 7 unless told otherwise."""
        run = {
            "id": run_id,
            "run_attempt": attempt,
            "run_number": run_id % 1000,
            "name": "Nightly",
            "workflow_id": 7,
            "path": ".github/workflows/nightly.yml",
            "event": "schedule",
            "status": "completed",
            "conclusion": "success",
            "head_branch": "main",
            "head_sha": f"{run_id:040x}",
            "display_title": "Nightly CI",
            "html_url": f"https://github.com/{self.repository}/actions/runs/{run_id}",
            "created_at": "2025-11-10T02:00:00Z",
            "run_started_at": "2025-11-10T02:00:00Z",
            "updated_at": "2025-11-10T04:00:00Z",
            "repository": {"full_name": self.repository},
            **fields,
        }
        self.runs[run_id, attempt] = run
        return run

    def add_jobs(self, run_id: int, *names: str, attempt: int = 1) -> None:
        jobs = self.jobs.setdefault((run_id, attempt), [])
        for name in names:
            job_id = run_id * 1000 + len(jobs) + 100 * attempt
            jobs.append(
                {
                    "id": job_id,
                    "run_id": run_id,
                    "run_attempt": attempt,
                    "name": name,
                    "status": "completed",
                    "conclusion": "success",
                    "html_url": f"https://github.com/{self.repository}/actions/runs/{run_id}/job/{job_id}",
                    "steps": [{"name": "Set up job", "number": 1, "conclusion": "success"}],
                }
            )

    def add_artifact(
        self, run_id: int, name: str, content: Mapping[str, str | bytes] | bytes | None = None, **fields: Any
    ) -> int:
        """An artifact of these files, of these bytes (which may be no zip), or of one file `stats.txt`."""
        artifact_id = 10_000 + sum(map(len, self.artifacts.values()))
        self.artifacts.setdefault(run_id, []).append({"id": artifact_id, "name": name, "expired": False, **fields})
        content = {"stats.txt": "1 passed in 1s"} if content is None else content
        self.storage.blobs[f"/blob/{artifact_id}.zip"] = content if isinstance(content, bytes) else zip_of(content)
        return artifact_id

    def add_artifacts_of(self, run_id: int, folder: Path) -> None:
        for artifact in sorted(path for path in folder.iterdir() if path.is_dir()):
            files = {str(p.relative_to(artifact)): p.read_bytes() for p in artifact.rglob("*") if p.is_file()}
            self.add_artifact(run_id, artifact.name, files)

    def handle(self, request: Request) -> Response:
        root = f"/repos/{self.repository}"
        if not request.path.startswith(f"{root}/"):
            return _not_found()
        match request.path.removeprefix(f"{root}/").split("/"):
            case ["actions", "runs"]:
                return self._list(request, "workflow_runs", self._matching(request, None))
            case ["actions", "workflows", workflow, "runs"]:
                return self._list(request, "workflow_runs", self._matching(request, workflow))
            case ["actions", "runs", run_id]:
                return self._object(request, self._newest(int(run_id)))
            case ["actions", "runs", run_id, "attempts", attempt]:
                return self._object(request, self.runs.get((int(run_id), int(attempt))))
            case ["actions", "runs", run_id, "attempts", attempt, "jobs"]:
                return self._list(request, "jobs", self.jobs.get((int(run_id), int(attempt)), []))
            case ["actions", "runs", run_id, "jobs"]:
                newest = self._newest(int(run_id))
                key = (int(run_id), newest["run_attempt"] if newest else 1)
                return self._list(request, "jobs", self.jobs.get(key, []))
            case ["actions", "runs", run_id, "artifacts"]:
                return self._list(request, "artifacts", self.artifacts.get(int(run_id), []))
            case ["actions", "artifacts", artifact_id, "zip"]:
                known = next((a for of in self.artifacts.values() for a in of if str(a["id"]) == artifact_id), None)
                if known is None:
                    return _not_found()
                if known["expired"]:
                    return Response(410, {"message": "Artifact has expired"})
                return Response(302, b"", {"location": f"{self.storage.url}/blob/{artifact_id}.zip"})
            case parts:
                return self._object(request, self.other.get("/".join(parts)))

    def _newest(self, run_id: int) -> dict[str, Any] | None:
        return self.runs.get(max((key for key in self.runs if key[0] == run_id), default=(0, 0)))

    def _matching(self, request: Request, workflow: str | None) -> list[dict[str, Any]]:
        """The newest attempt of each run that the query asks for, newest first."""
        runs = [self.runs[key] for key in sorted(self.runs) if self.runs[key] is self._newest(key[0])]
        query = request.query
        if workflow is not None:
            runs = [r for r in runs if workflow in (str(r["workflow_id"]), r["path"].rpartition("/")[2])]
        for field, parameter in (("event", "event"), ("head_branch", "branch"), ("status", "status")):
            if wanted := query.get(parameter):
                runs = [run for run in runs if run[field] == wanted]
        if "created" in query:
            start, end = map(datetime.fromisoformat, query["created"].split(".."))
            runs = [run for run in runs if start <= datetime.fromisoformat(run["created_at"]) <= end]
        return sorted(runs, key=lambda run: (run["created_at"], run["id"]), reverse=True)

    def _list(self, request: Request, key: str, items: list[dict[str, Any]]) -> Response:
        per_page = min(int(request.query.get("per_page", 30)), self.per_page)
        page = int(request.query.get("page", 1))
        reachable = items[: self.list_limit] if "created" in request.query else items
        part = reachable[(page - 1) * per_page : page * per_page]
        headers = {}
        if page * per_page < len(reachable):
            query = urlencode({**request.query, "page": page + 1})
            headers["link"] = f'<{self.url}{request.path}?{query}>; rel="next"'
        return self._object(request, {"total_count": len(items), key: part}, headers)

    def _object(
        self, request: Request, answer: dict[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> Response:
        if answer is None:
            return _not_found()
        body = json.dumps(answer).encode()
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if request.headers.get("if-none-match") == etag:
            return Response(304, b"", {"etag": etag})
        return Response(200, body, {**(headers or {}), "etag": etag})


def _not_found() -> Response:
    return Response(404, {"message": "Not Found", "status": "404"})
