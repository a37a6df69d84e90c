from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ci_pipeline.analysis.previous import previous_run, reference_run
from ci_pipeline.model import CiRun
from ci_pipeline.profile import load_profile

PROFILE = load_profile("transformers")
NVIDIA = 90575235
AMD = 150000001


def day(number: int) -> datetime:
    return datetime(2025, 11, number, 2, 17, tzinfo=UTC)


def a_run(run_id: int, created_at: datetime | None = None, **fields: Any) -> CiRun:
    defaults: dict[str, Any] = {"workflow_id": NVIDIA, "event": "schedule", "head_sha": "a" * 40, "head_branch": "main"}
    return CiRun("huggingface/transformers", run_id, created_at=created_at, **defaults | fields)


NIGHTLY = a_run(30, day(10), status="in_progress")


def test_the_newest_older_run_of_the_same_workflow_is_the_previous_one() -> None:
    newest = a_run(20, day(9))
    assert previous_run(NIGHTLY, [a_run(10, day(8)), newest, a_run(15, day(7))], PROFILE) == newest


def test_without_candidates_there_is_no_previous_run() -> None:
    assert previous_run(NIGHTLY, [], PROFILE) is None


@pytest.mark.parametrize(
    "candidate",
    [
        NIGHTLY,
        a_run(30, day(9), run_attempt=1),
        a_run(40, day(11)),
        a_run(20, day(9), status="in_progress"),
        a_run(20, day(9), workflow_id=AMD),
        a_run(20, day(9), event="push"),
        a_run(20, day(9), head_branch="a-pull-request"),
        CiRun("another/repository", 20, workflow_id=NVIDIA, event="schedule", created_at=day(9)),
    ],
    ids=["itself", "its other attempt", "newer", "running", "workflow", "event", "branch", "repository"],
)
def test_other_runs_are_not_the_previous_one(candidate: CiRun) -> None:
    assert previous_run(NIGHTLY, [candidate], PROFILE) is None


def test_a_run_whose_fields_github_left_out_still_counts() -> None:
    bare = CiRun("", 20, workflow_id=NVIDIA)
    assert previous_run(NIGHTLY, [bare], PROFILE) == bare


def test_ids_tell_which_is_older_where_a_time_is_missing_or_the_same() -> None:
    assert previous_run(NIGHTLY, [a_run(31)], PROFILE) is None
    assert previous_run(NIGHTLY, [a_run(28, day(10)), a_run(29, day(10)), a_run(31, day(10))], PROFILE) == a_run(
        29, day(10)
    )
    assert previous_run(a_run(30), [a_run(20, day(9)), a_run(29), a_run(31, day(8))], PROFILE) == a_run(29)


def test_times_win_over_ids() -> None:
    assert previous_run(NIGHTLY, [a_run(99, day(9)), a_run(20, day(8))], PROFILE) == a_run(99, day(9))


def test_a_chained_nightly_is_compared_with_its_own_workflow_whatever_started_that() -> None:
    run = a_run(30, day(10), workflow_id=AMD, event="workflow_run")
    scheduled, chained = a_run(20, day(8), workflow_id=AMD), a_run(25, day(9), workflow_id=AMD, event="workflow_run")
    assert previous_run(run, [scheduled, a_run(21, day(9))], PROFILE) == scheduled
    assert previous_run(run, [scheduled, chained], PROFILE) == chained


def test_a_comment_on_a_pull_request_is_compared_with_the_reference_workflow() -> None:
    run = a_run(30, day(10), workflow_id=180000001, event="issue_comment", head_branch="topic")
    nightly = a_run(20, day(8))
    own = a_run(25, day(9), workflow_id=180000001, event="issue_comment")
    assert previous_run(run, [nightly, own], PROFILE) == nightly
    assert previous_run(run, [CiRun("", 20, workflow_id=NVIDIA)], PROFILE) == CiRun("", 20, workflow_id=NVIDIA)


@pytest.mark.parametrize("event", ["push", "workflow_dispatch", "pull_request", ""])
def test_other_events_have_no_previous_run(event: str) -> None:
    assert previous_run(a_run(30, day(10), event=event), [a_run(20, day(9)), a_run(21, event=event)], PROFILE) is None


def test_without_a_reference_in_the_profile_there_is_nothing_to_compare_with() -> None:
    profile = PROFILE.model_copy(update={"reference": None})
    run = a_run(30, day(10), workflow_id=AMD, event="issue_comment")
    assert previous_run(run, [a_run(20, day(9))], profile) is None
    assert reference_run(a_run(30, day(10), workflow_id=AMD), [a_run(28, day(10))], profile) is None


def test_runs_of_an_unknown_workflow_are_compared_with_nothing() -> None:
    assert previous_run(a_run(30, day(10), workflow_id=0), [a_run(20, day(9), workflow_id=0)], PROFILE) is None


def test_the_reference_run_is_of_the_same_commit() -> None:
    run = a_run(30, day(10), workflow_id=AMD, event="workflow_run", head_sha="b" * 40)
    same_commit = a_run(28, day(10), head_sha="b" * 40)
    assert reference_run(run, [a_run(29, day(11)), same_commit, a_run(20, head_sha="")], PROFILE) == same_commit


def test_a_run_of_the_reference_workflow_has_no_reference() -> None:
    assert reference_run(NIGHTLY, [a_run(20, day(9)), a_run(20, day(9), workflow_id=AMD)], PROFILE) is None


def test_the_reference_run_must_be_complete_and_the_commit_known() -> None:
    run = a_run(30, day(10), workflow_id=AMD)
    assert reference_run(run, [a_run(28, day(10), status="queued")], PROFILE) is None
    assert reference_run(a_run(30, workflow_id=AMD, head_sha=""), [a_run(28, head_sha="")], PROFILE) is None
    assert reference_run(a_run(30, workflow_id=AMD, event="push"), [a_run(28)], PROFILE) is None
