"""The one-shot command: the report of one test job, from a workflow step's working directory to Slack and the Hub.

A second process reads the artifacts and talks to the Hub, while this one talks to GitHub and Slack. Starting
fast matters: nothing here imports Dagster, pandas or pyarrow.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from ci_pipeline.analysis.job_results import job_report, warnings_link
from ci_pipeline.analysis.previous import previous_run, reference_run
from ci_pipeline.model import CiJob, CiRun, EarlierRun, JobReport, Outcome, Problem, TestKey, TestReport
from ci_pipeline.publish import hub, hub_files, slack_classic
from ci_pipeline.publish.mrkdwn import escape, link
from ci_pipeline.publish.slack import SlackClient, SlackError, SlackRefused
from ci_pipeline.publish.thread import SlackThread
from ci_pipeline.reports.artifacts import (
    available_artifacts,
    matrix_entry,
    parse_artifact_name,
    parse_entry_artifact,
    selected_warnings,
)
from ci_pipeline.reports.read import read_reports
from ci_pipeline.second_process import Start, second_process
from ci_pipeline.settings import SettingsError
from ci_pipeline.sources import SourceError
from ci_pipeline.workflow_step import Step, require_slack, workflow_step

if TYPE_CHECKING:
    from ci_pipeline.model import ArtifactName
    from ci_pipeline.profile import Profile
    from ci_pipeline.sources.github import GitHubSource

log = logging.getLogger(__name__)

PATIENCE = 20.0
"""Seconds for which GitHub may fail and is asked again, in all: a report without links is better than a late one."""

READ_AT_ONCE = 50
"""Artifacts in each of the calls by which the two processes share the reading."""


def main(matrix: str = "", start: Start | None = None) -> int:
    """Report the test job that the environment names; the command's exit status. `start`: see `second_process`.

    0: the report is out, or there is nothing to say. 1: it could not be posted. 2: something is not set without which
    nothing can be posted.
    """
    if start is None:
        with second_process() as start:
            return main(matrix, start)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if isinstance(sys.stdout, TextIOWrapper):  # a character that it cannot show must not cost the report
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        step = workflow_step(matrix)
        require_slack(step)
        notify(step, start)
    except (SettingsError, SlackError) as error:
        print(f"ci-pipeline notify: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def notify(step: Step, start: Start) -> None:
    """Make the report, upload it, and post it.

    Raises:
        SlackError: it could not be posted; one line.
    """
    if step.setup_failed:
        with _github(step) as source:
            title = ci_title(step, source)
        error = slack_classic.error_message(_title(step), title, step.run_url, setup_failed=True)
        post(step, slack_client(step), SlackThread(error))
        return
    reports = start_reading(step, start)
    if step.settings.hub_token:
        start(hub.prepare)
    with _github(step) as source, tempfile.TemporaryDirectory() as scratch:
        run = ci_run(step, source)
        title = ci_title(step, source)
        jobs, problems = ci_jobs(run, source)
        earlier = earlier_runs(step, run, source, Path(scratch))
    report = compare(step, run, reports(), jobs, problems, earlier)
    publish(step, report, title, warnings_link(jobs, step.profile), earlier, start)


def compare(
    step: Step,
    run: CiRun,
    reports: list[TestReport],
    jobs: Sequence[CiJob],
    problems: Sequence[Problem],
    earlier: Earlier,
) -> JobReport:
    """The job report, compared with the earlier runs."""
    comparable = partial(hub_files.comparable, reports=reports)
    return job_report(
        run,
        step.test_job,
        reports,
        jobs,
        step.profile,
        matrix=step.matrix,
        problems=[*step.problems, *problems],
        previous=comparable(earlier.previous) if earlier.previous else None,
        others=[comparable(other) for other in earlier.others],
        warnings=selected_warnings(step.root),
    )


# --- reading --------------------------------------------------------------------------------------------------------


def start_reading(step: Step, start: Start) -> Callable[[], list[TestReport]]:
    """Begin to read the reports of the step's artifacts. Waiting for them reads those that nobody has begun with."""
    artifacts = artifacts_in(step.root, step.profile, step.test_job) or entry_artifacts_in(step)
    every_outcome = step.profile.diffs_results(step.workflow_path)
    parts = [
        start(read_reports, step.root, artifacts[first : first + READ_AT_ONCE], every_outcome=every_outcome)
        for first in range(0, len(artifacts), READ_AT_ONCE)
    ]

    def reports() -> list[TestReport]:
        from_the_end = [part() for part in reversed(parts)]  # the second process comes from the beginning
        return [report for part in reversed(from_the_end) for report in part]

    return reports


