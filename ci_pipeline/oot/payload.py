"""The bodies of callbacks and results: checked, cut to size, and refused with the name of the field that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    field_validator,
)

from ci_pipeline.oot import Refused

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_FAILED_TESTS = 1_000
SELF_REPORTS = frozenset(("nightly", "periodic"))
"""Event types of jobs that nobody dispatched: one `completed` callback and no other."""

Conclusion = Literal["success", "failure", "cancelled", "timed_out", "skipped", "neutral", "action_required", "stale"]
_CONCLUSIONS = list(get_args(Conclusion))


def cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, the cut marked within them."""
    data = text.encode()
    if len(data) <= limit:
        return text
    mark = f" … [cut, {len(data)} bytes]"
    return data[: limit - len(mark.encode())].decode(errors="ignore") + mark


def _none_as_empty(value: Any) -> Any:
    return "" if value is None else value


# What is absent, null and "" is the same to clients that are shell scripts, and so are 1 and "1". The schemas say what
# is accepted, for those who read the API's description or test by it.
_Optional = BeforeValidator(_none_as_empty)
_STRING = {"type": ["string", "number"]}
_TEXT = {"type": ["string", "number", "null"]}


def _cut_at(limit: int) -> tuple[BeforeValidator, AfterValidator, WithJsonSchema]:
    return _Optional, AfterValidator(lambda text: cut(text, limit)), WithJsonSchema(_TEXT)


# What identifies a job becomes a part of its key: all of it stays below the 2,048 bytes of a DynamoDB key.
_ID = r"^[!-.0-~]([ -.0-~]{0,126}[!-.0-~])?$"
_ID_MOST = 10**18
_NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$"
_NAME_BYTES = 700


def _id_of_number(value: Any) -> Any:
    return str(int(value)) if type(value) in (int, float) and 0 <= value < _ID_MOST and value == int(value) else value


