from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_pipeline.model import Counts, TestReport
from ci_pipeline.reports import junit
from ci_pipeline.reports.read import read_report

from .conftest import ARTIFACT, Session

Reader = Callable[..., TestReport]

PYTEST = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="5" time="1.500"
  timestamp="2026-11-10T02:17:43" hostname="runner">
<testcase classname="tests.models.test_a.TestA" name="test_ok[a - b]" time="0.001" />
<testcase classname="tests.models.test_a.TestA" name="test_bad" time="0.002">
  <failure message="ValueError: a &amp; b&#10;second line">self = &lt;x&gt;

    def test_bad(self):
&gt;       f()

tests/models/test_a.py:12:
_ _ _ _
src/lib.py:34: ValueError</failure></testcase>
<testcase classname="tests.models.test_a" name="test_skip" time="0.000">
  <skipped type="pytest.skip" message="no gpu">/r/tests/models/test_a.py:3: no gpu</skipped></testcase>
<testcase classname="tests.models.test_a" name="test_known" time="0.000">
  <skipped type="pytest.xfail" message="known bug" /></testcase>
<testcase classname="" name="tests.test_b" time="0.000">
  <error message="collection failure">tests/test_b.py:1: in &lt;module&gt;
E   ModuleNotFoundError: No module named 'x'</error></testcase>
</testsuite></testsuites>"""

SUREFIRE = """<testsuite name="com.acme.BarTest" tests="3" failures="1" time="1,234.5">
<testcase name="adds" classname="com.acme.BarTest" time="1,000.0"/>
<testcase name="fails" classname="com.acme.BarTest" time="0.5">
<failure message="expected 1 but was 2" type="java.lang.AssertionError">java.lang.AssertionError: expected 1 but was 2
\tat org.junit.Assert.fail(Assert.java:88)
\tat com.acme.BarTest.fails(BarTest.java:42)</failure></testcase>
<testcase name="flaky" classname="com.acme.BarTest" time="0.5"><flakyFailure message="once" type="E"/></testcase>
</testsuite>"""

GTEST = """<testsuites tests="3" failures="1" disabled="1" time="0.5" name="AllTests">
<testsuite name="Math" tests="3" failures="1" time="0.5" timestamp="2026-11-10T02:17:43.123">
<testcase name="Adds" file="/src/math_test.cc" line="7" status="run" result="completed" time="0.1" classname="Math" />
<testcase name="Divides" status="run" result="completed" time="0.1" classname="Math">
<failure message="math_test.cc:12&#x0A;Expected equality of these values:&#x0A;  1" type=""><![CDATA[math_test.cc:12
Expected equality of these values:]]></failure></testcase>
<testcase name="DISABLED_Roots" status="notrun" result="suppressed" time="0" classname="Math" />
</testsuite></testsuites>"""

GO = """<testsuites><testsuite tests="2" failures="1" time="0.160" name="acme.com/pkg" timestamp="2026-11-10T02:17:43Z">
<properties><property name="go.version" value="go1.25"></property></properties>
<testcase classname="acme.com/pkg" name="TestA/sub one" time="0.060"></testcase>
<testcase classname="acme.com/pkg" name="TestB" time="0.100">
<failure message="Failed" type="">    file_test.go:11: expected 1, got 2</failure></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("text", "counts", "red"),
    [
        (
            PYTEST,
            Counts(1, 1, 1, 1, 1, seconds=1.5),
            [
                ("tests/models/test_a.py::TestA::test_bad", "failed", "(line 34)  ValueError: a & b"),
                ("tests/test_b.py", "error", "(line 1)  ModuleNotFoundError: No module named 'x'"),
            ],
        ),
        (
            SUREFIRE,
            Counts(2, 1, rerun=1, seconds=1234.5),
            [
                (
                    "com.acme.BarTest::fails",
                    "failed",
                    "(line 42)  java.lang.AssertionError: expected 1 but was 2",
                )
            ],
        ),
        (
            GTEST,
            Counts(1, 1, skipped=1, seconds=0.5),
            [("Math::Divides", "failed", "(line 12)  Expected equality of these values:")],
        ),
        (GO, Counts(1, 1, seconds=0.16), [("acme.com/pkg::TestB", "failed", "(line 11)  expected 1, got 2")]),
    ],
    ids=["pytest", "surefire", "gtest", "go-junit-report"],
)
def test_every_flavour_gives_the_same_outcomes(
    report_of: Reader, text: str, counts: Counts, red: list[tuple[str, str, str]]
) -> None:
    report = report_of({"junit.xml": text})
    assert report.problems == ()
    assert report.counts == counts
    assert [(o.node_id, o.outcome, o.trace) for o in report.outcomes] == red


