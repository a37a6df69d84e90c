from pathlib import Path

import pytest

from ci_pipeline.model import ArtifactName
from ci_pipeline.profile import Profile, load_profile
from ci_pipeline.reports.artifacts import (
    available_artifacts,
    parse_artifact_name,
    parse_entry_artifact,
    selected_warnings,
)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("transformers")


@pytest.mark.parametrize(
    ("name", "machine", "device", "test_job", "entry", "postfix"),
    [
        (
            "single-gpu_run_models_gpu_models_bert_test_reports",
            "single-gpu",
            "single",
            "run_models_gpu",
            "models_bert",
            "",
        ),
        ("multi-gpu_run_models_gpu_trainer_test_reports", "multi-gpu", "multi", "run_models_gpu", "trainer", ""),
        ("single-gpu_run_examples_gpu_test_reports", "single-gpu", "single", "run_examples_gpu", "", ""),
        ("run_examples_gpu_test_reports", "", "", "run_examples_gpu", "", ""),
        ("mi325-1_run_models_gpu_models_t5_test_reports", "mi325-1", "mi325-1", "run_models_gpu", "models_t5", ""),
        (
            "single-gpu_run_models_gpu_models_t5_test_reports_postfix_torch-1.13",
            "single-gpu",
            "single",
            "run_models_gpu",
            "models_t5",
            "torch-1.13",
        ),
        # A folder may be named like the end of an artifact.
        (
            "multi-gpu_run_models_gpu_models_test_reports_test_reports",
            "multi-gpu",
            "multi",
            "run_models_gpu",
            "models_test_reports",
            "",
        ),
    ],
)
def test_an_artifact_name_is_taken_apart(
    profile: Profile, name: str, machine: str, device: str, test_job: str, entry: str, postfix: str
) -> None:
    assert parse_artifact_name(name, profile) == ArtifactName(name, machine, device, test_job, entry, postfix)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "warnings_in_ci",
        "ci_results_run_models_gpu",
        "single-gpu_run_models_gpu_models_bert",
        "single-gpu_run_unknown_gpu_models_bert_test_reports",
        "single-gpu_run_models_gpu_test_reports_old",
        "single-gpu_run_models_gpu_test_reports_postfix_",
    ],
)
def test_other_names_are_no_test_artifacts(profile: Profile, name: str) -> None:
    assert parse_artifact_name(name, profile) is None


@pytest.mark.parametrize("longer", ["run_models_gpu_slow", "amd_run_models_gpu"])
def test_one_job_s_name_may_begin_or_end_another_s(profile: Profile, longer: str) -> None:
    job = profile.test_jobs["run_models_gpu"]
    both = profile.model_copy(update={"test_jobs": {"run_models_gpu": job, longer: job}})
    artifact = parse_artifact_name(f"single-gpu_{longer}_models_bert_test_reports", both)
    assert artifact is not None
    assert (artifact.machine, artifact.test_job, artifact.matrix_entry) == ("single-gpu", longer, "models_bert")


def test_only_folders_are_available(profile: Profile, tmp_path: Path) -> None:
    for name in ("multi-gpu_run_kernels_gpu_test_reports", "single-gpu_run_kernels_gpu_test_reports", "warnings_in_ci"):
        (tmp_path / name).mkdir()
    (tmp_path / "single-gpu_run_examples_gpu_test_reports").write_text("a file")
    assert [artifact.device for artifact in available_artifacts(tmp_path, profile)] == ["multi", "single"]


@pytest.mark.parametrize(
    ("name", "machine", "device", "entry"),
    [
        ("single-gpu_models_bert_test_reports", "single-gpu", "single", "models_bert"),
        ("models_bert_test_reports", "", "", "models_bert"),
        ("test_reports_models_bert", "", "", "models_bert"),
        ("test_reports_multi-gpu_models_bert", "multi-gpu", "multi", "models_bert"),
        ("single-gpu_bert_test_reports", "single-gpu", "single", "bert"),
        ("single-gpu_albert_t5_test_reports", "single-gpu", "single", "albert_t5"),
    ],
)
def test_an_artifact_may_name_its_matrix_entry_alone(
    profile: Profile, name: str, machine: str, device: str, entry: str
) -> None:
    found = parse_entry_artifact(name, profile, "run_models_gpu", ["bert", "models_bert", "t5", "albert_t5"])
    assert found == ArtifactName(name, machine, device, "run_models_gpu", entry)


@pytest.mark.parametrize(
    "name",
    [
        "models_bert",
        "single-gpu_models_gpt2_test_reports",
        "docs_models_bert_test_reports",
        "single-gpu_run_kernels_gpu_models_bert_test_reports",
        "_test_reports",
    ],
)
def test_no_other_folder_is_taken_for_an_artifact_of_an_entry(profile: Profile, name: str) -> None:
    assert parse_entry_artifact(name, profile, "run_models_gpu", ["models_bert"]) is None


@pytest.mark.parametrize(
    ("text", "warnings"),
    [(None, []), ('["a warning", 7]', ["a warning", "7"]), ("[]", []), ("[", []), ('{"a": 1}', []), ("\xff", [])],
)
def test_selected_warnings_are_a_list_or_none(tmp_path: Path, text: str | None, warnings: list[str]) -> None:
    if text is not None:
        (tmp_path / "warnings_in_ci").mkdir()
        (tmp_path / "warnings_in_ci" / "selected_warnings.json").write_text(text, "latin-1")
    assert selected_warnings(tmp_path) == warnings


def test_warnings_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    (tmp_path / "warnings_in_ci" / "selected_warnings.json").mkdir(parents=True)
    assert selected_warnings(tmp_path) == []
