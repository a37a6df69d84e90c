"""The full style: what a tired person reads, and Slack's limits whatever the tests are called."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_pipeline.analysis.job_results import job_report
from ci_pipeline.model import (
    ArtifactName,
    CiJob,
    CiRun,
    CiStep,
    Counts,
    EarlierRun,
    JobReport,
    JobResult,
    Problem,
    RunDiffRow,
    TestOutcome,
    TestReport,
)
from ci_pipeline.profile import Profile, load_profile
from ci_pipeline.publish.ledger import Ledger
from ci_pipeline.publish.slack import SlackClient
from ci_pipeline.publish.slack_full import MESSAGES, Links, messages, without_buttons
from ci_pipeline.publish.thread import SlackMessage, SlackThread, deliver
from ci_pipeline_tests.servers.slack import SlackServer, refusal

NIGHT = datetime(2025, 11, 10, 2, 17, tzinfo=UTC)
RUN = CiRun(
    "huggingface/transformers",
    19000000001,
    run_number=1203,
    workflow_id=90575235,
    event="schedule",
    head_sha="31839d741a30d7fe5daf982d9f2d9cc549ec6181",
    head_branch="main",
    html_url="https://github.com/huggingface/transformers/actions/runs/19000000001",
    created_at=NIGHT,
)
JOB = "run_models_gpu"
Failures = dict[tuple[str, str], list[tuple[str, str]]]
"""Node ids and traces by matrix entry and device."""


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("transformers")


def report_of(entry: str, device: str, failing: Sequence[tuple[str, str]]) -> TestReport:
    artifact = ArtifactName(f"{device}-gpu_{JOB}_{entry}_test_reports", f"{device}-gpu", device, JOB, entry)
    outcomes = [TestOutcome("t.py::test_fine", "passed"), TestOutcome("t.py:3", "skipped", "not today")]
    outcomes += [TestOutcome(node_id, "failed", trace, trace) for node_id, trace in failing]
    return TestReport(artifact, Counts(passed=100, failed=len(failing), seconds=60.0), tuple(outcomes))


def thread_of(profile: Profile, failures: Failures, links: Links | None = None, **known: Any) -> SlackThread:
    reports = [report_of(entry, device, failing) for (entry, device), failing in failures.items()]
    report = job_report(RUN, JOB, reports, known.pop("jobs", ()), profile, **known)
    return messages(report, profile, links=links or Links())


def earlier(failures: Failures, label: str = "previous run", **changes: Any) -> EarlierRun:
    run = replace(RUN, run_id=18990000001, run_number=1202, html_url="", created_at=NIGHT - timedelta(days=1))
    known = {(entry, device, node): trace for (entry, device), failing in failures.items() for node, trace in failing}
    return EarlierRun(replace(run, **changes), label, known)


def text_of(message: SlackMessage) -> str:
    """All that a message says."""
    parts: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            parts.extend([value["text"]] if isinstance(value.get("text"), str) else [])
            list(map(walk, value.values()))
        elif isinstance(value, list):
            list(map(walk, value))

    walk(list(message.blocks))
    return "\n".join(parts)


def verdict(thread: SlackThread) -> str:
    assert thread.main.blocks[0]["type"] == "header"
    return thread.main.blocks[0]["text"]["text"]


# --- the verdict ----------------------------------------------------------------------------------------------------


def test_all_green_is_one_message(profile: Profile):
    thread = thread_of(profile, {("models_bert", "single"): [], ("models_bert", "multi"): []})
    assert verdict(thread) == thread.main.text == "✅ Models: all 200 tests passed"
    assert (thread.replies, thread.files) == ([], [])
    assert text_of(thread.main).splitlines()[-2:] == ["200 passed in 2m 0s of tests", "CI run"]


def test_new_and_known_failures_are_told_apart(profile: Profile):
    known = [("tests/a.py::test_old", "(line 1)  ValueError: x")]
    thread = thread_of(
        profile,
        {("models_bert", "single"): [*known, ("tests/a.py::test_new", "(line 2)  ValueError: y")]},
        previous=earlier({("models_bert", "single"): known}),
    )
    assert verdict(thread) == "❌ Models: 1 new failure, 1 known"
    main = text_of(thread.main)
    assert "*New:* 1 — bert 1" in main
    assert re.search(r"the oldest since <https://[^|]*/actions/runs/\d+\|9 Nov 2025>", main)
    assert "|previous run #1202> of 9 Nov 2025" in main
    assert "Since the previous run" not in main
    assert re.findall(r"[🆕•] `[^`]*` · Single.*", text_of(thread.replies[0])) == [
        "🆕 `tests/a.py::test_new` · Single",
        "• `tests/a.py::test_old` · Single since 9 Nov 2025",
    ]


def test_only_known_failures_are_no_alarm(profile: Profile):
    failing = [("tests/a.py::test_old", "(line 1)  ValueError: x")]
    failures: Failures = {("models_bert", "single"): failing}
    assert verdict(thread_of(profile, failures, previous=earlier(failures))) == "🟡 Models: no new failures, 1 known"


@pytest.mark.parametrize(("why", "said"), [("", ""), ("run 7: <expired>", " (run 7: &lt;expired&gt;)")])
def test_without_an_earlier_run_nothing_is_called_new(profile: Profile, why: str, said: str):
    report = job_report(RUN, JOB, [report_of("models_bert", "single", [("t.py::test_a", "E")])], (), profile)
    thread = without_buttons(report, profile, why)
    assert verdict(thread) == "❌ Models: 1 failure"
    assert text_of(thread.main).splitlines()[4:] == [
        f"• *Compared with:* nothing, so new and known failures cannot be told apart{said}"
    ]


@pytest.mark.parametrize(
    ("failing", "said"), [([], "⚪ Models: no failures in what was seen"), ([("t.py::t", "E")], "❌ Models: 1 failure")]
)
def test_what_is_missing_is_in_the_first_line(profile: Profile, failing: list, said: str):
    missing = Problem(f"multi-gpu_{JOB}_models_bert_test_reports", "the artifact has expired")
    thread = thread_of(profile, {("models_bert", "single"): failing}, problems=[missing])
    assert verdict(thread) == f"{said} · ⚠️ incomplete: 1 of 2 reports missing"
    assert "the artifact has expired: bert (Multi)" in text_of(thread.main)


def test_an_answer_of_github_that_is_missing_is_said_too(profile: Profile):
    thread = thread_of(profile, {("models_bert", "single"): []}, problems=[Problem("jobs", "GitHub answered 403")])
    assert verdict(thread) == "⚪ Models: no failures in what was seen · ⚠️ incomplete"
    assert "⚠️ GitHub answered 403: jobs" in text_of(thread.main).splitlines()


@pytest.mark.parametrize(
    ("failing", "said"), [([], "⚪ Models: no failures in what was seen"), (["E"], "❌ Models: 1 failure")]
)
def test_a_killed_job_is_incomplete_whatever_its_report_names(profile: Profile, failing: list[str], said: str):
    killed = report_of("models_bert", "single", [("t.py::test_a", trace) for trace in failing])
    reports = [replace(killed, counts=None), report_of("models_vit", "single", [])]
    thread = messages(job_report(RUN, JOB, reports, (), profile, problems=[Problem("x", "killed")]), profile)
    assert verdict(thread) == f"{said} · ⚠️ incomplete: 1 of 2 reports missing"


@pytest.mark.parametrize(
    ("job", "entry", "problem", "name", "entry_name"),
    [
        ("run_trainer_and_fsdp_gpu", "trainer", Problem("fsdp", "?", matrix_entry="fsdp"), "Trainer & FSDP", "trainer"),
        ("run_kernels_gpu", "", Problem("multi-gpu_run_kernels_gpu_test_reports", "expired"), "Kernels", "Kernels"),
    ],
)
def test_what_left_no_report_is_missing_with_a_matrix_and_without(
    profile: Profile, job: str, entry: str, problem: Problem, name: str, entry_name: str
):
    report = report_of(entry, "single", [("t.py::test_a", "E")])
    report = replace(report, artifact=replace(report.artifact, test_job=job))
    thread = messages(job_report(RUN, job, [report], (), profile, problems=[problem], previous=earlier({})), profile)
    assert verdict(thread) == f"❌ {name}: 1 new failure · ⚠️ incomplete: 1 of 2 reports missing"
    assert thread.main.text == verdict(thread).replace("&", "&amp;")
    assert thread.replies[0].text == f"1 failure: {entry_name}"
    assert text_of(thread.replies[0]).splitlines()[0] == f"*{entry_name}* — 1 failure"
    assert f"• *New:* 1{' — trainer 1' if entry else ''}" in text_of(thread.main).splitlines()


def test_a_test_that_failed_and_whose_teardown_broke_too_is_one_failure(profile: Profile):
    report = report_of("models_bert", "single", [("t.py::test_a", "(line 1)  ValueError: a")])
    broken = TestOutcome("t.py::test_a", "error", trace="(line 2)  OSError: b")
    report = replace(report, outcomes=(*report.outcomes, broken), counts=Counts(failed=1, errors=1))
    thread = messages(job_report(RUN, JOB, [report], (), profile), profile)
    assert verdict(thread) == "❌ Models: 1 failure"
    assert "`(line 1) ValueError: a`" in text_of(thread.replies[0])


def test_failures_that_pytest_counts_but_nobody_names_are_failures(profile: Profile):
    report = replace(report_of("models_bert", "single", []), counts=Counts(passed=3, failed=2, errors=1))
    thread = messages(job_report(RUN, JOB, [report], (), profile), profile)
    assert verdict(thread) == "❌ Models: 3 failures"
    assert "*3 failures* counted by pytest, but not named" in text_of(thread.main)


def test_failures_without_a_name_may_be_new(profile: Profile):
    failures: Failures = {("models_bert", "single"): [("t.py::test_old", "E")]}
    report = replace(report_of("models_bert", "single", failures["models_bert", "single"]), counts=Counts(failed=2))
    thread = messages(job_report(RUN, JOB, [report], (), profile, previous=earlier(failures)), profile)
    assert verdict(thread) == "❌ Models: no new failures, 1 known, 1 not named in the reports"


def test_where_nothing_ran_nothing_passed(profile: Profile):
    report = replace(report_of("models_bert", "single", []), counts=Counts())
    thread = messages(job_report(RUN, JOB, [report], (), profile), profile)
    assert verdict(thread) == "⚪ Models: no test ran"
    assert "no test in 0s of tests" in text_of(thread.main).splitlines()


# --- whose failure is it --------------------------------------------------------------------------------------------


def test_the_reading_says_whether_it_is_the_change_the_device_or_the_infrastructure(profile: Profile):
    both = [("t.py::test_both", "(line 1)  AssertionError: a")]
    multi = [("t.py::test_nccl", "(line 3)  torch.OutOfMemoryError: CUDA out of memory."), ("t.py::test_m", "E: b")]
    thread = thread_of(
        profile.model_copy(update={"oncall": {"models_bert": "U012ABCDEF", JOB: "the CI team"}}),
        {("models_bert", "single"): both, ("models_bert", "multi"): both + multi},
        others=[earlier({("models_bert", "multi"): both + multi}, "Nvidia CI run", run_id=7, run_number=77)],
    )
    main = text_of(thread.main)
    assert "*Failing tests:* 1 on every device, 2 only on Multi" in main
    assert "*Infrastructure, probably:* 1 of 4 failures (1 out of memory)" in main
    assert "*Only here:* 1 of 4 failures, not in the <https://" in main
    assert "Nvidia CI run #77" in main
    assert "*Ask:* <@U012ABCDEF> (bert)" in main


def test_the_main_message_says_what_where_since_when_and_whose(profile: Profile):
    tests = "tests/models/bert/test_tokenization_bert.py::test"
    old, changed, new = ((f"{tests}_{name}", f"(line 1)  ValueError: {name}") for name in ("old", "changed", "new"))
    trainer = [("tests/trainer/test_trainer.py::test_a", "(line 4)  torch.OutOfMemoryError: CUDA out of memory.")]
    single, multi = ("models_`bert`", "single"), ("models_`bert`", "multi")
    failures: Failures = {single: [old, changed, new], multi: [old], ("trainer", "single"): trainer}
    before = failures | {single: [old, (changed[0], "(line 7)  KeyError: 7")]}
    previous = earlier(before)
    previous = replace(previous, since={(*multi, old[0]): (18000000001, NIGHT - timedelta(days=40))})
    others = [earlier(failures, "AMD CI run", run_id=7, run_number=0), earlier(before, "Nvidia CI run", run_id=8)]
    report = job_report(
        replace(RUN, title="Fix\n<it>", workflow_name="Self-hosted"),
        JOB,
        [report_of(*where, failing) for where, failing in failures.items()],
        (),
        profile,
        previous=previous,
        others=others,
        warnings=["deprecated"],
    )
    gone = [
        RunDiffRow(JOB, *single, f"t.py::{change}", change, previous.run.run_id)
        for change in ("fixed", "newly_skipped", "vanished", "vanished")
    ]
    oncall = {"`bert`": "S0123456789", JOB: "the <CI> team"}
    thread = messages(replace(report, diff=[*report.diff, *gone]), profile.model_copy(update={"oncall": oncall}))
    runs = "https://github.com/huggingface/transformers/actions/runs"
    commit = f"https://github.com/huggingface/transformers/commit/{RUN.head_sha}"
    assert text_of(thread.main).splitlines() == [
        "❌ Models: 1 new failure, 4 known",
        f"*<{runs}/19000000001|Daily CI #1203>*",
        f"<{commit}|31839d7> · main · Fix &lt;it&gt; · 10 Nov 2025",
        "300 passed, 5 failed in 3m 0s of tests",
        "• *New:* 1 — `bert` 1",
        f"• *Known:* 4, the oldest since <{runs}/18000000001|1 Oct 2025>; 1 of them fail in another way now",
        "• *Since the previous run:* 1 fixed, 1 newly skipped, 2 not run any more",
        "• *Failing tests:* 1 on every device, 2 only on Single",
        f"• *Not only here:* all fail in the <{runs}/7|AMD CI run 7> of 9 Nov 2025 too",
        f"• *Only here:* 1 of 5 failures, not in the <{runs}/8|Nvidia CI run #1202> of 9 Nov 2025",
        "• *Infrastructure, probably:* 1 of 5 failures (1 out of memory)",
        "• *Ask:* <!subteam^S0123456789> (`bert`), the &lt;CI&gt; team",
        f"• *Compared with:* <{runs}/18990000001|previous run #1202> of 9 Nov 2025",
        "• *Warnings:* 1",
        "```",
        "Single   Multi  Category",
        "     3       1  Tokenizers",
        "     1       ·  Trainer",
        "```",
        "```",
        "   New  Single   Multi  Most failures",
        "     1       3       1  ˋbertˋ",
        "     ·       1       ·  trainer",
        "```",
        "CI run",
    ]
    bert, other = map(text_of, thread.replies)
    assert bert.splitlines()[:2] == [
        "*`bert`* — 4 failures, 1 new · ask <!subteam^S0123456789>",
        f"🆕 `{new[0]}` · Single · only here",
    ]
    assert f"• `{old[0]}` · Single since 9 Nov 2025; Multi since 1 Oct 2025\n" in bert
    assert f"• `{changed[0]}` · Single since 9 Nov 2025 · another error than before\n" in bert
    assert other.splitlines()[0] == "*trainer* — 1 failure"


def test_a_table_shows_the_entries_with_most_failures(profile: Profile):
    names = [("t.py::test_a", "E: a"), ("t.py::test_b", "E: b")]
    failures: Failures = {(f"models_m{n:02}", ""): names[: 1 + (n == 14)] for n in range(15)}
    _, table = text_of(thread_of(profile, failures).main).split("```\n", 1)
    lines = ["   All  Most failures", "     2  m14", *(f"     1  m{n:02}" for n in range(11)), "… and 3 more", "```"]
    assert table.splitlines()[:15] == lines


def test_what_was_not_seen_is_cut_in_the_message_and_whole_in_the_file(profile: Profile):
    problems = [Problem(f"jobs {n}", f"GitHub answered {n}") for n in range(10)]
    problems += [Problem(f"page {n} of <1>", "GitHub answered 0") for n in range(9)]
    green: Failures = {("models_bert", "single"): []}
    thread = thread_of(profile, green, problems=problems)
    said = text_of(thread.main).splitlines()
    start = said.index("*Not seen, or only in part:*") + 1
    pages = ", ".join(f"page {n} of &lt;1&gt;" for n in range(7))
    assert said[start] == f"⚠️ GitHub answered 0: jobs 0, {pages} and 2 more"
    assert said[start + 7 : start + 9] == ["⚠️ GitHub answered 7: jobs 7", "… and 2 other reasons"]
    for cut, shown in ((problems[:10], problems[:8]), (problems[10:], problems[10:18])):
        assert thread_of(profile, green, problems=cut).files
        assert not thread_of(profile, green, problems=shown).files
    long = [Problem(f"{'x' * 100}{n}", f"{'y' * 199}{n % 8}") for n in range(32)]
    thread_of_long = thread_of(profile, green, problems=long)
    assert [len(block["text"]["text"]) < 2000 for block in thread_of_long.main.blocks[2:3]] == [True]
    assert (text_of(thread_of_long.main).splitlines()[-2], len(thread_of_long.files)) == ("…", 1)
    assert all(f"not seen: {problem.subject}: {problem.reason}\n" in thread.files[0].content for problem in problems)


def test_each_entry_links_its_jobs_and_the_report_its_places(profile: Profile):
    step = CiStep(f"Test suite reports artifacts: single-gpu_{JOB}_models_bert_test_reports", 5)
    job = CiJob(1, "bert", conclusion="failure", html_url="https://github.com/x/job/1", steps=(step,))
    links = Links(hub="https://hf.co/datasets/x", failures="javascript:alert(1)", page="https://hud.example/runs/1")
    thread = thread_of(profile, {("models_bert", "single"): [("t.py::t", "E")]}, links, jobs=[job])
    assert "<https://github.com/x/job/1|Single>" in text_of(thread.replies[0])
    buttons = {b["text"]["text"]: b["url"] for b in thread.main.blocks[-1]["elements"]}
    assert buttons == {"CI run": RUN.html_url, "HUD": links.page, "Result files": links.hub}


def test_the_links_of_a_machine_without_a_device_have_a_name_too(profile: Profile):
    places = {"unclassified": f"{RUN.html_url}/job/1"}
    report = report_of("models_bert", "", [("tests/a.py::test_a", "(line 1)  ValueError: x")])
    results: dict[str, JobResult] = {"models_bert": {"job_link": places, "captured_info": places}}
    thread = messages(JobReport(RUN, JOB, results, [report]), profile)
    assert f"<{RUN.html_url}/job/1|CI job>, <{RUN.html_url}/job/1|CI output>" in text_of(thread.replies[0])


@pytest.mark.parametrize(
    ("run", "name"),
    [(CiRun("a/b", 7), "CI run"), (CiRun("a/b", 7, workflow_name="Nightly", title="Nightly"), "Nightly")],
)
def test_of_a_run_only_what_is_known_is_said(profile: Profile, run: CiRun, name: str):
    report = job_report(run, JOB, [report_of("models_bert", "single", [])], (), profile)
    words = messages(report, profile).main.blocks[1]["elements"]
    assert [element["text"] for element in words] == [f"*{name}*", "100 passed in 1m 0s of tests"]


def test_a_workflow_has_its_own_name_also_where_the_profile_knows_only_its_file(profile: Profile):
    amd = next(workflow for workflow in profile.workflows if not workflow.id)
    run = CiRun("a/b", 7, workflow_id=5, workflow_path=amd.path, workflow_name="some caller")
    report = job_report(run, JOB, [report_of("models_bert", "single", [])], (), profile)
    assert messages(report, profile).main.blocks[1]["elements"][0]["text"] == f"*{amd.ci_event}*"


# --- the replies ----------------------------------------------------------------------------------------------------


def test_failures_are_grouped_by_cause_then_by_shared_error_then_by_entry(profile: Profile):
    net, two = "(line 4)  HfHubHTTPError: 429 Client Error: Too Many Requests", "(line 5)  AssertionError: two"
    failures: Failures = {
        (f"models_{entry}", "single"): [(f"{entry}.py::test_shared", f"(line {number})  KeyError: 'layer.{number}'")]
        for number, entry in enumerate("abc")
    }
    for entry in "ab":
        failures[f"models_{entry}", "single"] += [(f"{entry}.py::test_net", net), (f"{entry}.py::test_two", two)]
    profile = profile.model_copy(update={"oncall": {JOB: "the CI team"}})
    thread = thread_of(profile, failures)
    assert {reply.text: text_of(reply).splitlines() for reply in thread.replies} == {
        "3 failures: KeyError: 'layer.0'": [
            "`KeyError: 'layer.0'` — 3 failures in 3 entries",
            "*a*",
            "• `a.py::test_shared` · Single · line 0",
            "*b*",
            "• `b.py::test_shared` · Single · line 1",
            "*c*",
            "• `c.py::test_shared` · Single · line 2",
        ],
        "2 failures: too many requests": [
            "🏗 *Too many requests* — 2 failures in 2 entries · infrastructure, probably",
            "*a*",
            "• `a.py::test_net` · Single",
            "      `(line 4) HfHubHTTPError: 429 Client Error: Too Many Requests`",
            "*b*",
            "• `b.py::test_net` · Single",
            "      `(line 4) HfHubHTTPError: 429 Client Error: Too Many Requests`",
        ],
        **{
            f"1 failure: {entry}": [
                f"*{entry}* — 1 failure",
                f"• `{entry}.py::test_two` · Single",
                "      `(line 5) AssertionError: two`",
            ]
            for entry in "ab"
        },
    }
    assert [reply.text[0] for reply in thread.replies] == ["3", "2", "1", "1"]
    assert "KeyError: 'layer.2'" in thread.files[0].content


def test_an_error_that_is_everywhere_the_same_needs_no_file(profile: Profile):
    failing = [("t.py::test_a", "(line 1)  KeyError: 'layer.1'")]
    thread = thread_of(profile, {(f"models_{entry}", "single"): failing for entry in "abc"})
    assert ([reply.text for reply in thread.replies], thread.files) == (["3 failures: KeyError: 'layer.1'"], [])


def test_what_a_message_cuts_is_whole_in_the_file(profile: Profile):
    long, silent = ("t.py::test_long", f"(line 1)  E: {'x' * 300}"), (f"t.py::test_{'y' * 300}", "")
    failures: Failures = {("models_bert", "single"): [long, silent], ("models_bert", "multi"): [long]}
    thread = thread_of(profile, failures, previous=earlier({("models_bert", "single"): [long]}))
    assert text_of(thread.replies[0]).splitlines() == [
        "*bert* — 3 failures, 2 new",
        f"🆕 `t.py::test_{'y' * 288}…` · Single",
        "      `no trace in its report`",
        "🆕 `t.py::test_long` · Single since 9 Nov 2025; Multi",
        f"      `(line 1) E: {'x' * 286}…`",
    ]
    [file] = thread.files
    assert file.name == f"failures-{JOB}-19000000001.txt"
    assert file.content.splitlines() == [
        verdict(thread),
        RUN.html_url,
        "",
        "",
        "== bert: 3 failures",
        silent[0],
        "    Single: new failure: ",
        long[0],
        f"    Multi: new failure: {long[1]}",
        long[0],
        f"    Single: still failing since 9 Nov 2025: {long[1]}",
    ]


@pytest.mark.parametrize("cut", [0, 1])
def test_whatever_is_cut_there_is_a_file(profile: Profile, cut: int):
    failing = ("t.py::test_" + "y" * 290 * (1 - cut), "E: " + "x" * 300 * cut)
    assert thread_of(profile, {("models_bert", "single"): [failing]}).files


def test_a_test_that_fails_alike_on_two_devices_is_one_line(profile: Profile):
    failing = [("t.py::test_1", "(line 1)  ValueError: x")]
    thread = thread_of(profile, {("models_bert", "multi"): failing, ("models_bert", "single"): failing})
    assert "• `t.py::test_1` · Single, Multi\n      `(line 1) ValueError: x`" in text_of(thread.replies[0])


def test_what_people_call_their_tests_and_machines_pings_nobody(profile: Profile):
    profile = profile.model_copy(update={"oncall": {"`<!here>`": "<!channel>"}})
    hostile = "t.py::test[<!channel> <@U123> `x` & *b*]"
    failing = [(hostile, "(line 1)  E: <https://evil.test|click>"), ("t.py::test_b", "E")]
    failures: Failures = {("models_`<!here>`", "<!here>"): failing, ("models_`<!here>`", "single"): failing[:1]}
    thread = thread_of(
        profile,
        {**failures, ("models_bert", "single"): failing},
        problems=[Problem("<!here>", "<@U1>")],
        previous=earlier({}),
    )
    assert "`t.py::test[&lt;!channel&gt; &lt;@U123&gt; ˋxˋ &amp; *b*]`" in text_of(thread.replies[0])
    assert "1 only on &lt;!here&gt;" in text_of(thread.main)
    assert "     1        2  ˋ&lt;!here&gt;ˋ\n" in text_of(thread.main)
    for said in (thread.main, *thread.replies):
        assert "<" not in re.sub(r"<https://github.com/[^<>|]*\|[^<>]*>", "", said.text + text_of(said))


def _in_letters(number: int) -> str:
    """Errors that differ in numbers alone are taken for the same."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def big_run(entries: int, tests: int) -> Failures:
    return {
        (f"models_m{number}", device): [
            (f"tests/m{number}/test_modeling.py::T::test_{t}", f"(line {t})  {_in_letters(number)}: {device}")
            for t in range(tests)
        ]
        for number in range(entries)
        for device in ("single", "multi")
    }


