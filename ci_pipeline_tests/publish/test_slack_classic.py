from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from slack_sdk.models.blocks import Block

from ci_pipeline.model import CiRun, EarlierRun, JobReport, JobResult, Problem, RunDiffRow
from ci_pipeline.profile import load_profile
from ci_pipeline.publish.slack_classic import (
    HEADER_LIMIT,
    SECTION_LIMIT,
    ClassicReport,
    Table,
    classic_report,
    entries_that_fit,
    error_message,
    failure_entry,
    header,
    prepare_reports,
    section,
)
from ci_pipeline.publish.thread import SlackMessage

PROFILE = load_profile("transformers")
RUN = CiRun("huggingface/transformers", 2, run_number=7, event="schedule")
RUN_URL = "https://github.com/huggingface/transformers/actions/runs/2"
BERT = "tests/models/bert/test_modeling_bert.py::BertModelTest"


def result(**changed: Any) -> JobResult:
    """A job result in which nothing failed."""
    zero = {"unclassified": 0, "single": 0, "multi": 0}
    made: dict[str, Any] = {
        "failed": {category: dict(zero) for category in PROFILE.categories},
        "errors": 0,
        "success": 10,
        "skipped": 1,
        "time_spent": [61.5],
        "error": False,
        "failures": {},
        "job_link": {},
        "captured_info": {},
    }
    failed = changed.pop("failed", {})
    for category, counts in failed.items():
        made["failed"][category] |= counts
    return made | changed  # pyright: ignore[reportReturnType]


def report(results: dict[str, JobResult], test_job: str = "run_models_gpu", **more: Any) -> ClassicReport:
    return classic_report(JobReport(RUN, test_job, results, **more), PROFILE, title="[INFO] Results", run_url=RUN_URL)


def texts(message: SlackMessage) -> list[str]:
    return [block["text"]["text"] for block in message.blocks]


def check_limits(message: SlackMessage) -> None:
    assert 0 < len(message.blocks) <= 50
    for block in message.blocks:
        limit = HEADER_LIMIT if block["type"] == "header" else SECTION_LIMIT
        assert 0 < len(block["text"]["text"]) <= limit
        parsed = Block.parse(dict(block))
        assert parsed
        parsed.validate_json()


# --- text that fits


def test_entries_that_fit_are_shown_whole() -> None:
    assert entries_that_fit(["a\n", "b\n"], "head\n", "tail") == "head\na\nb\ntail"


def test_what_does_not_fit_is_announced() -> None:
    assert entries_that_fit(["aaaa", "bbbb", "cccc"], limit=9) == "aaaabbbb[Truncated]"
    assert entries_that_fit(["aaaa", "bbbb"], "1", "2", limit=10) == "1aaaabbbb2"
    assert entries_that_fit(["aaaa", "bbbb"], "1", "2", limit=9) == "1aaaa2[Truncated]"


def test_of_a_first_entry_that_does_not_fit_the_beginning_is_shown() -> None:
    assert entries_that_fit(["abcdefgh"], limit=5) == "abcd…[Truncated]"


@given(st.lists(st.text(max_size=4000)), st.text(max_size=300))
def test_entries_never_exceed_a_section(entries: list[str], before: str) -> None:
    text = entries_that_fit(entries, before)
    assert len(text) <= SECTION_LIMIT
    assert text.startswith(before)
    assert ("[Truncated]" in text) >= (len(before + "".join(entries)) > SECTION_LIMIT)
    if entries:
        assert text.removeprefix(before).startswith(entries[0][:1000])


@given(st.text(), st.text())
def test_a_failure_is_never_too_long_to_be_shown_and_its_markup_is_closed(node_id: str, trace: str) -> None:
    entry = failure_entry(node_id * 200, trace * 200)
    assert entries_that_fit([entry]) == entry
    assert entry.startswith("*")
    assert entry.endswith("_\n\n")


def test_a_header_is_cut_at_150_characters_and_a_section_at_3000() -> None:
    assert len(header("x" * 500)["text"]["text"]) == HEADER_LIMIT
    assert len(section("x" * 5000)["text"]["text"]) == SECTION_LIMIT


