"""The recorded cases of the reporter that `ci-pipeline notify` replaces, where they are beside the checkout.

`docs/differences.md` says why a case ends in another way than it was recorded.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = ROOT.parent / "shared" / "conformance" / "run.py"

DIFFERS = {
    "errors are counted": {
        "errors_only", "kernels_daily", "models_daily", "models_single_only", "real_one_error", "stats_words",
    },
    "what is missing is said": {
        "all_jobs_killed", "github_jobs_rate_limited", "real_killed", "real_models_daily", "summary_short_missing",
    },
    "each test has its own name and trace": {
        "failed_inside_message", "ids_with_spaces", "real_pytest9_tb", "trace_shift",
    },
    "xfailed is not failed": {"stats_words_additional"},
    "tests outside of tests/ are new failures too": {"classification", "examples_daily"},
    "text is escaped": {
        "markup_characters", "models_all_failures", "models_push_pr_title", "prev_all_known", "setup_failed_title",
        "trainer_fsdp_daily",
    },
    "the diff of all results is JSON": {"amd_models_scheduled", "amd_no_diff"},
    "changed models are shown": {"prev_model_tables"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not RUN.exists(), reason="the recorded cases are not beside the checkout")
def test_every_recorded_case_ends_as_recorded_or_better() -> None:
    command = [str(Path(sys.executable).with_name("ci-pipeline")), "notify"]
    done = subprocess.run(
        [sys.executable, str(RUN), "--", *command], capture_output=True, text=True, check=True, timeout=880
    )
    ends = dict(reversed(found) for found in re.findall(r"^(\w+) +(\w+)$", done.stdout, re.MULTILINE))
    assert len(ends) > 50, done.stdout
    allowed = {name for names in DIFFERS.values() for name in names}
    assert {name for name, end in ends.items() if end == "differs"} <= allowed, done.stdout
    assert set(ends.values()) <= {"same", "differs", "survived"}, done.stdout