def _id(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if not re.fullmatch(_ID, text):
        raise ValueError("must be at most 128 characters of ASCII, without / and without blanks around them")
    return text


def check_delivery_id(delivery_id: str) -> None:
    """
    Raises:
        Refused: no callback could name this delivery (400).
    """
    try:
        _id(delivery_id)
    except ValueError as error:
        raise Refused(400, f"the delivery's id {error}") from None


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if len(text.encode()) > _NAME_BYTES:
        raise ValueError(f"must have at most {_NAME_BYTES} bytes")
    if not re.fullmatch(_NAME, text):
        raise ValueError("must have no control characters")
    return text


def _address(*schemes: str) -> tuple[BeforeValidator, AfterValidator, WithJsonSchema]:
    rest = r"://[\w.-]+(:[0-9]+)?([/?#][^\s\x00-\x1f\x7f\"'<>\\]*)?"
    pattern = f"^(({'|'.join(schemes)}){rest})?$"

    def check(url: str) -> str:
        if not re.fullmatch(pattern, url, re.ASCII):
            raise ValueError(f"must be an {' or '.join(schemes)} address")
        return url

    schema = {"anyOf": [{"type": "string", "pattern": pattern, "maxLength": 2048}, {"type": "null"}]}
    return _Optional, AfterValidator(check), WithJsonSchema(schema)


# ISO 8601. Python takes more forms, and 29 February.
_DAY = r"((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]0[0-9]:[0-5][0-9])?"
_TIME = f"^(19[89][0-9]|20[0-9][0-9])-{_DAY}T{_CLOCK}$"


def _time(text: str) -> str:
    try:
        if text and not 0 <= instant(text).timestamp() < 2**32:  # ClickHouse's DateTime, until 2106
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time from 1970 to 2105") from None
    return text


def instant(text: str) -> datetime:
    """An ISO 8601 time; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63  # SQLite's integers
    return value if usable else None


def count(value: Any) -> int | None:
    """A number of tests as sent, or None for what is none."""
    number = _number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def _without_nan(value: Any) -> Any:
    json.dumps(value, allow_nan=False)  # raises ValueError
    return value


def _attempt(value: Any) -> int:
    try:
        attempt = int(value)
    except (TypeError, ValueError, OverflowError):
        return 1
    return attempt if 1 <= attempt < 2**32 else 1


def _pr_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return 0 if value is None else value


_MOST = 2**53  # what JSON carries exactly
_PR_NUMBER = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "exclusiveMaximum": _MOST},
        {"type": "string", "pattern": "^[0-9]{1,18}$"},
        {"type": "null"},
    ]
}

_NOTHING = {"enum": ["", None]}
_ANY_ID = [{"type": "string", "pattern": _ID}, {"type": "integer", "minimum": 0, "exclusiveMaximum": _ID_MOST}]
_ANY_NAME = {**_STRING, "pattern": _NAME, "maxLength": _NAME_BYTES}
_IdOf = Annotated[str, Field(coerce_numbers_to_str=False), BeforeValidator(_id_of_number)]
_Id = Annotated[_IdOf, AfterValidator(_id), WithJsonSchema({"anyOf": _ANY_ID})]
_OptionalId = Annotated[
    _IdOf,
    _Optional,
    AfterValidator(lambda text: text and _id(text)),
    WithJsonSchema({"anyOf": [*_ANY_ID, _NOTHING]}),
]
_Name = Annotated[str, AfterValidator(_name), WithJsonSchema(_ANY_NAME)]
_OptionalName = Annotated[
    str,
    _Optional,
    AfterValidator(lambda text: text and _name(text)),
    WithJsonSchema({"anyOf": [_ANY_NAME, _NOTHING]}),
]
_Text = Annotated[str, Field(max_length=500), _Optional, WithJsonSchema({**_TEXT, "maxLength": 500})]
_Time = Annotated[
    str,
    _Optional,
    AfterValidator(_time),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": _TIME}, _NOTHING]}),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)


class FailedTest(_Part):
    name: Annotated[str, *_cut_at(1024)] = ""
    file: Annotated[str, *_cut_at(1024)] = ""
    message: Annotated[str, *_cut_at(1024)] = ""
    stacktrace: Annotated[str, *_cut_at(4096)] = ""
    duration_seconds: Annotated[float | None, BeforeValidator(_number), WithJsonSchema({})] = None


def _first(tests: Any, validate: Callable[[Any], Any]) -> Any:
    """Only those that are kept are looked at: two megabytes of others are counted, and keep nobody waiting."""
    if not isinstance(tests, list):
        return validate(tests)
    return [*validate(tests[:MAX_FAILED_TESTS]), *tests[MAX_FAILED_TESTS:]]


class Workflow(_Part):
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"status": {"const": "in_progress"}}},
                {"properties": {"conclusion": {"enum": _CONCLUSIONS}}, "required": ["conclusion"]},
            ]
        }
    )

    status: Literal["in_progress", "completed"]
    conclusion: Annotated[
        Conclusion | None,
        BeforeValidator(lambda value: None if value == "" else value),
        Field(validate_default=True),
        WithJsonSchema({"enum": [*_CONCLUSIONS, "", None]}),
    ] = None
    name: _OptionalName = ""
    job_name: _Name
    check_run_id: _Id
    run_id: _OptionalId = ""
    run_attempt: Annotated[int, BeforeValidator(_attempt), WithJsonSchema({"description": "1 if not a number"})] = 1
    url: Annotated[str, Field(max_length=2048), *_address("https", "http")] = ""
    started_at: _Time = ""
    completed_at: _Time = ""
    test_results: dict[str, Any] | None = None
    failed_tests: Annotated[list[FailedTest] | None, WrapValidator(_first)] = None
    artifact_url: Annotated[str, Field(max_length=2048), *_address("https")] = ""
    environment: Annotated[dict[str, Any] | None, AfterValidator(_without_nan)] = None

    @field_validator("conclusion")
    @classmethod
    def _concluded(cls, conclusion: Conclusion | None, info: Any) -> Conclusion | None:
        if conclusion is None and info.data.get("status") == "completed":
            raise ValueError("is required when workflow.status is completed")
        return conclusion


class Head(_Part):
    sha: _Text = ""


class User(_Part):
    login: Annotated[str, *_cut_at(100)] = ""


class PullRequest(_Part):
    number: Annotated[int, Field(ge=0, lt=_MOST), BeforeValidator(_pr_number), WithJsonSchema(_PR_NUMBER)] = 0
    head: Head | None = None
    user: User | None = None


class Repository(_Part):
    full_name: _Text = ""


class Payload(_Part):
    pull_request: PullRequest | None = None
    repository: Repository | None = None
    head_sha: _Text = ""

    @property
    def pr_number(self) -> int | None:
        return (self.pull_request.number if self.pull_request else 0) or None

    @property
    def pr_author(self) -> str:
        user = self.pull_request.user if self.pull_request else None
        return user.login if user else ""

    @property
    def stated_sha(self) -> str:
        head = self.pull_request.head if self.pull_request else None
        return (head.sha if head else "") or self.head_sha


class Callback(_Part):
    """What a downstream job sends. Fields that are not here stay out of the record."""

    event_type: _Text = ""
    delivery_id: _Id
    payload: Payload | None = None
    callback_token: Annotated[str, _Optional, WithJsonSchema(_TEXT)] = ""
    workflow: Workflow

    @property
    def about(self) -> Payload:
        return self.payload or Payload()

    @property
    def self_report(self) -> bool:
        return self.event_type in SELF_REPORTS


_Seconds = Annotated[float | None, Field(strict=True), AfterValidator(lambda seconds: seconds and max(0.0, seconds))]


class CiMetrics(_Part):
    queue_time: _Seconds = None
    execution_time: _Seconds = None


class Trusted(_Part):
    """What the relay vouches for."""

    verified_repo: Annotated[str, Field(max_length=200, pattern=r"^[^/\s]+/[^/\s]+$")]
    downstream_repo_level: _Text = ""
    ci_metrics: CiMetrics | None = None


class Untrusted(_Part):
    callback_payload: Callback


class Results(_Part):
    """What a relay sends to the HUD API."""

    trusted: Trusted
    untrusted: Untrusted


def read_callback(body: bytes) -> Callback | Refused:
    """A callback, or the refusal that is due once it is known who sent it.

    Raises:
        Refused: the body is not a JSON object (400).
    """
    callback = _read(Callback, body)
    if isinstance(callback, Callback) and callback.self_report:
        if callback.workflow.status != "completed":
            return Refused(400, f"workflow.status: a {callback.event_type} report is sent once, as completed")
        if callback.about.pr_number:
            return Refused(400, f"payload.pull_request: a {callback.event_type} report belongs to no pull request")
    return callback


def read_results(body: bytes) -> Results:
    """What a relay sent.

    Raises:
        Refused: the body is not what it should be (400); the field is named.
    """
    results = _read(Results, body)
    if isinstance(results, Refused):
        raise results
    return results


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object of any kind.

    Raises:
        Refused: the body is none (400).
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


_Model = TypeVar("_Model", bound=BaseModel)


def _read(model: type[_Model], body: bytes) -> _Model | Refused:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        cause = first.get("ctx", {}).get("error", first["msg"])
    if first["type"] == "json_invalid":
        mended = _without_lone_surrogates(body)
        if mended is None:
            raise Refused(400, f"the body is not JSON: {cause}")
        return _read(model, mended)
    if not first["loc"]:
        raise Refused(400, "the body is not a JSON object")
    return Refused(400, f"{'.'.join(map(str, first['loc']))}: {cause}")


def _without_lone_surrogates(body: bytes) -> bytes | None:
    r"""The same JSON with `?` for `\udcff`, Python's way to carry a byte that is not UTF-8; None if it is not that."""
    if b"\\ud" not in body.lower():
        return None
    try:
        mended = json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return None
    return mended if mended != body else None
