"""A pytest plugin that writes the report folder of a test session, test by test: what was seen survives a kill -9.

pytest -p ci_pipeline.sample.report_files --report-files=reports/single-gpu_run_models_gpu_models_wren_test_reports
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

HEADLINES = {
    "summary_short": "short test summary info",
    "failures_line": "FAILURES",
    "failures_short": "FAILURES SHORT STACK",
    "failures_long": "FAILURES",
    "errors": "ERRORS",
    "captured_info": "",
    "durations": "",
    "warnings": "",
    "stats": "",
}
"""The files of a report folder, `<name>.txt`, and their first lines. `stats` is written last: without it, the session
did not end."""

WIDTH = 80
SLOW = 0.005  # seconds; pytest's own `--durations-min`
WORDS = {"xpassed": "XPASS", "xfailed": "XFAIL"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("terminal reporting").addoption(
        "--report-files",
        metavar="DIR",
        type=Path,
        help="write the report folder that ci-pipeline reads: stats.txt, summary_short.txt, failures_line.txt, ...",
    )


def pytest_configure(config: pytest.Config) -> None:
    folder: Path | None = config.getoption("report_files")
    if folder is not None and not hasattr(config, "workerinput"):  # with pytest-xdist, only the controller writes
        config.pluginmanager.register(ReportFiles(config, folder), "report-files")


class ReportFiles:
    """Appends each result to the files of `folder` as it comes in; the totals follow at the end of the session."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.started = time.perf_counter()
        self.durations: list[tuple[float, str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)
        for name in HEADLINES:
            (folder / f"{name}.txt").unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.txt"
        headline = HEADLINES[name] if not path.exists() else ""
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write((_rule("=", headline) + "\n" if headline else "") + text.rstrip("\n") + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations.append((report.duration, report.when or "", report.nodeid))
        category, _, word = self.config.hook.pytest_report_teststatus(report=report, config=self.config)
        if category == "skipped" and isinstance(report.longrepr, tuple):
            self.summary("SKIPPED", report, str(report.longrepr[2]).removeprefix("Skipped: "))
        elif category in WORDS:
            self.summary(WORDS[category], report, getattr(report, "wasxfail", ""))
        elif category == "failed":
            self.failure(report, word if isinstance(word, str) else word[0])
        elif category == "error":
            self.error(report, f"ERROR at {report.when} of {report.head_line}")
        elif category in ("passed", "rerun"):
            self.summary(category.upper(), report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.error(report, f"ERROR collecting {report.nodeid}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.summary("SKIPPED", report, str(report.longrepr[2]).removeprefix("Skipped: "))

    def summary(self, word: str, report: pytest.TestReport | pytest.CollectReport, message: str = "") -> None:
        self.write("summary_short", f"{word} {report.nodeid}" + (f" - {message}" if message else ""))

    def failure(self, report: pytest.TestReport, word: str) -> None:
        crash = _crash(report)
        path, line, _ = report.location
        where = f"{crash.path}:{crash.lineno}" if crash else f"{path}:{(line or 0) + 1}"
        message = _message(report)
        self.summary(word, report, message)
        self.write("failures_line", f"{where}: {message.partition(chr(10))[0]}")
        headline = _rule("_", report.head_line or report.nodeid)
        self.write("failures_short", f"{headline}\n{_last_entry(report)}")
        self.write("failures_long", f"{headline}\n{report.longreprtext}")
        captured = "\n".join(filter(None, (report.capstdout, report.capstderr, report.caplog)))
        if captured:
            self.write("captured_info", f"{report.nodeid}\n{'=' * 120}\n{captured}\n")

    def error(self, report: pytest.TestReport | pytest.CollectReport, headline: str) -> None:
        self.summary("ERROR", report, _message(report))
        self.write("errors", f"{_rule('_', headline)}\n{report.longreprtext}")

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        slow = sorted((entry for entry in self.durations if entry[0] >= SLOW), reverse=True)
        self.write(
            "durations",
            "slowest durations\n"
            + "".join(f"{seconds:.2f}s {when:<8} {node_id}\n" for seconds, when, node_id in slow)
            + f"{len(self.durations) - len(slow)} durations < {SLOW} secs were omitted",
        )
        for warning in terminalreporter.stats.get("warnings", ()):
            self.write("warnings", f"{warning.get_location(self.config) or ''}\n{warning.message}\n")
        parts: list[tuple[str, Any]] = terminalreporter.build_summary_stats_line()[0]
        seconds = time.perf_counter() - self.started
        took = f"{seconds:.2f}s" + (f" ({timedelta(seconds=int(seconds))})" if seconds >= 60 else "")
        self.write("stats", _rule("=", f"{', '.join(text for text, _ in parts)} in {took}"))


def _rule(char: str, text: str) -> str:
    return char + f" {text} ".center(WIDTH - 2, char) + char


def _crash(report: pytest.TestReport | pytest.CollectReport) -> Any | None:
    """Where it failed: path, lineno and message; None where pytest keeps only a text (`pytrace=False`, imports)."""
    return getattr(report.longrepr, "reprcrash", None)


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = _crash(report)
    if crash:
        return crash.message
    errors = (line[4:] for line in report.longreprtext.splitlines() if line.startswith("E   "))
    return next(errors, report.longreprtext)


def _last_entry(report: pytest.TestReport) -> str:
    """The innermost frame, with its exception."""
    entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", None)
    if not entries:
        return report.longreprtext
    where = getattr(entries[-1], "reprfileloc", None)
    return "\n".join(entries[-1].lines) + (f"\n\n{where}" if where else "")