def test_every_outcome_is_there_when_asked_for(report_of: Reader) -> None:
    report = report_of({"junit.xml": PYTEST}, every_outcome=True)
    assert report.outcomes[0].node_id == "tests/models/test_a.py::TestA::test_ok[a - b]"
    outcomes = [("passed", 0.001), ("failed", 0.002), ("skipped", 0.0), ("xfailed", 0.0), ("error", 0.0)]
    assert [(o.outcome, o.seconds) for o in report.outcomes] == outcomes
    assert [o.message for o in report.outcomes][2:4] == ["no gpu", "known bug"]


@pytest.mark.parametrize(
    ("failure", "trace"),
    [
        ("<error message='failed on setup with \"OSError: x\"'>t.py:3: in f</error>", "(line 3)  OSError: x"),
        ("<failure>t.py:3: in f\nE   x.py:9: see there\nE   OSError: x\n</failure>", "(line 3)  OSError: x"),
        ("<failure type='E'>only a text\nof two lines</failure>", "only a text"),
        ("<failure message='no such file x.go:3: sorry' type='E'/>", "no such file x.go:3: sorry"),
        ("<failure message='E: 1'/><failure message='E: 2'/>", "E: 1"),
        ("<failure message='&#10;Expecting:&#10; 1' type='a.Error'>a.Error: </failure>", "a.Error: Expecting:"),
        ("<failure message='a.Error: x' type='a.Error'>a.Error: x</failure>", "a.Error: x"),
        ("<failure message='Failed'/>", "no message in the report"),
    ],
    ids=[
        *("setup of pytest", "no message", "neither message nor exception", "a place in words", "several"),
        *("an empty line first", "the exception twice", "nothing"),
    ],
)
def test_a_trace_says_where_and_what_as_far_as_the_file_does(report_of: Reader, failure: str, trace: str) -> None:
    report = report_of({"a.xml": f'<testsuite><testcase name="t">{failure}</testcase></testsuite>'})
    assert [o.trace for o in report.outcomes] == [trace]


@pytest.mark.parametrize("case", ['status="notrun"', 'result="skipped"', 'result="suppressed"'])
def test_what_gtest_did_not_run_is_skipped(report_of: Reader, case: str) -> None:
    assert report_of({"a.xml": f'<testsuite><testcase name="t" {case}/></testsuite>'}).counts == Counts(skipped=1)


@pytest.mark.parametrize(
    ("suite", "node_id"),
    [
        ('name="pytest" file="tests/test_a.py"', "tests/test_a.py::TestA::t"),
        ('name="pytest" file="tests/test_b.py"', "tests/test_b.py::t"),
        ('name="nose"', "tests.test_a.TestA::t"),
    ],
)
def test_a_suite_says_of_which_file_or_tool_its_tests_are(report_of: Reader, suite: str, node_id: str) -> None:
    case = '<testcase name="t" classname="tests.test_a.TestA"/>'
    report = report_of({"a.xml": f"<testsuite {suite}>{case}</testsuite>"}, every_outcome=True)
    assert [o.node_id for o in report.outcomes] == [node_id]


