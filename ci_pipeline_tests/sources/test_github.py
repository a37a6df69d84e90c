import json
import random
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_pipeline.model import Problem
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import load_settings
from ci_pipeline.sources import Source, SourceError, cursor_at, open_source
from ci_pipeline.sources.archives import ArtifactRefused
from ci_pipeline.sources.github import PAGES, PARALLEL, GitHubSource, RateLimited
from ci_pipeline.sources.raw_store import load
from ci_pipeline_tests.servers.base import Request, Response
from ci_pipeline_tests.servers.github import REPOSITORY, GitHub, zip_of


@pytest.fixture
def github():
    with GitHub() as server:
        yield server


@pytest.fixture
def source(github):
    source = GitHubSource(github.url, "secret-token", REPOSITORY, workflows=[7], patience=5)
    yield source
    source.close()


def paths(github: GitHub) -> list[str]:
    return [request.path for request in github.requests]


def day(number: int, hour: int = 2) -> str:
    return f"2025-11-{number:02}T{hour:02}:00:00Z"


AT_THE_START = cursor_at(datetime(2025, 10, 31, tzinfo=UTC))


# --- runs, jobs and lists of artifacts ------------------------------------------------------------------------------


def test_it_is_a_source(source):
    checked: Source = source
    assert checked


def test_the_settings_and_the_profile_say_what_is_asked(github):
    settings = load_settings(
        CI_PIPELINE_SOURCE="github", GITHUB_API_URL=f"{github.url}/", ACCESS_REPO_INFO_TOKEN="a-token"
    )
    profile = load_profile("transformers").model_copy(update={"repository": REPOSITORY})
    open_source(settings, profile).runs_after(None)
    assert [path.split("/")[-2] for path in paths(github)] == [
        str(workflow.id or Path(workflow.path).name) for workflow in profile.workflows
    ]
    assert github.requests[0].headers["authorization"] == "token a-token"
    github.fail(status=500, times=9)
    with pytest.raises(SourceError, match="500"):
        open_source(settings, profile, once=True).run(5)
    assert len(github.requests) == len(profile.workflows) + 1


def test_a_run_is_read(github, source):
    github.add_run(5, conclusion="failure")
    run = source.run(5)
    assert (run.key, run.repository, run.conclusion) == ("5-1", REPOSITORY, "failure")
    assert github.requests[0].headers["authorization"] == "token secret-token"


def test_an_earlier_attempt_is_read(github, source):
    github.add_run(5, conclusion="failure")
    github.add_run(5, 2, conclusion="success")
    assert source.run(5).key == source.run(5, attempt=2).key == "5-2"
    assert len(github.requests) == 2
    assert source.run(5, attempt=1).conclusion == "failure"


def test_a_run_that_does_not_exist_is_named(source):
    with pytest.raises(SourceError, match=r"runs/6: 404 Not Found"):
        source.run(6)


def test_all_pages_of_jobs_are_read_once_and_in_order(github, source):
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(250)])
    assert [job.name for job in source.jobs(source.run(5))] == [f"job {n}" for n in range(250)]
    assert len(github.requests) == 1 + 3


def test_fewer_jobs_than_github_counts_are_an_error_that_holds_them(github, source, monkeypatch):
    github.add_run(5)
    github.add_jobs(5, "a", "b")
    monkeypatch.setattr(github, "_list", lambda request, key, items: Response(200, {"total_count": 3, key: items}))
    with pytest.raises(SourceError, match="only 2 of 3 jobs") as caught:
        source.jobs(source.run(5))
    assert [job.name for job in caught.value.read] == ["a", "b"]


def test_the_pages_of_a_long_list_take_few_connections(github, source):
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(900)])
    source.jobs(source.run(5))
    assert 1 < github.connections <= PAGES


def test_pages_are_read_when_the_list_does_not_say_how_long_it_is(github, source, monkeypatch):
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(200)])
    monkeypatch.setattr(
        github, "_list", lambda request, key, items, inner=github._list: without_total(inner(request, key, items))
    )
    assert len(source.jobs(source.run(5))) == 200
    for number in range(6, 10):
        github.add_run(number)
    before = len(github.requests)
    assert [run.run_id for run in source.workflow_runs(7, limit=2)] == [9, 8]
    assert len(github.requests) == before + 1


