"""The report folder of one pytest session: `stats.txt`, `summary_short.txt`, `failures_line.txt` and their siblings."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ci_pipeline.model import ArtifactName, Counts, Outcome, TestOutcome, TestReport
from ci_pipeline.reports.closing_line import parse_closing_line
from ci_pipeline.reports.summary import (
    Crash,
    Entry,
    failed_lines,
    lines_of,
    outside_child_sessions,
    split_node_id,
    without_ghosts,
)
from ci_pipeline.reports.traces import crash_lines, headlines, traces

_ANSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_NOT_RED = re.compile(rb"\n(?:PASSED|SKIPPED|XFAIL|XPASS|RERUN) ")
_DURATION = re.compile(rb"(?m)^(\d{1,9}\.\d+)s (?:setup|call|teardown) +(\S.*)$")
_PASSED = re.compile(rb"\nPASSED ([^\n]+)")
_SKIPPED = re.compile(rb"\nSKIPPED ([^[\n][^\n]*)")
_FOLDED_SKIPS = re.compile(rb"\nSKIPPED \[\d+\] ([^\n:]+(?::(?! )[^\n:]*)*)(?:: ([^\n]*))?")


class _Folder:
    """The files of a report folder, and what was wrong with them."""

    def __init__(self, path: Path | str, names: Sequence[str]) -> None:
        self.path = path
        self.names = frozenset(names)
        self.problems: list[str] = []

    def read(self, name: str, *, needed: bool = False) -> bytes:
        """The text of `<name>.txt` without colours and carriage returns; empty where there is none."""
        if f"{name}.txt" not in self.names and not needed:
            return b""
        try:
            with open(f"{self.path}/{name}.txt", "rb", buffering=0) as stream:
                text = stream.read() or b""
        except FileNotFoundError:
            self.problems.append(f"{name}.txt is missing")
            return b""
        except OSError as error:
            self.problems.append(f"{name}.txt cannot be read: {error.strerror}")
            return b""
        text = without_colours(text)
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        if needed and (not text or text.isspace()):
            self.problems.append(f"{name}.txt is empty")
        return text

    def check(self, name: str) -> None:
        """Note it if `<name>.txt` is missing, empty or no file, without reading it."""
        try:
            status = os.stat(f"{self.path}/{name}.txt")
        except OSError:
            self.problems.append(f"{name}.txt is missing")
        else:
            if not stat.S_ISREG(status.st_mode):
                self.problems.append(f"{name}.txt is no file")
            elif not status.st_size:
                self.problems.append(f"{name}.txt is empty")

    def compare(self, counted: int | None, entries: Sequence[Entry], word: str) -> None:
        """Note where pytest's closing line and its summary do not agree."""
        if counted is not None and counted != len(entries):
            self.problems.append(f"pytest counted {counted} {word}, summary_short.txt lists {len(entries)}")


def without_colours(text: bytes) -> bytes:
    return _ANSI.sub(b"", text) if b"\x1b" in text else text


def read_pytest_folder(
    path: Path | str, names: Sequence[str], artifact: ArtifactName, *, every_outcome: bool = False
) -> TestReport:
    """The report in the folder at `path`, whose files are `names`. See `read_report`."""
    folder = _Folder(path, names)
    if "stats.txt" not in folder.names and "summary_short.txt" not in folder.names:
        reason = "the artifact holds no report: the job was killed, or its report was lost"
        return TestReport(artifact, None, problems=(artifact.problem(reason),))
    stats = folder.read("stats", needed=True)
    counts = parse_closing_line(stats)
    if stats.strip() and counts is None:
        folder.problems.append("stats.txt has no closing line of pytest")

    outcomes: list[TestOutcome] = []
    if counts and not counts.tests:
        pass  # nothing to summarise
    elif every_outcome or counts is None or counts.failed or counts.errors:
        # The summary may begin with an entry: every entry follows a newline.
        summary = b"\n" + folder.read("summary_short", needed=True)
        seconds = _seconds(folder.read("durations")) if every_outcome else {}
        if every_outcome:
            outcomes += _others(summary, counts, seconds)
        outcomes += _red(folder, summary, counts and counts.failed, counts and counts.errors, seconds, every_outcome)
    else:
        folder.check("summary_short")  # tests that passed are listed too: where it is empty, it was lost
    captured = folder.read("captured_info").decode(errors="replace")
    if counts is None:
        folder.problems[:1] = [f"pytest was killed, or its totals were lost: {folder.problems[0]}"]
    problems = (artifact.problem("; ".join(folder.problems)),) if folder.problems else ()
    return TestReport(artifact, counts, tuple(outcomes), captured, problems)