def test_a_table_is_escaped_for_slack_and_as_it_is_in_a_file() -> None:
    table = Table("T & U", "n | Category\n", ["1 | <a>"])
    assert table.text() == "T &amp; U:\n```\nn | Category\n1 | &lt;a&gt;\n```\n"
    assert table.text(to_truncate=False) == "T & U:\n```\nn | Category\n1 | <a>\n```\n"


def test_a_table_that_is_too_long_is_closed_before_it_says_so() -> None:
    text = prepare_reports("Title", "Single | Name\n", [f"     1 | {'n' * 100}{i}" for i in range(60)])
    assert len(text) <= SECTION_LIMIT
    assert text.endswith("```\n[Truncated]")
    assert prepare_reports("Title", "h\n", ["r"] * 5000, to_truncate=False).count("r\n") == 5000


# --- the main message


def test_when_everything_passed_the_report_says_so() -> None:
    main = report({"models_bert": result(), "trainer": result(time_spent=[7200.0, 61.5])}).main()
    assert main.text == "All tests passed."
    passed = "[SUCCESS] There were no failures: all 20 tests passed. The suite ran in 2h2m3s."
    button = {"type": "plain_text", "text": "Check Action results", "emoji": True}
    assert main.blocks == [
        {"type": "header", "text": {"type": "plain_text", "text": "[INFO] Results"}},
        {
            "type": "section",
            "text": {"type": "plain_text", "text": passed, "emoji": True},
            "accessory": {"type": "button", "text": button, "url": RUN_URL},
        },
    ]


def test_failures_are_counted_by_category_model_and_module() -> None:
    results = {
        "models_bert": result(failed={"PyTorch": {"single": 2}, "Tokenizers": {"multi": 1}}),
        "models_aria": result(failed={"PyTorch": {"multi": 12}}),
        "trainer": result(failed={"Trainer": {"single": 1, "multi": 1}}),
    }
    main = report(results).main()
    assert main.text == "17 failures out of 47 tests,"
    assert texts(main)[1:] == [
        "There were 17 failures, out of 47 tests.\n"
        "[ERROR] There were 0 jobs errored out (not producing test output files).\nThe suite ran in 0h3m4s.",
        "The following categories had failures:\n```\n"
        "Single |  Multi | Category\n"
        "     2 |     12 | PyTorch\n     0 |      1 | Tokenizers\n     1 |      1 | Trainer\n```\n",
        "These following model modules had failures:\n```\n"
        "Single PT |  Multi PT |     Other | Category\n"
        "        0 |        12 |         0 | aria\n        2 |         0 |         1 | bert\n```\n",
        "The following model modules had failures:\n```\nSingle |  Multi | Category\n     1 |      1 | trainer\n```\n",
    ]
    check_limits(main)


def test_devices_that_the_profile_does_not_know_have_columns_of_their_own() -> None:
    main = report({"models_bert": result(failed={"PyTorch": {"mi_355": 3, "a10": 1, "mi_300": 2}})}).main()
    assert (
        "Single |  Multi |    A10 | Mi 300 | Mi 355 | Category\n     0 |      0 |      1 |      2 |      3 |"
        in (texts(main)[2])
    )


def test_a_matrix_whose_report_does_not_tell_categories_apart_has_one_column_per_device() -> None:
    failing = result(failed={"Quantization": {"single": 1}})
    main = report({"quantization_bnb": failing}, "run_quantization_torch_gpu").main()
    assert texts(main)[2:] == [
        "These following quantization modules had failures:\n```\n"
        "Single |  Multi | Category\n     1 |      0 | bnb\n```\n"
    ]


def test_an_artifact_that_names_no_folder_is_shown_by_the_name_of_its_test() -> None:
    failures: Any = {"unclassified": [{"line": "a", "trace": "b"}]}
    thread = report({"": result(failed={"PyTorch": {"unclassified": 1}}, failures=failures)}).thread()
    assert texts(thread.main)[-1].endswith(" | Models\n```\n")
    assert texts(thread.replies[0])[0] == "MODELS"


