"""The processes of Dagster's runs: one imports what all of them need, waits, and makes a copy of itself for each."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path

PROCESS = "ci_pipeline/process"
"""Tag of Dagster runs: the process that does it, as `identity` writes it."""

LIBRARIES = (
    "dagster._cli.api",
    "dagster._core.storage.sqlite_storage",
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "slack_sdk.models.blocks",
    "tenacity",
)
"""What takes long to import. The project's own modules are imported by each run, since they may change until then."""


def main() -> None:
    """Do the runs that come in, one line each: the run's id and, after a space, Dagster's `ExecuteRunArgs` as JSON.

    What goes out is a line for each process that ended: the run's id and, after a space, the exit code.
    """
    runs: dict[int, str] = {}  # ids by process

    def tell_ended(*_: object) -> None:
        with suppress(ChildProcessError):  # none is left
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                os.write(1, f"{runs.pop(ended[0])} {os.waitstatus_to_exitcode(ended[1])}\n".encode())

    # By then it has threads of OpenBLAS and jemalloc, which expect to be copied.
    warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)
    try:
        for name in LIBRARIES:
            import_module(name)
        signal.signal(signal.SIGCHLD, tell_ended)
        for line in sys.stdin:  # until the daemon ends
            run_id, _, arguments = line.partition(" ")
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # nothing ends before its id is known
            if not (process := os.fork()):
                break
            runs[process] = run_id
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        else:
            return
    except KeyboardInterrupt:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    _execute(run_id, arguments)


def _execute(run_id: str, arguments: str) -> None:
    from dagster._cli import cli
    from dagster._core.instance import DagsterInstance
    from dagster._grpc.types import ExecuteRunArgs
    from dagster._serdes import deserialize_value

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    ref = deserialize_value(arguments, ExecuteRunArgs).instance_ref
    with DagsterInstance.from_ref(ref) if ref else DagsterInstance.get() as instance:
        instance.add_run_tags(run_id, {PROCESS: identity(os.getpid())})
    cli(["api", "execute_run", arguments])


def identity(pid: int) -> str:
    """A process: its number and, since numbers are used again, when it began, where the system tells."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = ""
    return f"{pid}:{began}"


if __name__ == "__main__":
    main()
