"""Starts runs of Dagster on this machine, each in a process of its own that was ready before the run was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value
from dagster._utils.__init__ import get_run_crash_explanation

WORKER = "ci_pipeline.run_worker"

PROCESS = "ci_pipeline/process"
"""Tag of Dagster runs: the process that does it, as `identity` writes it."""


class WarmRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Keeps one process waiting that has done its imports; the daemon has it, from the first run on."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._spare: subprocess.Popen[str] | None = None
        self._lock = Lock()
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> WarmRunLauncher:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        run, origin = context.dagster_run, context.job_code_origin
        assert origin is not None, "a run that is launched says where its code is"
        with self._lock:
            worker, self._spare = self._spare, None
        if worker is None or worker.poll() is not None:
            worker = _start_worker()
        self._instance.add_run_tags(run.run_id, {PROCESS: identity(worker.pid)})
        assert worker.stdin is not None
        with suppress(BrokenPipeError), worker.stdin:  # a process that has ended is a matter for `_follow`
            worker.stdin.write(serialize_value(ExecuteRunArgs(origin, run.run_id, self._instance.get_ref())) + "\n")
        Thread(target=self._follow, args=(worker, run.run_id), daemon=True).start()

    def _follow(self, worker: subprocess.Popen[str], run_id: str) -> None:
        """Until the process ends. A run that it leaves unfinished has failed."""
        code = worker.wait()
        with self._lock:
            # Not before: it would take its time from the run.
            self._spare = self._spare or _start_worker()
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return
        if run.status == DagsterRunStatus.CANCELING:
            self._instance.report_run_canceled(run)
        else:
            self._instance.report_run_failed(run, get_run_crash_explanation("The run's process", code))

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if not _is_there(process := run.tags.get(PROCESS, "")):
            return False
        os.kill(_pid(process), signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """For runs whose daemon has ended: nobody else would notice that their process has as well."""
        process = run.tags.get(PROCESS)  # without the tag it is not ours: `dagster job execute`, say
        gone = process is not None and not _is_there(process)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND if gone else WorkerStatus.RUNNING)

    def dispose(self) -> None:
        with self._lock:
            if self._spare:
                self._spare.kill()
                self._spare.wait()


def _start_worker() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", WORKER], stdin=subprocess.PIPE, text=True)


def identity(pid: int) -> str:
    """A process: its number and, since numbers are used again, when it began, where the system tells."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = ""
    return f"{pid}:{began}"


def _pid(process: str) -> int:
    return int(process.partition(":")[0])


def _is_there(process: str) -> bool:
    try:
        os.kill(_pid(process), 0)
    except (OSError, ValueError):
        return False
    return identity(_pid(process)) == process
