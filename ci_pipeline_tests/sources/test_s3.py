import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from ci_pipeline.profile import load_profile
from ci_pipeline.settings import load_settings
from ci_pipeline.sources import Source, SourceError, open_source
from ci_pipeline.sources.raw_store import load
from ci_pipeline.sources.s3 import S3Source
from ci_pipeline_tests.servers.github import zip_of
from ci_pipeline_tests.sources.inboxes import put_run


def upload(s3, folder: Path, prefix: str) -> None:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(file), s3.bucket, f"{prefix}/{file.relative_to(folder)}")


def source_of(s3, quiet_seconds: float = 60) -> S3Source:
    uri = f"s3://{s3.bucket}/ci/runs/"
    return S3Source(uri, client=s3, repository="octo/demo", quiet_seconds=quiet_seconds)


def test_it_is_a_source(s3):
    checked: Source = source_of(s3)
    assert checked.runs_after(None).runs == ()


def test_a_run_is_listed_and_fetched_whole(s3, tmp_path):
    put_run(
        tmp_path,
        "12-2",
        run={"id": 12, "name": "Nightly"},
        jobs=[{"id": 1, "name": "Model CI"}],
        artifacts={"a": {"stats.txt": "1 passed", "deep/x": "y"}, "b.zip": {"z": "2"}, "evil.zip": zip_of({"/x": ""})},
    )
    upload(s3, tmp_path, "ci/runs")
    source = source_of(s3)
    [run] = source.runs_after(None).runs
    assert (run.key, run.workflow_name, run.repository) == ("12-2", "Nightly", "octo/demo")
    fetched = source.fetch(run, tmp_path / "run")
    assert fetched == load(tmp_path / "run")
    assert fetched.artifact_names == ("a", "b")
    assert [job.name for job in fetched.jobs] == ["Model CI"]
    assert [problem.subject for problem in fetched.problems] == ["evil"]
    assert (tmp_path / "run/artifacts/a/deep/x").read_text() == "y"
    assert sorted(path.name for path in (tmp_path / "run/artifacts").iterdir()) == ["a", "b"]


def test_a_run_without_success_is_complete_when_it_is_quiet(s3, tmp_path):
    put_run(tmp_path, "12", success=False)
    upload(s3, tmp_path, "ci/runs")
    source = source_of(s3, quiet_seconds=2)
    page = source.runs_after(None)
    assert page.runs == ()
    time.sleep(2.2)
    page = source.runs_after(page.cursor)
    assert [run.key for run in page.runs] == ["12-1"]
    assert source.runs_after(page.cursor).runs == ()


def test_artifacts_may_lie_beside_run_json_in_a_bucket_without_a_prefix(s3, tmp_path):
    for key in ("12/_SUCCESS", "12/report/stats.txt", "12/more.zip", ".new/13/x", "_old/_SUCCESS"):
        s3.put_object(Bucket=s3.bucket, Key=key, Body=zip_of({"x": ""}))
    source = S3Source(f"s3://{s3.bucket}", client=s3)
    [run] = source.runs_after(None).runs
    assert source.fetch(run, tmp_path / "run").artifact_names == ("more", "report")


def test_what_consoles_and_uploads_leave_in_a_bucket_is_no_part_of_a_run(s3, tmp_path):
    put_run(tmp_path, "12", success=False, artifacts={"a": {"x": "unpacked"}, "a.zip": {"x": "packed"}})
    upload(s3, tmp_path, "ci/runs")
    for key in ("_SUCCESS.part", "artifacts/", "artifacts/a/"):
        s3.put_object(Bucket=s3.bucket, Key=f"ci/runs/12/{key}", Body=b"")
    assert source_of(s3).runs_after(None).runs == ()
    source = source_of(s3, quiet_seconds=0)
    fetched = source.fetch(source.run(12), tmp_path / "run")
    assert (fetched.artifact_names, fetched.problems) == (("a",), ())
    assert (tmp_path / "run/artifacts/a/x").read_text() == "unpacked"


def test_only_wanted_artifacts_are_downloaded(s3, tmp_path):
    put_run(tmp_path, "12", artifacts={"a": {"x": ""}, "b": {"x": ""}})
    upload(s3, tmp_path, "ci/runs")
    source = source_of(s3)
    assert source.fetch(source.run(12), tmp_path / "run", wanted=lambda n: n == "a").artifact_names == ("a",)


@pytest.mark.parametrize("key", ["../../evil", "x/../../../evil", "/evil"])
def test_an_object_whose_key_leaves_the_folder_is_refused(s3, tmp_path, key):
    put_run(tmp_path, "12")
    upload(s3, tmp_path, "ci/runs")
    s3.put_object(Bucket=s3.bucket, Key=f"ci/runs/12/artifacts/bad/{key}", Body=b"evil")
    source = source_of(s3)
    fetched = source.fetch(source.run(12), tmp_path / "out" / "run")
    assert fetched.artifact_names == ("report",)
    assert [problem.subject for problem in fetched.problems] == ["bad"]
    assert not list(tmp_path.rglob("evil"))


def test_a_bucket_that_is_not_there_is_an_error_and_not_an_empty_page(s3):
    source = S3Source("s3://nowhere/x", client=s3)
    with pytest.raises(SourceError, match=r"s3://nowhere/x: .*NoSuchBucket"):
        source.runs_after(None)


def test_an_s3_that_does_not_answer_is_an_error_and_not_an_empty_page():
    once = Config(retries={"max_attempts": 0})
    nobody = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=once)
    with pytest.raises(SourceError, match=r"s3://ci/runs: .*127\.0\.0\.1:9"):
        S3Source("s3://ci/runs", client=nobody).runs_after(None)


def test_the_environment_says_where_s3_is(s3, tmp_path):
    put_run(tmp_path, "12", success=False)
    upload(s3, tmp_path, "ci")
    settings = load_settings(CI_PIPELINE_SOURCE=f"s3://{s3.bucket}/ci", CI_PIPELINE_QUIET_SECONDS="0")
    source = open_source(settings, load_profile("transformers"))
    assert [run.key for run in source.runs_after(None).runs] == ["12-1"]