def test_all_is_read_where_a_server_gives_less_at_once_than_it_is_asked_for(github, source):
    github.per_page = 30
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(130)])
    assert [job.name for job in source.jobs(source.run(5))] == [f"job {n}" for n in range(130)]


def test_a_server_that_knows_no_pages_is_not_asked_for_ever(github, source, monkeypatch):
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(200)])
    monkeypatch.setattr(github, "_list", lambda request, key, items: Response(200, {key: items}))
    assert len(source.jobs(source.run(5))) == 200
    assert len(github.requests) <= 1 + 2


def test_a_job_whose_id_is_no_number_is_read_like_the_others(github, source):
    github.add_run(5)
    jobs = [{"id": {}}, {"id": {"a": 1}}, {}, {"id": {}}]
    github.handle = lambda request: Response(200, {"id": 5, "total_count": 4, "jobs": jobs})
    assert len(source.jobs(source.run(5))) == 4


def without_total(response: Response) -> Response:
    answer = json.loads(response.body)
    del answer["total_count"]
    return Response(200, answer)


def test_when_a_later_page_fails_the_error_holds_the_jobs_of_the_others(github):
    source = GitHubSource(github.url, None, REPOSITORY, patience=0.1)
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(250)])
    run = source.run(5)
    github.handle = failing(github.handle, lambda request: request.query.get("page") == "2")
    with pytest.raises(SourceError, match="500") as error:
        source.jobs(run)
    assert [job.name for job in error.value.read] == [f"job {n}" for n in [*range(100), *range(200, 250)]]


def failing(handle, matches):
    def answer(request: Request) -> Response:
        return Response(500, {"message": "oops"}) if matches(request) else handle(request)

    return answer


def test_jobs_that_answer_403_fail_at_once(github, source):
    github.add_run(5)
    run = source.run(5)
    github.fail("/jobs$", status=403, body={"message": "API rate limit exceeded"})
    started = time.monotonic()
    with pytest.raises(SourceError, match="403 API rate limit exceeded"):
        source.jobs(run)
    assert time.monotonic() - started < 1
    assert len(github.requests) == 2


def test_jobs_are_those_of_the_attempt(github, source):
    for attempt in (1, 2):
        github.add_run(5, attempt)
        github.add_jobs(5, f"job of attempt {attempt}", attempt=attempt)
    for attempt in (1, 2):
        assert [job.name for job in source.jobs(source.run(5, attempt))] == [f"job of attempt {attempt}"]


def test_runs_of_a_workflow_are_asked_for_as_the_api_documents(github, source):
    for number in range(1, 10):
        github.add_run(number, created_at=day(number))
    github.add_run(100, event="push", created_at=day(20))
    runs = source.workflow_runs(7, event="schedule", branch="main")
    assert [run.run_id for run in runs] == [9, 8, 7, 6, 5, 4, 3]
    assert github.requests[0].query == {
        "branch": "main",
        "exclude_pull_requests": "true",
        "per_page": "7",
        "event": "schedule",
    }


def test_a_workflow_may_be_named_by_its_file(github, source):
    github.add_run(5)
    assert [run.run_id for run in source.workflow_runs(".github/workflows/nightly.yml")] == [5]


def test_artifacts_of_all_pages_are_listed_and_the_newer_one_wins(github, source):
    for number in range(120):
        github.add_artifact(5, f"report {number:03}")
    newer = github.add_artifact(5, "report 000")
    for _ in range(2):
        artifacts = source.artifacts(5)
        assert [artifact.name for artifact in artifacts] == [f"report {n:03}" for n in range(120)]
        assert artifacts[0].id == newer
        github.artifacts[5].reverse()  # GitHub promises no order


def test_authors_are_read_where_github_knows_them(github, source):
    github.other["commits/abc"] = {"sha": "abc", "author": {"login": "ada"}}
    github.other["commits/def"] = {"sha": "def", "author": None, "commit": {"author": {"name": "Some One"}}}
    github.other["pulls/42"] = {"user": {"login": "ada"}, "merged_by": None}
    github.other["pulls/43"] = {"user": {"login": 5}, "merged_by": {"login": "bob"}}
    assert source.commit_author("abc") == "ada"
    assert source.commit_author("def") is None
    assert source.pull_request(42) == ("ada", None)
    assert source.pull_request(43) == (None, "bob")