def test_the_name_of_a_device_pings_nobody() -> None:
    main = report({"models_bert": result(failed={"PyTorch": {"<!here>": 1}})}).main()
    assert "&lt;!here&gt; | Category" in texts(main)[2]
    assert "<" not in "".join(texts(main))


def test_only_the_prefix_of_a_folder_name_is_removed() -> None:
    main = report({"models_my_models_x": result(failed={"PyTorch": {"single": 1}})}).main()
    assert "| my_models_x\n" in texts(main)[3]


def test_the_rows_of_a_table_are_sorted_and_two_entries_with_the_same_name_are_two() -> None:
    failing = result(failed={"PyTorch": {"single": 1}})
    table = report({"models_bert": failing, "models_zoe": failing, "bert": failing, "models_aria": failing}).model_table
    assert [row.rpartition(" ")[2] for row in table.rows] == ["aria", "bert", "bert", "zoe"]


def test_errors_are_counted_and_listed_and_never_a_success() -> None:
    results = {
        "models_bert": result(errors=2, success=0, failures={"single": [{"line": f"{BERT}::t", "trace": "OSError"}]})
    }
    classic = report(results)
    assert not classic.passed
    assert classic.main().text == "0 failures and 2 errors out of 2 tests,"
    (reply,) = classic.replies()
    assert texts(reply) == ["MODELS_BERT (SINGLE-GPU)", "*Errors*: 1", f"*{BERT}::t*\n_OSError_\n\n"]
    assert report({"models_bert": result(errors=1, success=0)}).text == "0 failures and 1 error out of 1 tests,"
    assert not report({"models_bert": result(error=True)}).passed


def test_a_killed_job_makes_the_report_incomplete() -> None:
    killed = [
        Problem("a", "the job was killed", "single", "run_models_gpu", "models_bert"),
        Problem("b", "the job was killed", "multi", "run_models_gpu", "models_bert"),
        Problem("c", "the job was killed", "multi", "run_models_gpu", "models_vit"),
        Problem("job links could not be read", "403 rate limit"),
    ]
    main = report({"models_bert": result(error=True, success=0, time_spent=[])}, problems=killed).main()
    assert main.text == "Incomplete: 0 failures out of 0 tests,"
    (summary,) = texts(main)[1:]
    assert summary.splitlines() == [
        "[INCOMPLETE] models_bert (single, multi), models_vit (multi): the job was killed",
        "[INCOMPLETE] job links could not be read: 403 rate limit",
        "There were 0 failures, out of 0 tests.",
        "[ERROR] There were 1 jobs errored out (not producing test output files).",
        "The suite ran in 0h0m0s.",
    ]


def test_a_thousand_killed_jobs_leave_room_for_the_totals() -> None:
    killed = [Problem(f"{i}", "killed", "single", "run_models_gpu", f"models_{'x' * 40}{i}") for i in range(1000)]
    main = report({"models_bert": result()}, problems=killed).main()
    check_limits(main)
    assert "out of 10 tests" in texts(main)[1]
    assert texts(main)[1].endswith("The suite ran in 0h1m1s.")


def test_a_job_without_a_matrix_is_reported_under_the_name_of_its_test() -> None:
    flat: JobResult = {"failed": {"single": 2, "multi": 0}, "success": 3, "error": True, "time_spent": [1.0]}
    failures = {"single": [{"line": "tests/kernels/test_k.py::t", "trace": "(line 1)  E: x"}]}
    classic = report({"run_kernels_gpu": {**flat, "failures": failures}}, "run_kernels_gpu")  # pyright: ignore
    assert texts(classic.main())[2] == (
        "The following non-modeling tests had failures:\n```\n"
        "Single |  Multi | Category\n     2 |      0 | [Errored out] Kernels\n```\n"
    )
    (reply,) = classic.replies()
    assert reply.text == "Results for Kernels"
    assert texts(reply)[:2] == ["KERNELS (SINGLE-GPU)", "Number of failures: 2"]
    green: dict[str, JobResult] = {"run_kernels_gpu": {"failed": {"single": 0}, "success": 3}}
    assert len(report(green, "run_kernels_gpu").main().blocks) == 2
    expired = Problem("multi-gpu_run_kernels_gpu_test_reports", "expired", "multi", "run_kernels_gpu")
    incomplete = texts(report(green, "run_kernels_gpu", problems=[expired]).main())[1]
    assert incomplete.startswith("[INCOMPLETE] Kernels (multi): expired\n")