@pytest.mark.parametrize(("entries", "tests"), [(350, 1), (350, 4), (1, 5000), (29, 1), (2000, 3)])
def test_however_much_fails_a_thread_is_short_and_nothing_is_lost(profile: Profile, entries: int, tests: int):
    failures = big_run(entries, tests)
    thread = thread_of(profile, failures)
    assert 1 + len(thread.replies) + len(thread.files) <= MESSAGES
    assert len({reply.key for reply in thread.replies}) == len(thread.replies)
    said = "\n".join(map(text_of, thread.replies)) + "".join(file.content for file in thread.files)
    for failing in failures.values():
        assert all(f"{node_id}" in said for node_id, _ in failing)
    for reply in thread.replies:
        more = re.findall(r"… and ([\d,]+) failures? more, in the attached file", text_of(reply))
        shown = len(re.findall("Single|Multi", text_of(reply)))
        counted, *others = (int(number.replace(",", "")) for number in [reply.text.split()[0], *more])
        assert counted == shown + sum(others)


@pytest.mark.slow
def test_at_slacks_pace_a_message_takes_a_second(profile: Profile, ledger: Ledger):
    with SlackServer(pace=1) as server:
        slack = SlackClient("xoxb-test", server.api_url)
        start = time.monotonic()
        deliver(thread_of(profile, big_run(7, 1)), RUN, JOB, "#ci", slack=slack, ledger=ledger)
        assert len(server.channel()) == 1 + 7
        assert (time.monotonic() - start) / len(server.channel()) < 40 / MESSAGES


