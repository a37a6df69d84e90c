"""The processes of Dagster's runs: one imports what all of them need, waits, and makes a copy of itself for each."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread

PROCESS = ".dagster/ci_pipeline/process"
"""Tag of Dagster runs, which its pages do not show: the process that does it, as `identity` writes it."""

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
    # The threads by then, of OpenBLAS, jemalloc and `_tell_end`, hold nothing that a copy of this process needs.
    warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)
    with suppress(KeyboardInterrupt):  # at a terminal, Ctrl-C reaches the daemon too
        for name in LIBRARIES:
            import_module(name)
        for line in sys.stdin:  # until the daemon ends
            run_id, _, arguments = line.partition(" ")
            if not (process := os.fork()):
                _execute(run_id, arguments)
                break
            Thread(target=_tell_end, args=(run_id, process), daemon=True).start()


def _tell_end(run_id: str, process: int) -> None:
    _, status = os.waitpid(process, 0)
    os.write(1, f"{run_id} {os.waitstatus_to_exitcode(status)}\n".encode())


def _execute(run_id: str, arguments: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    from dagster._cli import cli
    from dagster._cli.utils import get_instance_for_cli
    from dagster._grpc.types import ExecuteRunArgs
    from dagster._serdes import deserialize_value

    with get_instance_for_cli(deserialize_value(arguments, ExecuteRunArgs).instance_ref) as instance:
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
