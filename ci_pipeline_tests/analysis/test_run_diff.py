from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.analysis.run_diff import run_diff
from ci_pipeline.model import (
    RED,
    ArtifactName,
    CiRun,
    Counts,
    EarlierRun,
    Outcome,
    Problem,
    RunDiffRow,
    TestKey,
    TestOutcome,
    TestReport,
)

JOB = "run_models_gpu"
YESTERDAY = CiRun("o/r", 7, created_at=datetime(2025, 11, 9, tzinfo=UTC))
FILE = "tests/models/bert/test_modeling_bert.py"
A, B, C = (f"{FILE}::BertTest::test_{name}" for name in "abc")


def a_report(
    *outcomes: tuple[str, Outcome] | tuple[str, Outcome, str],
    device: str = "single",
    counts: Counts | None = None,
    killed: bool = False,
    problems: tuple[Problem, ...] = (),
    test_job: str = JOB,
) -> TestReport:
    tests = tuple(TestOutcome(o[0], o[1], trace=o[2] if len(o) == 3 else "") for o in outcomes)
    words = [test.outcome for test in tests]
    counts = counts or Counts(words.count("passed"), words.count("failed"), words.count("error"))
    artifact = ArtifactName("x", f"{device}-gpu", device, test_job, "models_bert")
    return TestReport(artifact, None if killed else counts, tests, problems=problems)


def key(node_id: str, device: str = "single") -> TestKey:
    return ("models_bert", device, node_id)


def earlier(
    failures: Mapping[str, str] | None = None, outcomes: Mapping[str, Outcome] | None = None, run: CiRun = YESTERDAY
) -> EarlierRun:
    failures = failures or {}
    known = None
    if outcomes is not None:
        failed: dict[str, Outcome] = dict.fromkeys(failures, "failed")
        known = {key(node_id): outcome for node_id, outcome in {**outcomes, **failed}.items()}
    return EarlierRun(run, "previous run", {key(node_id): trace for node_id, trace in failures.items()}, known)


def changes(rows: list[RunDiffRow]) -> dict[str, str]:
    return {row.node_id: row.change for row in rows}


def test_a_test_that_fails_only_now_is_a_new_failure() -> None:
    rows = run_diff(JOB, [a_report((A, "failed", "(line 1)  ValueError: x"), (B, "passed"))], earlier(), ())
    assert rows == [
        RunDiffRow(JOB, "models_bert", "single", A, "new_failure", 7, 0, None, "(line 1)  ValueError: x", "")
    ]


def test_an_error_at_setup_is_a_failure_too() -> None:
    assert changes(run_diff(JOB, [a_report((A, "error"))], earlier(), ())) == {A: "new_failure"}


def test_a_test_that_failed_before_is_still_failing_since_its_first_failure() -> None:
    since = (3, datetime(2025, 11, 5, tzinfo=UTC))
    before = EarlierRun(YESTERDAY, "previous run", {key(A): "ValueError: x", key(B): ""}, since={key(A): since})
    first, second = run_diff(JOB, [a_report((A, "failed", "ValueError: x"), (B, "failed"))], before, ())
    assert (first.change, first.since_run_id, first.since) == ("still_failing", *since)
    assert first.previous_trace == "ValueError: x"
    assert (second.since_run_id, second.since) == (7, YESTERDAY.created_at)


def test_devices_are_told_apart() -> None:
    rows = run_diff(JOB, [a_report((A, "failed"), device="multi")], earlier({A: "x"}), ())
    assert [(row.device, row.change) for row in rows] == [("multi", "new_failure")]


