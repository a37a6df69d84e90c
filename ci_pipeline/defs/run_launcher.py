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

from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value
from dagster._utils.__init__ import get_run_crash_explanation

WORKER = "ci_pipeline.run_worker"

PID = "ci_pipeline/pid"
"""Tag of Dagster runs: the process that does it."""


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
        self._instance.add_run_tags(run.run_id, {PID: str(worker.pid)})
        # What became of a process that ends at once is for the one that follows it.
        with suppress(BrokenPipeError), worker.stdin or sys.stdin as stdin:
            stdin.write(serialize_value(ExecuteRunArgs(origin, run.run_id, self._instance.get_ref())) + "\n")
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
        pid = int(run.tags.get(PID, 0))
        if not is_worker(pid):
            return False
        os.kill(pid, signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: Any) -> CheckRunHealthResult:
        """For runs whose daemon has ended: nobody else would notice that their process has as well."""
        pid = int(run.tags.get(PID, 0))
        gone = pid and not is_worker(pid)  # without a tag it is not ours: `dagster job execute`, say
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND if gone else WorkerStatus.RUNNING)

    def dispose(self) -> None:
        with self._lock:
            if self._spare:
                self._spare.kill()
                self._spare.wait()


def _start_worker() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", WORKER], stdin=subprocess.PIPE, text=True)


def is_worker(pid: int) -> bool:
    """Whether the process is there, and is one of these: after a while another one may have its number."""
    try:
        if not pid:
            return False
        os.kill(pid, 0)
        return not Path("/proc").exists() or WORKER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
