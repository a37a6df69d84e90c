"""What is particular to a project: its repository, jobs, categories, devices, channels and comparison runs.

A profile is a TOML file. Two are shipped (`transformers`, the default, and `pytorch`); any path to a file of the same
form works too.
"""

from __future__ import annotations

import tomllib
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ci_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from ci_pipeline.model import CiRun


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Part):
    """Machines whose name contains one of `machines` are this device."""

    machines: tuple[str, ...]
    label: str = ""  # in tables: `Single`


class CategoryRule(_Part):
    """A failing test whose node id contains one of `contains` belongs to `category`; the first rule wins."""

    category: str
    contains: tuple[str, ...]


class TestJob(_Part):
    """One job that workflows are called with."""

    __test__ = False

    test: str  # its name in reports: "Models"
    result_name: str  # its Hub file is `<result_name>_results.json`
    channel: str = ""  # Slack channel of the service's report; `SLACK_REPORT_CHANNEL` wins
    matrix: bool = False  # called once per folder
    prefixes: tuple[str, ...] = ()  # of folder names, removed where a report shows them: `models_`
    columns: dict[str, str] = Field(default_factory=dict)  # categories that have a column of their own, by its label

    def short(self, matrix_entry: str) -> str:
        """A matrix entry without the prefix that the job gives it: `models_bert` is `bert`."""
        prefix = next(filter(matrix_entry.startswith, self.prefixes), "")
        return matrix_entry.removeprefix(prefix)


class Workflow(_Part):
    """A workflow whose completed runs the sensor takes."""

    id: int = 0
    path: str = ""  # `.github/workflows/nightly.yml`
    name: str = ""  # in reports: "Nvidia CI"
    ci_event: str = ""  # "Daily CI"
    hub_dataset: str = ""
    channel: str = ""  # of all its test jobs, where it is not theirs
    diff_results: bool = False  # also write test_results_diff.json; known by `path`


class PreviousRule(_Part):
    """Which earlier run a run is compared with, by the event that started it."""

    workflow: Literal["same", "reference", "none"] = "same"
    event: str = "schedule"


class Reference(_Part):
    """The run of another vendor at the same commit, to tell whose failure it is."""

    workflow_id: int
    label: str  # "Nvidia CI run"
    events: tuple[str, ...] = ("schedule", "workflow_run")


class Profile(_Part):
    """Everything that the code may know about a project."""

    name: str
    repository: str  # "huggingface/transformers"
    default_branch: str = "main"
    web_url: str = "https://github.com"
    hub_dataset: str = ""
    hub_url: str = "https://huggingface.co"
    oncall: dict[str, str] = Field(default_factory=dict)  # whom to ask, by matrix entry or test job
    devices: dict[str, Device]
    test_jobs: dict[str, TestJob]
    non_model_test_modules: tuple[str, ...] = ()
    module_folders: tuple[str, ...] = ()  # folders of `tests/` whose own folders are what is tested
    categories: tuple[str, ...]
    category_rules: tuple[CategoryRule, ...] = ()
    unclassified: str = "Unclassified"
    workflows: tuple[Workflow, ...] = ()
    warnings_job: str = ""  # the job that selects warnings: part of its name
    highlighted_warnings: str = ""  # warnings of this package are counted apart
    previous: dict[str, PreviousRule] = Field(default_factory=dict)
    reference: Reference | None = None

    @cached_property
    def job_to_test_map(self) -> dict[str, str]:
        return {job: entry.test for job, entry in self.test_jobs.items()}

    @cached_property
    def test_to_result_name(self) -> dict[str, str]:
        return {entry.test: entry.result_name for entry in self.test_jobs.values()}

    def device_of(self, machine: str) -> str:
        """The device of a machine; a machine that no device names is a device of its own."""
        return next((d for d, known in self.devices.items() if any(m in machine for m in known.machines)), machine)

    def oncall_of(self, test_job: str, matrix_entry: str) -> str:
        """Whom to ask about a matrix entry, by its name with or without its job's prefix; "" where it is of nobody."""
        job = self.test_jobs.get(test_job)
        short = job.short(matrix_entry) if job else matrix_entry
        return self.oncall.get(matrix_entry) or self.oncall.get(short, "")

    def workflow_of(self, workflow_id: int, path: str) -> Workflow | None:
        """The workflow of this id, or of this file; 0 and "" where one of them is not known."""
        return next((w for w in self.workflows if w.id == workflow_id != 0 or w.path == path != ""), None)

    def channel_of(self, workflow_id: int, path: str, test_job: str) -> str:
        """Where a workflow's report of a test job goes; that of no test job goes where the first one's goes."""
        workflow = self.workflow_of(workflow_id, path)
        job = self.test_jobs.get(test_job) or next(iter(self.test_jobs.values()), None)
        return (workflow.channel if workflow else "") or (job.channel if job else "")

    def workflow_title(self, workflow_id: int, path: str, name: str) -> str:
        """What people call a workflow; GitHub's `name` for it where the profile has none."""
        workflow = self.workflow_of(workflow_id, path)
        return (workflow.ci_event or workflow.name if workflow else "") or name[:100] or "CI run"

    def run_title(self, run: CiRun) -> str:
        """What people call a run: "Daily CI #1302, attempt 2"."""
        name = self.workflow_title(run.workflow_id, run.workflow_path, run.workflow_name)
        number = f" #{run.run_number}" if run.run_number else ""
        return name + number + (f", attempt {run.run_attempt}" if run.run_attempt > 1 else "")

    def diffs_results(self, workflow_path: str) -> bool:
        """Whether every test's outcome is compared with the previous run's, not only those that fail.

        By the workflow's file alone: a step knows that of its workflow before it has asked GitHub for the id.
        """
        workflow = self.workflow_of(0, workflow_path)
        return workflow is not None and workflow.diff_results

    def category_of(self, node_id: str) -> str:
        """The category of a test, from its node id."""
        for rule in self.category_rules:
            for text in rule.contains:
                if text in node_id:
                    return rule.category
        return self.unclassified


def load_profile(name: str) -> Profile:
    """A shipped profile by its name, or any by the path of its file.

    Raises:
        SettingsError: there is no such profile, or it is not one; one line.
    """
    shipped = resources.files("ci_pipeline.profiles") / f"{name}.toml"
    path = Path(name)
    try:
        text = shipped.read_text("utf-8") if "/" not in name and shipped.is_file() else path.read_text("utf-8")
        return Profile.model_validate(tomllib.loads(text))
    except OSError:
        known = sorted(
            p.name[:-5] for p in resources.files("ci_pipeline.profiles").iterdir() if p.name.endswith(".toml")
        )
        raise SettingsError(
            f"CI_PIPELINE_PROFILE: no profile {name!r}: name one of {', '.join(known)}, or the path of a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"CI_PIPELINE_PROFILE: {name}: not TOML: {error}") from None
    except ValidationError as error:
        # A mistyped key is unknown, and the one that was meant is missing: name what is written.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"CI_PIPELINE_PROFILE: {name}: {where}: {first['msg']}") from None
