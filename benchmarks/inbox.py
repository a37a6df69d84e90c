"""Put a tree of `benchmarks.make_tree` into an inbox folder, as a CI run that has completed.

python -m benchmarks.inbox TREE INBOX RUN_ID [--day 2026-02-03]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any


def put(tree: Path, inbox: Path, run_id: int, day: date) -> Path:
    """The run's folder. It appears whole, with `_SUCCESS`; its files are hard links."""
    answers = {route["url"].partition("?")[0]: [] for route in _routes(tree)}
    for route in _routes(tree):
        if "file" in route:
            answers[route["url"].partition("?")[0]].append(json.loads((tree / "github" / route["file"]).read_text()))
    jobs = next(pages for url, pages in answers.items() if url.endswith("/jobs"))
    run: dict[str, Any] = answers[next(url for url in answers if url.endswith("/jobs")).removesuffix("/jobs")][0]
    run |= {
        "id": run_id,
        "run_attempt": 1,
        "run_number": run_id % 10_000,
        "name": "Nvidia CI",
        "status": "completed",
        "conclusion": "failure",
        "head_branch": "main",
        "created_at": f"{day}T02:00:00Z",
        "updated_at": f"{day}T06:00:00Z",
    }
    stage = inbox / f".{run_id}"
    stage.mkdir(parents=True)
    (stage / "run.json").write_text(json.dumps(run))
    (stage / "jobs.json").write_text(json.dumps({"jobs": [job for page in jobs for job in page["jobs"]]}))
    shutil.copytree(tree / "artifacts", stage / "artifacts", copy_function=os.link)
    (stage / "_SUCCESS").touch()
    return stage.rename(inbox / str(run_id))


def _routes(tree: Path) -> list[dict[str, Any]]:
    return json.loads((tree / "github" / "routes.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("inbox", type=Path)
    parser.add_argument("run_id", type=int)
    parser.add_argument("--day", type=date.fromisoformat, default=date.today())
    options = parser.parse_args()
    print(put(options.tree, options.inbox, options.run_id, options.day))


if __name__ == "__main__":
    main()