def test_other_test_jobs_are_left_out() -> None:
    assert run_diff(JOB, [a_report((A, "failed"), test_job="run_kernels_gpu")], earlier(), ()) == []


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("(line 12)  ValueError: got 12 of 34", "(line 99)  ValueError: got 13 of 34"),
        ("RuntimeError: <Mock object at 0x7f3a12>", "RuntimeError: <Mock object at 0x55aa>"),
        ("OSError: /tmp/tmpab12_x/config.json", "OSError: /tmp/tmpzz99/config.json"),
        (
            "HfHubHTTPError: 429 (Request ID: Root=1-6911aaaa-0d5c)",
            "HfHubHTTPError: 429 (Request ID: Root=1-7f00bbbb-11ff)",
        ),
        ("ValueError: lr 0.0125, not 1e-05", "ValueError: lr 3, not 2.5E+10"),
        ("OSError: no commit 1a2b3c4d5e6f", "OSError: no commit ffee99001122"),
        ("AssertionError: assert 1 == 2", "assert 3 == 4"),
        ("AssertionError: Lists differ: [1, 2...", "AssertionError: Lists differ: [1, 2, 3] != [4]"),
        ("torch.OutOfMemoryError: 1.00 MiB", "OutOfMemoryError: 2.00 MiB"),
        ("(subprocess) AssertionError: 1e-05", "AssertionError: 2e-06"),
        ("no message in the report", "ValueError: x"),
        ("", "ValueError: x"),
    ],
)
def test_the_same_error_with_other_numbers_is_still_failing(before: str, now: str) -> None:
    assert changes(run_diff(JOB, [a_report((A, "failed", now))], earlier({A: before}), ())) == {A: "still_failing"}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("(line 12)  ValueError: x", "(line 345)  TypeError: x"),
        ("(subprocess) ValueError: x", "TypeError: x"),
        ("OSError: /data/a.json", "OSError: /data/b.json"),
        ("KeyError: 'feedface'", "KeyError: 'effaced-facade'"),
        ("AssertionError: Lists differ", "AssertionError: Tensor-likes are not close!"),
        ("(line 3)  assert a == b", "(line 3)  ValueError: x"),
        ("Failed: Timeout >300.0s", "AssertionError"),
        ("ValueError: no such key", "ValueError: no such keyring"),
        ("ValueError: no such key...", "ValueError: no such ketchup"),
        ("ValueError: no such ketchup", "ValueError: no such key..."),
        ("ValueError: no such...", "KeyError: no such key"),
    ],
)
def test_another_error_than_before_is_a_changed_error(before: str, now: str) -> None:
    (row,) = run_diff(JOB, [a_report((A, "failed", now))], earlier({A: before}), ())
    assert (row.change, row.trace, row.previous_trace) == ("changed_error", now, before)
    assert row.since_run_id == 7


def test_a_test_that_passes_now_is_fixed() -> None:
    (row,) = run_diff(JOB, [a_report((A, "passed"), (B, "passed"))], earlier({A: "ValueError: x"}), ())
    assert (row.node_id, row.change, row.previous_trace, row.since_run_id) == (A, "fixed", "ValueError: x", 7)


@pytest.mark.parametrize(
    "rest",
    [
        [(A, "error", "ValueError: x")],
        [(A, "failed", "ValueError: x"), (A, "error", "OSError: y"), (A, "passed")],
    ],
)
def test_a_test_that_also_passes_fails_as_it_failed_first(rest: list[Any]) -> None:
    report = a_report((A, "passed"), *rest)
    assert changes(run_diff(JOB, [report], earlier({A: "ValueError: x"}), ())) == {A: "still_failing"}


@pytest.mark.parametrize(("outcome", "change"), [("passed", "fixed"), ("skipped", "newly_skipped")])
def test_a_test_that_was_run_again_is_what_it_was_in_the_end(outcome: Outcome, change: str) -> None:
    assert changes(run_diff(JOB, [a_report((A, "rerun"), (A, outcome))], earlier({A: "x"}), ())) == {A: change}


def test_where_only_failures_were_read_nothing_is_fixed_or_vanished() -> None:
    report = a_report((B, "failed"), counts=Counts(passed=10, failed=1))
    assert changes(run_diff(JOB, [report], earlier({A: "x"}, {C: "passed"}), ())) == {B: "new_failure"}


@pytest.mark.parametrize(
    "report",
    [
        a_report(killed=True),
        a_report((B, "passed"), problems=(Problem("x", "summary_short.txt is cut"),)),
        a_report((FILE, "error")),
        a_report((B, "passed"), device="multi"),
        a_report((B, "passed"), counts=Counts(2)),
        a_report((B, "passed"), counts=Counts(1, xfailed=1)),
        a_report((B, "passed"), counts=Counts(1, xpassed=1)),
    ],
    ids=[
        *("killed", "unreadable", "error at collection", "no report of the device"),
        *("passes not named", "xfails not named", "xpasses not named"),
    ],
)
def test_a_test_that_could_not_be_seen_is_neither_fixed_nor_vanished(report: TestReport) -> None:
    rows = run_diff(JOB, [report], earlier({A: "x"}, {B: "passed", C: "passed"}), ())
    assert not {row.change for row in rows} & {"fixed", "vanished", "newly_skipped"}