def artifacts_in(root: Path, profile: Profile, test_job: str) -> list[ArtifactName]:
    """A test job's artifacts in `root`."""
    return [artifact for artifact in available_artifacts(root, profile) if artifact.test_job == test_job]


def entry_artifacts_in(step: Step) -> list[ArtifactName]:
    """The step's artifacts by their matrix entries, where none of them names the test job."""
    entries = [matrix_entry(folder) for folder in step.matrix]
    names = sorted(path.name for path in step.root.iterdir() if path.is_dir())
    found = (parse_entry_artifact(name, step.profile, step.test_job, entries) for name in names)
    return [artifact for artifact in found if artifact]


# --- what GitHub knows ----------------------------------------------------------------------------------------------


def _github(step: Step) -> closing[GitHubSource]:
    from ci_pipeline.sources.github import GitHubSource

    token = step.settings.github_token
    if not token:
        log.warning("ACCESS_REPO_INFO_TOKEN is not set: asking GitHub without it")
    secret = token.get_secret_value() if token else None
    return closing(GitHubSource(step.settings.github_api_url, secret, step.repository, patience=PATIENCE))


def ci_run(step: Step, source: GitHubSource) -> CiRun:
    """The run that this step belongs to, as far as it is known."""
    env = step.env
    run = CiRun(
        step.repository,
        _int(env.github_run_id),
        run_number=_int(env.github_run_number),
        workflow_path=step.workflow_path,
        event=env.github_event_name,
        status="in_progress",
        head_sha=env.ci_sha,
        html_url=step.run_url,
    )
    if not run.run_id:
        return run
    try:
        found = source.run(run.run_id)
    except SourceError as error:
        log.warning("%s; the report is filed under today's date", error)
        return run
    return replace(
        found,
        run_number=run.run_number or found.run_number,
        workflow_path=run.workflow_path or found.workflow_path,
        event=run.event or found.event,
        head_sha=found.head_sha or run.head_sha,
        html_url=found.html_url or run.html_url,
    )


