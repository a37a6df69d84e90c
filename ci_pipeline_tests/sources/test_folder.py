import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ci_pipeline.profile import load_profile
from ci_pipeline.settings import SettingsError, load_settings
from ci_pipeline.sources import Source, SourceError, open_source
from ci_pipeline.sources.archives import ArtifactRefused
from ci_pipeline.sources.folder import FolderSource
from ci_pipeline.sources.raw_store import load
from ci_pipeline_tests.servers.github import zip_of
from ci_pipeline_tests.sources.inboxes import put_run

JOBS = [{"id": 1, "name": "Model CI", "html_url": "https://example.org/1"}]


def source_of(inbox: Path, quiet_seconds: float = 60) -> FolderSource:
    return FolderSource(inbox, repository="octo/demo", quiet_seconds=quiet_seconds)


def keys_after(source: Source, cursor: str | None = None) -> list[str]:
    return [run.key for run in source.runs_after(cursor).runs]


def test_complete_runs_are_listed_oldest_first(tmp_path):
    put_run(tmp_path, "12", run={"id": 12, "created_at": "2025-11-12T02:00:00Z"})
    put_run(tmp_path, "11", run={"id": 11, "created_at": "2025-11-11T02:00:00Z"})
    assert keys_after(source_of(tmp_path)) == ["11-1", "12-1"]


def test_a_run_is_what_run_json_says(tmp_path):
    updated = {"updated_at": "2025-11-12T04:00:00Z"}
    put_run(tmp_path, "12", run={"id": 12, "run_attempt": 3, "name": "Nightly", "event": "schedule", **updated})
    run = source_of(tmp_path).run(12)
    assert (run.key, run.workflow_name, run.event, run.repository) == ("12-3", "Nightly", "schedule", "octo/demo")
    assert run.updated_at == datetime(2025, 11, 12, 4, tzinfo=UTC)


def test_without_run_json_the_run_is_made_of_the_folder(tmp_path):
    put_run(tmp_path, "12-2")
    before = datetime.now(UTC) - timedelta(seconds=5)
    [run] = source_of(tmp_path).runs_after(None).runs
    assert (run.run_id, run.run_attempt, run.status, run.repository) == (12, 2, "completed", "octo/demo")
    assert run.created_at
    assert run.created_at > before
    assert run.updated_at == run.created_at


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
@pytest.mark.parametrize("file", ["run", "jobs", "problems"])
def test_a_file_about_the_run_that_is_no_json_is_a_problem_and_not_the_end(tmp_path, file, text):
    (put_run(tmp_path / "inbox", "12") / f"{file}.json").write_text(text)
    source = source_of(tmp_path / "inbox")
    assert keys_after(source) == ["12-1"]
    fetched = source.fetch(source.run(12), tmp_path / "run")
    assert fetched.artifact_names == ("report",)
    [problem] = fetched.problems
    assert (problem.subject, problem.reason[:17]) == (file, "could not be read")


@pytest.mark.parametrize("text", ["[]", "null", "7"])
def test_a_run_json_without_a_run_says_nothing_of_it(tmp_path, text):
    put_run(tmp_path, "12", run=text)
    assert keys_after(source_of(tmp_path)) == ["12-1"]


def test_a_run_that_is_complete_is_completed_whatever_run_json_said_before(tmp_path):
    put_run(tmp_path, "12", run={"id": 12, "status": "in_progress"})
    put_run(tmp_path, "13", run={"id": 13, "status": "completed"}, success=False)
    source = source_of(tmp_path)
    assert source.run(12).status == "completed"
    assert source.run(13).status == "in_progress"
    assert source.fetch(source.run(12), tmp_path / "fetched").run.status == "completed"


def test_a_folder_of_another_name_needs_a_run_json(tmp_path):
    put_run(tmp_path, "nightly", run={"id": 12})
    put_run(tmp_path, "notes")
    assert keys_after(source_of(tmp_path)) == ["12-1"]


def test_hidden_folders_and_files_are_no_runs(tmp_path):
    for number, name in enumerate((".new", "_old"), 12):
        put_run(tmp_path, name, run={"id": number})
    (tmp_path / "14").touch()
    assert keys_after(source_of(tmp_path, quiet_seconds=0)) == []


def test_a_run_that_was_taken_away_and_comes_again_is_not_complete_before_it_is(tmp_path):
    source = source_of(tmp_path)
    folder = put_run(tmp_path, "12")
    assert keys_after(source) == ["12-1"]
    shutil.rmtree(folder)
    assert keys_after(source) == []
    put_run(tmp_path, "12", success=False)
    assert source.run(12).status == "in_progress"


