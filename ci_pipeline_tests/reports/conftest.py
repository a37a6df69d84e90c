from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ci_pipeline.model import ArtifactName, TestReport
from ci_pipeline.reports.read import read_report

ARTIFACT = ArtifactName(
    "single-gpu_run_models_gpu_models_bert_test_reports", "single-gpu", "single", "run_models_gpu", "models_bert"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def report_of(tmp_path: Path) -> Callable[..., TestReport]:
    """Write the files of a report folder, given as `name="text"`, and read it."""

    def read(files: Mapping[str, str | bytes] = {}, *, every_outcome: bool = False, **more: str | bytes) -> TestReport:
        for name, text in {**{f"{name}.txt": text for name, text in more.items()}, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_report(tmp_path, ARTIFACT, every_outcome=every_outcome)

    return read


@dataclass
class Session:
    """A report folder that pytest wrote, and what its report objects say: (node id, line of the crash) by outcome."""

    folder: Path
    happened: dict[str, list[tuple[str, int | None]]]


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Session]:
    """Run pytest on test files, given as `{name: source}`."""

    def run(sources: Mapping[str, str], *options: str, ci: bool = True) -> Session:
        suite = tmp_path / "suite"
        suite.mkdir(exist_ok=True)
        (suite / "pytest.ini").write_text("[pytest]\n")
        for name, source in sources.items():
            (suite / name).parent.mkdir(parents=True, exist_ok=True)
            (suite / name).write_text(source, "utf-8")
        folder = tmp_path / "reports"
        environment = {key: value for key, value in os.environ.items() if key not in ("CI", "BUILD_NUMBER")}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment |= {"CI": "true"} if ci else {}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        command += ["-p", "ci_pipeline_tests.reports.make_reports", f"--make-reports={folder}", *options]
        subprocess.run(command, cwd=suite, env=environment, capture_output=True, timeout=60)
        happened = json.loads(folder.with_suffix(".json").read_text("utf-8"))
        return Session(folder, {k: [(node_id, line) for node_id, line in v] for k, v in happened.items()})

    return run