def _int(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0


def ci_jobs(run: CiRun, source: GitHubSource) -> tuple[Sequence[CiJob], list[Problem]]:
    """The run's jobs, which say what artifacts there should be, and what could not be read of them."""
    if not run.run_id:
        return (), [Problem("job links are not known", "GITHUB_RUN_ID is not set")]
    try:
        return source.jobs(run), []
    except SourceError as error:
        return error.read, [Problem("job links could not be read", str(error))]


def ci_title(step: Step, source: GitHubSource) -> str:
    """What was tested, and whose work it is: a pull request or a commit, as mrkdwn."""
    title = next(iter(step.env.ci_title.strip().splitlines()), "").strip()
    sha = step.env.ci_sha
    url = f"{step.web_url}/commit/{sha}" if sha else ""
    if not title:
        return link(url, f"commit: {sha}") if sha else ""
    people: list[str] = []
    try:
        if found := re.search(r"\(#([0-9]{1,9})\)$", title):  # as GitHub merges; inside of a title it may be any other
            url = f"{step.web_url}/pull/{found[1]}"
            author, merged_by = source.pull_request(int(found[1]))
        else:
            author, merged_by = source.commit_author(sha) if sha else None, None
        people = [f"{did}: GH_{who}" for did, who in (("Author", author), ("Merged by", merged_by)) if who]
    except SourceError as error:
        log.warning("%s; the title names no author", error)
    return "\n".join(filter(None, [link(url, title), escape(" | ".join(people))]))


# --- earlier runs ---------------------------------------------------------------------------------------------------


@dataclass
class Earlier:
    """The runs that this one is compared with."""

    previous: EarlierRun | None = None
    others: list[EarlierRun] = field(default_factory=list[EarlierRun])
    model_table: str = ""  # of the previous run
    not_compared: dict[str, str] = field(default_factory=dict[str, str])  # why not, by what is therefore not known

    @contextmanager
    def attempt(self, label: str, to_know: str) -> Generator[None]:
        try:
            yield
        except (SourceError, hub_files.NoResults) as error:
            self.not_compared[to_know] = f"{label}: {error}"


def earlier_runs(step: Step, run: CiRun, source: GitHubSource, scratch: Path) -> Earlier:
    """The runs that the environment names, or that the profile's rules find; the warehouse knows them, or GitHub."""
    for name in ("prev_workflow_run_id", "other_workflow_run_id"):
        if (text := getattr(step.env, name)) and not _int(text):
            log.warning("%s: %r is no run id; the profile's rules choose", name.upper(), text)
    earlier = _in_warehouse(step, run)
    if earlier.previous is None:
        with earlier.attempt("previous run", "New failures"):
            if previous := _named(step, step.env.prev_workflow_run_id) or _previous_run(step, run, source):
                earlier.previous, earlier.model_table = _fetch(step, previous, "previous run", source, scratch)
                if step.profile.diffs_results(step.workflow_path):
                    earlier.previous = replace(earlier.previous, outcomes=_outcomes(step, previous, source, scratch))
    if not earlier.others:
        label = _other_label(step)
        with earlier.attempt(label, "Failures unique to this run"):
            if other := _named(step, step.env.other_workflow_run_id) or _reference_run(step, run, source):
                known, _ = _fetch(step, other, label, source, scratch)
                earlier.others.append(known)
    return earlier


def _named(step: Step, run_id: str) -> CiRun | None:
    return CiRun(step.repository, _int(run_id)) if _int(run_id) else None


def _other_label(step: Step) -> str:
    named, reference = _int(step.env.other_workflow_run_id), step.profile.reference
    return reference.label if reference and not named else "run"


def _in_warehouse(step: Step, run: CiRun) -> Earlier:
    """What the warehouse knows; a warehouse that does not answer costs a line."""
    earlier = Earlier()
    if not step.settings.warehouse_url:
        return earlier
    from ci_pipeline.warehouse import WarehouseError, client, history

    profile = step.profile
    try:
        warehouse = client.connect(step.settings.warehouse_url.get_secret_value())
        previous, other = _named(step, step.env.prev_workflow_run_id), _named(step, step.env.other_workflow_run_id)
        if not previous and isinstance(workflow := _previous_workflow(step, run), int):
            previous = previous_run(run, history.previous_runs(warehouse, run, workflow), profile)
        if not other and profile.reference:
            other = reference_run(run, history.previous_runs(warehouse, run, profile.reference.workflow_id), profile)
        if previous:
            earlier.previous = history.earlier_run(warehouse, previous, step.test_job, "previous run")
        if other and (found := history.earlier_run(warehouse, other, step.test_job, _other_label(step))):
            earlier.others.append(found)
    except WarehouseError as error:
        log.warning("%s; asking GitHub for the earlier runs", error)
    return earlier


def _previous_workflow(step: Step, run: CiRun) -> int | str:
    """The workflow whose earlier runs this one may be compared with: its id, or its file; 0 if there is none."""
    rule, reference = step.profile.previous.get(run.event), step.profile.reference
    if rule is None or rule.workflow == "none":
        return 0
    if rule.workflow == "reference":
        return reference.workflow_id if reference else 0
    return run.workflow_id or run.workflow_path or 0


def _previous_run(step: Step, run: CiRun, source: GitHubSource) -> CiRun | None:
    workflow = _previous_workflow(step, run)
    if not workflow:
        return None
    event = step.profile.previous[run.event].event
    candidates = source.workflow_runs(workflow, event=event, branch=step.profile.default_branch)
    if isinstance(workflow, str) and candidates:
        run = replace(run, workflow_id=candidates[0].workflow_id)
    return previous_run(run, candidates, step.profile)


def _reference_run(step: Step, run: CiRun, source: GitHubSource) -> CiRun | None:
    reference = step.profile.reference
    if reference is None or run.event not in reference.events or run.workflow_id in (0, reference.workflow_id):
        return None
    for event in reference.events:
        candidates = source.workflow_runs(reference.workflow_id, event=event, branch=step.profile.default_branch)
        if found := reference_run(run, candidates, step.profile):
            return found
    return None


def _fetch(step: Step, run: CiRun, label: str, source: GitHubSource, scratch: Path) -> tuple[EarlierRun, str]:
    """What the artifact of an earlier run's own report says, and its table of failures by model."""
    name = hub_files.results_folder(step.test_job)
    folder = source.artifact(run.run_id, name, Path(tempfile.mkdtemp(dir=scratch)))
    try:
        results = hub_files.read_results(folder, step.job.result_name)
    except hub_files.NoResults as error:
        raise hub_files.NoResults(f"{name} of run {run.run_id}: {error}") from None
    return EarlierRun(run, label, results.failures, has_errors=results.has_errors), results.model_table


def _outcomes(step: Step, run: CiRun, source: GitHubSource, scratch: Path) -> dict[TestKey, Outcome]:
    """How every test of an earlier run ended, from its own artifacts."""
    into = scratch / f"{run.run_id}-artifacts"

    def wanted(name: str) -> bool:
        artifact = parse_artifact_name(name, step.profile)
        return artifact is not None and artifact.test_job == step.test_job

    for problem in source.fetch_artifacts(run.run_id, into, wanted):
        log.warning("Artifact %s of run %d: %s", problem.subject, run.run_id, problem.reason)
    artifacts = artifacts_in(into, step.profile, step.test_job) if into.is_dir() else ()
    return hub_files.outcomes_of(read_reports(into, artifacts, every_outcome=True))


# --- what comes of it -----------------------------------------------------------------------------------------------


def publish(step: Step, report: JobReport, ci_title: str, warnings_url: str, earlier: Earlier, start: Start) -> None:
    """Write the files, upload them, and post the messages that link to them.

    Raises:
        SlackError: the report could not be posted; one line.
    """
    classic = slack_classic.classic_report(
        report,
        step.profile,
        title=f"{_title(step)}: {step.job.test}",
        ci_title=ci_title,
        run_url=step.run_url,
        warnings_url=warnings_url,
        not_compared=earlier.not_compared,
        previous_model_table=earlier.model_table,
    )
    files = hub_files.render(report, step.profile, classic=classic)
    written = write(step.root.absolute() / hub_files.results_folder(step.test_job), files)
    uploaded = upload(step, report.run, written, start)
    if classic.passed and not step.reports_success:
        uploaded()
        print("Nothing failed, and a push that broke nothing is no news: nothing is posted")
        return
    slack = slack_client(step)
    if step.settings.slack_style == "full":
        from ci_pipeline.publish import slack_full

        thread = slack_full.without_buttons(report, step.profile, "; ".join(earlier.not_compared.values()))
        results = uploaded()(f"{step.job.result_name}_results.json")
        links = slack_full.Links(failures=results, page=step.settings.run_page(report.run.run_id))
        thread = slack_full.with_buttons(thread, report.run, links)
    else:
        replies = list(classic.replies())
        thread = SlackThread(classic.main(uploaded()), replies)
    post(step, slack, thread)


def _title(step: Step) -> str:
    return f"[INFO] Results of {step.ci_event}"


def write(folder: Path, files: Mapping[str, bytes]) -> Mapping[str, bytes | Path]:
    """Leave the files to the workflow, which keeps them as an artifact: the next run is compared with them.

    Where each of them is now; their contents where they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        log.warning("%s cannot be written: %s", folder, error.strerror)
        return files
    return {name: folder / name for name in files}


def upload(
    step: Step, run: CiRun, files: Mapping[str, bytes | Path], start: Start
) -> Callable[[], slack_classic.FileUrl]:
    """Begin to upload the files to the Hub. Waiting for it gives what says where a file is: "" if the Hub has none."""
    token, dataset = step.settings.hub_token, step.hub_dataset
    if not token or not dataset:
        missing = "REPORT_REPO_ID" if token else "TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN"
        log.warning("%s is not set: nothing is uploaded", missing)
        return lambda: lambda name: ""
    folder = hub_files.dataset_folder(run, step.test_job)
    uploaded = {f"{folder}/{name}": content for name, content in files.items() if name not in hub_files.LOCAL_ONLY}
    committed = start(
        hub.upload,
        uploaded,
        repo_id=dataset,
        message=f"{step.job.test}: run {run.run_id}",
        endpoint=step.settings.hub_endpoint,
        token=token.get_secret_value(),
    )

    def wait() -> slack_classic.FileUrl:
        try:
            commit = committed()
        except hub.HubUnavailable as error:
            log.warning("%s", error)
            return lambda name: ""
        datasets = f"{step.profile.hub_url}/datasets/{dataset}"
        print(f"{len(uploaded)} files are in {datasets}/tree/main/{folder}")

        def file_url(name: str) -> str:
            view = "resolve" if name == "test_results_diff.json" else "raw"
            return f"{datasets}/{view}/{commit}/{folder}/{name}" if name in files else ""

        return file_url

    return wait


def slack_client(step: Step) -> SlackClient:
    token = step.settings.slack_token
    return SlackClient(token.get_secret_value() if token else "", step.settings.slack_api_url)


def post(step: Step, slack: SlackClient, thread: SlackThread) -> None:
    """Post a thread: the main message, then its replies and files.

    Raises:
        SlackError: the main message is not out, or Slack went away before all replies were; one line.
    """
    print(json.dumps(thread.main.blocks, ensure_ascii=False, indent=1))
    ts = slack.post(step.channel, thread.main.text, thread.main.blocks)
    posted = 0
    for reply in thread.replies:
        try:
            slack.post(step.channel, reply.text, reply.blocks, thread_ts=ts)
            posted += 1
        except SlackRefused as error:
            log.warning("%s: the reply %r", error, reply.text)
        except SlackError as error:
            missing = len(thread.replies) - posted
            raise SlackError(
                f"the report is out, {missing} of {len(thread.replies)} replies are not: {error}"
            ) from error
    for file in thread.files:
        try:
            slack.upload(step.channel, ts, file.name, file.title, file.content)
        except SlackError as error:
            log.warning("%s: the file %s", error, file.name)
    print(f"Posted to {step.channel}: the report and {posted} of {len(thread.replies)} replies")
