"""What happened to each test of a test job since an earlier run, and what fails here but not in other runs.

Only what is known is said. A test that failed is `fixed` when it is seen to pass, and `vanished` when a report that
names all of its tests does not name it; a job that was killed says neither.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ci_pipeline.model import RED, Change, EarlierRun, Outcome, RunDiffRow, TestKey, TestOutcome, TestReport

_LINE = re.compile(r"\(line \d+\)\s+")
_KIND = re.compile(r"(?:\(subprocess\) )?(?:([A-Za-z_][\w.]*)(?:: |:?$)(.*)|(assert\b.*))", re.DOTALL)
# What differs between two runs of the same failure: names of temporary files, addresses, hashes, numbers.
_VOLATILE = re.compile(
    r"(?<=/)tmp\w+|0x[0-9a-fA-F]+|\b(?=[a-fA-F-]{0,40}\d)[0-9a-fA-F-]{8,40}\b|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
_COMPARED = 2_000  # characters of a message: enough to tell two failures apart
_SKIPPED_AT = re.compile(r"(.+\.\w+):\d+")


def run_diff(
    test_job: str, reports: Sequence[TestReport], previous: EarlierRun | None, others: Sequence[EarlierRun] = ()
) -> list[RunDiffRow]:
    """Compare a test job's reports with the previous run and with other runs. Linear in the number of tests.

    Against the previous run, each failing test is one of `new_failure`, `still_failing`, `changed_error`, and what does
    not fail any more is `fixed`, `newly_skipped` (also: expected to fail) or `vanished`. Which tests passed has to be
    known for that: `every_outcome` of the readers for this run, and `EarlierRun.outcomes` for tests that did not fail
    in the earlier one. Against each other run: `unique_failure`.
    """
    reports = [report for report in reports if report.artifact.test_job == test_job]
    tests = _outcomes(reports)
    failing = {key: test.trace for key, test in tests.items() if test.outcome in RED}
    rows: list[RunDiffRow] = []
    if previous is not None:
        rows += (_failing_row(test_job, key, trace, previous) for key, trace in failing.items())
        rows += _no_longer_failing(test_job, reports, tests, previous)
    for other in others:
        rows += (
            RunDiffRow(test_job, *key, "unique_failure", other.run.run_id, trace=trace)
            for key, trace in failing.items()
            if key not in other.failures
        )
    return rows


def _outcomes(reports: Sequence[TestReport]) -> dict[TestKey, TestOutcome]:
    """One outcome per test and device; the failing one where there are several: it passed, its teardown did not."""
    tests: dict[TestKey, TestOutcome] = {}
    for report in reports:
        entry, device = report.artifact.matrix_entry, report.artifact.device
        for test in report.outcomes:
            if test.outcome == "rerun":  # not how it ended
                continue
            key = (entry, device, test.node_id)
            known = tests.setdefault(key, test)
            if test.outcome in RED and known.outcome not in RED:
                tests[key] = test
    return tests


def _failing_row(test_job: str, key: TestKey, trace: str, previous: EarlierRun) -> RunDiffRow:
    before = previous.failures.get(key)
    if before is None:
        return RunDiffRow(test_job, *key, "new_failure", previous.run.run_id, trace=trace)
    change = "still_failing" if _same_kind(trace, before) else "changed_error"
    return _row_of_earlier_failure(test_job, key, change, previous, trace)


def _row_of_earlier_failure(
    test_job: str, key: TestKey, change: Change, previous: EarlierRun, trace: str = ""
) -> RunDiffRow:
    run = previous.run
    since_run_id, since = previous.since.get(key) or (run.run_id, run.created_at)
    return RunDiffRow(test_job, *key, change, run.run_id, since_run_id, since, trace, previous.failures[key])


def _no_longer_failing(
    test_job: str, reports: Sequence[TestReport], tests: Mapping[TestKey, TestOutcome], previous: EarlierRun
) -> Iterator[RunDiffRow]:
    """The tests that ran in the earlier run and failed in it, or do not run now."""
    outcomes = previous.outcomes or {}
    ran = dict.fromkeys(previous.failures) | dict.fromkeys(key for key, o in outcomes.items() if _ran(o))
    named_all = {(r.artifact.matrix_entry, r.artifact.device) for r in reports}
    named_all -= {(r.artifact.matrix_entry, r.artifact.device) for r in reports if not _names_every_test(r)}
    unnamed: list[TestKey] = []
    for key in ran:
        test = tests.get(key)
        if test is None:
            if key[:2] in named_all:
                unnamed.append(key)
        elif test.outcome in ("skipped", "xfailed"):
            yield _row(test_job, key, "newly_skipped", previous)
        elif test.outcome not in RED and key in previous.failures:
            yield _row(test_job, key, "fixed", previous)
    skipped = _more_skips(tests, outcomes) if unnamed and previous.outcomes is not None else {}
    by_file: dict[TestKey, list[TestKey]] = defaultdict(list)
    for key in unnamed:
        by_file[_file_of(key)].append(key)
    for file, keys in by_file.items():
        change = "newly_skipped" if skipped.get(file, 0) >= len(keys) else "vanished"
        for key in keys:
            yield _row(test_job, key, change, previous)


def _row(test_job: str, key: TestKey, change: Change, previous: EarlierRun) -> RunDiffRow:
    if key in previous.failures:
        return _row_of_earlier_failure(test_job, key, change, previous)
    return RunDiffRow(test_job, *key, change, previous.run.run_id)


def _ran(outcome: Outcome) -> bool:
    return outcome not in ("skipped", "xfailed", "rerun")


def _names_every_test(report: TestReport) -> bool:
    """True if a test that the report does not name did not run: its session ended, and as many passed as it says."""
    counts = report.counts
    if counts is None or report.problems:
        return False
    named = [test.outcome for test in report.outcomes if test.outcome != "error" or "::" in test.node_id]
    errors_at_collection = len(named) != len(report.outcomes)
    return not errors_at_collection and all(
        named.count(outcome) >= counted
        for outcome, counted in (("passed", counts.passed), ("xfailed", counts.xfailed), ("xpassed", counts.xpassed))
    )


def _more_skips(tests: Mapping[TestKey, TestOutcome], before: Mapping[TestKey, Outcome]) -> dict[TestKey, int]:
    """By file: in how many more places tests are skipped. pytest's summary names a skipped test by its place alone."""
    more: dict[TestKey, int] = defaultdict(int)
    for key, test in tests.items():
        if test.outcome == "skipped" and (place := _SKIPPED_AT.fullmatch(key[2])):
            more[(key[0], key[1], place[1])] += 1
    for key, outcome in before.items():
        if outcome == "skipped" and (place := _SKIPPED_AT.fullmatch(key[2])):
            more[(key[0], key[1], place[1])] -= 1
    return more


def _file_of(key: TestKey) -> TestKey:
    return key[0], key[1], key[2].partition("::")[0]


def _same_kind(trace: str, before: str) -> bool:
    """True unless both traces name an exception, and it or its message differs in more than numbers and addresses."""
    trace, before = _LINE.sub("", trace), _LINE.sub("", before)
    if trace == before:
        return True
    now, then = _kind(trace), _kind(before)
    if now is None or then is None or now == then:
        return True
    # Outside of CI pytest cuts messages to the width of the terminal.
    cut = min(now, then, key=lambda kind: len(kind[1]))
    longer = then if cut is now else now
    return now[0] == then[0] and cut[1].endswith("...") and longer[1].startswith(cut[1][:-3])


def _kind(trace: str) -> tuple[str, str] | None:
    found = _KIND.match(trace)
    if found is None:
        return None
    exception, message, assertion = found.groups()
    if assertion is not None:
        exception, message = "AssertionError", assertion
    return exception.rpartition(".")[2], " ".join(_VOLATILE.sub("0", message[:_COMPARED]).split())
