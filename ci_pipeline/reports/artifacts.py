"""The names of test artifacts, and which of them a folder holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ci_pipeline.model import ArtifactName

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile


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


def available_artifacts(root: Path, profile: Profile) -> list[ArtifactName]:
    """The test artifacts that are folders of `root`, by name."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [artifact for name in names if (artifact := parse_artifact_name(name, profile))]
