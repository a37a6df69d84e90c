"""Makes the sample anew: `python -m ci_pipeline.sample.build` runs pytest on the suites as three nightly runs would."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha1
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

from ci_pipeline.sample import ARCHIVE

HERE = Path(__file__).parent
REPOSITORY = "huggingface/transformers"
WEB = f"https://github.com/{REPOSITORY}"
CHECKOUT = "/__w/transformers/transformers"  # where a container job of GitHub Actions has it

MATRIX = ("models/wren", "models/heron", "models/ibis", "generation")
DEVICES = {"single": 1, "multi": 2}
MACHINES = {
    "nvidia": {"single": "aws-g5-4xlarge-cache", "multi": "aws-g5-12xlarge-cache"},
    "amd": {"single": "amd-mi325-1gpu", "multi": "amd-mi325-2gpu"},
}


@dataclass(frozen=True)
class Night:
    """One CI run of the sample."""

    run_id: int
    run_number: int
    night: int
    vendor: str
    workflow_id: int
    workflow_name: str
    workflow_file: str
    created_at: datetime
    lost: tuple[str, ...] = ()  # artifacts of jobs whose runner went away

    @property
    def head_sha(self) -> str:
        return sha1(f"nest {self.night}".encode()).hexdigest()


NVIDIA = ("nvidia", 90575235, "Nvidia CI", "self-scheduled-caller.yml")
AMD = ("amd", 165206541, "AMD CI", "self-scheduled-amd-mi325-caller.yml")
NIGHTS = (
    Night(19500000001, 1301, 1, *NVIDIA, datetime(2026, 11, 19, 2, 17, 5, tzinfo=UTC)),
    Night(19510000001, 1302, 2, *NVIDIA, datetime(2026, 11, 20, 2, 17, 11, tzinfo=UTC)),
    Night(
        19510000002,
        417,
        2,
        *AMD,
        datetime(2026, 11, 20, 3, 2, 40, tzinfo=UTC),
        lost=("single-gpu_run_pipelines_torch_gpu_test_reports",),
    ),
)


@dataclass(frozen=True)
class TestStep:
    """One call of pytest: an artifact, and the GitHub job that uploads it."""

    night: Night
    device: str
    test_job: str
    folder: str  # below tests/
    exit_code: int = 0

    @property
    def artifact(self) -> str:
        entry = "" if self.folder == "pipelines" else "_" + self.folder.replace("/", "_")
        return f"{self.device}-gpu_{self.test_job}{entry}_test_reports"


def test_steps(night: Night) -> Iterator[TestStep]:
    for device in DEVICES:
        for folder in MATRIX:
            yield TestStep(night, device, "run_models_gpu", folder)
        yield TestStep(night, device, "run_pipelines_torch_gpu", "pipelines")


def run_pytest(checkout: Path, into: Path, step: TestStep) -> int:
    """Run one step's tests and keep its report folder; returns pytest's exit code, -9 when it was killed."""
    folder = into / step.artifact
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {
        "CI": "true",  # as in a workflow: pytest writes messages whole
        "NEST_NIGHT": str(step.night.night),
        "NEST_DEVICES": str(DEVICES[step.device]),
        "NEST_VENDOR": step.night.vendor,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    plugin = ["--disable-plugin-autoload", "-p", "ci_pipeline.sample.report_files", f"--report-files={folder}"]
    command = [sys.executable, "-m", "pytest", *plugin, f"tests/{step.folder}"]
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 1, 2, -9):
        raise RuntimeError(f"{step.artifact}: pytest ended with {done.returncode}")
    for path in folder.iterdir():
        text = path.read_text("utf-8")
        for here, there in ((str(checkout), CHECKOUT), (sysconfig.get_path("stdlib"), "/usr/local/lib/python3.11")):
            text = text.replace(here, there)
        path.write_text(text, "utf-8")
    return done.returncode


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def run_json(night: Night) -> dict[str, Any]:
    """The answer of GitHub's `GET /repos/{repo}/actions/runs/{run_id}`, as far as anyone reads it."""
    return {
        "id": night.run_id,
        "name": night.workflow_name,
        "display_title": night.workflow_name,
        "path": f".github/workflows/{night.workflow_file}",
        "workflow_id": night.workflow_id,
        "run_number": night.run_number,
        "run_attempt": 1,
        "event": "schedule",
        "status": "completed",
        "conclusion": "failure",
        "head_branch": "main",
        "head_sha": night.head_sha,
        "html_url": f"{WEB}/actions/runs/{night.run_id}",
        "created_at": _time(night.created_at),
        "run_started_at": _time(night.created_at),
        "updated_at": _time(night.created_at + timedelta(minutes=41)),
        "repository": {"full_name": REPOSITORY},
    }


