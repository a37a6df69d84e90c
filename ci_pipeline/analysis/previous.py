"""Which earlier run a CI run is compared with: older, completed, of the workflow that the profile's rules name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ci_pipeline.model import CiRun

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile


def previous_run(run: CiRun, candidates: Iterable[CiRun], profile: Profile) -> CiRun | None:
    """The newest of the candidates that the profile's rule for the run's event admits; None where there is none.

    An event without a rule has no previous run.
    """
    rule = profile.previous.get(run.event)
    if rule is None or rule.workflow == "none":
        return None
    if rule.workflow == "same":
        workflow_id, events = run.workflow_id, {rule.event, run.event, ""}
    else:
        workflow_id, events = profile.reference.workflow_id if profile.reference else 0, {rule.event, ""}
    return _newest(
        earlier
        for earlier in candidates
        if _may_be_compared(run, earlier, workflow_id)
        and earlier.event in events
        and earlier.head_branch in (profile.default_branch, "")
        and _is_older(earlier, run)
    )


def reference_run(run: CiRun, candidates: Iterable[CiRun], profile: Profile) -> CiRun | None:
    """The profile's reference workflow's run of the same commit, before or after this one."""
    reference = profile.reference
    if reference is None or run.event not in reference.events or run.workflow_id == reference.workflow_id:
        return None
    return _newest(
        other
        for other in candidates
        if _may_be_compared(run, other, reference.workflow_id) and other.head_sha and other.head_sha == run.head_sha
    )


def _may_be_compared(run: CiRun, other: CiRun, workflow_id: int) -> bool:
    return (
        other.workflow_id == workflow_id != 0
        and other.status == "completed"
        and other.run_id != run.run_id
        and other.repository in (run.repository, "")
    )


def _is_older(run: CiRun, than: CiRun) -> bool:
    """By when the runs were created; GitHub's ids grow, so they tell where a time is missing or the same."""
    if run.created_at and than.created_at and run.created_at != than.created_at:
        return run.created_at < than.created_at
    return run.run_id < than.run_id


def _newest(runs: Iterable[CiRun]) -> CiRun | None:
    newest: CiRun | None = None
    for run in runs:
        if newest is None or _is_older(newest, run):
            newest = run
    return newest