# --- failures that pass, and failures that do not -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 502, "times": 2},
        {"status": 520},
        {"status": 408},
        {"status": 429},
        {"status": 429, "headers": {"retry-after": "1"}},
        {"status": 403, "headers": {"retry-after": "1"}, "body": {"message": "secondary rate limit"}},
        {"cut": True, "after": True},
    ],
    ids=str,
)
def test_a_failure_that_passes_is_tried_again(github, source, fault):
    github.add_run(5)
    github.fail("/runs/5$", **fault)
    assert source.run(5).run_id == 5
    assert len(github.requests) == 1 + fault.get("times", 1)


def test_retry_after_is_waited_for(github, source):
    github.add_run(5)
    github.fail("/runs/5$", status=429, headers={"retry-after": "1"})
    started = time.monotonic()
    source.run(5)
    assert time.monotonic() - started >= 1


def test_the_primary_rate_limit_is_waited_for(github, source):
    github.add_run(5)
    reset = {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()))}
    github.fail("/runs/5$", status=403, headers=reset, body={"message": "API rate limit exceeded"})
    assert source.run(5).run_id == 5


@pytest.mark.parametrize(("status", "remaining"), [(404, "0"), (403, "1")])
def test_a_no_for_another_reason_than_the_rate_limit_is_not_asked_for_again(github, source, status, remaining):
    limits = {"x-ratelimit-remaining": remaining, "x-ratelimit-reset": str(int(time.time()))}
    github.fail("/runs/6$", status=status, headers=limits, body={"message": "not for you"}, times=9)
    with pytest.raises(SourceError, match=rf"runs/6: {status} not for you$"):
        source.run(6)
    assert len(github.requests) == 1


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize("said", ["reset", "seconds", "date"])
def test_a_rate_limit_that_is_lifted_too_late_is_an_error_that_says_when(github, source, status, said):
    hour = int(time.time()) + 3600
    headers = {
        "reset": {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": str(hour)},
        "seconds": {"retry-after": "3600"},
        "date": {"retry-after": formatdate(hour, usegmt=True)},
    }[said]
    github.fail("/runs/5$", status=status, headers=headers, body={"message": "limited"})
    with pytest.raises(RateLimited, match=f"lifted at {datetime.fromtimestamp(hour, UTC):%Y-%m-%d %H:}"):
        source.run(5)
    assert len(github.requests) == 1


def test_a_server_that_stays_broken_is_given_up_within_the_patience(github):
    source = GitHubSource(github.url, None, REPOSITORY, patience=2)
    github.fail("/runs/5$", status=500, times=99)
    started = time.monotonic()
    with pytest.raises(SourceError, match="500"):
        source.run(5)
    assert time.monotonic() - started < 3
    assert len(github.requests) > 1


def test_a_server_that_does_not_answer_is_given_up_within_the_patience(github):
    source = GitHubSource(github.url, None, REPOSITORY, patience=0.5)
    github.fail("/runs/5$", delay=2)
    with pytest.raises(SourceError, match="Timeout"):
        source.run(5)


def test_when_the_patience_is_used_up_a_request_is_tried_once_until_one_succeeds(github):
    source = GitHubSource(github.url, None, REPOSITORY, patience=1)
    github.add_run(5)

    def tries_that_fail() -> int:
        before = len(github.requests)
        with pytest.raises(SourceError, match="500"):
            source.run(6)
        return len(github.requests) - before

    github.fail("/runs/6$", status=500, times=99)
    assert tries_that_fail() > 1
    time.sleep(1)
    assert tries_that_fail() == 1
    assert source.run(5).run_id == 5
    assert tries_that_fail() > 1


def test_a_no_gives_the_patience_back_too(github):
    source = GitHubSource(github.url, None, REPOSITORY, patience=1)
    github.fail("/runs/5$", status=500)
    with pytest.raises(SourceError, match="404"):
        source.run(5)
    time.sleep(1)
    github.add_run(6)
    github.fail("/runs/6$", status=500)
    assert source.run(6).run_id == 6


def test_a_server_that_never_answered_is_not_asked_again_at_once(github):
    source = GitHubSource(github.url, None, REPOSITORY, patience=0.5)
    github.add_run(5)
    github.fail(delay=1)
    with pytest.raises(SourceError, match="Timeout"):
        source.run(5)
    with pytest.raises(SourceError, match="not asked"):
        source.artifacts(5)
    assert len(github.requests) == 1
    time.sleep(0.5)
    assert source.run(5).run_id == 5


def test_an_address_where_nobody_listens_is_one_line():
    with GitHub() as github:
        url = github.url
    with pytest.raises(SourceError) as error:
        GitHubSource(url, None, REPOSITORY, patience=0.1).run(5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["api.github.com", "ftp://github.com", ""])
def test_an_address_that_is_none_is_an_error_at_once(url):
    with pytest.raises(SourceError):
        GitHubSource(url, None, REPOSITORY).run(5)


def test_a_token_that_is_not_accepted_names_the_variable(github, source):
    github.fail("/runs/5$", status=401, body={"message": "Bad credentials"})
    with pytest.raises(SourceError, match="ACCESS_REPO_INFO_TOKEN") as error:
        source.run(5)
    assert "secret-token" not in str(error.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b"", b'{"jobs": null}', b'{"jobs": {}}', b"\xff"])
