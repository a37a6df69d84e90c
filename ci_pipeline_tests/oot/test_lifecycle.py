"""The lifecycle as a state machine: every order of callbacks, by table and by property."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.oot import Refused
from ci_pipeline.oot.lifecycle import Dispatch, JobState, Step, Transition, decide

DISPATCH = Dispatch("delivery-1", "org/backend", 1000.0, pr_number=7, head_sha="abc")
IN_PROGRESS = Step("delivery-1", "org/backend", "job", "in_progress", "d1", "key", pr_number=7, head_sha="abc")
COMPLETED = replace(IN_PROGRESS, status="completed", digest="d2")
NIGHTLY = replace(COMPLETED, self_report=True, pr_number=None, head_sha="")


def after(*steps: Step, dispatch: Dispatch | None = DISPATCH, now: float = 1010.0) -> JobState | None:
    state = None
    for step in steps:
        transition = decide(step, dispatch, state, now)
        state = transition.state if transition else state
    return state


def refusal(step: Step, *before: Step, dispatch: Dispatch | None = DISPATCH) -> Refused:
    with pytest.raises(Refused) as refused:
        decide(step, dispatch, after(*before), 1020.0)
    return refused.value


def test_in_progress_measures_the_wait_since_the_dispatch():
    transition = decide(IN_PROGRESS, DISPATCH, None, 1012.5)
    assert transition
    assert transition.measured == {"queue_time": 12.5}


def test_completed_measures_the_time_since_in_progress():
    transition = decide(COMPLETED, DISPATCH, after(IN_PROGRESS, now=1010.0), 1040.0)
    assert transition
    assert transition.measured == {"execution_time": 30.0}


def test_a_second_attempt_has_no_queue_time():
    transition = decide(replace(IN_PROGRESS, run_attempt=2), DISPATCH, None, 9999.0)
    assert transition
    assert transition.measured == {}


def test_a_clock_that_was_set_back_measures_nothing_negative():
    begun = decide(IN_PROGRESS, DISPATCH, None, 900.0)
    assert begun
    assert begun.measured == {"queue_time": 0.0}
    ended = decide(COMPLETED, DISPATCH, begun.state, 800.0)
    assert ended
    assert ended.measured == {"execution_time": 0.0}


@pytest.mark.parametrize(
    ("step", "before", "dispatch", "status", "reason"),
    [
        (IN_PROGRESS, (), None, 409, "not dispatched"),
        (COMPLETED, (), None, 409, "not dispatched"),
        (COMPLETED, (), DISPATCH, 409, "before in_progress"),
        (replace(IN_PROGRESS, digest="x"), (IN_PROGRESS,), DISPATCH, 409, "already in progress"),
        (replace(IN_PROGRESS, digest="x"), (IN_PROGRESS, COMPLETED), DISPATCH, 409, "already completed"),
        (replace(COMPLETED, digest="x"), (IN_PROGRESS, COMPLETED), DISPATCH, 409, "already completed"),
        (replace(COMPLETED, dynamo_key="x"), (IN_PROGRESS,), DISPATCH, 409, "workflow.name"),
        (replace(NIGHTLY, digest="x"), (NIGHTLY,), DISPATCH, 409, "already completed"),
        (NIGHTLY, (IN_PROGRESS,), DISPATCH, 409, "self-report"),
        (replace(IN_PROGRESS, pr_number=8), (), DISPATCH, 403, "pull request 8"),
        (replace(IN_PROGRESS, head_sha="def"), (), DISPATCH, 403, "commit def"),
        (replace(COMPLETED, pr_number=8), (IN_PROGRESS,), DISPATCH, 403, "pull request 8"),
        (replace(COMPLETED, head_sha="def"), (IN_PROGRESS,), DISPATCH, 403, "commit def"),
        (IN_PROGRESS, (), replace(DISPATCH, pr_number=0), 403, "pull request 7"),
    ],
)
def test_what_does_not_follow_is_refused(
    step: Step, before: tuple[Step, ...], dispatch: Dispatch | None, status: int, reason: str
):
    refused = refusal(step, *before, dispatch=dispatch)
    assert refused.status == status
    assert reason in refused.detail


ANOTHER = [({"pr_number": 8}, "pull request 8"), ({"head_sha": "def"}, "commit def")]


@pytest.mark.parametrize(("another", "named"), ANOTHER)
def test_what_was_not_stated_at_first_cannot_be_slipped_in_later(another: dict[str, Any], named: str):
    begun = after(replace(IN_PROGRESS, pr_number=None, head_sha=""))
    with pytest.raises(Refused, match=f"{named} is not the one that was dispatched"):
        decide(replace(COMPLETED, **another), DISPATCH, begun, 1020.0)


@pytest.mark.parametrize(("another", "named"), ANOTHER)
def test_a_dispatch_by_hand_takes_pull_request_and_commit_from_the_first_callback(another: dict[str, Any], named: str):
    by_hand = Dispatch("delivery-1", "org/backend", 1000.0)
    begun = after(IN_PROGRESS, dispatch=by_hand)
    with pytest.raises(Refused, match=f"{named} is not the one that was dispatched"):
        decide(replace(COMPLETED, **another), by_hand, begun, 1020.0)
    assert decide(COMPLETED, by_hand, begun, 1020.0)


def test_a_dispatch_that_expired_meanwhile_does_not_hold_up_a_job_that_began():
    assert decide(COMPLETED, None, after(IN_PROGRESS), 1020.0)


def test_a_nightly_needs_no_dispatch():
    transition = decide(NIGHTLY, None, None, 1020.0)
    assert transition
    assert transition.measured == {}
    assert decide(NIGHTLY, None, transition.state, 1030.0) is None


steps = st.lists(
    st.builds(
        Step,
        st.just("delivery-1"),
        st.just("org/backend"),
        st.just("job"),
        st.sampled_from(["in_progress", "completed"]),
        st.sampled_from(["d1", "d2", "d3"]),
        st.just("key"),
        run_attempt=st.integers(1, 2),
        self_report=st.booleans(),
    ),
    max_size=12,
)


@given(steps=steps, dispatched=st.booleans(), times=st.lists(st.floats(0, 2000), min_size=12, max_size=12))
def test_no_order_of_callbacks_breaks_a_promise(steps: list[Step], dispatched: bool, times: list[float]):
    dispatch = Dispatch("delivery-1", "org/backend", 1000.0) if dispatched else None
    state: JobState | None = None
    transitions: list[Transition] = []
    accepted: list[tuple[str, str]] = []
    for step, now in zip(steps, times, strict=False):
        if step.self_report and step.status == "in_progress":
            continue  # refused before it comes here
        try:
            transition = decide(step, dispatch, state, now)
        except Refused:
            # What was accepted once is never refused later.
            assert (step.status, step.digest) not in accepted
            continue
        if transition is None:
            assert (step.status, step.digest) in accepted
            continue
        accepted.append((step.status, step.digest))
        transitions.append(transition)
        state = transition.state
    statuses = [transition.state.status for transition in transitions]
    assert statuses in ([], ["in_progress"], ["completed"], ["in_progress", "completed"])
    if not dispatched:
        assert "in_progress" not in statuses
    assert all(seconds >= 0 for transition in transitions for seconds in transition.measured.values())