def test_warnings_of_the_highlighted_package_are_counted_apart() -> None:
    classic = report({"models_bert": result()}, warnings=["x huggingface_hub y", "torch", "numpy"])
    block = classic.main().blocks[2]
    assert block["text"]["text"] == "There are 3 warnings being selected.\n1 of them are from `huggingface_hub`."
    assert block["accessory"]["text"]["text"] == "Check warnings (Link not found)"
    found = replace(classic, warnings_url="https://github.com/w").main().blocks[2]["accessory"]
    assert (found["text"]["text"], found["url"]) == ("Check warnings", "https://github.com/w")


# --- comparisons


def compared(*rows: RunDiffRow, **more: Any) -> ClassicReport:
    links = {"single": f"{RUN_URL}/job/1", "multi": f"{RUN_URL}/job/2"}
    results = {"models_bert": result(failed={"PyTorch": {"single": 1, "multi": 1}}, job_link=links)}
    previous = EarlierRun(CiRun("huggingface/transformers", 1), "previous run", {})
    other = EarlierRun(CiRun("huggingface/transformers", 9), "Nvidia CI run", {})
    job = JobReport(RUN, "run_models_gpu", results, previous=previous, others=[other], diff=rows)
    return classic_report(job, PROFILE, run_url=RUN_URL, **more)


def on_hub(name: str) -> str:
    return f"https://hub/{name}"


def row(device: str, test: str, change: Any = "new_failure", run_id: int = 1) -> RunDiffRow:
    return RunDiffRow("run_models_gpu", "models_bert", device, f"{BERT}::{test}", change, run_id)


def test_new_failures_are_listed_once_with_the_jobs_they_fail_in() -> None:
    main = compared(row("multi", "a"), row("single", "a"), row("single", "<b>"), row("single", "old", "still_failing"))
    blocks = main.main(on_hub).blocks[-2:]
    assert blocks[0]["text"]["text"] == (
        "*There are 3 new failed tests*\n\n(compared to previous run: "
        "<https://github.com/huggingface/transformers/actions/runs/1|1>)"
    )
    assert blocks[0]["accessory"] == {
        "type": "button",
        "text": {"type": "plain_text", "text": "Check new failures"},
        "url": "https://hub/new_failures.json",
    }
    assert blocks[1]["text"]["text"] == (
        f"<{RUN_URL}/job/1|single>|<{RUN_URL}/job/2|multi> gpu\n{BERT}::a\n\n"
        f"<{RUN_URL}/job/1|single> gpu\n{BERT}::&lt;b&gt;\n\n"
    )


def test_failures_that_another_vendor_does_not_have_are_counted() -> None:
    block = compared(row("single", "a", "unique_failure", 9)).main(on_hub).blocks[-1]
    assert block["text"]["text"].startswith(
        "*There are 1 failed tests unique to this run*\n\n(compared to Nvidia CI run:"
    )
    assert block["accessory"]["url"] == "https://hub/new_failures_against_9.json"


def test_without_new_failures_nothing_is_said_about_them() -> None:
    assert len(compared(row("single", "a", "still_failing")).main().blocks) == len(compared().main().blocks) == 4


@pytest.mark.parametrize("url", ["", f"https://hub/{'x' * 3000}"])
def test_a_file_that_is_not_on_the_hub_has_no_button(url: str) -> None:
    classic = compared(row("single", "a"))
    assert classic.new_failures
    block = classic.main(lambda name: url).blocks[-2]
    assert "accessory" not in block


