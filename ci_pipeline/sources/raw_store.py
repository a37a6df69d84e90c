"""Fetched CI runs as they came: one folder per run, on this machine or on S3.

<key>/run.json  jobs.json  problems.json  artifacts/<artifact name>/…  _SUCCESS
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ci_pipeline.model import CiRun, FetchedRun, Problem
from ci_pipeline.sources import SourceError
from ci_pipeline.sources.archives import safe_name
from ci_pipeline.sources.github_json import jobs_from, objects, run_from

SUCCESS = "_SUCCESS"


def save(folder: Path, run: object, jobs: object, problems: Sequence[Problem]) -> FetchedRun:
    """Write what is known of a run beside its artifacts: GitHub's run and jobs objects, and what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artifacts").mkdir(exist_ok=True)
    for name, content in (("run", run), ("jobs", jobs), ("problems", [asdict(problem) for problem in problems])):
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=True), "utf-8")
    return FetchedRun(run_from(run), jobs_from(jobs), _artifact_names(folder), tuple(problems))


def load(folder: Path) -> FetchedRun:
    """A run from its folder.

    Raises:
        SourceError: the folder holds no run.
    """
    try:
        jobs = jobs_from(_read(folder / "jobs.json"))
        problems = problems_from(_read(folder / "problems.json"))
        return FetchedRun(load_run(folder), jobs, _artifact_names(folder), tuple(problems))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder}: not a fetched run: {error}") from error


def load_run(folder: Path) -> CiRun:
    """The run alone, without its jobs. Raises as `load` does."""
    try:
        return run_from(_read(folder / "run.json"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder}: not a fetched run: {error}") from error


def _artifact_names(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder / "artifacts") as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def problems_from(payload: object) -> list[Problem]:
    """Problems as `save` writes them."""
    known = ("subject", "reason", "device", "test_job", "matrix_entry")
    return [Problem(**{key: str(problem.get(key, "")) for key in known}) for problem in objects(payload)]


class RawStore:
    """Runs below `uri`: a path, or any address that `pyarrow.fs` knows, such as `s3://<bucket>/<prefix>`."""

    def __init__(self, uri: str) -> None:
        self._fs, self._root = filesystem(uri)

    @contextmanager
    def new(self, key: str) -> Generator[Path]:
        """A folder to fetch a run into; kept when the `with` block ends, in place of what was there, else dropped.

        Whole, or not at all: on this machine the run appears by one rename, elsewhere `_SUCCESS` is written last.
        """
        from pyarrow import fs

        path = self._path(key)
        local = isinstance(self._fs, fs.LocalFileSystem)
        if local:
            os.makedirs(self._root, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self._root if local else None) as stage:
            folder = Path(stage, key)
            folder.mkdir()
            yield folder
            if local:
                (folder / SUCCESS).touch()
                if os.path.exists(path):
                    os.rename(path, Path(stage, "old"))
                os.rename(folder, path)
            else:
                self.delete(key)
                fs.copy_files(str(folder), path, fs.LocalFileSystem(), self._fs)
                self._fs.open_output_stream(f"{path}/{SUCCESS}").close()

    def has(self, key: str) -> bool:
        from pyarrow.fs import FileType

        return self._fs.get_file_info(f"{self._path(key)}/{SUCCESS}").type == FileType.File

    @contextmanager
    def local(self, key: str) -> Generator[Path]:
        """The run's folder on this machine; a copy for the time of the `with` block where the store is elsewhere.

        Raises:
            SourceError: there is no such run.
        """
        from pyarrow import fs

        if not self.has(key):
            raise SourceError(f"run {key} is not in the raw store {self._root}: fetch it again")
        path = self._path(key)
        if isinstance(self._fs, fs.LocalFileSystem):
            yield Path(path)
            return
        with tempfile.TemporaryDirectory(prefix="ci-pipeline-") as folder:
            fs.copy_files(path, folder, self._fs, fs.LocalFileSystem())
            yield Path(folder)

    def load(self, key: str) -> FetchedRun:
        """What is known of a run, without the contents of its artifacts.

        Raises:
            SourceError: there is no such run.
        """
        from pyarrow import fs

        path = self._path(key)
        if isinstance(self._fs, fs.LocalFileSystem) or not self.has(key):
            with self.local(key) as folder:
                return load(folder)
        with tempfile.TemporaryDirectory(prefix="ci-pipeline-") as folder:
            for name in ("run", "jobs", "problems"):
                with self._fs.open_input_file(f"{path}/{name}.json") as file:
                    Path(folder, f"{name}.json").write_bytes(file.read())
            Path(folder, "artifacts").mkdir()
            for info in self._fs.get_file_info(fs.FileSelector(f"{path}/artifacts", allow_not_found=True)):
                Path(folder, "artifacts", info.base_name).mkdir()
            return load(Path(folder))

    def delete(self, key: str) -> None:
        """Forget a run; nothing happens when it is not there."""
        from pyarrow.fs import FileType

        path = self._path(key)
        if self.has(key):
            self._fs.delete_file(f"{path}/{SUCCESS}")  # first: half a run is none
        if self._fs.get_file_info(path).type != FileType.NotFound:
            self._fs.delete_dir(path)

    def _path(self, key: str) -> str:
        if not safe_name(key):
            raise ValueError(f"{key!r} is no key of a run")
        return f"{self._root}/{key}"


def filesystem(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for a path or an address, and the path in it, without a slash at its end.

    The environment says where S3 is, as it does for boto3: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`.
    """
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if uri.startswith("s3://") and endpoint:
        scheme, _, host = endpoint.rstrip("/").rpartition("://")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        s3 = fs.S3FileSystem(endpoint_override=host, scheme=scheme or "https", region=region or "us-east-1")
        return s3, uri.removeprefix("s3://").rstrip("/")
    if "://" in uri:
        found, path = fs.FileSystem.from_uri(uri)
        return found, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(uri).absolute())
