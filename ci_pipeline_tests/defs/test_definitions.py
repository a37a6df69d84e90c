"""What Dagster loads: for every deployment, from every tool, and as the flow reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config
from dagster_aws.ecs import EcsRunLauncher

from ci_pipeline.definitions import build_definitions
from ci_pipeline.defs.instance import Instance
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import load_settings

PROJECT = Path(__file__).parents[2]

DEPLOYMENTS: dict[str, dict[str, str]] = {
    "one machine": {},
    "one machine with a warehouse": {"CI_PIPELINE_WAREHOUSE_URL": "http://127.0.0.1:3002/default"},
    "GitHub, Slack and Hub": {
        "CI_PIPELINE_SOURCE": "github",
        "ACCESS_REPO_INFO_TOKEN": "ghp_test",
        "CI_SLACK_BOT_TOKEN": "xoxb-test",
        "HF_TOKEN": "hf_test",
    },
    "many machines": {
        "CI_PIPELINE_SOURCE": "s3://ci-inbox/runs",
        "CI_PIPELINE_DATA_URI": "s3://ci-data",
        "CI_PIPELINE_WAREHOUSE_URL": "https://ci:secret@clickhouse.example:8443/ci",
        "CI_PIPELINE_WAREHOUSE_ENGINE": "replicated",
    },
}


@pytest.mark.parametrize("profile", ["transformers", "pytorch"])
@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=list(DEPLOYMENTS))
def test_every_deployment_has_definitions_that_load(deployment: dict[str, str], profile: str, tmp_path: Path) -> None:
    settings = load_settings(CI_PIPELINE_HOME=str(tmp_path), **deployment)
    defs = build_definitions(settings, load_profile(profile))
    dg.Definitions.validate_loadable(defs)
    assert defs.resolve_job_def("process_ci_run").executor_def is dg.in_process_executor


def lineage() -> dict[str, set[str]]:
    defs = build_definitions(load_settings(), load_profile("transformers"))
    graph = defs.resolve_asset_graph()
    return {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }


def test_the_lineage_reads_like_the_flow() -> None:
    parents = lineage()
    flow = [
        "github_workflow_run",
        "raw_artifacts",
        "test_outcomes",
        "job_results",
        "category_results",
        "run_diff",
        "hub_dataset_files",
        "slack_report",
        "slack_channel",
    ]
    for before, after in pairwise(flow):
        assert before in parents[after]
    assert "run_diff" in parents["warehouse_tables"]
    assert parents["hub_dataset"] == {"hub_dataset_files"}


def test_every_asset_says_what_it_is_and_whose() -> None:
    defs = build_definitions(load_settings(), load_profile("transformers"))
    for spec in defs.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.kinds, spec.key
        assert spec.group_name not in (None, "default"), spec.key
    graph = defs.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert graph.get(key).owners, key


def test_assets_of_ci_runs_make_a_range_in_one_run() -> None:
    defs = build_definitions(load_settings(), load_profile("transformers"))
    graph = defs.resolve_asset_graph()
    of_ci_runs = [key for key in graph.materializable_asset_keys if graph.get(key).is_partitioned]
    assert {graph.get(key).backfill_policy for key in of_ci_runs if "oot" not in key.to_user_string()} == {
        dg.BackfillPolicy.single_run()
    }


def test_loading_the_definitions_does_not_load_what_only_runs_need() -> None:
    code = (
        "import sys; from ci_pipeline.definitions import defs; defs();"
        "print([m for m in ('pandas', 'chdb', 'dagster_aws', 'boto3', 'huggingface_hub', 'clickhouse_connect')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["dg", "list", "defs"], ["dg", "check", "defs"], ["dagster", "definitions", "validate"]]
)
def test_dagsters_own_tools_load_the_project_as_it_is(command: list[str], tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name(command[0])
    env = os.environ | {"CI_PIPELINE_HOME": str(tmp_path), "DAGSTER_HOME": "", "DAGSTER_DISABLE_TELEMETRY": "1"}
    arguments = ["-w", "workspace.yaml"] if command[0] == "dagster" else []
    done = subprocess.run([tool, *command[1:], *arguments], cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_instance_has_no_path_of_a_machine_and_no_telemetry() -> None:
    text = (PROJECT / "dagster.yaml").read_text()
    assert yaml.safe_load(text)["telemetry"] == {"enabled": False}
    assert not re.search(r"[\s'\"]/", text)
    assert yaml.safe_load((PROJECT / "workspace.yaml").read_text()) == {
        "load_from": [{"python_module": "ci_pipeline.definitions"}]
    }


def test_the_instance_for_many_machines_is_one_that_dagster_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dagster:secret@db:5432/dagster")
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "logs")
    (tmp_path / "dagster.yaml").write_text((PROJECT / "deploy" / "dagster.ecs.yaml").read_text())
    config, custom = dagster_instance_config(str(tmp_path))
    assert custom is Instance
    validated = validate_config(EcsRunLauncher.config_type(), config["run_launcher"]["config"])
    assert validated.success, validated.errors
