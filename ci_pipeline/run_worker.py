"""The process of a run of Dagster, started before there is one: it imports what all of them need, and waits."""

from __future__ import annotations

import sys
from importlib import import_module

LIBRARIES = (
    "dagster._cli.api",
    "dagster._core.storage.sqlite_storage",
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "slack_sdk.models.blocks",
)
"""What takes long to import. The project's own modules are imported by the run, since they may change until then."""


def main() -> None:
    try:
        for name in LIBRARIES:
            import_module(name)
        run = sys.stdin.readline().strip()
    except KeyboardInterrupt:
        return
    if run:  # else the daemon has ended
        from dagster._cli import cli

        cli(["api", "execute_run", run])


if __name__ == "__main__":
    main()