def test_attempts_are_runs_of_their_own(tmp_path):
    put_run(tmp_path, "12", artifacts={"first": {"a": ""}})
    put_run(tmp_path, "12-2", artifacts={"second": {"a": ""}})
    put_run(tmp_path, "12-10", artifacts={"tenth": {"a": ""}})
    source = source_of(tmp_path)
    assert keys_after(source) == ["12-1", "12-2", "12-10"]
    assert source.run(12).key == "12-10"
    assert source.run(12, attempt=1).key == "12-1"
    assert source.fetch(source.run(12, 1), tmp_path / "x").artifact_names == ("first",)
    with pytest.raises(SourceError, match="no run 12-3"):
        source.run(12, attempt=3)


def test_a_run_is_complete_when_nothing_changed_for_a_while(tmp_path):
    put_run(tmp_path, "12", success=False)
    source = source_of(tmp_path, quiet_seconds=0.5)
    page = source.runs_after(None)
    assert page.runs == ()
    time.sleep(0.3)
    (tmp_path / "12/artifacts/report/more.txt").write_text("still at it")
    time.sleep(0.3)
    assert source.runs_after(page.cursor).runs == ()
    time.sleep(0.4)
    assert keys_after(source, page.cursor) == ["12-1"]


def test_files_that_keep_their_old_times_do_not_make_a_run_complete(tmp_path):
    folder = put_run(tmp_path, "12", success=False)
    for file in folder.rglob("*"):
        os.utime(file, (0, 0))
    assert keys_after(source_of(tmp_path, quiet_seconds=60)) == []


def test_a_file_from_the_future_does_not_keep_a_run_from_being_complete(tmp_path):
    folder = put_run(tmp_path, "12", success=False)
    os.utime(folder / "artifacts/report/stats.txt", (2**33, 2**33))
    time.sleep(0.1)
    assert keys_after(source_of(tmp_path, quiet_seconds=0.05)) == ["12-1"]


def test_an_empty_folder_is_no_run_yet(tmp_path):
    (tmp_path / "12").mkdir()
    assert keys_after(source_of(tmp_path, quiet_seconds=0)) == []


def test_a_cursor_brings_only_what_is_new_and_a_late_old_run_too(tmp_path):
    put_run(tmp_path, "12", run={"id": 12, "created_at": "2025-11-12T02:00:00Z"})
    source = source_of(tmp_path)
    page = source.runs_after(None)
    put_run(tmp_path, "5", run={"id": 5, "created_at": "2025-01-01T00:00:00Z"})
    assert keys_after(source, page.cursor) == ["5-1"]
    assert keys_after(source_of(tmp_path), page.cursor) == ["5-1"]


def test_pages_are_bounded(tmp_path):
    for number in range(1, 6):
        put_run(tmp_path, str(number))
    source, cursor, seen = source_of(tmp_path), None, []
    while (page := source.runs_after(cursor, limit=2)).runs:
        assert len(page.runs) <= 2
        seen += [run.run_id for run in page.runs]
        cursor = page.cursor
    assert sorted(seen) == [1, 2, 3, 4, 5]


def test_an_inbox_that_is_not_there_is_an_error_and_not_an_empty_page(tmp_path):
    with pytest.raises(SourceError, match=r"inbox .* cannot be read"):
        source_of(tmp_path / "nowhere").runs_after(None)


def test_a_run_is_fetched_whole(tmp_path):
    put_run(
        tmp_path / "inbox",
        "12",
        run={"id": 12, "conclusion": "failure"},
        jobs={"total_count": 1, "jobs": JOBS},
        artifacts={
            "a": {"stats.txt": "1 passed", "deep/x": "y"},
            "a.zip": {"stats.txt": "what the folder was made of"},
            "b.zip": {"stats.txt": "2 passed"},
        },
    )
    source, seen = source_of(tmp_path / "inbox"), []
    fetched = source.fetch(source.run(12), tmp_path / "run", progress=lambda *step: seen.append(step))
    assert fetched == load(tmp_path / "run")
    assert (fetched.run.key, fetched.run.conclusion) == ("12-1", "failure")
    assert [job.name for job in fetched.jobs] == ["Model CI"]
    assert fetched.artifact_names == ("a", "b")
    assert fetched.problems == ()
    texts = [(tmp_path / "run/artifacts" / name / "stats.txt").read_text() for name in ("a", "b")]
    assert texts == ["1 passed", "2 passed"]
    assert seen == [(1, 2, "a"), (2, 2, "b")]