def test_a_list_that_is_none_is_an_error_and_not_an_empty_one(github, source, body):
    github.add_run(5)
    run = source.run(5)
    github.handle = lambda request: Response(200, body)
    with pytest.raises(SourceError):
        GitHubSource(github.url, None, REPOSITORY, patience=0.1).jobs(run)


@pytest.mark.parametrize(("status", "said"), [(200, "the answer is not JSON"), (404, "404"), (502, "502 Bad Gateway")])
def test_a_page_for_people_in_the_place_of_json_is_named_by_its_status(github, status, said):
    source = GitHubSource(github.url, None, REPOSITORY, patience=1)
    github.handle = lambda request: Response(status, b"<html>", {"content-type": "application/json"})
    with pytest.raises(SourceError, match=said):
        source.run(5)


def test_an_unchanged_list_is_not_sent_again(github, source):
    github.add_run(5)
    first = source.workflow_runs(7)
    assert source.workflow_runs(7) == first
    assert "if-none-match" in github.requests[1].headers
    github.add_run(6, created_at=day(11))
    assert [run.run_id for run in source.workflow_runs(7)] == [6, 5]


def test_an_unchanged_list_of_new_runs_costs_nothing_of_the_rate_limit(github, source):
    github.add_run(5)
    cursor = source.runs_after(AT_THE_START).cursor
    source.runs_after(cursor)
    source.runs_after(cursor)
    first, again = github.requests[-2:]
    end = datetime.now(UTC).date() + timedelta(days=2)  # the question is the same all day
    assert first.query == {
        "status": "completed",
        "created": f"2025-11-08T04:00:00Z..{end}T00:00:00Z",
        "exclude_pull_requests": "true",
        "per_page": "100",
    }
    assert first.query == again.query
    assert "if-none-match" in again.headers


def test_of_answers_only_the_latest_are_kept(github, source):
    github.add_run(5)
    for _ in range(2):
        for limit in range(1, 18):
            source.workflow_runs(7, limit=limit)
    source.workflow_runs(7, limit=17)
    assert ["if-none-match" in request.headers for request in github.requests[17:]] == [False] * 17 + [True]


def test_a_repository_that_was_renamed_is_followed(github, source):
    github.add_run(5)
    moved = {"location": f"{github.url}/repos/{REPOSITORY}/actions/runs/5?moved=1"}
    github.fail("/runs/5$", status=301, headers=moved)
    assert source.run(5).run_id == 5
    assert github.requests[1].headers["authorization"] == "token secret-token"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
