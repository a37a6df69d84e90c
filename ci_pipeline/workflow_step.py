"""What the environment of a workflow step says, and what the profile makes of it."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci_pipeline.model import Problem
from ci_pipeline.profile import Profile, TestJob, Workflow, load_profile
from ci_pipeline.reports.artifacts import available_artifacts
from ci_pipeline.settings import Settings, SettingsError, StepSettings, load_settings, load_step_settings


@dataclass(frozen=True)
class Step:
    """A workflow step that reports one test job, whose artifacts are folders of `root`, its working directory.

    `matrix`: the folders that the test job was called with. `problems`: what of its arguments could not be understood;
    the report says so.
    """

    settings: Settings
    env: StepSettings
    profile: Profile
    test_job: str
    matrix: Sequence[str]
    problems: Sequence[Problem]
    root: Path

    @property
    def job(self) -> TestJob:
        return self.profile.test_jobs[self.test_job]

    @property
    def channel(self) -> str:
        return self.settings.slack_channel or self.profile.channel_of(0, self.workflow_path, self.test_job)

    @property
    def repository(self) -> str:
        return self.env.github_repository or self.profile.repository

    @property
    def ci_event(self) -> str:
        return self.env.ci_event or (self.workflow and self.workflow.ci_event) or self.env.github_event_name or "CI"

    @property
    def reports_success(self) -> bool:
        """A push that broke nothing is no news."""
        return not self.ci_event.casefold().startswith("push")

    @property
    def setup_failed(self) -> bool:
        return self.env.setup_status not in ("", "success", "skipped")

    @property
    def workflow_path(self) -> str:
        """`.github/workflows/nightly.yml`, of `owner/name/.github/workflows/nightly.yml@refs/heads/main`."""
        return "/".join(self.env.github_workflow_ref.partition("@")[0].split("/")[2:])

    @property
    def workflow(self) -> Workflow | None:
        return self.profile.workflow_of(0, self.workflow_path)

    @property
    def hub_dataset(self) -> str:
        return self.settings.hub_dataset or (self.workflow and self.workflow.hub_dataset) or self.profile.hub_dataset

    @property
    def web_url(self) -> str:
        return f"{self.settings.github_server_url.rstrip('/')}/{self.repository}"

    @property
    def run_url(self) -> str:
        return f"{self.web_url}/actions/runs/{self.env.github_run_id}" if self.env.github_run_id else ""


def workflow_step(matrix: str = "") -> Step:
    """The step that this process runs in. `matrix`: as `parse_matrix` reads it.

    Raises:
        SettingsError: a setting is wrong; one line.
    """
    settings, env, root = load_settings(), load_step_settings(), Path.cwd()
    profile = load_profile(settings.profile)
    problems: list[Problem] = []
    test_job = env.ci_test_job or _job_of_most_artifacts(root, profile)
    if not test_job:
        problems.append(Problem("no report was found", "CI_TEST_JOB is not set"))
        test_job = "tests"
    try:
        folders, why = parse_matrix(matrix), "the matrix is empty"
    except ValueError as error:
        folders, why = [], str(error)
    if test_job not in profile.test_jobs:
        # A job that the profile does not know is reported under its own name.
        unknown = TestJob(test=test_job, result_name=test_job, matrix=bool(folders))
        profile = profile.model_copy(update={"test_jobs": {**profile.test_jobs, test_job: unknown}})
    if not profile.test_jobs[test_job].matrix:
        folders = []
    elif not folders:
        problems.append(Problem("folders without an artifact are not known", why))
    return Step(settings, env, profile, test_job, folders, problems, root)


def require_slack(step: Step) -> None:
    """
    Raises:
        SettingsError: something is not set without which nothing can be posted; one line.
    """
    if not step.settings.slack_token:
        raise SettingsError("CI_SLACK_BOT_TOKEN is not set: nothing can be posted")
    if not step.channel:
        raise SettingsError(f"SLACK_REPORT_CHANNEL is not set, and the profile has no channel for {step.test_job}")


def parse_matrix(argument: str) -> list[str]:
    """The folders in a list, nested or not, from JSON, as Python prints it, or as a shell leaves JSON in quotes.

    Raises:
        ValueError: it is neither; one line.
    """
    if not argument.strip():
        return []
    for parse in (json.loads, ast.literal_eval, _unquoted):
        try:
            return list(_folders(parse(argument.strip())))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    raise ValueError("the matrix is neither JSON nor a list")


def _unquoted(text: str) -> list[str]:
    """The folders of `[models/bert, models/gpt2]`: `"${{ toJson(…) }}"` loses its inner quotes."""
    folders = [part.strip("[] \r\n\t") for part in text.split(",")]
    if text.count("[") != text.count("]") or not all(re.fullmatch(r"[\w./-]+", folder) for folder in folders):
        raise ValueError
    return folders


def _folders(value: object) -> Iterator[str]:
    """Whatever else JSON may hold is no folder."""
    if isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _folders(part)


def _job_of_most_artifacts(root: Path, profile: Profile) -> str:
    jobs = Counter(artifact.test_job for artifact in available_artifacts(root, profile))
    return max(jobs, key=lambda job: jobs[job], default="")
