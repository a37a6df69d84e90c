"""A report on disk → its test outcomes, whichever tool wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ci_pipeline.model import ArtifactName, TestReport
from ci_pipeline.reports.pytest_folder import read_pytest_folder

_PYTEST = frozenset(("stats.txt", "summary_short.txt"))


def read_report(folder: Path | str, artifact: ArtifactName, *, every_outcome: bool = False) -> TestReport:
    """The report in an artifact's folder, or in folders of it: pytest's report files, or JUnit XML.

    The outcomes are the failing tests (`failed`, `error`) with their traces, or with `every_outcome` all that the
    report names, with their whole messages too. What cannot be read never raises: it is a problem of the report.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        problem = artifact.problem(f"the artifact cannot be read: {error.strerror}")
        return TestReport(artifact, None, problems=(problem,))
    if not _PYTEST.intersection(names):
        below = [(path, files) for path, _, files in os.walk(folder)]
        reports = [(path, files) for path, files in below if _PYTEST.intersection(files)]
        xml = (os.path.join(path, name) for path, files in below for name in files if name.endswith(".xml"))
        if len(reports) == 1:
            folder, names = reports[0]
        elif files := sorted(os.path.relpath(file, folder) for file in xml):
            from ci_pipeline.reports.junit import read_junit_folder

            return read_junit_folder(Path(folder), files, artifact, every_outcome=every_outcome)
    return read_pytest_folder(folder, names, artifact, every_outcome=every_outcome)


def read_reports(root: Path, artifacts: Iterable[ArtifactName], *, every_outcome: bool = False) -> list[TestReport]:
    """The reports of the artifacts that are folders of `root`, in the same order."""
    return [read_report(f"{root}/{a.name}", a, every_outcome=every_outcome) for a in artifacts]