answers = anything | st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(1, 9) | anything,
        "total_count": st.integers(-5, 500) | anything,
        "jobs": st.lists(anything, max_size=3),
        "artifacts": st.lists(
            st.fixed_dictionaries({}, optional={"id": anything, "name": anything, "expired": anything}), max_size=3
        ),
        "workflow_runs": st.lists(st.fixed_dictionaries({}, optional={"id": anything}), max_size=3),
        "author": anything,
        "message": anything,
    },
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=answers, status=st.sampled_from([200, 200, 200, 204, 301, 400, 404, 409, 422, 451, 599]))
def test_whatever_github_answers_is_read_or_is_a_source_error(github, answer, status):
    github.handle = lambda request: Response(status, json.dumps(answer).encode())
    source = GitHubSource(github.url, None, REPOSITORY, patience=0)
    for ask in (
        lambda: source.jobs(source.run(1)),
        lambda: source.workflow_runs(7),
        lambda: source.artifacts(1),
        lambda: source.commit_author("abc"),
        lambda: source.pull_request(1),
        lambda: source.runs_after(None),
    ):
        with suppress(SourceError):
            ask()
    source.close()


# --- artifacts ------------------------------------------------------------------------------------------------------


def test_an_artifact_is_downloaded_and_unpacked(github, source, tmp_path):
    for name in ("a", "z"):
        github.add_artifact(5, name)
    github.add_artifact(5, "ci_results", {"model_results.json": "{}", "deep/x": "y"})
    assert source.artifact(5, "ci_results", tmp_path) == tmp_path / "ci_results"
    assert (tmp_path / "ci_results" / "deep" / "x").read_text() == "y"
    assert [p.name for p in tmp_path.iterdir()] == ["ci_results"]


def test_the_token_does_not_follow_to_the_blob_storage(github, source, tmp_path):
    github.add_artifact(5, "report")
    source.artifact(5, "report", tmp_path)
    [download] = github.storage.requests
    assert "authorization" not in download.headers
    assert {request.headers["authorization"] for request in github.requests} == {"token secret-token"}


@pytest.mark.parametrize("fault", [{"cut": True, "after": True}, {"status": 503}, {"status": 500, "times": 2}], ids=str)
def test_a_download_that_breaks_is_tried_again(github, source, tmp_path, fault):
    github.add_artifact(5, "report", {"log.txt": random.Random(1).randbytes(500_000)})
    github.storage.fail("/blob/", **fault)
    source.artifact(5, "report", tmp_path)
    assert (tmp_path / "report" / "log.txt").stat().st_size == 500_000


def test_a_download_of_unknown_length_that_breaks_is_tried_again(github, source, tmp_path):
    github.add_artifact(5, "report", {"log.txt": "x" * 1000})
    [blob] = github.storage.blobs.values()
    answers = [blob[:50], blob]

    class UntilItCloses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.pop(0))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), UntilItCloses) as storage:
        threading.Thread(target=storage.serve_forever, daemon=True).start()
        github.fail("/zip$", status=302, headers={"location": f"http://127.0.0.1:{storage.server_port}/blob"}, times=2)
        source.artifact(5, "report", tmp_path)
        storage.shutdown()
    assert (tmp_path / "report" / "log.txt").stat().st_size == 1000


def test_a_blob_storage_that_says_no_in_xml_is_asked_once(github, source, tmp_path):
    github.add_artifact(5, "report")
    xml = Response(403, b"<Error/>", {"content-type": "application/json"})
    github.storage.handle = lambda request: xml
    with pytest.raises(SourceError, match="403 Forbidden"):
        source.artifact(5, "report", tmp_path)
    assert len(github.storage.requests) == 1


@pytest.mark.parametrize(
    ("fields", "content", "reason"),
    [
        ({"expired": True}, None, "has expired"),
        ({}, b"<html>", "not a readable zip"),
        ({}, zip_of({"../evil": "x"}), "leaves the folder"),
    ],
)
def test_an_artifact_that_cannot_be_had_says_why(github, source, tmp_path, fields, content, reason):
    github.add_artifact(5, "report", content, **fields)
    with pytest.raises(SourceError, match=reason):
        source.artifact(5, "report", tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_an_artifact_that_is_not_there_is_named(github, source, tmp_path):
    with pytest.raises(SourceError, match="run 5 has no artifact 'report'"):
        source.artifact(5, "report", tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "..", "a\\b"])
