"""Where CI runs come from: GitHub, an S3 prefix or a folder, all behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ci_pipeline.model import CiJob, CiRun, FetchedRun

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile
    from ci_pipeline.settings import Settings
    from ci_pipeline.sources.cursor import Cursor

EPOCH = datetime.fromtimestamp(0, UTC)

Progress = Callable[[int, int, str], None]
"""Called for each artifact that is there: how many, of how many, and which."""

Wanted = Callable[[str], bool]
"""Whether the artifact of that name is to be fetched."""


class SourceError(Exception):
    """Something could not be read. One line that names it; `read` is what was read before (pages of a list)."""

    def __init__(self, message: str, read: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.read = read


@dataclass(frozen=True, slots=True)
class RunPage:
    """Completed runs, oldest first, and the cursor with which to ask for the next page."""

    runs: tuple[CiRun, ...]
    cursor: str

    @staticmethod
    def of(runs: Iterable[CiRun], cursor: Cursor) -> RunPage:
        return RunPage(tuple(sorted(runs, key=age)), cursor.dump())


def age(run: CiRun) -> tuple[datetime, int, int]:
    """What sorts runs from old to new."""
    return run.created_at or EPOCH, run.run_id, run.run_attempt


class Source(Protocol):
    """Keep one instance: it remembers what it need not ask again. Every method raises `SourceError`."""

    def runs_after(self, cursor: str | None, limit: int = 100) -> RunPage:
        """The next completed runs. One may come twice (the caller knows runs by their key), none is left out.

        Without a cursor: from the beginning (GitHub: what completed in the last day; see `cursor_at`).
        """
        ...

    def run(self, run_id: int, attempt: int | None = None) -> CiRun:
        """One run; its newest attempt unless one is named."""
        ...

    def jobs(self, run: CiRun) -> tuple[CiJob, ...]:
        """All jobs of the run. When a later page fails, the error's `read` holds the jobs of the others."""
        ...

    def workflow_runs(
        self, workflow_id: int | str, *, event: str = "", branch: str = "", limit: int = 7
    ) -> list[CiRun]:
        """Runs of one workflow (its id, or its file), newest first, whatever their status."""
        ...

    def artifact(self, run_id: int, name: str, into: Path) -> Path:
        """Unpack one artifact of a run's newest attempt to `into/<name>`, and say where that is.

        Raises:
            SourceError: there is no such artifact, it has expired, or (`ArtifactRefused`) its archive is unsafe.
        """
        ...

    def fetch(
        self, run: CiRun, into: Path, *, wanted: Wanted | None = None, progress: Progress | None = None
    ) -> FetchedRun:
        """The whole run into the empty folder `into`, in the raw store's layout; see `raw_store.load`.

        An artifact that cannot be had is in `problems`, and so are the jobs when they cannot be read.
        """
        ...


def open_source(settings: Settings, profile: Profile, *, s3: Any = None, once: bool = False) -> Source:
    """The source that `CI_PIPELINE_SOURCE` names. `s3` is a boto3 client, made from the environment by default.

    `once`: GitHub is not asked again where it fails.

    Raises:
        SettingsError: the setting names no source.
    """
    kind, _, rest = settings.source_uri.partition(":")
    if kind == "github" and not rest:
        from ci_pipeline.sources.github import ATTEMPTS, GitHubSource

        token = settings.github_token
        return GitHubSource(
            settings.github_api_url,
            token.get_secret_value() if token else None,
            profile.repository,
            workflows=[workflow.id or workflow.path for workflow in profile.workflows],
            attempts=1 if once else ATTEMPTS,
        )
    if kind == "folder" and rest:
        from ci_pipeline.sources.folder import FolderSource

        return FolderSource(Path(rest), repository=profile.repository, quiet_seconds=settings.quiet_seconds)
    if kind == "s3" and rest.startswith("//") and rest.strip("/"):
        from ci_pipeline.sources.s3 import S3Source

        return S3Source(
            settings.source_uri, client=s3, repository=profile.repository, quiet_seconds=settings.quiet_seconds
        )
    from ci_pipeline.settings import SettingsError

    raise SettingsError(
        f"CI_PIPELINE_SOURCE: {settings.source_uri!r} is no source: say github, folder:<path> or s3://<bucket>/<prefix>"
    )


def cursor_at(time: datetime) -> str:
    """The cursor whose next page holds what completed after `time`: where a backfill begins."""
    from ci_pipeline.sources.cursor import Cursor

    return Cursor.since(time).dump()
