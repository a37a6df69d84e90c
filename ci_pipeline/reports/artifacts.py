"""The names of test artifacts, which of them a folder holds, and the one artifact that is no report: warnings."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ci_pipeline.model import ArtifactName

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile

log = logging.getLogger(__name__)


def matrix_entry(folder: str) -> str:
    """A folder of the matrix as artifacts spell it: `models/bert` → `models_bert`."""
    return folder.strip("/").replace("/", "_")


def parse_artifact_name(name: str, profile: Profile) -> ArtifactName | None:
    """Take `<machine>_<job>[_<folder>]_test_reports[_postfix_<x>]` apart; None if `name` is no such name.

    The job is one that the profile knows; of several the longest, because one job's name may begin another's.
    """
    head, found, tail = name.rpartition("_test_reports")
    postfix = tail.removeprefix("_postfix_")
    if not found or (tail and (postfix == tail or not postfix)):
        return None
    head = f"_{head}_"
    job = max((job for job in profile.test_jobs if f"_{job}_" in head), key=len, default="")
    if not job:
        return None
    machine, _, entry = head.partition(f"_{job}_")
    machine = machine.strip("_")
    return ArtifactName(name, machine, profile.device_of(machine), job, entry.strip("_"), postfix)


def parse_entry_artifact(name: str, profile: Profile, test_job: str, entries: Iterable[str]) -> ArtifactName | None:
    """The same for names that know only an entry of the job's matrix, and no job that the profile knows:
    `[<machine>_]<entry>_test_reports`, and `test_reports_<entry>`.
    """
    if parse_artifact_name(name, profile):
        return None
    head = name.removeprefix("test_reports_").removesuffix("_test_reports")
    entry = max((entry for entry in entries if f"_{head}".endswith(f"_{entry}")), key=len, default="")
    machine = head.removesuffix(entry).strip("_")
    device = profile.device_of(machine)
    if head == name or not entry or (machine and device not in profile.devices):
        return None
    return ArtifactName(name, machine, device, test_job, entry)


def available_artifacts(root: Path, profile: Profile) -> list[ArtifactName]:
    """The test artifacts that are folders of `root`, by name."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [artifact for name in names if (artifact := parse_artifact_name(name, profile))]


def selected_warnings(root: Path) -> list[str]:
    """The warnings that a job of the CI run selected from all reports; none where it did not run."""
    path = root / "warnings_in_ci" / "selected_warnings.json"
    try:
        warnings = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", path.name, error)
        return []
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else []
