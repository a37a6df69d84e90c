"""What a callback does to its job: dispatched, then in progress, then completed, and no other way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ci_pipeline.oot import Refused

Status = Literal["in_progress", "completed"]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A repository was told of a pull request or push.

    Times are in seconds since 1970. `pr_number` is 0 for a push; None and "" stand for not known. `told_until`: before
    then nobody else tells it, since GitHub took the message, or somebody is about to send it.
    """

    delivery_id: str
    repo: str
    dispatched_at: float
    pr_number: int | None = None
    head_sha: str = ""
    told_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """A callback as its job's lifecycle sees it.

    `job` identifies the execution of a job; `digest` is of the content that will be stored. `pr_number` is None and
    `head_sha` is "" where the callback does not state them.
    """

    delivery_id: str
    repo: str
    job: str
    status: Status
    digest: str
    dynamo_key: str
    run_attempt: int = 1
    self_report: bool = False
    pr_number: int | None = None
    head_sha: str = ""


@dataclass(frozen=True, slots=True)
class JobState:
    """What was accepted of a job so far; the digests tell a retry from another story."""

    status: Status
    dynamo_key: str
    pr_number: int | None = None
    head_sha: str = ""
    in_progress_at: float | None = None
    in_progress_digest: str = ""
    completed_digest: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """An accepted callback: the job's new state, and `queue_time` or `execution_time` where it was measured.

    Times are seconds by the relay's clock: dispatch to in progress, in progress to completed.
    """

    state: JobState
    measured: Mapping[str, float] = field(default_factory=dict[str, float])


def decide(step: Step, dispatch: Dispatch | None, state: JobState | None, now: float) -> Transition | None:
    """What happens: a transition, or None for a retry of what was accepted before.

    Raises:
        Refused: it does not follow from what is known (409), or contradicts what was dispatched (403).
    """
    if state is None:
        return _begin(step, dispatch, now)
    if step.digest == (state.in_progress_digest if step.status == "in_progress" else state.completed_digest):
        return None
    if state.status == "completed":
        raise Refused(409, "this job has already completed, and with other content")
    if step.status == "in_progress":
        raise Refused(409, "this job is already in progress, and was reported with other content")
    if step.self_report:
        raise Refused(409, "this job began under a dispatch and cannot end as a self-report")
    _agree(step, state)
    if step.dynamo_key != state.dynamo_key:
        raise Refused(409, "workflow.name is not the one that this job began with")
    measured = {} if state.in_progress_at is None else {"execution_time": max(0.0, now - state.in_progress_at)}
    return Transition(replace(state, status="completed", completed_digest=step.digest), measured)


def _begin(step: Step, dispatch: Dispatch | None, now: float) -> Transition:
    if step.self_report:
        state = JobState("completed", step.dynamo_key, step.pr_number, step.head_sha, completed_digest=step.digest)
        return Transition(state)
    if dispatch is None:
        raise Refused(409, f"delivery {step.delivery_id} was not dispatched to {step.repo}, or too long ago")
    _agree(step, dispatch)
    if step.status == "completed":
        raise Refused(409, "completed came before in_progress")
    # What the dispatch does not know is bound by the first callback.
    pr_number = step.pr_number if dispatch.pr_number is None else dispatch.pr_number
    head_sha = dispatch.head_sha or step.head_sha
    # A later attempt did not wait since the dispatch.
    measured = {"queue_time": max(0.0, now - dispatch.dispatched_at)} if step.run_attempt == 1 else {}
    return Transition(JobState("in_progress", step.dynamo_key, pr_number, head_sha, now, step.digest), measured)


def _agree(step: Step, known: Dispatch | JobState) -> None:
    if step.pr_number is not None and known.pr_number is not None and step.pr_number != known.pr_number:
        raise Refused(403, f"pull request {step.pr_number} is not the one that was dispatched")
    if step.head_sha and known.head_sha and step.head_sha != known.head_sha:
        raise Refused(403, f"commit {step.head_sha} is not the one that was dispatched")
