"""The report folder of one pytest session: `stats.txt`, `summary_short.txt`, `failures_line.txt` and their siblings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ci_pipeline.model import ArtifactName, Outcome, Problem, TestOutcome, TestReport
from ci_pipeline.reports.closing_line import parse_closing_line
from ci_pipeline.reports.summary import Entry, failed_lines, lines_of, without_ghosts
from ci_pipeline.reports.traces import crash_lines, headlines, traces

_ANSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_NEXT_SECTION = re.compile(rb"\n(?:PASSED|SKIPPED|XFAIL|XPASS|RERUN|FAILED|ERROR) ")
_DURATION = re.compile(rb"(?m)^(\d+\.\d+)s (?:setup|call|teardown) +(\S.*)$")
_PASSED = re.compile(rb"\nPASSED ([^\n]+)")
_SKIPPED = re.compile(rb"\nSKIPPED (?:\[\d+\] )?([^\n]*?:\d+|[^\n:]+|[^\n]+?)(?:: | - |(?=\n|$))([^\n]*)")


class _Folder:
    """The files of a report folder, and what was wrong with them."""

    def __init__(self, path: Path | str, names: Sequence[str]) -> None:
        self.path = path
        self.names = frozenset(names)
        self.problems: list[str] = []

    def read(self, name: str, *, needed: bool = False) -> bytes:
        """The text of `<name>.txt` without colours and carriage returns; empty where there is none."""
        file = f"{name}.txt"
        if file not in self.names:
            if needed:
                self.problems.append(f"{file} is missing")
            return b""
        try:
            with open(f"{self.path}/{file}", "rb", buffering=0) as stream:
                text = stream.read() or b""
        except OSError as error:
            self.problems.append(f"{file} cannot be read: {error.strerror}")
            return b""
        if not text and needed:
            self.problems.append(f"{file} is empty")
        if b"\x1b" in text:
            text = _ANSI.sub(b"", text)
        return text.replace(b"\r\n", b"\n") if b"\r\n" in text else text

    def compare(self, counted: int | None, entries: Sequence[Entry], word: str) -> None:
        """Note where pytest's closing line and its summary do not agree."""
        if counted is not None and counted != len(entries):
            self.problems.append(f"pytest counted {counted} {word}, summary_short.txt lists {len(entries)}")

    def size(self, name: str) -> int:
        """The size of `<name>.txt`; zero where it is missing or unreadable, which is noted."""
        try:
            status = os.stat(f"{self.path}/{name}.txt")
        except OSError:
            self.problems.append(f"{name}.txt is missing")
            return 0
        return status.st_size


def read_pytest_folder(
    path: Path | str, names: Sequence[str], artifact: ArtifactName, *, every_outcome: bool = False
) -> TestReport:
    """The report in the folder at `path`, whose files are `names`. See `read_report`."""
    folder = _Folder(path, names)
    if "stats.txt" not in folder.names and "summary_short.txt" not in folder.names:
        reason = "the artifact holds no report: the job was killed, or its report was lost"
        return TestReport(artifact, None, problems=(_problem(artifact, [reason]),))
    stats = folder.read("stats", needed=True)
    counts = parse_closing_line(stats)
    if stats and counts is None:
        folder.problems.append("stats.txt has no closing line of pytest")

    outcomes: list[TestOutcome] = []
    if every_outcome or counts is None or counts.failed or counts.errors:
        # The summary may begin with an entry: every entry follows a newline.
        summary = b"\n" + folder.read("summary_short", needed=True)
        seconds = _seconds(folder.read("durations")) if every_outcome else {}
        if every_outcome:
            outcomes += _others(summary, seconds)
        outcomes += _red(folder, summary, counts and counts.failed, counts and counts.errors, seconds)
    elif folder.size("summary_short") == 0 and counts.passed + counts.skipped + counts.xfailed + counts.xpassed:
        folder.problems.append("summary_short.txt is empty")
    captured = folder.read("captured_info").decode(errors="replace")
    problems = (_problem(artifact, folder.problems),) if folder.problems else ()
    return TestReport(artifact, counts, tuple(outcomes), captured, problems)


def _problem(artifact: ArtifactName, reasons: Sequence[str]) -> Problem:
    return Problem(artifact.name, "; ".join(reasons), artifact.device, artifact.test_job, artifact.matrix_entry)


def _red(
    folder: _Folder, summary: bytes, failed: int | None, errors: int | None, seconds: Mapping[str, float]
) -> list[TestOutcome]:
    """The failing tests, then the errors, each with its message and its trace; counted by pytest as `failed`, `errors`.

    A test that failed and whose teardown broke as well is both.
    """
    outcomes: list[TestOutcome] = []
    if failed != 0:
        crashes = crash_lines(folder.read("failures_line"))

        def tracebacks() -> list[bytes]:
            return [folder.read("failures_short"), folder.read("failures_long")]

        def failure_headlines() -> list[bytes]:
            return next((names for text in tracebacks() if (names := headlines(text))), [])

        entries = without_ghosts(failed_lines(summary), failed, crashes, failure_headlines)
        folder.compare(failed, entries, "failed")
        outcomes += _outcomes(summary, entries, "failed", traces(entries, crashes, tracebacks), seconds)
    if errors != 0:
        text = folder.read("errors")
        entries = without_ghosts(lines_of(summary, b"ERROR"), errors, headlines=lambda: headlines(text))
        folder.compare(errors, entries, "errors")
        outcomes += _outcomes(summary, entries, "error", traces(entries, (), lambda: [text]), seconds)
    return outcomes


def _outcomes(
    summary: bytes, entries: Sequence[Entry], outcome: Outcome, lines: Sequence[str], seconds: Mapping[str, float]
) -> Iterator[TestOutcome]:
    """Each test once, with the whole of its message: up to the next entry."""
    seen: set[bytes] = set()
    for nth, (entry, trace) in enumerate(zip(entries, lines, strict=True), 1):
        if nth < len(entries):
            end = entries[nth].start
        else:
            section = _NEXT_SECTION.search(summary, entry.message_start)
            end = section.start() if section else len(summary)
        if entry.node_id not in seen:
            seen.add(entry.node_id)
            message = summary[entry.message_start : end].decode(errors="replace").rstrip("\n")
            node_id = entry.node_id.decode(errors="replace")
            yield TestOutcome(node_id, outcome, message, trace, seconds.get(node_id))


def _others(summary: bytes, seconds: Mapping[str, float]) -> Iterator[TestOutcome]:
    """The tests that did not fail. pytest folds skips by their place: those are named `<path>:<line>`."""
    for line in _PASSED.findall(summary):
        node_id = line.decode(errors="replace")
        yield TestOutcome(node_id, "passed", seconds=seconds.get(node_id))
    others: tuple[tuple[bytes, Outcome], ...] = ((b"XFAIL", "xfailed"), (b"XPASS", "xpassed"), (b"RERUN", "rerun"))
    for word, outcome in others:
        for entry in lines_of(summary, word):
            node_id = entry.node_id.decode(errors="replace")
            yield TestOutcome(node_id, outcome, entry.message.decode(errors="replace"), seconds=seconds.get(node_id))
    for place, reason in _SKIPPED.findall(summary):
        yield TestOutcome(place.decode(errors="replace"), "skipped", reason.decode(errors="replace"))


def _seconds(durations: bytes) -> dict[str, float]:
    """What each of the slowest tests took: setup, call and teardown together."""
    seconds: dict[str, float] = {}
    for took, node_id in _DURATION.findall(durations):
        test = node_id.decode(errors="replace")
        seconds[test] = seconds.get(test, 0.0) + float(took)
    return seconds