@pytest.mark.parametrize(
    ("case", "node_id"),
    [
        ('file="tests/test_a.py" classname="tests.test_a.TestA"', "tests/test_a.py::TestA::t"),
        ('file="tests/a.py" classname="tests.a"', "tests/a.py::t"),
        ('file="/r/tests/test_a.py" classname="tests.test_a.TestA"', "tests/test_a.py::TestA::t"),
        ('classname="tests.a_test.TestA"', "tests/a_test.py::TestA::t"),
        ('classname="tests.test_models.test_a.TestA.TestB"', "tests/test_models/test_a.py::TestA::TestB::t"),
        ('classname="lib.A"', "lib.A::t"),
        ("", "t"),
    ],
)
def test_a_test_is_named_as_pytest_names_it(report_of: Reader, case: str, node_id: str) -> None:
    report = report_of(
        {"a.xml": f'<testsuite name="pytest"><testcase name="t" {case}/></testsuite>'}, every_outcome=True
    )
    assert [o.node_id for o in report.outcomes] == [node_id]


@pytest.mark.parametrize("time", ["", "soon", "nan", "-1", "1e400"])
def test_a_suite_that_does_not_say_how_long_it_took_took_as_long_as_its_tests(report_of: Reader, time: str) -> None:
    cases = "".join(
        f'<testcase name="{name}" time="{took}"/>' for name, took in (("a", "0.25"), ("b", "0.5"), ("c", time))
    )
    report = report_of({"a.xml": f'<testsuite time="{time}">{cases}</testsuite>'}, every_outcome=True)
    assert report.counts == Counts(3, seconds=0.75)
    assert [o.seconds for o in report.outcomes] == [0.25, 0.5, None]


def test_a_place_may_come_after_other_output(report_of: Reader) -> None:
    failure = '<failure message="Failed">=== RUN TestB\n    b_test.go:11: expected 1</failure>'
    report = report_of({"a.xml": f'<testsuite><testcase name="t">{failure}</testcase></testsuite>'})
    assert report.outcomes[0].trace.startswith("(line 11)  ")


def test_a_suite_that_is_in_two_files_counts_once(report_of: Reader) -> None:
    report = report_of({"TEST-a.xml": PYTEST, "TESTS.xml": PYTEST})
    assert report.counts == Counts(1, 1, 1, 1, 1, seconds=1.5)
    assert len(report.outcomes) == 2


def test_a_file_of_all_suites_adds_those_that_no_other_file_has(report_of: Reader) -> None:
    suite = '<testsuite name="a" time="1" timestamp="t"><testsuite name="inner"/><testcase name="x"/></testsuite>'
    others = "".join(f'<testsuite name="{n}" time="{n}"><testcase name="y"/></testsuite>' for n in (2, 4))
    report = report_of({"TEST-a.xml": suite, "TESTS.xml": f"<testsuites>{suite}{others}</testsuites>"})
    assert report.counts == Counts(3, seconds=7.0)


@pytest.mark.parametrize(("clock", "tests"), [('time="1"', 1), ('timestamp="t"', 1), ("", 2)])
def test_a_suite_that_looks_like_another_is_a_copy_if_it_has_a_clock(report_of: Reader, clock: str, tests: int) -> None:
    suite = f'<testsuite name="a" {clock}><testcase name="x" time="0"/></testsuite>'
    report = report_of({"a.xml": suite, "b.xml": suite})
    assert report.counts
    assert report.counts.passed == tests


@pytest.mark.parametrize("differs", ["name", "timestamp", "time", "tests", "failures", "errors"])
def test_a_suite_that_differs_from_another_is_no_copy(report_of: Reader, differs: str) -> None:
    suite = (
        '<testsuite name="1" timestamp="1" time="1" tests="1" failures="1" errors="1"><testcase name="x"/></testsuite>'
    )
    report = report_of({"a.xml": suite, "b.xml": suite.replace(f' {differs}="1"', f' {differs}="2"')})
    assert report.counts
    assert report.counts.passed == 2


def test_a_failure_behind_much_output_is_a_failure(report_of: Reader) -> None:
    output = f"<system-out>{'x' * 200_000}</system-out>"
    case = f'<testcase name="x">{output}<failure message="E: m"/></testcase>'
    assert report_of({"a.xml": f"<testsuite>{case}</testsuite>"}).counts == Counts(failed=1)


