"""A pytest plugin that writes the sections of pytest's own terminal report to files: what it prints, to the letter.

pytest -p ci_pipeline_tests.reports.make_reports --make-reports=FOLDER
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from _pytest.config import create_terminal_writer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--make-reports", type=Path)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    folder: Path | None = config.getoption("make_reports")
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if not any(arg.startswith("-r") for arg in config.invocation_params.args):
        terminal.reportchars = "psxXEf"

    def section(name: str, write, style: str = "auto") -> None:
        config.option.tbstyle = style
        with (folder / f"{name}.txt").open("w", encoding="utf-8", errors="backslashreplace") as file:
            terminal._tw = create_terminal_writer(config, file)
            write()

    def short() -> None:
        reports = terminal.getreports("failed")
        if reports:
            terminal.write_sep("=", "FAILURES SHORT STACK")
        for report in reports:
            terminal.write_sep("_", terminal._getfailureheadline(report), red=True, bold=True)
            # Only the innermost frame.
            terminal._tw.line(re.sub(r".*_ _ _ (_ ){10,}_ _ ", "", report.longreprtext, flags=re.MULTILINE | re.DOTALL))

    section("failures_long", terminal.summary_failures)
    section("failures_short", short)
    section("failures_line", terminal.summary_failures, "line")
    section("errors", terminal.summary_errors)
    section("summary_short", terminal.short_test_summary)
    section("stats", terminal.summary_stats)
    durations = [
        f"{report.duration:.2f}s {report.when:<8} {report.nodeid}"
        for reports in terminal.stats.values()
        for report in reports
        if hasattr(report, "duration") and hasattr(report, "when")
    ]
    (folder / "durations.txt").write_text("\n".join(["slowest durations", *durations]), "utf-8")

    def crash_line(report: pytest.TestReport | pytest.CollectReport) -> int | None:
        crash = getattr(report.longrepr, "reprcrash", None)
        return crash.lineno if crash else None

    def name(report: pytest.TestReport | pytest.CollectReport) -> str:
        subtest = getattr(report, "_sub_test_description", None)
        return f"{report.nodeid} {subtest()}" if subtest else report.nodeid

    happened = {
        outcome: [(name(report), crash_line(report)) for report in terminal.stats.get(outcome, ())]
        for outcome in ("failed", "error", "passed")
    }
    folder.with_suffix(".json").write_text(json.dumps(happened), "utf-8")
