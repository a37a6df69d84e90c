"""Starts runs of Dagster on this machine, each in a process of its own that has done its imports before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value
from dagster._utils import get_run_crash_explanation

from ci_pipeline.run_worker import PROCESS, identity


class WarmRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Keeps one `run_worker`, which has done its imports; the daemon has it, from the first run on."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._worker: subprocess.Popen[str] | None = None
        self._launched: set[str] = set()  # by this worker, which has not told that they ended
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
        arguments = serialize_value(ExecuteRunArgs(origin, run.run_id, self._instance.get_ref()))
        with self._lock:
            if self._worker is None or self._worker.poll() is not None:
                self._worker, self._launched = _start_worker(), set()
                Thread(target=self._follow, args=(self._worker, self._launched), daemon=True).start()
            self._launched.add(run.run_id)
            assert self._worker.stdin is not None
            with suppress(BrokenPipeError):  # that it has ended is a matter for `_follow`
                self._worker.stdin.write(f"{run.run_id} {arguments}\n")
                self._worker.stdin.flush()

    def _follow(self, worker: subprocess.Popen[str], launched: set[str]) -> None:
        """Until the worker ends. Its runs go on without it: `check_run_worker_health` sees how they do."""
        assert worker.stdout is not None
        for line in worker.stdout:
            run_id, code = line.split()
            launched.discard(run_id)
            self._ended(run_id, int(code))
        code = worker.wait()
        with self._lock:
            for run_id in launched:
                run = self._instance.get_run_by_id(run_id)
                if run is not None and not _is_there(run.tags.get(PROCESS, "")):
                    self._ended(run_id, code)

    def _ended(self, run_id: str, code: int) -> None:
        """A run that its process leaves unfinished has failed."""
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
            if self._worker:
                self._worker.kill()
                self._worker.wait()


def _start_worker() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ci_pipeline.run_worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _pid(process: str) -> int:
    return int(process.partition(":")[0])


def _is_there(process: str) -> bool:
    try:
        os.kill(_pid(process), 0)
    except (OSError, ValueError):
        return False
    return identity(_pid(process)) == process