def test_a_suite_of_the_same_name_that_failed_is_no_copy(report_of: Reader) -> None:
    case = '<testcase classname="a.T" name="x">{}</testcase>'
    suite = f'<testsuite name="a.T" tests="1" failures="{{}}" time="0.001">{case}</testsuite>'
    files = {"java17/TEST-a.T.xml": suite.format(0, ""), "java21/TEST-a.T.xml": suite.format(1, "<failure/>")}
    assert report_of(files).counts == Counts(1, 1, seconds=0.002)


@pytest.mark.parametrize("folder", ["surefire-reports", "target/surefire-reports", "build/test-results/test"])
def test_reports_in_folders_are_found(report_of: Reader, folder: str) -> None:
    report = report_of({f"{folder}/TEST-com.acme.BarTest.xml": SUREFIRE, "other/junit.xml": GO, "dummy.txt": "dummy"})
    assert report.counts == Counts(3, 2, rerun=1, seconds=1234.66)
    assert sorted(o.node_id for o in report.outcomes) == ["acme.com/pkg::TestB", "com.acme.BarTest::fails"]


@pytest.mark.parametrize(
    ("file", "text", "missing"),
    [
        ("summary_short.txt", "FAILED tests/test_a.py::test_a - ValueError: text", "stats.txt is missing"),
        ("stats.txt", "= 1 passed in 1.00s =", "summary_short.txt is missing"),
    ],
)
def test_a_report_of_pytest_is_read_even_where_xml_lies_beside_it(
    report_of: Reader, file: str, text: str, missing: str
) -> None:
    report = report_of({"junit.xml": GO, file: text})
    assert [o.node_id for o in report.outcomes] == ["tests/test_a.py::test_a"] * text.startswith("FAILED")
    assert report.problems[0].reason.endswith(missing)


@pytest.mark.parametrize(
    ("doctype", "root"), [("coverage SYSTEM 'c.dtd'", "coverage"), ("report PUBLIC '' ''", "report")]
)
def test_coverage_beside_test_reports_is_no_problem(report_of: Reader, doctype: str, root: str) -> None:
    report = report_of({"junit.xml": GO, f"{root}.xml": f"<!DOCTYPE {doctype}><{root}/>"})
    assert report.counts == Counts(1, 1, seconds=0.16)
    assert report.problems == ()


def test_a_failure_that_was_run_again_and_failed_again_is_one_failure(report_of: Reader) -> None:
    again = '<rerunFailure message="again" type="E"/><rerunError message="and again" type="E"/>'
    case = f'<testcase classname="a.T" name="x"><failure message="boom" type="E">E: boom</failure>{again}</testcase>'
    report = report_of({"a.xml": f'<testsuite name="a.T" time="1">{case}</testsuite>'})
    assert report.counts == Counts(failed=1, seconds=1.0)
    assert [o.message for o in report.outcomes] == ["E: boom"]


@pytest.mark.parametrize("every_outcome", [False, True])
def test_failing_tests_that_share_a_name_are_all_there(report_of: Reader, every_outcome: bool) -> None:
    cases = "".join(f'<testcase classname="a.T" name="x"><failure message="E: {n}"/></testcase>' for n in (1, 2))
    report = report_of({"a.xml": f'<testsuite name="a.T" time="1">{cases}</testsuite>'}, every_outcome=every_outcome)
    assert report.counts == Counts(failed=2, seconds=1.0)
    assert [o.trace for o in report.outcomes] == ["E: 1", "E: 2"]


def test_a_namespace_changes_nothing(report_of: Reader) -> None:
    cases = '<testcase name="a"><failure message="E: m"/></testcase><testcase name="b"><skipped/></testcase>'
    report = report_of({"a.xml": f'<testsuite xmlns="urn:x">{cases}</testsuite>'}, every_outcome=True)
    assert [(o.node_id, o.outcome, o.message) for o in report.outcomes] == [
        ("a", "failed", "E: m"),
        ("b", "skipped", ""),
    ]


