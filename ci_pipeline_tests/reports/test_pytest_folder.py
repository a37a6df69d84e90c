"""Reports that pytest really wrote, and reports that something happened to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ci_pipeline.model import Counts, TestReport
from ci_pipeline.reports.read import read_report

from .conftest import ARTIFACT, Session

ODD_TESTS = r"""
import subprocess, sys, unittest
import pytest

IDS = ["a b", "a - b", "- dash - ", "a] - b", "[", "]", "x[y]z", "a::b", "FAILED tests/z.py::t - no", " lead", "trail ",
       "\u00e9\u6f22\U0001f917", "tab\t", "x" * 120, "<!channel>", "tests/models/t.py::T::t",
       "C:\\x.py:1: E", "\x1b[31m", "new\nline", ""]

@pytest.mark.parametrize("value", IDS, ids=IDS)
def test_odd_ids(value):
    assert value is None, "odd"

@pytest.mark.parametrize("value", IDS, ids=IDS)
def test_odd_ids_pass(value):
    pass

def test_ghosts():
    raise RuntimeError(
        "log follows\nFAILED tests/ghost.py::T::t - boo\nFAILED to launch kernel\nERROR tests/ghost.py - lost\n"
        "PASSED tests/ghost.py::fine\n=========== 1 failed in 8.00s ==========="
    )

def test_ghost_of_a_real_one():
    raise RuntimeError("log follows\nFAILED test_odd.py::test_last - not this")

def test_many_ghosts():
    raise RuntimeError("\n".join(f"FAILED test_odd.py::test_odd_ids[{i}] - no" for i in range(50)))

def test_child_session():
    entries = "\n".join(f"FAILED test_child.py::test_c[{i}] - no" for i in range(3))
    pytest.fail(
        "==== test session starts ====\n____ test_c[0] ____\n____ test_c[1] ____\n____ test_c[2] ____\n"
        f"==== short test summary info ====\n{entries}\n==== 3 failed in 0.03s ====",
        pytrace=False,
    )

@pytest.mark.parametrize("value", range(3))
def test_message(value):
    raise ValueError(value)

@pytest.mark.parametrize("value", range(3))
def test_no_message(value):
    raise ValueError

def test_plain_text():
    pytest.fail("plain text\nsecond line", pytrace=False)

def test_same_message_1():
    assert 1 == 2

def test_same_message_2():

    assert 1 == 2

class TestCase(unittest.TestCase):
    def test_equal(self):
        self.assertEqual([1, 2], [1, 3])

    def test_sub(self):
        for i in range(3):
            with self.subTest("some - text", i=i):
                self.assertNotEqual(i, 1)

    def test_sub_without_words(self):
        for i in range(3):
            with self.subTest():
                self.assertEqual(i, 1)

    @unittest.expectedFailure
    def test_unexpected_success(self):
        pass

def test_chained():
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error

def test_last():
    int("x")
"""

ODD_ERRORS = """
import pytest

@pytest.fixture
def broken():
    raise ConnectionError("no network\\nERROR test_errors.py::test_ghost - x")

@pytest.fixture
def leaves_a_mess():
    yield
    raise RuntimeError("teardown: could not free cuda:1")

def test_setup(broken):
    pass

@pytest.mark.parametrize("value", ["a - b", "c d"])
def test_setup_of_odd_ids(broken, value):
    pass

def test_teardown(leaves_a_mess):
    pass

def test_fails_and_leaves_a_mess(leaves_a_mess):
    assert False

def test_no_such_fixture(no_such_fixture):
    pass

@pytest.mark.skip(reason="no gpu: none")
def test_skipped():
    pass

@pytest.mark.xfail(reason="known - bug")
def test_xfailed():
    assert False

@pytest.mark.xfail
def test_xpassed():
    pass

@pytest.mark.xfail(strict=True)
def test_xpassed_strictly():
    pass
