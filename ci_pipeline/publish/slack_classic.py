"""The report of a test job as Slack messages, in the words of the notification service that teams know.

Works on job results in the Result Structure: `model_results` by matrix entry, `additional_results` by the name of the
test. A section's text is mrkdwn and escaped, a header's is plain; Slack's limits are kept by construction.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from ci_pipeline.model import NO_DEVICE
from ci_pipeline.publish.mrkdwn import clip, escape, link
from ci_pipeline.publish.thread import SlackMessage, SlackThread

if TYPE_CHECKING:
    from ci_pipeline.model import Change, EarlierRun, Failure, JobReport, JobResult, Problem, TestKey
    from ci_pipeline.profile import Profile, TestJob

Block = dict[str, Any]

TRUNCATED = "[Truncated]"
HEADER_LIMIT = 150
SECTION_LIMIT = 3000
ENTRIES_LIMIT = SECTION_LIMIT - len(TRUNCATED)
BLOCKS_LIMIT = 50
NAME_LIMIT = 1200
"""Of a list's first entry at least the beginning is shown: a longer node id would leave no room for its trace."""


# --- text that fits -------------------------------------------------------------------------------------------------


def entries_that_fit(entries: Iterable[str], before: str = "", after: str = "", limit: float = ENTRIES_LIMIT) -> str:
    """`before`, as many of the entries as fit, `after`; then `[Truncated]` if there are more."""
    shown, room = [before], limit - len(before) - len(after)
    for entry in entries:
        if len(entry) > room:
            if len(shown) == 1:
                shown.append(clip(entry, int(room)))
            return "".join([*shown, after, TRUNCATED])
        shown.append(entry)
        room -= len(entry)
    return "".join([*shown, after])


# --- blocks ---------------------------------------------------------------------------------------------------------


def header(text: str, **extra: Any) -> Block:
    return {"type": "header", "text": {"type": "plain_text", "text": clip(text, HEADER_LIMIT), **extra}}


def section(text: str, button: Block | None = None) -> Block:
    """A mrkdwn section; the text is escaped already."""
    block: Block = {"type": "section", "text": {"type": "mrkdwn", "text": clip(text, SECTION_LIMIT)}}
    return {**block, "accessory": button} if button else block


def plain_section(text: str, button: Block | None = None, **extra: Any) -> Block:
    block = section(text, button)
    return {**block, "text": {"type": "plain_text", "text": block["text"]["text"], **extra}}


def button(text: str, url: str, **extra: Any) -> Block | None:
    """A button that opens a page; None where there is no page."""
    if not url or len(url) > 3000:
        return None
    return {"type": "button", "text": {"type": "plain_text", "text": text, **extra}, "url": url}


# --- tables ---------------------------------------------------------------------------------------------------------


def prepare_reports(title: str, header: str, reports: Sequence[str], to_truncate: bool = True) -> str:
    """Lines as a table below a title, cut to what a section holds; "" for no lines."""
    if not reports:
        return ""
    limit = ENTRIES_LIMIT if to_truncate else float("inf")
    return entries_that_fit([f"{line}\n" for line in reports], f"{title}:\n```\n{header}", "```\n", limit)


def failed_by_device(result: JobResult) -> Counter[str]:
    """Failures of a job result by device, whether it counts by category or not."""
    failed = result.get("failed", {})
    parts = failed.values() if any(isinstance(part, dict) for part in failed.values()) else [failed]
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update({_device(device): count for device, count in part.items() if count})
    return counts


def _device(name: str | None) -> str:
    return name or NO_DEVICE


def _title(device: str) -> str:
    return device.replace("_", " ").capitalize()


class Table(NamedTuple):
    """A table of failures in lines: `rows` are the lines below `header`."""

    title: str
    header: str
    rows: list[str]

    def text(self, *, to_truncate: bool = True) -> str:
        """As mrkdwn that a section holds, or whole for a file."""
        if not to_truncate:
            return prepare_reports(self.title, self.header, self.rows, to_truncate=False)
        return prepare_reports(escape(self.title), escape(self.header), [escape(row) for row in self.rows])


def _table(title: str, columns: Sequence[str], counts: Iterable[tuple[str, Sequence[int]]]) -> Table:
    """Numbers and what they are of, right-aligned below `columns`, which are as wide as the widest of them."""
    width = max(map(len, columns))
    line = " | ".join([f"{{:>{width}}}"] * len(columns)) + " | {}"
    head = line.format(*columns, "Category")
    return Table(title, f"{head}\n", [line.format(*numbers, name) for name, numbers in counts])