def test_nested_suites_count_once(report_of: Reader) -> None:
    inner = '<testsuite name="inner" time="2"><testcase classname="a.T" name="x"><failure/></testcase></testsuite>'
    report = report_of({"a.xml": f'<testsuites><testsuite name="outer" time="3">{inner}</testsuite></testsuites>'})
    assert report.counts == Counts(failed=1, seconds=3.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PYTEST[:900], "a.xml is cut off or no XML: "),
        ("", "a.xml is cut off or no XML: "),
        ('<?xml version="1.0" encoding="klingon"?><testsuite/>', "a.xml is cut off or no XML: unknown encoding"),
        ('<?xml version="1.0" encoding="shift_jis"?><testsuite/>', "a.xml is cut off or no XML: multi-byte"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><testsuite name="&a;"/>', "a.xml is refused: DTDForbidden"),
        ('<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><testsuite/>', "a.xml is refused: DTDForbidden"),
        ("<coverage/>", "a.xml: no test suite"),
        ("<!DOCTYPE coverage SYSTEM 'coverage-04.dtd'><coverage/>", "a.xml: no test suite"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_a_problem(report_of: Reader, text: str, reason: str) -> None:
    report = report_of({"a.xml": text})
    assert report.counts is None
    assert report.problems[0].reason.startswith(reason)


def test_a_file_that_cannot_be_read_is_a_problem(report_of: Reader, tmp_path: Path) -> None:
    (tmp_path / "a.xml").symlink_to("nowhere.xml")
    report = report_of({"b.xml": GO})
    assert [problem.reason for problem in report.problems] == ["a.xml cannot be read: No such file or directory"]
    assert [o.node_id for o in report.outcomes] == ["acme.com/pkg::TestB"]


def test_what_was_read_before_the_file_breaks_is_kept(report_of: Reader) -> None:
    report = report_of({"a.xml": PYTEST[: PYTEST.index('<testcase classname=""')]})
    assert [o.node_id for o in report.outcomes] == ["tests/models/test_a.py::TestA::test_bad"]
    assert report.counts is None


def test_a_huge_file_is_refused(report_of: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junit, "MAX_BYTES", 1 << 20)
    report = report_of({"a.xml": "<testsuite>" + " " * (1 << 20) + "</testsuite>"})
    assert report.problems[0].reason == "a.xml is refused: larger than 1 MiB"


@pytest.mark.slow
def test_what_pytest_writes_as_xml_is_what_it_writes_as_text(session: Callable[..., Session], tmp_path: Path) -> None:
    source = """
import pytest
class TestA:
    @pytest.mark.parametrize("x", ["a b", "a - b", "\\u00e9"])
    def test_p(self, x): assert x == 0
def test_fine(): pass
@pytest.mark.skip(reason="no")
def test_skip(): pass
@pytest.mark.xfail
def test_known(): assert 0
@pytest.fixture
def broken(): raise OSError("no space")
def test_setup(broken): pass
"""
    (tmp_path / "xml").mkdir()
    done = session({"tests/test_a.py": source}, f"--junit-xml={tmp_path}/xml/report.xml")
    text, xml = read_report(done.folder, ARTIFACT), read_report(tmp_path / "xml", ARTIFACT)
    assert xml.counts is not None
    assert text.counts is not None
    for name in ("passed", "failed", "errors", "skipped", "xfailed"):
        assert getattr(xml.counts, name) == getattr(text.counts, name)
    assert [(o.node_id, o.outcome) for o in xml.outcomes] == [(o.node_id, o.outcome) for o in text.outcomes]
    assert [o.trace for o in xml.outcomes if o.outcome == "failed"] == [
        o.trace for o in text.outcomes if o.outcome == "failed"
    ]


elements = st.recursive(
    st.sampled_from(["", "text", "<failure message='a'>x.py:3: E</failure>", "<skipped/>", "<error/>", "<a:b/>"]),
    lambda inner: st.tuples(st.sampled_from(["testsuite", "testcase", "testsuites", "failure"]), st.lists(inner)).map(
        lambda node: f"<{node[0]} name='n' time='1,0'>{''.join(node[1])}</{node[0]}>"
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(elements | st.binary(max_size=50))
def test_no_xml_crashes_the_reader(report_of: Reader, text: str | bytes) -> None:
    report = report_of({"a.xml": text})
    assert report.counts or report.problems