def test_the_name_of_an_artifact_cannot_leave_the_folder(github, source, tmp_path, name):
    github.add_artifact(5, name)
    with pytest.raises(ArtifactRefused, match="not a file name"):
        source.artifact(5, name, tmp_path / "in")


def test_several_artifacts_are_had_and_those_that_are_not_are_named(github, source, tmp_path):
    github.add_artifact(5, "ci_results_a")
    github.add_artifact(5, "ci_results_b", expired=True)
    github.add_artifact(5, "log")
    [problem] = source.fetch_artifacts(5, tmp_path, lambda name: name.startswith("ci_results_"))
    assert (problem.subject, problem.reason) == ("ci_results_b", "expired")
    assert [path.name for path in tmp_path.iterdir()] == ["ci_results_a"]


# --- whole runs -----------------------------------------------------------------------------------------------------


def test_a_run_is_fetched_whole(github, source, tmp_path):
    github.add_run(5, conclusion="failure")
    github.add_jobs(5, "Model CI", "Trainer CI")
    for name in ("one", "two", "three"):
        github.add_artifact(5, name, {"stats.txt": name})
    seen: list[tuple[int, int, str]] = []
    fetched = source.fetch(source.run(5), tmp_path / "run", progress=lambda *step: seen.append(step))
    assert fetched == load(tmp_path / "run")
    assert fetched.run == source.run(5)
    assert [job.name for job in fetched.jobs] == ["Model CI", "Trainer CI"]
    assert fetched.artifact_names == ("one", "three", "two")
    assert fetched.problems == ()
    assert (tmp_path / "run/artifacts/two/stats.txt").read_text() == "two"
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_had_is_a_problem_and_the_rest_is_fetched(github, source, tmp_path):
    github.add_run(5)
    github.add_artifact(5, "good")
    github.add_artifact(5, "gone", expired=True)
    github.add_artifact(5, "../evil")
    github.add_artifact(5, "bomb", {"zeros": bytes(1_000_000)})
    del github.storage.blobs[f"/blob/{github.add_artifact(5, 'lost')}.zip"]
    github.fail("/jobs$", status=403)
    fetched = source.fetch(source.run(5), tmp_path / "run")
    assert fetched.artifact_names == ("good",)
    reasons = {problem.subject: problem.reason for problem in fetched.problems}
    assert sorted(reasons) == ["../evil", "bomb", "gone", "jobs", "lost"]
    assert reasons["gone"] == "expired"
    assert "404" in reasons["lost"]
    assert "403" in reasons["jobs"]
    assert all(isinstance(problem, Problem) for problem in fetched.problems)


def test_jobs_that_were_read_before_a_page_failed_are_kept(github, tmp_path):
    source = GitHubSource(github.url, None, REPOSITORY, patience=0.1)
    github.add_run(5)
    github.add_jobs(5, *[f"job {n}" for n in range(150)])
    github.handle = failing(github.handle, lambda request: request.query.get("page") == "2")
    fetched = source.fetch(source.run(5), tmp_path / "run")
    assert len(fetched.jobs) == 100
    assert [problem.subject for problem in fetched.problems] == ["jobs"]


def test_only_wanted_artifacts_are_downloaded(github, source, tmp_path):
    github.add_run(5)
    github.add_artifact(5, "report")
    github.add_artifact(5, "docker image")
    fetched = source.fetch(source.run(5), tmp_path / "run", wanted=lambda name: name == "report")
    assert fetched.artifact_names == ("report",)
    assert fetched.problems == ()
    assert len(github.storage.requests) == 1


def test_downloads_run_side_by_side_but_not_too_many(github, source, tmp_path):
    github.add_run(5)
    for number in range(24):
        github.add_artifact(5, f"report {number}")
    github.storage.delay = 0.05
    source.fetch(source.run(5), tmp_path / "run")
    assert 1 < github.storage.most_at_once <= PARALLEL


