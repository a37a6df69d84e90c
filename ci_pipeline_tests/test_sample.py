"""The bundled sample, and the pytest plugin that wrote its report folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ci_pipeline.sample import ARCHIVE, build, install

FIRST, SECOND, AMD = (night.run_id for night in build.NIGHTS)


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inbox = tmp_path_factory.mktemp("home") / "inbox"
    assert install(inbox) == [FIRST, SECOND, AMD]
    return inbox


def read(inbox: Path, run_id: int, artifact: str, name: str) -> str:
    return (inbox / str(run_id) / "artifacts" / f"{artifact}_test_reports" / f"{name}.txt").read_text("utf-8")


def report(tmp_path: Path, source: str, *arguments: str) -> dict[str, str]:
    """The report folder of one test file: text by name. No plugin but those that `arguments` name has a part in it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(source, "utf-8")
    command = [sys.executable, "-m", "pytest", "--disable-plugin-autoload", "-p", "no:cacheprovider"]
    plugin = ["-p", "ci_pipeline.sample.report_files", "--report-files=reports"]
    subprocess.run([*command, *plugin, *arguments], cwd=tmp_path, capture_output=True, timeout=60)
    return {path.stem: path.read_text("utf-8") for path in (tmp_path / "reports").iterdir()}


def test_the_archive_is_small() -> None:
    assert (Path(build.__file__).parent / ARCHIVE).stat().st_size < 1_000_000


def test_installing_again_adds_nothing(inbox: Path) -> None:
    assert install(inbox) == []


def test_a_run_that_was_not_put_there_whole_is_put_there_again(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / str(SECOND) / "_SUCCESS").unlink()
    (tmp_path / str(SECOND) / "jobs.json").write_text("{")
    assert install(tmp_path) == [SECOND]
    assert json.loads((tmp_path / str(SECOND) / "jobs.json").read_text())["total_count"] == 11


def test_the_amd_run_tests_the_commit_of_the_second_night(inbox: Path) -> None:
    runs = {run_id: json.loads((inbox / str(run_id) / "run.json").read_text()) for run_id in (FIRST, SECOND, AMD)}
    assert runs[AMD]["head_sha"] == runs[SECOND]["head_sha"] != runs[FIRST]["head_sha"]
    assert runs[FIRST]["created_at"] < runs[SECOND]["created_at"] < runs[AMD]["created_at"]
    assert runs[AMD]["workflow_id"] != runs[SECOND]["workflow_id"] == runs[FIRST]["workflow_id"]


def test_the_jobs_announce_every_artifact_and_one_that_was_lost(inbox: Path) -> None:
    for run_id, lost in ((FIRST, set[str]()), (AMD, {"single-gpu_run_pipelines_torch_gpu_test_reports"})):
        jobs = json.loads((inbox / str(run_id) / "jobs.json").read_text())["jobs"]
        last_steps = [job["steps"][-1]["name"] for job in jobs]
        announced = {name.partition(": ")[2] for name in last_steps if name.startswith("Test suite reports artifacts")}
        there = {path.name for path in (inbox / str(run_id) / "artifacts").iterdir()} - {"warnings_in_ci"}
        assert announced - there == lost
        assert there < announced or there == announced


def test_the_killed_job_leaves_what_it_saw_but_no_totals(inbox: Path) -> None:
    artifact = "multi-gpu_run_models_gpu_models_ibis"
    assert "FAILED tests/models/ibis/test_modeling_ibis.py::test_feature_extractor" in read(
        inbox, SECOND, artifact, "summary_short"
    )
    with pytest.raises(FileNotFoundError):
        read(inbox, SECOND, artifact, "stats")


def test_the_sample_names_no_path_of_the_machine_that_made_it(inbox: Path) -> None:
    made_on = (str(Path(build.__file__).parent), sys.base_prefix, "/tmp/")
    texts = [path.read_text("utf-8") for path in inbox.rglob("*.txt")]
    assert not any(path in text for path in made_on for text in texts)