def jobs_json(night: Night, steps: list[TestStep]) -> dict[str, Any]:
    """The answer of GitHub's `GET /repos/{repo}/actions/runs/{run_id}/jobs`."""
    jobs: list[dict[str, Any]] = []

    def add(name: str, runner: str, *named: tuple[str, str]) -> None:
        """A job and its steps, each with its conclusion; the job's is the worst of them."""
        job_id = night.run_id * 10 + len(jobs)
        conclusions = [conclusion for _, conclusion in named]
        jobs.append(
            {
                "id": job_id,
                "run_id": night.run_id,
                "run_attempt": 1,
                "name": name,
                "status": "completed",
                "conclusion": next((bad for bad in ("cancelled", "failure") if bad in conclusions), "success"),
                "html_url": f"{WEB}/actions/runs/{night.run_id}/job/{job_id}",
                "runner_name": runner,
                "started_at": _time(night.created_at + timedelta(minutes=2)),
                "completed_at": _time(night.created_at + timedelta(minutes=40)),
                "steps": [
                    {"name": step, "number": number, "status": "completed", "conclusion": conclusion}
                    for number, (step, conclusion) in enumerate(named, 1)
                ],
            }
        )

    for step in steps:
        lost = step.artifact in night.lost
        machine = MACHINES[night.vendor][step.device]
        add(
            f"{step.test_job} / {step.folder} ({machine}, 0)",
            machine,
            ("Set up job", "success"),
            ("Run all tests on GPU", "cancelled" if lost else "failure" if step.exit_code else "success"),
            (f"Test suite reports artifacts: {step.artifact}", "cancelled" if lost else "success"),
        )
    add("Extract warnings in CI artifacts", "ubuntu-24.04", ("Set up job", "success"), ("Select", "success"))
    return {"total_count": len(jobs), "jobs": jobs}


def build(archive: Path) -> None:
    """Run every step, and write the archive: one folder per CI run, in the inbox's layout without `_SUCCESS`."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tarfile.open(archive, "w:xz") as tar,
    ):
        checkout = Path(temporary) / "transformers"
        copytree(HERE / "suites", checkout, ignore=ignore_patterns("__pycache__"))
        for night in NIGHTS:
            root = Path(temporary) / str(night.run_id)
            artifacts = root / "artifacts"
            planned = list(test_steps(night))
            ran = [step for step in planned if step.artifact not in night.lost]
            exit_codes = dict(zip(ran, pool.map(partial(run_pytest, checkout, artifacts), ran), strict=True))
            steps = [replace(step, exit_code=exit_codes.get(step, 0)) for step in planned]
            (root / "run.json").write_text(json.dumps(run_json(night), indent=1), "utf-8")
            (root / "jobs.json").write_text(json.dumps(jobs_json(night, steps), indent=1), "utf-8")
            warnings = artifacts / "warnings_in_ci" / "selected_warnings.json"
            warnings.parent.mkdir()
            warnings.write_text(json.dumps(selected_warnings(artifacts), indent=1), "utf-8")
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    entry = tarfile.TarInfo(str(path.relative_to(temporary)))
                    entry.size, entry.mtime = path.stat().st_size, int(night.created_at.timestamp())
                    tar.addfile(entry, io.BytesIO(path.read_bytes()))


def selected_warnings(artifacts: Path) -> list[str]:
    """The warnings of all artifacts that a nightly watches, once each."""
    blocks = [b for path in artifacts.glob("*/warnings.txt") for b in path.read_text("utf-8").split("\n\n")]
    return sorted({block.strip() for block in blocks if "FutureWarning" in block})


if __name__ == "__main__":
    build(HERE / ARCHIVE)
    print(f"{HERE / ARCHIVE}: {(HERE / ARCHIVE).stat().st_size:,} bytes")