"""

SUITE = {
    "test_odd.py": ODD_TESTS,
    "test_errors.py": ODD_ERRORS,
    "test_import.py": "import a_module_that_nobody_has",
    "tests/test_syntax.py": "def test(:",
    "test_plain.py": "def test_passes():\n    pass\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("ci", [True, False], ids=["ci", "terminal"])
@pytest.mark.parametrize(
    "options", [(), ("-q",), ("-rEf", "-vv"), ("--color=yes",), ("-rA",), ("-pxdist", "-n2")], ids="".join
)
def test_every_failing_test_of_pytest_is_reported_with_its_own_trace(
    session: Callable[..., Session], options: tuple[str, ...], ci: bool
) -> None:
    done = session(SUITE, "--continue-on-collection-errors", *options, ci=ci)
    report = read_report(done.folder, ARTIFACT)
    assert report.problems == ()
    assert report.counts is not None
    assert (report.counts.passed, report.counts.failed, report.counts.errors) == tuple(
        len(done.happened[outcome]) for outcome in ("passed", "failed", "error")
    )
    for outcome in ("failed", "error"):
        found = [o for o in report.outcomes if o.outcome == outcome]
        assert [o.node_id for o in found] == [node_id for node_id, _ in done.happened[outcome]]
        for o, (_, line) in zip(found, done.happened[outcome], strict=True):
            assert o.trace
            # Outside of CI pytest cuts messages off, and the line may be the one in the test's own file.
            if line is not None:
                assert o.trace.startswith(f"(line {line})  " if ci else "(line "), o


@pytest.mark.slow
def test_the_other_outcomes_and_seconds_are_read_when_they_are_asked_for(session: Callable[..., Session]) -> None:
    done = session(SUITE, "--continue-on-collection-errors")
    report = read_report(done.folder, ARTIFACT, every_outcome=True)
    by_outcome = {word: [o for o in report.outcomes if o.outcome == word] for word in ("passed", "skipped", "xfailed")}
    assert {o.node_id for o in by_outcome["passed"]} == {node_id for node_id, _ in done.happened["passed"]}
    assert all(o.seconds is not None for o in by_outcome["passed"])
    assert [o.message for o in by_outcome["skipped"]] == ["no gpu: none"]
    assert [(o.node_id, o.message) for o in by_outcome["xfailed"]] == [("test_errors.py::test_xfailed", "known - bug")]
    assert [o.node_id for o in report.outcomes if o.outcome == "xpassed"] == ["test_errors.py::test_xpassed"]
    message = next(o.message for o in report.outcomes if o.node_id == "test_odd.py::test_ghosts")
    assert message.startswith("RuntimeError: log follows\nFAILED tests/ghost.py::T::t - boo\nFAILED to launch kernel")


@pytest.mark.slow
def test_a_session_without_failures_has_no_outcomes_and_no_problems(session: Callable[..., Session]) -> None:
    report = read_report(session({"test_plain.py": SUITE["test_plain.py"]}).folder, ARTIFACT)
    assert report.counts is not None
    assert (report.counts.passed, report.outcomes, report.problems) == (1, (), ())


HEADER = "=========================== short test summary info ============================\n"


def test_lines_that_repeat_a_test_are_the_output_of_its_child_process(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed in 1.00s ==",
        summary_short=HEADER
        + "FAILED tests/test_a.py::T::test_sub - Failed: (subprocess) assert 0\n"
        + "== test session starts ==\nFAILED tests/test_a.py::T::test_sub - assert 0\n== 1 failed in 8.00s ==\n"
        + "FAILED tests/test_a.py::T::test_z - KeyError: 'z'\n",
        failures_line="== FAILURES ==\n/r/utils.py:7: Failed: (subprocess) assert 0\n/r/test_a.py:9: KeyError: 'z'\n",
    )
    assert [(o.node_id, o.trace) for o in report.outcomes] == [
        ("tests/test_a.py::T::test_sub", "(line 7)  Failed: (subprocess) assert 0"),
        ("tests/test_a.py::T::test_z", "(line 9)  KeyError: 'z'"),
    ]


def test_a_child_that_died_leaves_its_parent_in_the_report(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 1 failed in 1.00s ==",
        summary_short=HEADER + "FAILED tests/test_a.py::test_sub - Failed: (subprocess) \n== test session starts ==\n",
        failures_line="== FAILURES ==\n/r/utils.py:7: Failed: (subprocess)\n",
    )
    assert [(o.node_id, o.trace) for o in report.outcomes] == [
        ("tests/test_a.py::test_sub", "(line 7)  Failed: (subprocess)")
    ]


def test_an_entry_without_a_place_does_not_shift_the_traces_of_others(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 3 failed in 1.00s ==",
        summary_short=HEADER + "".join(f"FAILED t.py::t{i} - {m}\n" for i, m in enumerate(("E: m", "K: b", "V: c"))),
        failures_line="== FAILURES ==\nplain text, pytrace off\nsecond line\n/r/t.py:22: K: b\n/r/t.py:33: V: c\n",
    )
    assert [o.trace for o in report.outcomes] == ["E: m", "(line 22)  K: b", "(line 33)  V: c"]
    assert {o.message for o in report.outcomes} == {""}


@pytest.mark.parametrize(
    ("messages", "crashes", "expected"),
    [
        (
            ("A: a", "B: b", "C: c"),
            ("1: A: a", "3: C: c", "2: B: b"),
            ("(line 1)  A: a", "(line 2)  B: b", "(line 3)  C: c"),
        ),
        (("A: a", ""), ("1: A: a", "2: B: b"), ("(line 1)  A: a", "(line 2)  B: b")),
        (("A: ab...", "B: b"), ("2: B: b", "1: A: abc"), ("(line 1)  A: abc", "(line 2)  B: b")),
        (("A: a", "A: a"), ("1: A: a", "1: A: a", "2: A: a", "2: A: a"), ("(line 1)  A: a", "(line 2)  A: a")),
        (("A: a", "A: a"), ("1: A: a", "2: A: a", "1: A: a", "2: A: a"), ("A: a", "A: a")),
        (("A: a", "A: a"), ("1: A: a", "2: A: a", "2: A: a"), ("A: a", "A: a")),
        (("A: a", "A: a"), ("1: A: a",), ("(line 1)  A: a", "(line 1)  A: a")),
    ],
    ids=[
        "another order",
        "without a message",
        "cut",
        "each crash twice",
        "whose is whose",
        "one too many",
        "one place",
    ],
)
def test_a_test_has_the_crash_of_its_message_or_none(
    report_of: Callable[..., TestReport], messages: tuple[str, ...], crashes: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    report = report_of(
        stats=f"== {len(messages)} failed in 1.00s ==",
        summary_short=HEADER + "".join(f"FAILED t.py::t{i}{m and f' - {m}'}\n" for i, m in enumerate(messages)),
        failures_line="== FAILURES ==\n" + "".join(f"/r/t.py:{crash}\n" for crash in crashes),
    )
    assert tuple(o.trace for o in report.outcomes) == expected


@pytest.mark.parametrize(
    ("traceback", "trace"),
    [
        ("c.py:1: in <module>\nE   ImportError: no\nE   other.py:9: see there\n", "(line 1)  ImportError: no"),
        ('lib.py:7: in x\nE     File "/c.py", line 3\nE   SyntaxError: invalid\n', "(line 3)  SyntaxError: invalid"),
        ("c.py:1: in <module>\nlib.py:7:\nE   OSError: nowhere\n", "(line 7)  OSError: nowhere"),
        ("E   OSError: nowhere\n", "OSError: nowhere"),
        ("lib.py:7: in import_module", "no message in the report"),  # cut off above its exception
        ("lib.py:7", "no message in the report"),
    ],
    ids=["a place in the message", "a syntax error", "no words", "no place", "no exception", "nothing"],
)
def test_where_an_error_happened_is_the_last_place_that_its_traceback_names(
    report_of: Callable[..., TestReport], traceback: str, trace: str
) -> None:
    report = report_of(
        stats="== 1 error in 1.00s ==",
        summary_short=HEADER + "ERROR tests/c.py",
        errors=f"== ERRORS ==\n_____ ERROR collecting tests/c.py _____\n{traceback}",
    )
    assert [o.trace for o in report.outcomes] == [trace]


def test_an_empty_file_that_need_not_be_there_is_no_problem(report_of: Callable[..., TestReport]) -> None:
    summary = HEADER + "FAILED t.py::t - E: m"
    report = report_of(stats="= 1 failed in 1.00s =", summary_short=summary, failures_line="", captured_info="\n")
    assert report.problems == ()


def test_a_test_took_its_setup_its_call_and_its_teardown(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 passed in 9.00s ==",
        summary_short=HEADER + "PASSED t.py::t\nPASSED t.py::quick\n",
        durations="0.50s setup    t.py::t\n1.25s call     t.py::t\n0.25s teardown t.py::t\n(1 hidden)",
        every_outcome=True,
    )
    assert [(o.node_id, o.seconds) for o in report.outcomes] == [("t.py::t", 2.0), ("t.py::quick", None)]


@pytest.mark.parametrize("word", ["ERROR", "PASSED", "SKIPPED", "XFAIL", "XPASS", "RERUN"])
def test_a_message_ends_where_the_next_test_is_named(report_of: Callable[..., TestReport], word: str) -> None:
    summary = f"{HEADER}FAILED t.py::t - E: m\nmore\n{word} t.py::u\nFAILED t.py::v - E: n\n"
    stats = f"== 2 failed, 1 {word.lower()} in 1.00s =="
    report = report_of(stats=stats, summary_short=summary, every_outcome=True)
    assert [o.message for o in report.outcomes if o.outcome == "failed"] == ["E: m\nmore", "E: n"]


@pytest.mark.parametrize(
    ("word", "outcome"), [("PASSED", "passed"), ("XFAIL", "xfailed"), ("XPASS", "xpassed"), ("RERUN", "rerun")]
)
def test_no_message_adds_a_test_that_did_not_fail(
    report_of: Callable[..., TestReport], word: str, outcome: str
) -> None:
    summary = f"{HEADER}{word} t.py::a\nFAILED t.py::t - E: log\n{word} t.py::ghost\n"
    report = report_of(stats=f"= 1 failed, 1 {outcome} in 1.00s =", summary_short=summary, every_outcome=True)
    assert [o.node_id for o in report.outcomes if o.outcome == outcome] == ["t.py::a"]


@pytest.mark.parametrize(
    ("line", "name", "reason"),
    [
        ("[1] t.py:30: no gpu: none - at all", "t.py:30", "no gpu: none - at all"),
        ("[12] t.py: 3: no", "t.py", "3: no"),
        ("[1] t.py:30", "t.py:30", ""),
        ("t.py::T::t[a - b] - no host:80: down", "t.py::T::t[a - b]", "no host:80: down"),
        ("t.py::t", "t.py::t", ""),
    ],
)
def test_a_skipped_test_is_named_by_its_place_where_pytest_folds_it(
    report_of: Callable[..., TestReport], line: str, name: str, reason: str
) -> None:
    stats = "== 1 passed, 12 skipped in 1.00s =="
    report = report_of(stats=stats, summary_short=f"{HEADER}SKIPPED {line}\nPASSED t.py::u", every_outcome=True)
    found = [(o.node_id, o.message) for o in report.outcomes if o.outcome == "skipped"]
    assert found == [(name, reason)]


def test_crash_lines_that_are_lost_are_found_by_the_headline(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 3 failed in 1.00s ==",
        summary_short=HEADER
        + "FAILED a.py::T::test_x[a b] - E: m\nFAILED b.py::test_y\nFAILED b.py::test_z - V: a l...\n",
        failures_short="== FAILURES SHORT STACK ==\n"
        "_____ T.test_x[a b] _____\nE   KeyError: 'cause'\n    x()\n\na.py:12: E\n"
        "_____ test_y _____\n>   y()\nE   ValueError: text\nE   more\n\nb.py:34: ValueError\n"
        "----- Captured stdout call -----\nlib.py:99: not here\n_____ test_z _____\nE   V: a lot\nb.py:5: V\n",
        every_outcome=True,
    )
    assert [o.trace for o in report.outcomes] == [
        "(line 12)  E: m",
        "(line 34)  ValueError: text",
        "(line 5)  V: a lot",
    ]
    assert [o.message for o in report.outcomes] == ["E: m", "", "V: a l..."]


def test_a_lost_summary_leaves_the_names_in_the_headlines(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed, 1 error in 1.00s ==",
        failures_short="== FAILURES SHORT STACK ==\n_____ T.test_x _____\nc.py:9: in f\n_ _ _ _ _ _\na.py:12: E\n"
        "_____ test_y _____\nb.py:3: E\n",
        errors="== ERRORS ==\n_____ ERROR collecting tests/c.py _____\ntests/c.py:1: in <module>\nE   ImportError: no",
    )
    assert [(o.node_id, o.outcome, o.trace) for o in report.outcomes] == [
        ("T.test_x", "failed", "(line 12)  E"),
        ("test_y", "failed", "(line 3)  E"),
        ("tests/c.py", "error", "(line 1)  ImportError: no"),
    ]
    assert report.problems[0].reason == (
        "summary_short.txt is missing; pytest counted 2 failed, summary_short.txt lists 0; "
        "pytest counted 1 error, summary_short.txt lists 0"
    )


@pytest.mark.parametrize(("counted", "named"), [(1, []), (2, ["t", "u"]), (3, ["t", "u"])])
def test_a_lost_summary_leaves_no_more_names_than_pytest_counted(
    report_of: Callable[..., TestReport], counted: int, named: list[str]
) -> None:
    tracebacks = "_____ t _____\na.py:1: E\n_____ u _____\na.py:2: E\n"
    report = report_of(stats=f"== {counted} failed in 1.00s ==", failures_long=tracebacks)
    assert [o.node_id for o in report.outcomes] == named
    assert report.problems


def test_a_report_in_a_folder_of_the_artifact_is_found(report_of: Callable[..., TestReport]) -> None:
    files = {"stats.txt": "= 1 failed in 1.00s =", "summary_short.txt": HEADER + "FAILED t.py::t - E"}
    report = report_of({"dummy.txt": "dummy", **{f"reports/run/{name}": text for name, text in files.items()}})
    assert [(o.node_id, o.outcome) for o in report.outcomes] == [("t.py::t", "failed")]
    assert report.problems == ()


def test_a_fixture_that_is_missing_is_named(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 1 error in 1.00s ==",
        summary_short=HEADER + "ERROR t.py::test_a",
        errors="== ERRORS ==\n_____ ERROR at setup of test_a _____\nfile /r/t.py, line 3\n  def test_a(nope):\n"
        "E       fixture 'nope' not found\n>       available fixtures: cache\n\n/r/t.py:3\n",
    )
    assert [o.trace for o in report.outcomes] == ["(line 3)  fixture 'nope' not found"]


def test_a_traceback_that_may_be_of_two_tests_is_of_neither(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed in 1.00s ==",
        summary_short=HEADER + "FAILED a.py::t\nFAILED b.py::t - E: m\n",
        failures_short="_____ t _____\nE   ValueError: whose\na.py:1: ValueError\n",
    )
    assert [o.trace for o in report.outcomes] == ["no message in the report", "E: m"]


def test_output_that_looks_like_a_crash_line_is_none(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 1 failed in 1.00s ==",
        summary_short=HEADER + "FAILED t.py::t - E: m",
        failures_line="== FAILURES ==\nroot:WARNING: E: m\n t.py:1: E: m\n> t.py:2: E: m\n:9: E: m\n/r/t.py:3: E: m\n",
    )
    assert [o.trace for o in report.outcomes] == ["(line 3)  E: m"]


def test_ghosts_are_known_by_the_headlines_when_there_are_no_crash_lines(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed in 1.00s ==",
        summary_short=HEADER
        + "FAILED a.py::test_a - E: one\nFAILED g.py::test_b - not this\nFAILED a.py::test_c - E: two\n",
        failures_long="== FAILURES ==\n_____ test_a _____\na.py:1: E\n_____ test_c _____\na.py:2: E\n",
        every_outcome=True,
    )
    assert [o.node_id for o in report.outcomes] == ["a.py::test_a", "a.py::test_c"]
    assert report.outcomes[0].message == "E: one\nFAILED g.py::test_b - not this"
    assert report.problems == ()


def test_a_ghost_of_a_later_test_is_known_by_the_crash_lines(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed in 1.00s ==",
        summary_short=HEADER + "FAILED t.py::a - E: a\nFAILED t.py::b - not this\nFAILED t.py::b - K: b\n",
        failures_line="== FAILURES ==\n/r/t.py:1: E: a\n/r/t.py:2: K: b\n",
        every_outcome=True,
    )
    assert [(o.node_id, o.message, o.trace) for o in report.outcomes] == [
        ("t.py::a", "E: a\nFAILED t.py::b - not this", "(line 1)  E: a"),
        ("t.py::b", "K: b", "(line 2)  K: b"),
    ]


def test_where_nothing_else_tells_the_first_line_of_a_test_is_its_own(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 1 failed in 1.00s ==",
        summary_short=HEADER + "FAILED t.py::a - E: a\nFAILED t.py::a - not this\nFAILED to launch\n",
    )
    assert [o.trace for o in report.outcomes] == ["E: a"]
    assert report.problems == ()


@pytest.mark.parametrize(
    ("counted", "ghost", "last", "crashes", "headlines", "names"),
    [
        (2, "t.py::g - K: b", "t.py::b - K: b", ("1: E: a", "2: K: b"), ("a", "b"), ["t.py::a", "t.py::b"]),
        (2, "t.py::a - not this", "t.py::b - K: b", ("1: E: a", "2: K: was edited"), (), ["t.py::a", "t.py::b"]),
        (1, "t.py::g - not this", "to launch", ("1: E: a", "2: a place in the log"), (), ["t.py::a"]),
    ],
    ids=["the message of another test", "a crash of no message", "a crash too many"],
)
def test_ghosts_are_known_by_whatever_there_is(
    report_of: Callable[..., TestReport],
    counted: int,
    ghost: str,
    last: str,
    crashes: tuple[str, ...],
    headlines: tuple[str, ...],
    names: list[str],
) -> None:
    report = report_of(
        stats=f"== {counted} failed in 1.00s ==",
        summary_short=f"{HEADER}FAILED t.py::a - E: a\nFAILED {ghost}\nFAILED {last}\n",
        failures_line="== FAILURES ==\n" + "".join(f"/r/t.py:{crash}\n" for crash in crashes),
        failures_short="".join(f"_____ {name} _____\n" for name in headlines),
    )
    assert [o.node_id for o in report.outcomes] == names
    assert report.problems == ()


def test_subtests_are_reported_with_their_description(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 3 failed, 2 subtests passed in 1.00s ==",
        summary_short=HEADER
        + "SUBFAILED[a b] (i=1) t.py::test_a - assert 1\n"
        + "[c] (i='x y') SUBFAIL t.py::T::test_b - assert 2\n"
        + "FAILED t.py::test_a - contains 1 failed subtest\n",
        failures_line="== FAILURES ==\nt.py:1: assert 1\nt.py:2: assert 2\n",
    )
    assert [(o.node_id, o.trace) for o in report.outcomes] == [
        ("t.py::test_a [a b] (i=1)", "(line 1)  assert 1"),
        ("t.py::T::test_b [c] (i='x y')", "(line 2)  assert 2"),
        ("t.py::test_a", "contains 1 failed subtest"),
    ]


def test_subtests_are_listed_though_messages_name_as_many_tests_as_pytest_counted(
    report_of: Callable[..., TestReport],
) -> None:
    report = report_of(
        stats="== 3 failed in 1.00s ==",
        summary_short=HEADER
        + "FAILED t.py::test_a - E: log\nFAILED t.py::ghost - no\nFAILED t.py::phantom - no\n"
        + "SUBFAILED(<subtest>) t.py::test_b - assert 1\n"
        + "SUBFAILED(<subtest>) t.py::test_b - assert 2\n",
        failures_line="== FAILURES ==\nt.py:1: E: log\nt.py:2: assert 1\nt.py:2: assert 2\n",
        failures_short="_____ test_a _____\n_____ test_b (<subtest>) _____\n_____ test_b (<subtest>) _____\n",
    )
    assert [(o.node_id, o.trace) for o in report.outcomes] == [
        ("t.py::test_a", "(line 1)  E: log"),
        ("t.py::test_b (<subtest>)", "(line 2)  assert 1"),
        ("t.py::test_b (<subtest>)", "(line 2)  assert 2"),
    ]
    assert report.problems == ()


CHILD = "== test session starts ==\nFAILED c.py::test_a - no\nFAILED c.py::test_b - no\n"


def test_what_a_child_session_lists_is_no_failing_test(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed in 1.00s ==",
        summary_short=f"{HEADER}FAILED t.py::test_a - {CHILD}== 2 failed in 0.03s ==\nFAILED t.py::test_z - E: m\n",
    )
    assert [o.node_id for o in report.outcomes] == ["t.py::test_a", "t.py::test_z"]


@pytest.mark.parametrize("ended", [f"{CHILD}== 2 failed in 0.03s ==\n", "E: z\n== 2 failed in 0.03s ==\n", "E: z\n"])
def test_a_child_session_that_was_killed_hides_no_failing_test(
    report_of: Callable[..., TestReport], ended: str
) -> None:
    report = report_of(
        stats="== 3 failed in 1.00s ==",
        summary_short=f"{HEADER}FAILED t.py::test_a - {CHILD}FAILED t.py::test_m - E: m\nFAILED t.py::test_z - {ended}",
    )
    assert {o.node_id for o in report.outcomes} >= {"t.py::test_a", "t.py::test_m", "t.py::test_z"}


def test_the_last_line_of_a_traceback_is_no_crash_of_its_own(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="== 2 failed in 1.00s ==",
        summary_short=HEADER + "FAILED t.py::test_a - ValueError: text\nFAILED t.py::test_b - ValueError\n",
        failures_line="== FAILURES ==\n>   raise\n\nt.py:1: ValueError\n/r/t.py:1: ValueError: text\n"
        ">   raise\n\nt.py:2: ValueError\n/r/t.py:2: ValueError\n",
    )
    assert [o.trace for o in report.outcomes] == ["(line 1)  ValueError: text", "(line 2)  ValueError"]


def test_colours_carriage_returns_and_bytes_of_no_encoding_do_no_harm(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats=b"\x1b[31m=== \x1b[31m\x1b[1m1 failed\x1b[0m, \x1b[32m3 passed\x1b[0m\x1b[31m in 2.04s\x1b[0m ===\r\n",
        summary_short=b"\x1b[36m== short test summary info ==\x1b[0m\r\n"
        b"\x1b[31mFAILED\x1b[0m t.py::\x1b[1mtest_a\x1b[0m - E: caf\xe9\r\n",
        failures_line=b"== FAILURES ==\r\n\x1b[1m\x1b[31mt.py\x1b[0m:3: E: caf\xe9\r\n",
        captured_info=b"caf\xe9",
        every_outcome=True,
    )
    assert report.captured_info == "caf\ufffd"
    assert report.counts == Counts(3, 1, seconds=2.04)
    assert [(o.node_id, o.message, o.trace) for o in report.outcomes] == [
        ("t.py::test_a", "E: caf\ufffd", "(line 3)  E: caf\ufffd")
    ]


def test_names_of_no_encoding_are_read(report_of: Callable[..., TestReport]) -> None:
    report = report_of(
        stats="= 1 failed, 1 passed, 1 skipped, 1 xfailed in 1.00s =",
        summary_short=HEADER.encode()
        + b"PASSED t.py::\xe9\nSKIPPED [1] \xe9.py:3: \xe9\nXFAIL t.py::\xe9x - \xe9\nFAILED t.py::\xe9f - \xe9\n",
        durations=b"0.50s call     t.py::\xe9\n0.25s call     t.py::\xe9x",
        every_outcome=True,
    )
    assert [(o.node_id, o.message, o.seconds) for o in report.outcomes] == [
        ("t.py::\ufffd", "", 0.5),
        ("t.py::\ufffdx", "\ufffd", 0.25),
        ("\ufffd.py:3", "\ufffd", None),
        ("t.py::\ufffdf", "\ufffd", None),
    ]
    assert report.outcomes[-1].trace == "\ufffd"


NO_TOTALS = "pytest was killed, or its totals were lost"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "the artifact holds no report: the job was killed, or its report was lost"),
        ({"dummy.txt": "dummy"}, "the artifact holds no report: the job was killed, or its report was lost"),
        ({"summary_short.txt": HEADER}, f"{NO_TOTALS}: stats.txt is missing"),
        ({"stats.txt": "", "summary_short.txt": HEADER}, f"{NO_TOTALS}: stats.txt is empty"),
        ({"stats.txt": " \n", "summary_short.txt": HEADER}, f"{NO_TOTALS}: stats.txt is empty"),
        (
            {"stats.txt": "=== 3 fai", "summary_short.txt": HEADER},
            f"{NO_TOTALS}: stats.txt has no closing line of pytest",
        ),
        ({"summary_short.txt": ""}, f"{NO_TOTALS}: stats.txt is missing; summary_short.txt is empty"),
        ({"stats.txt": "= 3 passed in 1.00s ="}, "summary_short.txt is missing"),
        ({"stats.txt": "= 3 passed in 1.00s =", "summary_short.txt": ""}, "summary_short.txt is empty"),
        (
            {"stats.txt": "= 2 failed in 1.00s =", "summary_short.txt": HEADER + "FAILED t.py::t - E"},
            "pytest counted 2 failed, summary_short.txt lists 1",
        ),
        (
            {"stats.txt": "= 2 errors in 1.00s =", "summary_short.txt": HEADER + "ERROR t.py::t - E"},
            "pytest counted 2 errors, summary_short.txt lists 1",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    report_of: Callable[..., TestReport], files: dict[str, str], reason: str
) -> None:
    for every_outcome in (False, True):
        report = report_of(files, every_outcome=every_outcome)
        assert [problem.reason for problem in report.problems] == [reason]
        assert (report.problems[0].subject, report.problems[0].device) == (ARTIFACT.name, "single")


def test_a_session_in_which_nothing_ran_has_nothing_to_summarise(report_of: Callable[..., TestReport]) -> None:
    report = report_of(stats="== no tests ran in 0.01s ==", summary_short="", every_outcome=True)
    assert (report.counts, report.problems) == (Counts(seconds=0.01), ())


@pytest.mark.parametrize("name", ["stats", "summary_short", "failures_line"])
def test_a_directory_among_the_files_costs_no_failing_test(
    report_of: Callable[..., TestReport], tmp_path: Path, name: str
) -> None:
    files = {
        "stats": "= 1 failed in 1.00s =",
        "summary_short": HEADER + "FAILED t.py::t - E: m\n",
        "failures_line": "== FAILURES ==\nt.py:3: E: m\n",
        "failures_short": "_____ t _____\nt.py:3: E\n",
    }
    del files[name]
    (tmp_path / f"{name}.txt").mkdir()
    report = report_of(**files)
    assert len(report.outcomes) == 1
    assert f"{name}.txt cannot be read: Is a directory" in report.problems[0].reason


def test_a_directory_in_place_of_the_summary_of_passed_tests_is_a_problem(
    report_of: Callable[..., TestReport], tmp_path: Path
) -> None:
    (tmp_path / "summary_short.txt").mkdir()
    report = report_of(stats="= 3 passed in 1.00s =")
    assert [problem.reason for problem in report.problems] == ["summary_short.txt is no file"]


def test_an_artifact_that_is_no_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_text("")
    for path in (tmp_path / "artifact", tmp_path / "nothing"):
        report = read_report(path, ARTIFACT)
        assert report.counts is None
        assert report.problems[0].reason.startswith("the artifact cannot be read: ")
