"""Make the working directory of a report step, as large as you like: artifact folders and what GitHub's API answers.

    python -m benchmarks.make_tree OUT [--folders 400] [--tests 150] [--fail-rate 0.015] [--seed 1]

Writes `OUT/artifacts/<artifact>/…`, `OUT/env.json`, `OUT/argv.json`, `OUT/github/routes.json` (the layout that
`ci_pipeline_tests.servers.recorded` serves) and `OUT/previous/…`, an earlier run where half of the tests failed too.
The same arguments make the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

REPOSITORY = "huggingface/transformers"
API = f"https://api.github.com/repos/{REPOSITORY}"
WEB = f"https://github.com/{REPOSITORY}"
RUN, EARLIER, WORKFLOW = 31000000002, 31000000001, 90575235
SHA = "5ce1f1ab1e" * 4
JOB = "run_models_gpu"
ERRORS = (
    ("AssertionError", "Tensor-likes are not close!\n\nMismatched elements: {n} / 4096\nGreatest difference: 0.0{n}"),
    ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate {n}.00 MiB."),
    ("KeyError", "'layers.{n}.weight'"),
    ("OSError", "tiny-random-{n} is not a local folder and is not a valid model identifier <b>&</b>"),
)


def test_ids(folder: str, tests: int) -> list[str]:
    path = f"tests/{folder}/test_modeling_{folder.rpartition('/')[2]}.py"
    return [
        f"{path}::ModelTest::test_case_{i:05d}" + (f"[dtype {i} - eager]" if i % 11 == 0 else "") for i in range(tests)
    ]


def line(title: str, fill: str = "=") -> str:
    return f" {title} ".center(80, fill)


def write_report(into: Path, folder: str, tests: int, fail_rate: float, rng: random.Random) -> list[tuple[str, str]]:
    """One artifact folder. Returns the node id and trace of each failing test."""
    failing: list[tuple[str, str, str, int]] = []
    quiet: list[str] = []
    skipped = 0
    for node_id in test_ids(folder, tests):
        draw = rng.random()
        if draw < fail_rate:
            kind, text = rng.choice(ERRORS)
            failing.append((node_id, kind, text.format(n=rng.randrange(1, 400)), rng.randrange(10, 3000)))
        elif draw > 0.8 and fail_rate < 1:
            skipped += 1
            quiet.append(f"SKIPPED [1] {node_id.partition('::')[0]}:{rng.randrange(10, 900)}: test is slow")
        else:
            quiet.append(f"PASSED {node_id}")
    passed = len(quiet) - skipped
    parts = [f"{n} {word}" for n, word in ((len(failing), "failed"), (passed, "passed"), (skipped, "skipped")) if n]
    seconds = round(rng.uniform(5, 900), 2)
    clock = f" ({int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d})" if seconds >= 60 else ""
    summary = [
        line("short test summary info"),
        *quiet,
        *(f"FAILED {n} - {kind}: {text}" for n, kind, text, _ in failing),
    ]
    traces = [
        f"/repo/{n.partition('::')[0]}:{at}: {kind}: {text.partition(chr(10))[0]}" for n, kind, text, at in failing
    ]
    into.mkdir(parents=True)
    files = {
        "stats": line(f"{', '.join(parts) or 'no tests ran'} in {seconds}s{clock}"),
        "summary_short": "\n".join(summary),
        "failures_line": "\n".join([line("FAILURES"), *traces]) if failing else "",
        "test_outputs": "\n".join(f"{n.replace('FAILED ', '')} ran" for n in summary),
    }
    for name, text in files.items():
        (into / f"{name}.txt").write_text(text + "\n" if text else "", "utf-8")
    return [(n, f"(line {at})  {kind}: {text.partition(chr(10))[0]}") for n, kind, text, at in failing]


def make_tree(out: Path, *, folders: int, tests: int, fail_rate: float, seed: int) -> int:
    """Write the whole tree. Returns the number of artifacts."""
    rng = random.Random(seed)
    names = [f"models/m{i:05d}" for i in range(folders)]
    jobs: list[dict[str, object]] = []
    earlier: dict[str, dict[str, object]] = {}
    for device in ("single", "multi"):
        for folder in names:
            entry = folder.replace("/", "_")
            artifact = f"{device}-gpu_{JOB}_{entry}_test_reports"
            failing = write_report(out / "artifacts" / artifact, folder, tests, fail_rate, rng)
            known = [{"line": n, "trace": trace} for i, (n, trace) in enumerate(failing) if i % 2]
            failures = earlier.setdefault(entry, {"failures": {}})["failures"]
            assert isinstance(failures, dict)
            failures[device] = known
            steps = [{"name": f"Test suite reports artifacts: {artifact}", "number": 9, "conclusion": "success"}]
            number = RUN * 4 + len(jobs)
            url = f"{WEB}/actions/runs/{RUN}/job/{number}"
            name = f"Model CI / ({device}) / ({folder})"
            job = {"id": number, "name": name, "status": "completed", "conclusion": "success", "html_url": url}
            jobs.append(job | {"steps": steps})
    artifact = f"ci_results_{JOB}"
    (out / "previous" / artifact).mkdir(parents=True)
    (out / "previous" / artifact / "model_results.json").write_text(json.dumps(earlier), "utf-8")

    routes: list[dict[str, object]] = []
    (out / "github").mkdir()

    def answer(path: str, body: object) -> None:
        name = f"{len(routes)}.json"
        (out / "github" / name).write_text(json.dumps(body), "utf-8")
        routes.append({"url": API + path, "status": 200, "file": name})

    pages = [jobs[i : i + 100] for i in range(0, len(jobs), 100)]
    for i, page in enumerate(pages):
        query = "?per_page=100" + (f"&page={i + 1}" if i else "")
        answer(f"/actions/runs/{RUN}/jobs{query}", {"total_count": len(jobs), "jobs": page})
    run = {"workflow_id": WORKFLOW, "event": "schedule", "head_branch": "main", "head_sha": SHA, "run_number": 7}
    now = run | {"id": RUN, "status": "in_progress", "created_at": "2026-02-03T02:00:00Z"}
    before = run | {"id": EARLIER, "status": "completed", "conclusion": "failure", "created_at": "2026-02-02T02:00:00Z"}
    answer(f"/actions/runs/{RUN}", now)
    answer(
        f"/actions/workflows/{WORKFLOW}/runs?branch=main&exclude_pull_requests=true&per_page=7&event=schedule",
        {"total_count": 2, "workflow_runs": [now, before]},
    )
    archive = f"{API}/actions/artifacts/1/zip"
    answer(
        f"/actions/runs/{EARLIER}/artifacts?per_page=100",
        {
            "total_count": 1,
            "artifacts": [{"id": 1, "name": artifact, "expired": False, "archive_download_url": archive}],
        },
    )
    blob = "https://blobs.example/1.zip"
    routes += [
        {"url": archive, "status": 302, "location": blob},
        {"url": blob, "status": 200, "zip_dir": f"previous/{artifact}"},
    ]
    (out / "github" / "routes.json").write_text(json.dumps(routes), "utf-8")
    (out / "argv.json").write_text(json.dumps([str([names])]), "utf-8")
    env = {
        "CI_SLACK_BOT_TOKEN": "xoxb-bench", "SLACK_REPORT_CHANNEL": "#bench", "ACCESS_REPO_INFO_TOKEN": "ghp_bench",
        "TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN": "hf_bench", "CI_EVENT": "Daily CI", "CI_TITLE": "", "CI_SHA": SHA,
        "CI_TEST_JOB": JOB, "SETUP_STATUS": "success", "REPORT_REPO_ID": "bench/daily_ci", "GITHUB_RUN_ID": str(RUN),
        "GITHUB_RUN_NUMBER": "7", "GITHUB_EVENT_NAME": "schedule", "GITHUB_REPOSITORY": REPOSITORY,
        "GITHUB_WORKFLOW_REF": f"{REPOSITORY}/.github/workflows/self-scheduled-caller.yml@refs/heads/main",
    }  # fmt: skip
    (out / "env.json").write_text(json.dumps(env, indent=1), "utf-8")
    return len(jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folders", type=int, default=400)
    parser.add_argument("--tests", type=int, default=150)
    parser.add_argument("--fail-rate", type=float, default=0.015)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    count = make_tree(
        options.out, folders=options.folders, tests=options.tests, fail_rate=options.fail_rate, seed=options.seed
    )
    print(f"{options.out}: {count} artifacts")


if __name__ == "__main__":
    main()