def test_while_a_whole_run_is_fetched_a_rate_limit_is_waited_for(github, tmp_path):
    source = GitHubSource(github.url, None, REPOSITORY, patience=0.1)
    github.add_run(5)
    github.add_artifact(5, "report")
    github.fail("/zip$", status=429, headers={"retry-after": "1"})
    assert source.fetch(source.run(5), tmp_path / "run").artifact_names == ("report",)


def test_a_run_is_not_fetched_while_the_rate_limit_is_used_up(github, source, tmp_path):
    github.add_run(5)
    for number in range(20):
        github.add_artifact(5, f"report {number}")
    run = source.run(5)
    github.fail("/zip$", status=429, headers={"retry-after": "3600"}, times=99)
    with pytest.raises(RateLimited, match="lifted at"):
        source.fetch(run, tmp_path / "run")


def test_an_error_of_the_caller_comes_through_as_it_is(github, source, tmp_path):
    def full(done: int, total: int, name: str) -> None:
        raise OSError("disk full")

    github.add_run(5)
    github.add_artifact(5, "report")
    with pytest.raises(OSError, match="disk full"):
        source.fetch(source.run(5), tmp_path / "run", progress=full)


def test_a_run_of_which_nothing_can_be_downloaded_is_an_error(github, source, tmp_path):
    github.add_run(5)
    github.add_artifact(5, "report")
    run = source.run(5)
    github.fail("/zip$", status=403, times=9)
    with pytest.raises(SourceError, match="403"):
        source.fetch(run, tmp_path / "run")


def test_a_list_of_artifacts_that_cannot_be_read_is_an_error(github, tmp_path):
    source = GitHubSource(github.url, None, REPOSITORY, patience=0.1)
    github.add_run(5)
    github.fail("/artifacts$", status=500, times=9)
    with pytest.raises(SourceError, match="500"):
        source.fetch(source.run(5), tmp_path / "run")


def test_the_first_attempt_keeps_its_own_jobs_and_artifacts(github, source, tmp_path):
    github.add_run(5)
    github.add_jobs(5, "first")
    github.add_artifact(5, "report", {"stats.txt": "first"}, created_at=day(10, 3))
    github.add_artifact(5, "undated")
    run = source.run(5)
    github.add_run(5, 2, run_started_at=day(10, 12))
    github.add_jobs(5, "second", attempt=2)
    github.add_artifact(5, "report", {"stats.txt": "second"}, created_at=day(10, 13))
    for attempt, word in ((run, "first"), (source.run(5), "second")):
        fetched = source.fetch(attempt, tmp_path / word)
        assert fetched.run.key == attempt.key
        assert [job.name for job in fetched.jobs] == [word]
        assert fetched.artifact_names == ("report", "undated")
        assert (tmp_path / word / "artifacts/report/stats.txt").read_text() == word


# --- runs after a cursor --------------------------------------------------------------------------------------------


def test_completed_runs_are_listed_oldest_first_page_by_page(github, source):
    for number in range(1, 6):
        github.add_run(number, created_at=day(number, 2), updated_at=day(number, 4))
    github.add_run(6, created_at=day(6), status="in_progress", conclusion=None)
    github.add_run(7, workflow_id=8, path=".github/workflows/other.yml", created_at=day(6))
    first = source.runs_after(AT_THE_START, limit=3)
    second = source.runs_after(first.cursor, limit=3)
    assert [run.run_id for run in first.runs + second.runs] == [1, 2, 3, 4, 5]
    assert source.runs_after(second.cursor).runs == ()


def test_a_run_that_completes_out_of_order_is_listed(github, source):
    github.add_run(1, created_at=day(5), status="in_progress", conclusion=None)
    github.add_run(2, created_at=day(6), updated_at=day(6, 4))
    page = source.runs_after(AT_THE_START)
    assert [run.run_id for run in page.runs] == [2]
    github.add_run(1, created_at=day(5), updated_at=day(6, 20))
    assert [run.run_id for run in source.runs_after(page.cursor).runs] == [1]


def test_another_attempt_is_another_run(github, source):
    github.add_run(1, created_at=day(5), updated_at=day(5, 4))
    page = source.runs_after(AT_THE_START)
    github.add_run(1, 2, created_at=day(5), updated_at=day(6, 4))
    assert [run.key for run in source.runs_after(page.cursor).runs] == ["1-2"]


