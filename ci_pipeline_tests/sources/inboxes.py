"""Runs to put into an inbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ci_pipeline_tests.servers.github import zip_of


def put_run(
    inbox: Path,
    name: str,
    *,
    run: Mapping[str, Any] | None = None,
    jobs: Any = None,
    artifacts: Mapping[str, Mapping[str, str | bytes] | bytes] | None = None,
    success: bool = True,
) -> Path:
    """A run's folder. An artifact is a folder of files, or, where its name ends with `.zip`, a zip file."""
    folder = inbox / name
    (folder / "artifacts").mkdir(parents=True)
    for artifact, content in (artifacts or {"report": {"stats.txt": "1 passed"}}).items():
        path = folder / "artifacts" / artifact
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif artifact.endswith(".zip"):
            path.write_bytes(zip_of(content))
        else:
            for file, text in content.items():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    for file, value in (("run.json", run), ("jobs.json", jobs)):
        if value is not None:
            (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
    if success:
        (folder / "_SUCCESS").touch()
    return folder
