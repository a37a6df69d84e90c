import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.model import CiRun, CiStep
from ci_pipeline.sources.github_json import jobs_from, run_from, run_payload, time_from

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
RUN_FIELDS = ["run_attempt", "name", "path", "status", "head_sha", "created_at", "updated_at", "repository", "event"]
JOB_FIELDS = ["id", "name", "status", "conclusion", "html_url", "started_at", "completed_at", "steps"]


def test_a_run_is_read_with_all_its_fields():
    run = run_from(
        {
            "id": 19000000001,
            "run_attempt": 2,
            "run_number": 1203,
            "workflow_id": 90575235,
            "name": "Nvidia CI",
            "path": ".github/workflows/self-scheduled-caller.yml@refs/heads/main",
            "event": "schedule",
            "status": "completed",
            "conclusion": "failure",
            "head_sha": "31839d74",
            "head_branch": "main",
            "display_title": "Nightly",
            "html_url": "https://github.com/o/r/actions/runs/19000000001",
            "created_at": "2025-11-10T02:17:43Z",
            "updated_at": "2025-11-10T05:00:00+02:00",
            "repository": {"full_name": "o/r"},
        }
    )
    assert run == CiRun(
        repository="o/r",
        run_id=19000000001,
        run_attempt=2,
        run_number=1203,
        workflow_id=90575235,
        workflow_name="Nvidia CI",
        workflow_path=".github/workflows/self-scheduled-caller.yml",
        event="schedule",
        status="completed",
        conclusion="failure",
        head_sha="31839d74",
        head_branch="main",
        title="Nightly",
        html_url="https://github.com/o/r/actions/runs/19000000001",
        created_at=datetime(2025, 11, 10, 2, 17, 43, tzinfo=UTC),
        updated_at=datetime(2025, 11, 10, 3, 0, tzinfo=UTC),
    )
    assert run_from(json.loads(json.dumps(run_payload(run)))) == run


def test_jobs_are_read_from_an_object_and_from_a_list():
    jobs = [{"id": 5, "name": "Model CI", "steps": [{"name": "Run", "number": 3, "conclusion": "cancelled"}]}]
    assert jobs_from(jobs) == jobs_from({"total_count": 1, "jobs": jobs})
    assert jobs_from(jobs)[0].steps == (CiStep("Run", 3, "cancelled"),)


@pytest.mark.parametrize("payload", [None, [], {}, {"id": None}, {"id": "x"}, {"id": True}, {"id": -1}])
def test_a_run_without_an_id_is_no_run(payload):
    with pytest.raises(ValueError, match="without an id"):
        run_from(payload)


@pytest.mark.parametrize("value", [None, True, -1, "²", "9" * 5000, float("inf"), float("nan"), 2**63, [7]], ids=repr)
def test_a_number_that_is_none_is_0(value):
    assert run_from({"id": 1, "run_number": value}).run_number == 0


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", "", "yesterday", None, 5, "9999-12-31T23:59:59-12:00"])
def test_a_time_that_is_none_is_none(text):
    assert time_from(text) is None


@given(st.fixed_dictionaries({"id": st.integers(1, 2**62)}, optional=dict.fromkeys(RUN_FIELDS, anything)))
def test_any_field_of_a_run_may_be_of_any_kind(payload):
    run = run_from(payload, repository="o/r")
    assert run.run_id == payload["id"]
    assert run.run_attempt >= 1
    assert run_from(run_payload(run), repository="o/r") == run


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(JOB_FIELDS, anything)), max_size=3) | anything)
def test_any_field_of_a_job_may_be_of_any_kind(payload):
    jobs = jobs_from(payload)
    assert all(isinstance(job.name, str) and job.id >= 0 for job in jobs)
