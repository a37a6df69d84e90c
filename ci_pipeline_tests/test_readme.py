"""Every command of the README, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.make_tree import make_tree
from ci_pipeline.sample import install
from ci_pipeline_tests.servers.recorded import RecordedServices

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(filter(None, lines))


def environment(home: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CI_", "GITHUB_", "SLACK_", "HF_"))
    }
    return kept | {"CI_PIPELINE_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}


def test_the_readme_names_only_commands_that_this_module_runs():
    assert {shlex.split(command)[0] for command in commands()} == {"make", "ci-pipeline"}
    assert [command for command in commands() if command.startswith("make")] == ["make run", "make test"]


@pytest.mark.slow
def test_the_service_commands_of_the_readme_run_one_after_the_other(tmp_path: Path):
    env = environment(tmp_path / "home")
    install(tmp_path / "home" / "inbox")
    for command in [shlex.split(command) for command in commands() if command.startswith("ci-pipeline")]:
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if "--json" in command:
            assert json.loads(done.stdout)


@pytest.mark.slow
def test_make_run_makes_the_reports_and_ends(tmp_path: Path):
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    names = ("--dagster-port", "--hud-port", "--warehouse-port")
    ports = " ".join(f"{name} {s.getsockname()[1]}" for name, s in zip(names, free, strict=True))
    for s in free:
        s.close()
    # The checkout as it is, with the environment that runs this test: nothing is installed again.
    make = ["make", "--no-print-directory", "--old-file=.venv/.ready", f"BIN={BIN}", "run", f"ARGS=--once {ports}"]
    done = subprocess.run(
        make, env=environment(tmp_path / "home"), cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "new failure" in done.stdout


def test_make_test_is_what_runs_the_tests():
    make = ["make", "-n", "--old-file=.venv/.ready", "test"]
    assert "-m pytest" in subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_workflow_step_of_the_readme_posts_a_report(tmp_path: Path):
    make_tree(tmp_path / "tree", folders=2, tests=20, fail_rate=0.2, seed=3)
    (step,) = [step for block in blocks("yaml") for step in yaml.safe_load(block) if "run" in step]
    given = json.loads((tmp_path / "tree" / "env.json").read_text())
    values = given | {name: given.get(name, value) for name, value in step["env"].items()}
    folders = json.loads((tmp_path / "tree" / "argv.json").read_text())[0]
    script = step["run"].replace("pip install ci-pipeline\n", "")
    script = re.sub(r"\$\{\{.*?\}\}", lambda _: folders, script)
    with RecordedServices(tmp_path / "tree") as services:
        urls = {"GITHUB_API_URL": services.url, "HF_ENDPOINT": services.url, "SLACK_API_URL": f"{services.url}/api/"}
        env = environment(tmp_path / "home") | values | urls | {"HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            ["bash", "-euc", script],
            env=env,
            cwd=tmp_path / "tree" / "artifacts",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "failures out of" in services.messages[0]["text"]
        assert [name for name in services.files if name.endswith("model_results.json")]


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