texts = (
    st.text(max_size=30) | st.text("<>&`*_~|\n\\x000x ", max_size=4000) | st.sampled_from(["", "x" * 5000, "&" * 3000])
)
names = st.text(min_size=1, max_size=10) | st.sampled_from(["models_bert", "m" * 300, "<&>" * 90, ""])


@given(
    failures=st.dictionaries(
        st.tuples(names, st.sampled_from(["single", "multi", ""]) | names),
        st.lists(st.tuples(texts, texts), max_size=30),
        max_size=40,
    ),
    problems=st.lists(st.builds(Problem, texts, texts, names, st.just(JOB), names), max_size=20),
    run=st.builds(
        CiRun,
        st.just("a/b"),
        st.integers(1, 10**12),
        html_url=texts,
        title=texts,
        head_branch=texts,
        workflow_name=texts,
    ),
    url=texts.map("https://x.test/{}".format),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_slack_accepts_every_message(
    profile: Profile, failures: Failures, problems: list[Problem], run: CiRun, url: str
):
    reports = [report_of(entry, device, failing) for (entry, device), failing in failures.items()]
    previous = earlier(dict(list(failures.items())[::2]), label=url)
    report = job_report(run, JOB, reports, (), profile, problems=problems, previous=previous)
    thread = messages(report, profile, links=Links(url, url, url))
    for message in (thread.main, *thread.replies):
        assert refusal({"text": message.text, "blocks": list(message.blocks)}) == ""
    assert 1 + len(thread.replies) + len(thread.files) <= MESSAGES
    assert not (problems and verdict(thread).startswith("✅"))
