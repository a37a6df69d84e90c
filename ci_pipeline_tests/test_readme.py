"""Every command of the README, run as it stands there; `make run` has `test_up` to itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import yaml

from benchmarks.make_tree import make_tree
from ci_pipeline.cli import main
from ci_pipeline.cli_oot import oot
from ci_pipeline.oot.allowlist import parse_allowlist
from ci_pipeline.sample import install
from ci_pipeline_tests.servers.recorded import RecordedServices

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
OUT_OF_TREE = (ROOT / "docs" / "out-of-tree.md").read_text("utf-8")
BIN = Path(sys.executable).parent
SERVE = ["ci-pipeline", "serve"]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(filter(None, lines))


def environment(home: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CI_", "GITHUB_", "SLACK_", "HF_"))
    }
    return kept | {"CI_PIPELINE_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}


def test_the_readme_names_only_commands_that_are_run_here():
    assert {shlex.split(command)[0] for command in commands()} == {"make", "ci-pipeline"}
    assert [command for command in commands() if command.startswith("make")] == ["make run", "make test"]


@pytest.mark.slow
def test_the_service_commands_of_the_readme_run_one_after_the_other(tmp_path: Path):
    env = environment(tmp_path / "home")
    install(tmp_path / "home" / "inbox")
    for command in [shlex.split(command) for command in commands() if command.startswith("ci-pipeline")]:
        if command == SERVE:
            continue  # it does not end
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if "--json" in command:
            assert json.loads(done.stdout)


@pytest.mark.slow
def test_the_server_of_the_readme_answers_until_it_is_stopped(tmp_path: Path):
    assert SERVE in [shlex.split(command) for command in commands()]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "allowlist.yml").write_text(blocks("yaml", OUT_OF_TREE)[0])
    env = environment(tmp_path / "home") | {"CI_PIPELINE_OOT_ALLOWLIST": "allowlist.yml"}
    with subprocess.Popen([*SERVE, "--port", str(port)], env=env, cwd=tmp_path) as server:
        try:
            assert listening(server, port)
            answer = httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
        finally:
            server.send_signal(signal.SIGTERM)
    assert answer.status_code == 200
    assert server.returncode == -signal.SIGTERM  # stopped, not failed


def listening(server: subprocess.Popen[bytes], port: int) -> bool:
    """True as soon as the server takes connections; False if it ends, or does not within half a minute."""
    until = time.monotonic() + 30
    while server.poll() is None and time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.1)
    return False


def test_the_workflow_of_a_backend_gives_the_action_what_it_takes():
    inputs = yaml.safe_load((ROOT / "action" / "action.yml").read_text())["inputs"]
    workflow = yaml.safe_load(blocks("yaml", OUT_OF_TREE)[1])
    given = [step["with"] for step in workflow["jobs"]["test"]["steps"] if "uses" in step]
    assert [step["status"] for step in given] == ["in_progress", "completed"]
    assert [name for step in given for name in step if name not in inputs] == []
    required = {name for name, described in inputs.items() if described.get("required")}
    assert all(required <= step.keys() for step in given)


def test_the_relay_takes_the_allowlist_of_the_documentation():
    entries = parse_allowlist(blocks("yaml", OUT_OF_TREE)[0])
    assert {entry.level for entry in entries} == {"L1", "L2", "L3", "L4"}


def test_make_test_is_what_runs_the_tests():
    make = ["make", "-n", "--old-file=.venv/.ready", "test"]
    assert "-m pytest" in subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_workflow_step_of_the_readme_posts_a_report(tmp_path: Path):
    make_tree(tmp_path / "tree", folders=2, tests=20, fail_rate=0.2, seed=3)
    (step,) = [step for block in blocks("yaml") for step in yaml.safe_load(block) if "run" in step]
    given = json.loads((tmp_path / "tree" / "env.json").read_text())
    values = given | {name: given.get(name, value) for name, value in step["env"].items()}
    values["FOLDERS"] = json.loads((tmp_path / "tree" / "argv.json").read_text())[0]
    script = re.sub(r"^pip install .*\n", "", step["run"])
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


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_is_there(document: Path):
    text = document.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    assert set(re.findall(r"ci-pipeline ([a-z][a-z-]+)", text)) <= main.commands.keys()
    assert set(re.findall(r"ci-pipeline oot ([a-z][a-z-]+)", text)) <= oot.commands.keys()
