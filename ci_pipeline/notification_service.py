"""The notification service's Python API, under the names that scripts know. The logic lives elsewhere."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from ci_pipeline import notify
from ci_pipeline.model import Failure, JobResult, TestKey
from ci_pipeline.profile import load_profile
from ci_pipeline.publish import hub_files, slack_classic
from ci_pipeline.publish.slack import SlackClient
from ci_pipeline.publish.slack_classic import Block, ClassicReport, Compared, prepare_reports
from ci_pipeline.publish.thread import SlackMessage
from ci_pipeline.reports.artifacts import parse_artifact_name
from ci_pipeline.reports.closing_line import parse_closing_line
from ci_pipeline.reports.pytest_folder import without_colours
from ci_pipeline.reports.traces import crash_lines
from ci_pipeline.workflow_step import Step, workflow_step

__all__ = [
    "NON_MODEL_TEST_MODULES",
    "Artifact",
    "Message",
    "dicts_to_sum",
    "get_last_daily_ci_reports",
    "handle_stacktraces",
    "handle_test_results",
    "job_to_test_map",
    "prepare_reports",
    "retrieve_artifact",
    "retrieve_available_artifacts",
    "test_to_result_name",
]

PROFILE = load_profile(os.environ.get("CI_PIPELINE_PROFILE") or "transformers")

job_to_test_map = PROFILE.job_to_test_map
test_to_result_name = PROFILE.test_to_result_name
NON_MODEL_TEST_MODULES = list(PROFILE.non_model_test_modules)

Artifacts = Mapping[str, Mapping[str, str]]
"""Texts of files by artifact and name: `{"ci_results_run_models_gpu": {"model_results.json": "{…}"}}`."""

Earlier = tuple[int | str | None, Artifacts | None]
"""An earlier run: its id, and its artifacts."""


class Message:
    """A report from job results, and its way to Slack: the environment says with what token and to which channel.

    Args:
        title: the header.
        ci_title: mrkdwn, with links to the pull request or commit.
        model_results: job results by matrix entry.
        additional_results: job results by the name of the test.
        selected_warnings: warnings to count.
        prev_ci_artifacts: the previous run: its id, and its artifacts.
        other_ci_artifacts: other runs to compare with, in the same form.
    """

    def __init__(
        self,
        title: str,
        ci_title: str,
        model_results: Mapping[str, JobResult],
        additional_results: Mapping[str, JobResult],
        selected_warnings: Sequence[str] | None = None,
        prev_ci_artifacts: Earlier | None = None,
        other_ci_artifacts: Iterable[Earlier] | None = None,
    ) -> None:
        self.title = title
        self.ci_title = ci_title
        self.model_results = model_results
        self.additional_results = additional_results
        self.selected_warnings = list(selected_warnings or ())
        self.prev_ci_artifacts = prev_ci_artifacts
        self.other_ci_artifacts = list(other_ci_artifacts or ())
        self.thread_ts: str | None = None

    @property
    def time(self) -> str:
        """Time spent in all tests: `1h2m3s`."""
        return self._report.time

    @property
    def payload(self) -> str:
        """The blocks of the main message, as JSON."""
        return json.dumps(self._report.main().blocks, ensure_ascii=False)

    @staticmethod
    def error_out(
        title: str,
        ci_title: str = "",
        runner_not_available: bool = False,
        runner_failed: bool = False,
        setup_failed: bool = False,
    ) -> None:
        """Post that the tests did not run.

        Raises:
            SettingsError: no token or no channel; one line.
            SlackError: it could not be posted; one line.
        """
        step = workflow_step()
        error = slack_classic.error_message(
            title,
            ci_title,
            step.run_url,
            runner_not_available=runner_not_available,
            runner_failed=runner_failed,
            setup_failed=setup_failed,
        )
        _slack(step).post(step.channel, error.text, error.blocks)

    def post(self) -> None:
        """Post the main message; `thread_ts` says where it is.

        Raises:
            SettingsError: no token or no channel; one line.
            SlackError: it could not be posted; one line.
        """
        self.thread_ts = self._post(self._report.main())

    def post_reply(self) -> None:
        """Post the failures as replies, one for each matrix entry and device.

        Raises:
            ValueError: there is no main message yet.
            SlackError: a reply could not be posted; one line.
        """
        if self.thread_ts is None:
            raise ValueError("There is nothing to reply to: call post() first")
        for reply in self._report.replies():
            self._post(reply, self.thread_ts)

    def get_reply_blocks(
        self, job_name: str, job_result: JobResult, failures: Sequence[Failure], device: str | None, text: str
    ) -> list[Block]:
        """The blocks of one reply; `text` is its summary, as mrkdwn."""
        return ClassicReport.reply_blocks(job_name, job_result, failures, device, text)

    def get_new_model_failure_blocks(
        self,
        prev_ci_artifacts: Earlier | Artifacts | None,
        with_header: bool = True,
        to_truncate: bool = True,
    ) -> list[Block]:
        """The failures that an earlier run did not have; the last block lists them. Empty if there are none.

        `to_truncate=False` lists all of them, as text for a file.
        """
        new = self._compared(prev_ci_artifacts, "previous run")
        if new is None or not new.failures:
            return []
        listed = slack_classic.section(self._report.failure_list(new.failures))
        if not to_truncate:
            listed["text"]["text"] = self._report.failure_list(new.failures, to_truncate=False)
        heading = self._report.comparison_block(new, "new failed tests", "Check new failures")
        return [heading, listed] if with_header else [listed]

    @cached_property
    def _step(self) -> Step:
        return workflow_step()

    @cached_property
    def _slack(self) -> SlackClient:
        return _slack(self._step)

    def _post(self, message: SlackMessage, thread_ts: str | None = None) -> str:
        return self._slack.post(self._step.channel, message.text, message.blocks, thread_ts)

    @property
    def _report(self) -> ClassicReport:
        return ClassicReport(
            title=self.title,
            ci_title=self.ci_title,
            profile=self._step.profile,
            test_job=self._step.test_job if self._step.env.ci_test_job else next(iter(self._step.profile.test_jobs)),
            model_results=self.model_results,
            additional_results=self.additional_results,
            run_url=self._step.run_url,
            warnings=self.selected_warnings,
            new_failures=self._compared(self.prev_ci_artifacts, "previous run"),
            unique_failures=[new for other in self.other_ci_artifacts if (new := self._compared(other, "run"))],
        )

    def _compared(self, earlier: Earlier | Artifacts | None, label: str) -> Compared | None:
        """The failures that an earlier run did not have; None where nothing is known of it."""
        run_id, artifacts = (0, earlier) if isinstance(earlier, Mapping) else earlier or (0, None)
        known = _failures_in(artifacts or {})
        if known is None:
            return None
        now = hub_files.failures_of({**self.model_results, **self.additional_results})
        new = slack_classic.in_order((where for where in now if where not in known), self._step.profile)
        return Compared(int(run_id or 0), label, new)


def _failures_in(artifacts: Artifacts) -> set[TestKey] | None:
    """The failing tests that the results files of artifacts name; None where there are no results."""
    tests = {name: test for test, name in test_to_result_name.items()}
    known: set[TestKey] | None = None
    for files in artifacts.values():
        for name, text in files.items():
            result_name, is_results, _ = name.removesuffix(".json").rpartition("_results")
            try:
                results = json.loads(text) if is_results and name.endswith(".json") else None
            except ValueError:
                continue
            if isinstance(results, dict):
                test = tests.get(result_name, result_name)
                known = known or set()
                known |= {(entry or test, device, line) for entry, device, line in hub_files.failures_of(results)}
    return known


def _slack(step: Step) -> SlackClient:
    notify.require_slack(step)
    return notify.slack_client(step)


def handle_test_results(test_results: str) -> tuple[int, int, int, int, str]:
    """The totals of pytest's closing line: failed, errors, passed, skipped, and the time spent as pytest prints it.

    All zero and "" where there is no closing line.
    """
    counts = parse_closing_line(without_colours(test_results.encode(errors="replace")))
    if counts is None:
        return 0, 0, 0, 0, ""
    return counts.failed, counts.errors, counts.passed, counts.skipped, f"{counts.seconds:.2f}s"


def handle_stacktraces(test_results: str) -> list[str]:
    """Where and why each test failed, from `failures_line`: `(line 42)  ValueError: text`."""
    crashes = crash_lines(without_colours(test_results.encode(errors="replace")))
    return [f"(line {crash.line.decode()})  {crash.text.decode(errors='replace')}" for crash in crashes]


def retrieve_artifact(artifact_path: str | os.PathLike[str], gpu: str | None) -> dict[str, str]:
    """The texts of an artifact's files, by their names without extension. `gpu` is the artifact's device."""
    folder = Path(artifact_path)
    if not folder.is_dir():
        return {}
    return {path.stem: path.read_text("utf-8", "replace") for path in sorted(folder.iterdir()) if path.is_file()}


class ArtifactPath(TypedDict):
    name: str
    path: str
    gpu: str | None


@dataclass
class Artifact:
    """The folders of one artifact name: one for each device."""

    name: str
    paths: list[ArtifactPath] = field(default_factory=list[ArtifactPath])


def retrieve_available_artifacts() -> dict[str, Artifact]:
    """The test artifacts that are folders of the working directory, by their names without the machine."""
    artifacts: dict[str, Artifact] = {}
    for path in sorted(folder.name for folder in Path.cwd().glob("*_test_reports*") if folder.is_dir()):
        artifact = parse_artifact_name(path, PROFILE)
        machine = artifact.machine if artifact else path.partition("_")[0]
        gpu = PROFILE.device_of(machine)
        if not artifact and gpu not in PROFILE.devices:
            machine = gpu = ""
        name = path.removeprefix(f"{machine}_")
        artifacts.setdefault(name, Artifact(name)).paths.append(ArtifactPath(name=name, path=path, gpu=gpu or None))
    return artifacts


def dicts_to_sum(objects: Mapping[str, Mapping[str, int]] | Sequence[Mapping[str, int]]) -> Counter[str]:
    """Add counts up, key by key."""
    total: Counter[str] = Counter()
    for counts in objects.values() if isinstance(objects, Mapping) else objects:
        total.update(counts)
    return total


def get_last_daily_ci_reports(
    artifact_names: Iterable[str], output_dir: str | os.PathLike[str], token: str | None, workflow_run_id: int | str
) -> dict[str, dict[str, str]]:
    """Download artifacts of a CI run to `output_dir`: their texts by artifact and file name.

    Raises:
        SourceError: one of them cannot be had; one line.
    """
    from ci_pipeline.sources.github import GitHubSource

    step = workflow_step()
    with closing(GitHubSource(step.settings.github_api_url, token, step.repository)) as source:
        folders = {name: source.artifact(int(workflow_run_id), name, Path(output_dir)) for name in artifact_names}
    return {
        name: {path.name: path.read_text("utf-8", "replace") for path in sorted(folder.iterdir()) if path.is_file()}
        for name, folder in folders.items()
    }


if __name__ == "__main__":
    sys.exit(notify.main(sys.argv[1] if len(sys.argv) > 1 else ""))
