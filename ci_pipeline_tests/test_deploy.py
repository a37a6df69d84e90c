"""The files of deploy/ are what Dagster and its libraries take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from dagster import Shape
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema

ROOT = Path(__file__).parent.parent


def instance_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", ["dagster.yaml", "deploy/dagster.ecs.yaml"])
def test_an_instance_file_has_what_dagster_knows_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://user:password@host:5432/dagster")
    config = instance_file(name)
    result = process_config(Shape(dagster_instance_config_schema()), config)
    assert result.success, result.errors
    assert config["telemetry"] == {"enabled": False}


def test_the_launcher_takes_its_configuration():
    from dagster_aws.ecs import EcsRunLauncher

    config = instance_file("deploy/dagster.ecs.yaml")["run_launcher"]["config"]
    result = process_config(EcsRunLauncher.config_type(), config)
    assert result.success, result.errors
    assert result.value["secrets_tag"] is None


def test_no_file_that_dagster_reads_names_a_path_of_one_machine():
    for name in ("dagster.yaml", "workspace.yaml", "deploy/dagster.ecs.yaml"):
        values = [line.partition("#")[0] for line in (ROOT / name).read_text().splitlines()]
        assert not [line for line in values if " /" in line or ":/" in line], name


def test_an_installed_package_has_all_that_a_checkout_has(tmp_path: Path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    [wheel] = tmp_path.glob("*.whl")
    there = [path for path in (ROOT / "ci_pipeline").rglob("*.*") if "__pycache__" not in path.parts]
    files = {"ci_pipeline/dagster.yaml", *(path.relative_to(ROOT).as_posix() for path in there)}
    assert files - set(ZipFile(wheel).namelist()) == set()