# --- the report -----------------------------------------------------------------------------------------------------


FileUrl = Callable[[str], str]
"""Where a file of the report is on the Hub, by its name; "" if it is nowhere."""


def _nowhere(name: str) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Compared:
    """The failures that another run does not have, `in_order`. `label` says what run that is: "previous run"."""

    run_id: int
    label: str
    failures: Sequence[TestKey] = ()
    file: str = ""  # of the report: the whole list, without its suffix


@dataclass(frozen=True, kw_only=True)
class ClassicReport:
    """What the messages of one test job say; `thread()` renders it.

    `previous_model_table`: of the run before, as its `model_table` was written to a file.
    """

    title: str
    ci_title: str = ""  # mrkdwn, escaped
    profile: Profile
    test_job: str
    model_results: Mapping[str, JobResult] = field(default_factory=dict[str, "JobResult"])
    additional_results: Mapping[str, JobResult] = field(default_factory=dict[str, "JobResult"])
    run_url: str = ""
    incomplete: Sequence[Problem] = ()
    warnings: Sequence[str] = ()
    warnings_url: str = ""
    new_failures: Compared | None = None
    unique_failures: Sequence[Compared] = ()
    results_diff: Compared | None = None
    not_compared: Mapping[str, str] = field(default_factory=dict[str, str])  # why not, by what is therefore not known
    previous_model_table: str = ""

    # --- totals

    @cached_property
    def results(self) -> dict[str, JobResult]:
        return {**self.model_results, **self.additional_results}

    @cached_property
    def _failed(self) -> dict[str, Counter[str]]:
        """Failures by device, of each of the results."""
        return {name: failed_by_device(result) for name, result in self.results.items()}

    @cached_property
    def n_failures(self) -> int:
        return sum(failed.total() for failed in self._failed.values())

    @cached_property
    def n_errors(self) -> int:
        """Errors at setup, teardown and collection."""
        return sum(result.get("errors", 0) for result in self.results.values())

    @cached_property
    def n_tests(self) -> int:
        return self.n_failures + self.n_errors + sum(result.get("success", 0) for result in self.results.values())

    @cached_property
    def n_jobs_errored_out(self) -> int:
        return sum(bool(result.get("error")) for result in self.results.values())

    @property
    def passed(self) -> bool:
        """Everything ran, was seen, and passed."""
        return not (self.n_failures or self.n_errors or self.n_jobs_errored_out or self.incomplete)

    @property
    def time(self) -> str:
        """Time spent in all tests: `1h2m3s`."""
        minutes, seconds = divmod(int(sum(sum(r.get("time_spent", ())) for r in self.results.values())), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}h{minutes}m{seconds}s"

    @property
    def outcome(self) -> str:
        """`3 failures`, and where there are any `3 failures and 2 errors`."""
        errors = f" and {self.n_errors} error{'s' if self.n_errors > 1 else ''}" if self.n_errors else ""
        return f"{self.n_failures} failures{errors}"

    @property
    def text(self) -> str:
        """What notifications show."""
        if self.passed:
            return "All tests passed."
        return f"{'Incomplete: ' if self.incomplete else ''}{self.outcome} out of {self.n_tests} tests,"

    # --- tables

    @cached_property
    def _job(self) -> TestJob:
        return self.profile.test_jobs[self.test_job]

    @cached_property
    def _devices(self) -> dict[str, str]:
        """Devices that have a column, by name: the profile's, and any other that something failed on."""
        others = {device for failed in self._failed.values() for device in failed}
        known = {device: entry.label or _title(device) for device, entry in self.profile.devices.items()}
        return known | {device: _title(device) for device in sorted(others - known.keys())}

    @cached_property
    def category_table(self) -> Table:
        """Failures by category and device; only for jobs whose report tells categories apart."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        if self._job.columns:
            for result in self.model_results.values():
                for category, failed in result.get("failed", {}).items():
                    counts[category].update({_device(device): count for device, count in failed.items() if count})
        order = [*self.profile.categories, *(c for c in counts if c not in self.profile.categories)]
        rows = [(c, [counts[c][device] for device in self._devices]) for c in order if counts[c].total()]
        return _table("The following categories had failures", list(self._devices.values()), rows)

    @cached_property
    def model_table(self) -> Table:
        """Failures of the matrix entries that are models."""
        title = f"These following {self._job.result_name} modules had failures"
        names = self._failing_entries(modules=False)
        if not self._job.columns:
            return self._by_device(title, names)
        columns = [(category, device) for category in self._job.columns.values() for device in self._devices]
        labels = [f"{label} {short}" for short in self._job.columns for label in self._devices.values()]
        rows: list[tuple[str, list[int]]] = []
        for entry, name in names.items():
            failed = self.model_results[entry].get("failed", {})
            cells = [failed.get(category, {}).get(device, 0) for category, device in columns]
            rows.append((name, [*cells, self._failed[entry].total() - sum(cells)]))
        return _table(title, [*labels, "Other"], rows)

    @cached_property
    def changed_models(self) -> Table | None:
        """The models that have more failures than before."""
        return changed_table(self.model_table, self.previous_model_table)

    @cached_property
    def module_table(self) -> Table:
        """Failures of the matrix entries that are other modules."""
        title = f"The following {self._job.result_name} modules had failures"
        return self._by_device(title, self._failing_entries(modules=True))

    @cached_property
    def additional_table(self) -> Table:
        """Failures of the tests that have no matrix."""
        names = {
            name: f"{'[Errored out] ' if result.get('error') else ''}{name}"
            for name, result in sorted(self.additional_results.items())
            if self._failed[name]
        }
        return self._by_device("The following non-modeling tests had failures", names)

    def _failing_entries(self, *, modules: bool) -> dict[str, str]:
        """The matrix entries with failures, and their names, by which they are sorted."""
        others = self.profile.non_model_test_modules
        failing = [entry for entry in self.model_results if self._failed[entry] and (entry in others) == modules]
        return {entry: self._job.short(entry) for entry in sorted(failing, key=self._job.short)}

    def _by_device(self, title: str, names: Mapping[str, str]) -> Table:
        rows = [(name, [self._failed[entry][device] for device in self._devices]) for entry, name in names.items()]
        return _table(title, list(self._devices.values()), rows)

    # --- the main message

    def thread(self, file_url: FileUrl = _nowhere) -> SlackThread:
        return SlackThread(self.main(file_url), list(self.replies()))

    def main(self, file_url: FileUrl = _nowhere) -> SlackMessage:
        blocks = [header(self.title)]
        if self.ci_title:
            blocks.append(section(self.ci_title))
        blocks.append(self._summary())
        tables = [self.category_table, self.model_table, self.module_table, self.additional_table]
        if self.changed_models:
            tables.append(self.changed_models)
        blocks += [section(table.text()) for table in tables if table.rows]
        if self.warnings:
            blocks.append(self._warnings())
        blocks += self._comparisons(file_url)
        return SlackMessage("main", self.text, blocks[:BLOCKS_LIMIT])

    def _summary(self) -> Block:
        action = button("Check Action results", self.run_url, emoji=True)
        if self.passed:
            passed = f"[SUCCESS] There were no failures: all {self.n_tests} tests passed. The suite ran in {self.time}."
            return plain_section(passed, action, emoji=True)
        totals = (
            f"There were {self.outcome}, out of {self.n_tests} tests.\n"
            f"[ERROR] There were {self.n_jobs_errored_out} jobs errored out (not producing test output files).\n"
            f"The suite ran in {self.time}."
        )
        missing = self._missing(SECTION_LIMIT - len(totals) - 1)
        return plain_section(f"{missing}\n{totals}" if missing else totals, action, emoji=True)

    def _missing(self, limit: int) -> str:
        """What was not seen, in plain text: each reason once, with what it befell."""
        befell: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for problem in self.incomplete:
            test = self._job.test if problem.device else problem.subject
            befell[problem.reason][problem.matrix_entry or test].append(problem.device)
        lines: list[str] = []
        for reason, subjects in befell.items():
            names = [f"{name} ({', '.join(filter(None, on))})" if any(on) else name for name, on in subjects.items()]
            lines.append(f"[INCOMPLETE] {', '.join(names)}: {reason}")
        return clip("\n".join(lines), limit)

    def _warnings(self) -> Block:
        word = self.profile.highlighted_warnings
        text = f"There are {len(self.warnings)} warnings being selected."
        if word:
            text += f"\n{sum(word in warning for warning in self.warnings)} of them are from `{word}`."
        label = "Check warnings" if self.warnings_url else "Check warnings (Link not found)"
        return plain_section(text, button(label, self.warnings_url or self.run_url, emoji=True), emoji=True)

    def _comparisons(self, file_url: FileUrl) -> list[Block]:
        reasons = self.not_compared if self.n_failures or self.n_errors else {}
        blocks = [section(f"*{what} are not known*\n\n({escape(reason)})") for what, reason in reasons.items()]
        if self.new_failures and self.new_failures.failures:
            blocks.append(self.comparison_block(self.new_failures, "new failed tests", "Check new failures", file_url))
        blocks += [
            self.comparison_block(other, "failed tests unique to this run", "Check failures", file_url)
            for other in self.unique_failures
            if other.failures
        ]
        if self.results_diff:
            text = f"*Test results diff*\n\n({self._compared_to(self.results_diff)})"
            url = file_url(f"{self.results_diff.file}.json")
            blocks.append(section(text, button("Check test result diff file", url)))
        if self.new_failures and self.new_failures.failures:
            blocks.append(section(self.failure_list(self.new_failures.failures)))
        return blocks

    def comparison_block(self, compared: Compared, what: str, label: str, file_url: FileUrl = _nowhere) -> Block:
        text = f"*There are {len(compared.failures)} {what}*\n\n({self._compared_to(compared)})"
        return section(text, button(label, file_url(f"{compared.file}.json")))

    def _compared_to(self, compared: Compared) -> str:
        runs, run_id = self.run_url.rpartition("/")[0], compared.run_id
        return f"compared to {escape(compared.label)}" + (
            f": {link(f'{runs}/{run_id}', str(run_id))}" if run_id else ""
        )

    def failure_list(self, failures: Sequence[TestKey], *, to_truncate: bool = True) -> str:
        """Failing tests, each with the jobs it fails in, one paragraph per test; as mrkdwn, or whole for a file."""
        job_links = cache(self._job_links)  # a broken driver makes as many lines as there are tests

        def entries() -> Iterator[str]:
            for entry, of_entry in groupby(failures, itemgetter(0)):
                devices: defaultdict[str, list[str]] = defaultdict(list)
                for _, device, node_id in of_entry:
                    devices[node_id].append(device)
                for node_id, on in devices.items():
                    name = clip(escape(node_id), NAME_LIMIT) if to_truncate else node_id
                    yield f"{job_links(entry, tuple(on))}\n{name}\n\n"

        return entries_that_fit(entries(), limit=ENTRIES_LIMIT if to_truncate else float("inf"))

    def _job_links(self, entry: str, devices: tuple[str, ...]) -> str:
        urls = self.results.get(entry, {}).get("job_link", {})
        return "|".join(link(urls.get(name, ""), name) for name in map(_device, devices)) + " gpu"

    # --- the replies

    def replies(self) -> Iterable[SlackMessage]:
        """One message for each matrix entry and device that has failing tests."""
        for name, result in sorted(self.results.items()):
            for device, failures in result.get("failures", {}).items():
                if failures:
                    text = self.failure_counts(result, device, failures)
                    blocks = self.reply_blocks(name, result, failures, device, text)
                    yield SlackMessage(f"{name}/{device}", f"Results for {name}", blocks)

    @staticmethod
    def failure_counts(result: JobResult, device: str | None, failures: Sequence[Failure]) -> str:
        """How many tests failed on a device, by category where the result counts by category."""
        failed = result.get("failed", {})
        if any(isinstance(part, dict) for part in failed.values()):
            counts = {category: by_device.get(_device(device), 0) for category, by_device in sorted(failed.items())}
            lines = [f"*{escape(category)}*: {count}" for category, count in counts.items() if count]
            n_failed = sum(counts.values())
        else:
            n_failed = failed.get(_device(device), 0)
            lines = [f"Number of failures: {n_failed}"] if n_failed else []
        if n_errors := max(len(failures) - n_failed, 0):
            lines.append(f"*Errors*: {n_errors}" if result.get("errors") else f"Number of failures: {n_errors}")
        return "\n".join(lines)

    @staticmethod
    def reply_blocks(
        name: str, result: JobResult, failures: Sequence[Failure], device: str | None, text: str
    ) -> list[Block]:
        heading = name if _device(device) == NO_DEVICE else f"{name} ({device}-gpu)"
        job_link = result.get("job_link", {}).get(_device(device), "")
        entries = entries_that_fit(failure_entry(failure["line"], failure["trace"]) for failure in failures)
        blocks = [
            header(heading.upper(), emoji=True),
            section(text, button("GitHub Action job", job_link, emoji=True)),
            section(entries),
        ]
        return [block for block in blocks if block["text"]["text"]]  # Slack refuses a section without text


def error_message(
    title: str,
    ci_title: str = "",
    run_url: str = "",
    *,
    runner_not_available: bool = False,
    runner_failed: bool = False,
    setup_failed: bool = False,
) -> SlackMessage:
    """What is said when the tests did not run at all."""
    text = "[FAIL] There was an issue running the tests."
    if runner_not_available:
        text = "[FAIL] CI runners are not available! Tests are not run."
    elif runner_failed:
        text = "[FAIL] CI runners have problems! Tests are not run."
    elif setup_failed:
        text = "[FAIL] Setup job failed. Tests are not run."
    action = button("Check Action results", run_url, emoji=True)
    blocks = [header(title), *([section(ci_title)] if ci_title else []), header(text)]
    blocks.append(plain_section("Let's fix it ASAP!", action))
    return SlackMessage("main", "Let's fix it ASAP!", blocks)


def classic_report(
    report: JobReport,
    profile: Profile,
    *,
    title: str = "",
    ci_title: str = "",
    run_url: str = "",
    warnings_url: str = "",
    not_compared: Mapping[str, str] | None = None,
    previous_model_table: str = "",
) -> ClassicReport:
    """The messages of a job report."""
    job = profile.test_jobs[report.test_job]

    def differing(change: Change, earlier: EarlierRun, file: str) -> Compared:
        failures = (
            (row.matrix_entry or job.test, row.device, row.node_id)
            for row in report.diff
            if row.change == change and row.against_run_id == earlier.run.run_id
        )
        return Compared(earlier.run.run_id, earlier.label, in_order(failures, profile), file)

    previous = report.previous
    return ClassicReport(
        title=title,
        ci_title=ci_title,
        profile=profile,
        test_job=report.test_job,
        model_results={entry or job.test: result for entry, result in report.results.items()} if job.matrix else {},
        additional_results={} if job.matrix else {job.test: next(iter(report.results.values()), {})},
        run_url=run_url,
        incomplete=report.problems,
        warnings=report.warnings,
        warnings_url=warnings_url,
        new_failures=differing("new_failure", previous, "new_failures") if previous else None,
        unique_failures=[
            differing("unique_failure", other, f"new_failures_against_{other.run.run_id}") for other in report.others
        ],
        results_diff=Compared(previous.run.run_id, previous.label, file="test_results_diff")
        if previous and previous.outcomes is not None and profile.diffs_results(report.run.workflow_path)
        else None,
        not_compared=not_compared or {},
        previous_model_table=previous_model_table,
    )


def in_order(failures: Iterable[TestKey], profile: Profile) -> list[TestKey]:
    """By matrix entry, then by device as the profile lists them, then as they are."""
    devices = {device: order for order, device in enumerate(profile.devices)}
    return sorted(failures, key=lambda where: (where[0], devices.get(where[1], len(devices))))


def changed_table(table: Table, previous: str) -> Table | None:
    """The rows of a table that are new or have grown since `previous`, the same table of an earlier run."""
    if not previous.strip():
        return None
    before = dict(_numbers(line) for line in previous.splitlines() if "|" in line)
    changed: list[str] = []
    for row in table.rows:
        name, numbers = _numbers(row)
        growth = sum(numbers) - sum(before.get(name, ()))
        if any(now > then for now, then in zip_longest(numbers, before.get(name, ()), fillvalue=0)):
            changed.append(f"{row} ({growth:+})" if growth else row)
    return table._replace(title="Changed model modules failures", rows=changed)


def _numbers(row: str) -> tuple[str, list[int]]:
    """The name at the end of a table's row, and the numbers before it."""
    *cells, name = row.split(" | ")
    return name.strip(), [int(cell) for cell in cells if re.fullmatch(r" *[0-9]{1,9}", cell)]


def failure_entry(node_id: str, trace: str) -> str:
    """A failing test and its trace, short enough to be the first entry of a section."""
    name = clip(escape(node_id), NAME_LIMIT)
    room = ENTRIES_LIMIT - len(f"*{name}*\n__\n\n")
    return f"*{name}*\n_{clip(escape(trace), room)}_\n\n"
