"""The report folder of one pytest session: `stats.txt`, `summary_short.txt`, `failures_line.txt` and their siblings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ci_pipeline.model import ArtifactName, Outcome, Problem, TestOutcome, TestReport
from ci_pipeline.reports.closing_line import parse_closing_line
from ci_pipeline.reports.summary import Entry, error_lines, failed_lines, lines_of, without_ghosts
from ci_pipeline.reports.traces import crash_lines, headlines, traces

_ANSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_NEXT_SECTION = re.compile(rb"\n(?:PASSED|SKIPPED|XFAIL|XPASS|RERUN|FAILED|ERROR) ")
_DURATION = re.compile(rb"(?m)^(\d+\.\d+)s (?:setup|call|teardown) +(\S.*)$")
_SKIPPED = re.compile(rb"\nSKIPPED \[(\d+)\] ([^\n]*?:\d+|[^\n:]+): ([^\n]*)")


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
        outcomes = _red(folder, summary, counts.failed if counts else None, counts.errors if counts else None)
        if every_outcome:
            outcomes = _with_seconds([*_others(summary), *outcomes], folder.read("durations"))
    elif folder.size("summary_short") == 0 and counts.passed + counts.skipped + counts.xfailed + counts.xpassed:
        folder.problems.append("summary_short.txt is empty")
    captured = folder.read("captured_info").decode(errors="replace")
    problems = (_problem(artifact, folder.problems),) if folder.problems else ()
    return TestReport(artifact, counts, tuple(outcomes), captured, problems)


def _problem(artifact: ArtifactName, reasons: Sequence[str]) -> Problem:
    return Problem(artifact.name, "; ".join(reasons), artifact.device, artifact.test_job, artifact.matrix_entry)


def _red(folder: _Folder, summary: bytes, failed: int | None, errors: int | None) -> list[TestOutcome]:
    """The failing tests, then the errors, each with its message and its trace."""
    crashes = crash_lines(folder.read("failures_line")) if failed or failed is None else []

    def tracebacks() -> list[bytes]:
        return [folder.read("failures_short"), folder.read("failures_long")]

    def failure_headlines() -> list[bytes]:
        return next((names for text in tracebacks() if (names := headlines(text))), [])

    failures = without_ghosts(failed_lines(summary), failed, crashes, failure_headlines) if failed != 0 else []
    broken: list[Entry] = []
    error_texts: list[bytes] = []
    if errors != 0 and (lines := error_lines(summary)):
        error_texts = [folder.read("errors")]
        broken = without_ghosts(lines, errors, headlines=lambda: headlines(error_texts[0]))
    for counted, entries, word in ((failed, failures, "failed"), (errors, broken, "error")):
        if counted is not None and counted != len(entries):
            folder.problems.append(f"pytest counted {counted} {word}, summary_short.txt lists {len(entries)}")

    starts = sorted(entry.start for entry in (*failures, *broken))
    end_of = dict(zip(starts, [*starts[1:], len(summary)], strict=False))
    outcomes: dict[tuple[bytes, Outcome], TestOutcome] = {}
    red: tuple[tuple[list[Entry], list[str], Outcome], ...] = (
        (failures, traces(failures, crashes, tracebacks), "failed"),
        (broken, traces(broken, (), lambda: error_texts), "error"),
    )
    for entries, lines, outcome in red:
        for place, (entry, trace) in enumerate(zip(entries, lines, strict=True)):
            end = end_of[entry.start]
            if place == len(entries) - 1 and (other := _NEXT_SECTION.search(summary, entry.message_start, end)):
                end = other.start()
            message = summary[entry.message_start : end].decode(errors="replace")
            outcomes.setdefault(
                (entry.node_id, outcome),
                TestOutcome(entry.node_id.decode(errors="replace"), outcome, message.rstrip("\n"), trace),
            )
    return list(outcomes.values())


def _others(summary: bytes) -> Iterator[TestOutcome]:
    """The tests that did not fail. pytest folds skips by their place: those are named `<path>:<line>`."""
    words: tuple[tuple[bytes, Outcome], ...] = (
        (b"PASSED", "passed"),
        (b"XFAIL", "xfailed"),
        (b"XPASS", "xpassed"),
        (b"RERUN", "rerun"),
    )
    for word, outcome in words:
        for entry in lines_of(summary, word):
            yield TestOutcome(entry.node_id.decode(errors="replace"), outcome, entry.message.decode(errors="replace"))
    for _, place, reason in _SKIPPED.findall(summary):
        yield TestOutcome(place.decode(errors="replace"), "skipped", reason.decode(errors="replace"))


def _with_seconds(outcomes: Sequence[TestOutcome], durations: bytes) -> list[TestOutcome]:
    """The same outcomes with what pytest's slowest durations say: setup, call and teardown together."""
    seconds: dict[str, float] = {}
    for took, node_id in _DURATION.findall(durations):
        test = node_id.decode(errors="replace")
        seconds[test] = seconds.get(test, 0.0) + float(took)
    return [
        TestOutcome(o.node_id, o.outcome, o.message, o.trace, seconds[o.node_id]) if o.node_id in seconds else o
        for o in outcomes
    ]
