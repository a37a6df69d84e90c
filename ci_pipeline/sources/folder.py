"""CI runs from an inbox folder on this machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from ci_pipeline.sources import SourceError
from ci_pipeline.sources.archives import ArtifactRefused, link_tree, unpack
from ci_pipeline.sources.inbox import InboxSource, Place
from ci_pipeline.sources.raw_store import SUCCESS

log = logging.getLogger(__name__)


class FolderSource(InboxSource):
    """A `Source` on a folder; see `inbox`. Files are not copied but linked where the file system allows it."""

    parallel = False

    def __init__(self, inbox: Path, *, repository: str = "", quiet_seconds: float = 60.0) -> None:
        super().__init__(repository)
        self._inbox = inbox
        self._quiet_seconds = quiet_seconds

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._inbox) as entries:
                return [entry.name for entry in entries if entry.name[0] not in "._" and entry.is_dir()]
        except OSError as error:
            raise SourceError(f"the inbox {self._inbox} cannot be read: {error.strerror}") from error

    def _completed(self, name: str) -> datetime | None:
        folder = self._inbox / name
        try:
            if (folder / SUCCESS).exists():
                return datetime.fromtimestamp(folder.stat().st_ctime, UTC)
            now = time.time()
            # Copied files keep their times, folders cannot keep theirs: what arrives changes the folder that it is in.
            # A file from the future, by a wrong clock, says nothing.
            changes = [changed for changed in _changes(folder) if changed <= now]
        except OSError as error:  # it is being moved away, or may not be read
            log.warning("%s is not taken yet: %s", folder, error.strerror)
            return None
        quiet = bool(changes) and max(changes) <= now - self._quiet_seconds
        return datetime.fromtimestamp(max(changes) + self._quiet_seconds, UTC) if quiet else None

    def _read(self, name: str, file: str) -> bytes | None:
        try:
            return (self._inbox / name / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"{self._inbox / name / file}: {error.strerror}") from error

    def _artifacts(self, name: str) -> Mapping[str, Place]:
        root = self._inbox / name
        artifacts: dict[str, Place] = {}
        try:
            # `gh run download --dir <inbox>/<run_id>` makes no folder `artifacts`.
            with os.scandir(root / "artifacts" if (root / "artifacts").is_dir() else root) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        artifacts[entry.name] = partial(link_tree, path)
                    elif entry.is_symlink():
                        artifacts[entry.name] = partial(_refuse, entry.name, "a symbolic link")
                    elif path.suffix == ".zip":
                        artifacts.setdefault(path.stem, partial(_unpacked, path))
        except OSError as error:
            raise SourceError(f"{root}: {error.strerror}") from error
        return artifacts


def _changes(folder: Path) -> Iterator[float]:
    """When the files and folders in a folder changed, in seconds since 1970; nothing for an empty folder."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _changes(Path(entry.path))
        else:
            yield entry.stat(follow_symlinks=False).st_mtime
    if entries:
        yield folder.stat().st_ctime


def _unpacked(archive: Path, into: Path) -> list[str]:
    unpack(archive, into)
    return []


def _refuse(name: str, reason: str, into: Path) -> list[str]:
    raise ArtifactRefused(name, reason)