def test_files_are_linked_and_not_copied(tmp_path):
    put_run(tmp_path / "inbox", "12")
    source = source_of(tmp_path / "inbox")
    source.fetch(source.run(12), tmp_path / "run")
    inode = (tmp_path / "run/artifacts/report/stats.txt").stat().st_ino
    assert inode == (tmp_path / "inbox/12/artifacts/report/stats.txt").stat().st_ino


def test_what_cannot_be_had_is_a_problem_and_the_rest_is_fetched(tmp_path):
    folder = put_run(
        tmp_path / "inbox",
        "12",
        jobs="not json",
        artifacts={"good": {"a": ""}, "a:b": {"a": ""}, "broken.zip": b"no zip", "evil.zip": zip_of({"../evil": "x"})},
    )
    (folder / "artifacts/link").symlink_to("/etc")
    (folder / "artifacts/good/passwd").symlink_to("/etc/passwd")
    (folder / "artifacts/notes.txt").write_text("not an artifact")
    source = source_of(tmp_path / "inbox")
    fetched = source.fetch(source.run(12), tmp_path / "run")
    assert fetched.artifact_names == ("good",)
    reasons = {problem.subject: problem.reason for problem in fetched.problems}
    assert sorted(reasons) == ["a:b", "broken", "evil", "good", "jobs", "link"]
    assert "passwd" in reasons["good"]
    assert not (tmp_path / "run/artifacts/good/passwd").exists()


def test_an_artifact_that_is_taken_away_while_the_run_is_fetched_is_a_problem(tmp_path):
    folder = put_run(tmp_path / "inbox", "12", artifacts={"a": {"x": ""}, "b": {"x": ""}})
    source = source_of(tmp_path / "inbox")

    def take_away(done: int, total: int, name: str) -> None:
        shutil.rmtree(folder / "artifacts/b", ignore_errors=True)

    fetched = source.fetch(source.run(12), tmp_path / "run", progress=take_away)
    assert [problem.subject for problem in fetched.problems] == ["b"]


def test_problems_of_a_run_that_was_fetched_elsewhere_are_kept(tmp_path):
    folder = put_run(tmp_path / "inbox", "12")
    (folder / "problems.json").write_text(json.dumps([{"subject": "gone", "reason": "expired"}]))
    source = source_of(tmp_path / "inbox")
    [problem] = source.fetch(source.run(12), tmp_path / "run").problems
    assert (problem.subject, problem.reason) == ("gone", "expired")


def test_artifacts_may_lie_beside_run_json_as_gh_run_download_puts_them(tmp_path):
    (tmp_path / "inbox/12/report").mkdir(parents=True)
    (tmp_path / "inbox/12/report/stats.txt").write_text("1 passed")
    (tmp_path / "inbox/12/_SUCCESS").touch()
    source = source_of(tmp_path / "inbox")
    assert source.fetch(source.run(12), tmp_path / "run").artifact_names == ("report",)


def test_jobs_may_come_in_pages_as_gh_api_writes_them(tmp_path):
    pages = [{"total_count": 2, "jobs": [{"id": n, "name": f"job {n}"}]} for n in (1, 2)]
    written = ("\n".join(map(json.dumps, pages)), json.dumps(pages), "\ufeff" + json.dumps(pages))
    for run_id, text in enumerate(written, 12):
        put_run(tmp_path, str(run_id), jobs=text)
        source = source_of(tmp_path)
        assert [job.name for job in source.jobs(source.run(run_id))] == ["job 1", "job 2"]


@pytest.mark.parametrize(
    ("saved", "missing"),
    [
        ([{"total_count": 31, "jobs": JOBS}], "only 1 of 31 jobs"),  # `gh api` without `--paginate`
        ([{"message": "API rate limit exceeded"}], "no list of jobs"),  # what GitHub says instead
        ([{"total_count": 31, "jobs": JOBS}, {"message": "Bad Gateway"}], "no list of jobs"),
    ],
)
def test_jobs_that_were_saved_in_part_or_not_at_all_are_a_problem(tmp_path, saved, missing):
    put_run(tmp_path / "inbox", "12", jobs="\n".join(map(json.dumps, saved)))
    source = source_of(tmp_path / "inbox")
    [problem] = source.fetch(source.run(12), tmp_path / "store/12-1").problems
    assert (problem.subject, problem.reason) == ("jobs", missing)
    with pytest.raises(SourceError, match=rf"run 12-1: jobs.json: {missing}") as error:
        source.jobs(source.run(12))
    assert {job.name for job in error.value.read} >= {job["name"] for job in saved[0].get("jobs", ())}
    (tmp_path / "store/12-1/_SUCCESS").touch()
    store = source_of(tmp_path / "store")
    assert store.fetch(store.run(12), tmp_path / "again").problems == (problem,)


