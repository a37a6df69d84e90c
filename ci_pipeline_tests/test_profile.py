import os
from pathlib import Path

import pytest

from ci_pipeline.model import CiRun
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import SettingsError

AMD = ".github/workflows/self-scheduled-amd-mi325-caller.yml"


@pytest.mark.parametrize("name", ["transformers", "pytorch"])
def test_shipped_profiles_load(name: str):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.unclassified in profile.categories
    assert {rule.category for rule in profile.category_rules} < set(profile.categories)


@pytest.mark.parametrize("folder", [".", ""])
def test_a_profile_can_be_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nrepository = "me/mine"\ncategories = ["A", "Unclassified"]\n'
        '[devices.tpu]\nmachines = ["v6e", "v5e"]\n[test_jobs.unit]\ntest = "Unit"\nresult_name = "unit"\n'
    )
    profile = load_profile(os.path.join(folder, file.name))
    assert profile.device_of("v5e-8") == "tpu"
    assert profile.device_of("m4-mini") == "m4-mini"
    assert profile.job_to_test_map == {"unit": "Unit"}
    assert profile.test_to_result_name == {"Unit": "unit"}


def test_the_first_rule_that_fits_names_the_category():
    profile = load_profile("transformers")
    assert profile.category_of("tests/quantization/bnb/test_modeling_x.py::T::t") == "Quantization"
    assert profile.category_of("tests/models/auto/test_modeling_auto.py::T::t") == "PyTorch"
    assert profile.category_of("tests/utils/test_misc.py::t") == "Unclassified"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"name = ", "TOML"),
        (b'name = "\xff"', "TOML: .*0xff"),
        (b'name = "x"', "repository"),
        (b'name = "x"\nrepositry = "a/b"', "repositry"),
        (b"workflows = [{ id = 1, colour = 1 }]", r": workflows\.0\.colour: "),
        (b'name = "x"\nrepository = "a/b"\ncategories = []\ncolour = 1\n[devices]\n[test_jobs]', "colour"),
    ],
)
def test_a_file_that_is_no_profile_is_one_line_that_names_what_is_wrong(tmp_path: Path, text: bytes, names: str):
    file = tmp_path / "bad.toml"
    file.write_bytes(text)
    with pytest.raises(SettingsError, match=names) as caught:
        load_profile(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(SettingsError, match="'tensorflow': name one of pytorch, transformers, or the path"):
        load_profile("tensorflow")


@pytest.mark.parametrize(
    ("run", "title"),
    [
        (CiRun("o/r", 1, run_number=7, workflow_id=90575235, workflow_name="renamed"), "Daily CI #7"),
        (CiRun("o/r", 1, workflow_path=AMD, workflow_name="renamed"), "Scheduled CI (AMD) - mi325"),
        (CiRun("o/r", 1, 2, workflow_name="Nightly"), "Nightly, attempt 2"),
        (CiRun("o/r", 1, workflow_name="N" * 1000), "N" * 100),
        (CiRun("o/r", 1), "CI run"),
    ],
)
def test_a_run_is_called_what_the_profile_calls_its_workflow(run: CiRun, title: str) -> None:
    assert load_profile("transformers").run_title(run) == title


@pytest.mark.parametrize(
    ("path", "diffs"),
    [(AMD, True), (".github/workflows/self-scheduled-caller.yml", False), ("another.yml", False), ("", False)],
)
def test_some_workflows_compare_every_test(path: str, diffs: bool):
    assert load_profile("transformers").diffs_results(path) is diffs


def test_a_folder_is_asked_about_by_its_name_with_or_without_its_job_s_prefix():
    oncall = {"models_bert": "ada", "sam": "linus", "run_models_gpu": "the CI team"}
    profile = load_profile("transformers").model_copy(update={"oncall": oncall})
    folders = ("models_bert", "models_sam", "models_vit")
    assert [profile.oncall_of("run_models_gpu", folder) for folder in folders] == ["ada", "linus", ""]
    assert profile.oncall_of("unknown_job", "models_sam") == ""