def _red(
    folder: _Folder,
    summary: bytes,
    failed: int | None,
    errors: int | None,
    seconds: Mapping[str, float],
    with_messages: bool,
) -> Iterator[TestOutcome]:
    """The failing tests, then the errors, each with its trace; pytest counted `failed` and `errors`.

    As pytest counts them: a test that failed and whose teardown broke as well is both, and so is every failing subtest
    besides its test.
    """
    failures: Sequence[Entry] = ()
    broken: Sequence[Entry] = ()
    crashes: list[Crash] = []
    error_text = b""

    def tracebacks() -> list[bytes]:
        return [folder.read("failures_short"), folder.read("failures_long")]

    def failure_headlines() -> list[bytes]:
        return next((names for text in tracebacks() if (names := headlines(text))), [])

    if failed != 0:
        crashes = crash_lines(folder.read("failures_line"))
        lines = outside_child_sessions(summary, failed_lines(summary, crashes), failed)
        failures = without_ghosts(lines, failed, crashes, failure_headlines)
        folder.compare(failed, failures, "failed")
        failures = failures or _named(failure_headlines(), failed, len(summary))
    if errors != 0:
        error_text = folder.read("errors")
        lines = outside_child_sessions(summary, lines_of(summary, b"ERROR"), errors)
        broken = without_ghosts(lines, errors, headlines=lambda: headlines(error_text))
        folder.compare(errors, broken, "error" if errors == 1 else "errors")
        broken = broken or _named(headlines(error_text), errors, len(summary))

    starts = sorted(entry.start for entry in (*failures, *broken))
    ends = dict(zip(starts, [*starts[1:], len(summary)], strict=False))
    red: tuple[tuple[Outcome, Sequence[Entry], list[str]], ...] = (
        ("failed", failures, traces(failures, crashes, tracebacks)),
        ("error", broken, traces(broken, (), lambda: [error_text])),
    )
    for outcome, entries, lines in red:
        for entry, trace in zip(entries, lines, strict=True):
            node_id = entry.node_id.decode(errors="replace")
            message = _message(summary, entry, ends[entry.start]) if with_messages else ""
            yield TestOutcome(node_id, outcome, message, trace, seconds.get(node_id))


def _message(summary: bytes, entry: Entry, end: int) -> str:
    """The message of an entry, all of its lines up to the next entry at `end`."""
    if other := _NOT_RED.search(summary, entry.message_start, end):
        end = other.start()
    return summary[entry.message_start : end].decode(errors="replace").rstrip("\n")


def _named(names: Sequence[bytes], counted: int | None, end: int) -> list[Entry]:
    """The tests that only the headlines of their tracebacks name, where the summary is lost."""
    names = [name for name in names if not name.startswith(b"_ ")]
    return [Entry(end, name, b"", end) for name in names] if counted is None or len(names) <= counted else []


def _others(summary: bytes, counts: Counts | None, seconds: Mapping[str, float]) -> Iterator[TestOutcome]:
    """The tests that did not fail. pytest folds skips by their place: those are named `<path>:<line>`."""
    for line in _PASSED.findall(summary)[: counts and counts.passed]:
        node_id = line.decode(errors="replace")
        yield TestOutcome(node_id, "passed", seconds=seconds.get(node_id))
    others: tuple[tuple[bytes, Outcome, int | None], ...] = (
        (b"XFAIL", "xfailed", counts and counts.xfailed),
        (b"XPASS", "xpassed", counts and counts.xpassed),
        (b"RERUN", "rerun", counts and counts.rerun),
    )
    for word, outcome, counted in others:
        for entry in lines_of(summary, word)[:counted]:
            node_id = entry.node_id.decode(errors="replace")
            yield TestOutcome(node_id, outcome, entry.message.decode(errors="replace"), seconds=seconds.get(node_id))
    for name, reason in (*map(split_node_id, _SKIPPED.findall(summary)), *_FOLDED_SKIPS.findall(summary)):
        node_id = name.decode(errors="replace")
        yield TestOutcome(node_id, "skipped", reason.decode(errors="replace"), seconds=seconds.get(node_id))


def _seconds(durations: bytes) -> dict[str, float]:
    """What each of the slowest tests took: setup, call and teardown together."""
    seconds: dict[str, float] = {}
    for took, node_id in _DURATION.findall(durations):
        test = node_id.decode(errors="replace")
        seconds[test] = seconds.get(test, 0.0) + float(took)
    return seconds