def test_a_run_of_long_ago_that_is_run_again_is_found_within_the_hour(github, source):
    github.add_run(1, created_at=day(1), updated_at=day(1, 4))
    github.add_run(2, created_at=day(25), updated_at=day(25, 4))
    page = source.runs_after(AT_THE_START)
    assert [run.key for run in page.runs] == ["1-1", "2-1"]
    github.add_run(1, 2, created_at=day(1), updated_at=day(25, 5))
    assert source.runs_after(page.cursor).runs == ()  # looked far back just now
    cursor = json.loads(page.cursor)
    cursor["swept"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert [run.key for run in source.runs_after(json.dumps(cursor)).runs] == ["1-2"]


@pytest.mark.parametrize("apart", [timedelta(minutes=10), timedelta(seconds=1)], ids=str)
def test_more_runs_than_github_lists_at_once_are_all_found(github, source, monkeypatch, apart):
    monkeypatch.setattr("ci_pipeline.sources.github.LIST_LIMIT", 100)
    github.list_limit = 100
    start = datetime(2025, 11, 1, tzinfo=UTC)
    for number in range(230):
        created = (start + number * apart).isoformat()
        github.add_run(number + 1, created_at=created, updated_at=created)
    page = source.runs_after(AT_THE_START, limit=500)
    assert [run.run_id for run in page.runs] == list(range(1, 231))


def test_of_more_runs_in_one_second_than_github_lists_each_is_listed_once(github, source, monkeypatch):
    monkeypatch.setattr("ci_pipeline.sources.github.LIST_LIMIT", 100)
    github.list_limit = 100
    for number in range(101):
        github.add_run(number + 1, created_at=day(1), updated_at=day(1, 4))
    assert len(source.runs_after(AT_THE_START, limit=500).runs) == 100


def test_a_long_history_is_read_page_by_page_and_not_whole_for_each_page(github, source, monkeypatch):
    monkeypatch.setattr("ci_pipeline.sources.github.LIST_LIMIT", 100)
    github.list_limit = 100
    start = datetime(2021, 1, 1, tzinfo=UTC)
    for number in range(1500):
        created = (start + timedelta(days=number)).isoformat()
        github.add_run(number + 1, created_at=created, updated_at=created)
    cursor, seen = cursor_at(datetime.fromtimestamp(0, UTC)), []
    for _ in range(5):
        before = len(github.requests)
        page = source.runs_after(cursor, limit=20)
        assert len(github.requests) - before < 12
        cursor, seen = page.cursor, seen + [run.run_id for run in page.runs]
    assert seen == list(range(1, 101))


def test_without_a_cursor_only_the_last_day_is_listed(github, source):
    now = datetime.now(UTC)
    for number, hours in ((1, 30), (2, 20), (3, 1)):
        time = (now - timedelta(hours=hours)).isoformat()
        github.add_run(number, created_at=time, updated_at=time)
    assert [run.run_id for run in source.runs_after(None).runs] == [2, 3]


def test_a_list_of_runs_that_cannot_be_read_is_an_error_and_not_an_empty_page(github):
    source = GitHubSource(github.url, None, REPOSITORY, workflows=[7, 8], patience=0.1)
    github.add_run(1)
    github.fail("/workflows/8/", status=500, times=9)
    with pytest.raises(SourceError, match="workflows/8"):
        source.runs_after(AT_THE_START)


def test_a_reporter_of_the_recorded_cases_finds_what_it_asks_for(github, source, tmp_path):
    """The order of requests of the one-shot command: this run, its jobs, the run before, its results."""
    github.add_run(1, created_at=day(9))
    github.add_run(2, created_at=day(10), status="in_progress", conclusion=None)
    github.add_artifact(1, "ci_results_run_models_gpu", {"model_results.json": "{}"})
    run = source.run(2)
    assert source.jobs(run) == ()
    before = [r for r in source.workflow_runs(run.workflow_id, event="schedule", branch="main") if r.run_id != 2]
    path: Path = source.artifact(before[0].run_id, "ci_results_run_models_gpu", tmp_path / "1")
    assert (path / "model_results.json").read_text() == "{}"