@pytest.mark.slow
def test_the_archive_is_what_the_suites_say_today(inbox: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    build.copytree(build.HERE / "suites", checkout, ignore=build.ignore_patterns("__pycache__"))
    for night in build.NIGHTS[1:]:
        step = build.TestStep(night, "single", "run_models_gpu", "models/wren")
        assert build.run_pytest(checkout, tmp_path / str(night.run_id), step) == 1
        made = (tmp_path / str(night.run_id) / step.artifact / "summary_short.txt").read_text("utf-8")
        assert made == read(inbox, night.run_id, step.artifact.removesuffix("_test_reports"), "summary_short")


def test_a_report_folder_has_every_outcome_with_its_whole_message(tmp_path: Path) -> None:
    files = report(
        tmp_path,
        """
import warnings, pytest

def test_passes(): warnings.warn("old")
def test_fails(): print("seen \\udcff"); raise ValueError("first\\nsecond")
@pytest.mark.skip(reason="no GPU")
def test_skips(): ...
@pytest.mark.xfail(reason="known")
def test_xfails(): assert False
@pytest.mark.xfail(reason="known")
def test_xpasses(): ...
@pytest.fixture
def broken():
    yield
    raise OSError("disk")
def test_tears_down(broken): ...
def test_has_no_traceback(): pytest.fail("only\\ntext", pytrace=False)
""",
    )
    assert files["summary_short"].splitlines() == [
        "=========================== short test summary info ============================",
        "PASSED test_it.py::test_passes",
        "FAILED test_it.py::test_fails - ValueError: first",
        "second",
        "SKIPPED test_it.py::test_skips - no GPU",
        "XFAIL test_it.py::test_xfails - known",
        "XPASS test_it.py::test_xpasses - known",
        "PASSED test_it.py::test_tears_down",
        "ERROR test_it.py::test_tears_down - OSError: disk",
        "FAILED test_it.py::test_has_no_traceback - Failed: only",
        "text",
    ]
    assert "2 failed, 2 passed, 1 skipped, 1 xfailed, 1 xpassed, 1 warning, 1 error in " in files["stats"]
    traces = files["failures_line"].splitlines()[1:]
    assert [line.rpartition("test_it.py:")[2] for line in traces] == ["5: ValueError: first", "17: Failed: only"]
    assert "_ ERROR at teardown of test_tears_down _" in files["errors"]
    assert "UserWarning: old" in files["warnings"]
    assert "seen" in files["captured_info"]
    assert files["failures_short"].rstrip().endswith("text")


def test_a_collection_error_is_in_the_report(tmp_path: Path) -> None:
    files = report(tmp_path, "import a_module_that_is_not_there")
    summary = "ERROR test_it.py - ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    assert files["summary_short"].splitlines()[1] == summary
    assert "1 error in" in files["stats"]
    assert "_ ERROR collecting test_it.py _" in files["errors"]


def test_with_xdist_one_process_writes_and_each_test_is_there_once(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_it(n): assert n % 2"
    files = report(tmp_path, source, "-p", "xdist", "-n", "2")
    lines = files["summary_short"].splitlines()[1:]
    assert sum(line.startswith("FAILED") for line in lines) == 3
    assert sum(line.startswith("PASSED") for line in lines) == 3
    assert "3 failed, 3 passed in" in files["stats"]


def test_a_folder_of_an_earlier_session_is_written_anew(tmp_path: Path) -> None:
    report(tmp_path, "def test_it(): assert False")
    files = report(tmp_path, "def test_it(): ...")
    assert "failures_line" not in files
    assert files["summary_short"].splitlines()[1:] == ["PASSED test_it.py::test_it"]


def test_a_failing_subtest_is_a_failure_of_its_own(tmp_path: Path) -> None:
    files = report(tmp_path, "def test_it(subtests):\n  with subtests.test('half'): assert 0, 'odd'")
    assert "SUBFAILED" in (line := files["summary_short"].splitlines()[1])
    assert line.endswith("test_it.py::test_it - AssertionError: odd")