def test_a_run_that_cannot_be_compared_is_said_to_be_so() -> None:
    why = {"New failures": "previous run: the artifact has <expired>"}
    said = "*New failures are not known*\n\n(previous run: the artifact has &lt;expired&gt;)"
    assert texts(compared(not_compared=why).main())[-1] == said
    assert texts(replace(report({"models_bert": result(errors=1)}), not_compared=why).main())[-1] == said
    assert said not in texts(replace(report({"models_bert": result()}), not_compared=why).main())


def test_a_run_that_differs_from_a_hundred_others_fits_a_message() -> None:
    classic = compared(row("single", "a", "unique_failure", 9))
    check_limits(replace(classic, title="Results", unique_failures=[*classic.unique_failures] * 100).main())


def test_models_with_more_failures_than_before_are_shown() -> None:
    before = (
        "Title:\n```\nSingle PT |  Multi PT |     Other | Category\n        0 |         1 |         0 | bert\n```\n"
    )
    assert texts(compared(previous_model_table=before).main())[-1] == before.replace(
        "Title", "Changed model modules failures"
    ).replace("        0 |         1 |         0 | bert", "        1 |         1 |         0 | bert (+1)")
    same = before.replace("        0 |         1", "        1 |         1")
    unchanged = compared(previous_model_table=same).changed_models
    assert unchanged
    assert unchanged.rows == []
    assert compared(previous_model_table="").changed_models is None


@given(st.text(st.sampled_from("1²³٣ |\nbert-")))
@example("² | ³ | bert")
@example(f"{'9' * 5000} | bert")
def test_whatever_the_previous_table_holds_the_report_is_made(previous: str) -> None:
    compared(previous_model_table=previous).main()


# --- replies


@given(
    st.dictionaries(
        st.sampled_from(["single", "multi", "unclassified", "mi355"]),
        st.lists(st.fixed_dictionaries({"line": st.text(max_size=3000), "trace": st.text(max_size=9000)})),
    ),
    st.text(min_size=1, max_size=400),
)
def test_every_message_keeps_slacks_limits(failures: Any, name: str) -> None:
    failed = {"PyTorch": {device: len(listed) for device, listed in failures.items()}}
    classic = report({name: result(failures=failures, failed=failed)})
    for message in [classic.main(), *classic.replies()]:
        check_limits(message)
    assert len(list(classic.replies())) == sum(bool(listed) for listed in failures.values())


def test_a_reply_counts_by_category_and_links_its_job() -> None:
    failures = {"multi": [{"line": f"{BERT}::a&b", "trace": "(line 3)  E: <x>"}]}
    failed = {"PyTorch": {"multi": 1}, "Trainer": {"multi": 3}, "Auto": {"multi": 2, "single": 5}}
    (reply,) = report(
        {"models_bert": result(failures=failures, failed=failed, job_link={"multi": "https://github.com/j"})}
    ).replies()
    assert texts(reply) == [
        "MODELS_BERT (MULTI-GPU)",
        "*Auto*: 2\n*PyTorch*: 1\n*Trainer*: 3",
        f"*{BERT}::a&amp;b*\n_(line 3)  E: &lt;x&gt;_\n\n",
    ]
    assert reply.blocks[1]["accessory"]["url"] == "https://github.com/j"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ({}, "[FAIL] There was an issue running the tests."),
        ({"setup_failed": True}, "[FAIL] Setup job failed. Tests are not run."),
        ({"runner_failed": True}, "[FAIL] CI runners have problems! Tests are not run."),
        ({"runner_not_available": True}, "[FAIL] CI runners are not available! Tests are not run."),
    ],
)
def test_when_tests_did_not_run_the_message_says_why(reason: dict[str, bool], text: str) -> None:
    message = error_message("[INFO] Results", "title", RUN_URL, **reason)
    assert texts(message) == ["[INFO] Results", "title", text, "Let's fix it ASAP!"]
    check_limits(message)