def test_one_killed_part_of_a_split_job_leaves_open_what_vanished() -> None:
    rows = run_diff(JOB, [a_report((B, "passed")), a_report(killed=True)], earlier({A: "x"}), ())
    assert rows == []


def test_a_test_that_a_complete_report_does_not_name_has_vanished() -> None:
    before = earlier({A: "x"}, {B: "passed", C: "passed", f"{FILE}::lost": "rerun"})
    counts = Counts(errors=1, xfailed=1, xpassed=1)
    report = a_report((B, "error"), (f"{FILE}::known", "xfailed"), (f"{FILE}::mended", "xpassed"), counts=counts)
    rows = run_diff(JOB, [report], before, ())
    assert changes(rows) == {B: "new_failure", A: "vanished", C: "vanished"}


def test_without_the_earlier_passes_only_failures_can_vanish() -> None:
    assert changes(run_diff(JOB, [a_report((B, "passed"))], earlier({A: "x"}), ())) == {A: "vanished"}


def test_a_test_that_is_skipped_by_name_is_newly_skipped() -> None:
    known = f"{FILE}::test_known"
    report = a_report((A, "skipped"), (B, "xfailed"), (C, "skipped"), (known, "skipped"))
    rows = run_diff(JOB, [report], earlier({A: "x"}, {B: "passed", C: "skipped", known: "xfailed"}), ())
    assert changes(rows) == {A: "newly_skipped", B: "newly_skipped"}


def test_a_test_that_is_skipped_by_place_is_newly_skipped() -> None:
    before = earlier({A: "x"}, {B: "passed", f"{FILE}:10": "skipped"})
    report = a_report((B, "passed"), (f"{FILE}:12", "skipped"), (f"{FILE}:30", "skipped"))
    assert changes(run_diff(JOB, [report], before, ())) == {A: "newly_skipped"}


def test_a_skip_that_only_moved_explains_nothing() -> None:
    before = earlier({A: "x"}, {B: "passed", C: "skipped", f"{FILE}:10": "skipped"})
    report = a_report((B, "passed"), (f"{FILE}:12", "skipped"))
    assert changes(run_diff(JOB, [report], before, ())) == {A: "vanished"}


def test_without_the_earlier_skips_nobody_knows_which_are_new() -> None:
    report = a_report((B, "passed"), (f"{FILE}:12", "skipped"))
    assert changes(run_diff(JOB, [report], earlier({A: "x"}), ())) == {A: "vanished"}


def test_failures_that_another_vendor_does_not_have_are_unique() -> None:
    nvidia = earlier({B: "x"}, run=CiRun("o/r", 5))
    rows = run_diff(JOB, [a_report((A, "failed", "t"), (B, "failed"))], None, [nvidia])
    assert rows == [RunDiffRow(JOB, "models_bert", "single", A, "unique_failure", 5, trace="t")]


OUTCOMES = st.sampled_from(["passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun"])
TESTS = st.dictionaries(st.text(max_size=8), OUTCOMES, max_size=8)


@given(now=TESTS, before=TESTS, trace=st.text(max_size=60), other=st.text(max_size=60))
def test_every_failure_is_in_the_diff_once(
    now: dict[str, Outcome], before: dict[str, Outcome], trace: str, other: str
) -> None:
    failures = {node_id: other for node_id, outcome in before.items() if outcome in RED}
    report = a_report(*((node_id, outcome, trace) for node_id, outcome in now.items()))
    rows = run_diff(JOB, [report], earlier(failures, before), ())
    assert len({row.node_id for row in rows}) == len(rows)
    failing = {row.node_id for row in rows if row.change in ("new_failure", "still_failing", "changed_error")}
    assert failing == {node_id for node_id, outcome in now.items() if outcome in RED}