def test_only_wanted_artifacts_are_fetched(tmp_path):
    put_run(tmp_path / "inbox", "12", artifacts={"report": {"a": ""}, "image.zip": b"huge"})
    source = source_of(tmp_path / "inbox")
    fetched = source.fetch(source.run(12), tmp_path / "run", wanted=lambda name: name == "report")
    assert (fetched.artifact_names, fetched.problems) == (("report",), ())


def test_one_artifact_is_had_by_its_name(tmp_path):
    put_run(tmp_path / "inbox", "12", artifacts={"report.zip": {"a": "b"}, "bad.zip": b"", "a:b": {"a": ""}})
    (tmp_path / "inbox/12/artifacts/folder").mkdir()
    source = source_of(tmp_path / "inbox")
    assert (source.artifact(12, "report", tmp_path / "out") / "a").read_text() == "b"
    for name in ("bad", "a:b"):
        with pytest.raises(ArtifactRefused):
            source.artifact(12, name, tmp_path / "out")
    with pytest.raises(SourceError, match="no artifact 'other'"):
        source.artifact(12, "other", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="'folder' of run 12 cannot be read"):
        source.artifact(12, "folder", tmp_path / "file")


def test_runs_of_a_workflow_are_listed_newest_first(tmp_path):
    for number in (1, 2, 3):
        run = {"id": number, "workflow_id": 7, "event": "schedule", "created_at": f"2025-11-0{number}T00:00:00Z"}
        run["path"] = ".github/workflows/nightly.yml@refs/heads/main"
        put_run(tmp_path, str(number), run=run)
    put_run(tmp_path, "4", run={"id": 4, "workflow_id": 7, "event": "push"})
    put_run(tmp_path, "5", run={"id": 5, "workflow_id": 8, "event": "schedule"})
    for workflow in (7, "nightly.yml", ".github/workflows/nightly.yml"):
        runs = source_of(tmp_path).workflow_runs(workflow, event="schedule", limit=2)
        assert [run.run_id for run in runs] == [3, 2]


def test_an_820_artifact_run_is_fetched_in_well_under_a_second(tmp_path):
    files = {f"{name}.txt": "x" * 100 for name in "abcdefgh"}
    artifacts = {f"single-gpu_run_models_gpu_models_m{n}_test_reports": files for n in range(820)}
    put_run(tmp_path / "inbox", "12", artifacts=artifacts)
    source = source_of(tmp_path / "inbox")
    started = time.process_time()
    fetched = source.fetch(source.run(12), tmp_path / "run")
    assert len(fetched.artifact_names) == 820
    assert time.process_time() - started < 3  # 0.3 s when it was written


# --- opening --------------------------------------------------------------------------------------------------------


def test_the_default_source_is_an_inbox_in_the_home_folder(tmp_path):
    settings = load_settings(CI_PIPELINE_HOME=str(tmp_path / "home"), CI_PIPELINE_SOURCE="")
    source = open_source(settings, load_profile("transformers"))
    assert isinstance(source, FolderSource)
    put_run(tmp_path / "home" / "inbox", "12")
    assert [run.repository for run in source.runs_after(None).runs] == ["huggingface/transformers"]


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_settings_say_when_a_run_is_quiet(tmp_path, seconds):
    put_run(tmp_path, "12", success=False)
    settings = load_settings(CI_PIPELINE_SOURCE=f"folder:{tmp_path}", CI_PIPELINE_QUIET_SECONDS=str(seconds))
    assert len(open_source(settings, load_profile("transformers")).runs_after(None).runs) == (not seconds)


@pytest.mark.parametrize("uri", ["ftp://x", "folder:", "s3://", "s3:x", "github:x", "inbox"])
def test_what_is_no_source_is_one_line_that_names_the_variable(uri):
    with pytest.raises(SettingsError, match=r"^CI_PIPELINE_SOURCE: .*folder:<path>"):
        open_source(load_settings(CI_PIPELINE_SOURCE=uri), load_profile("transformers"))
