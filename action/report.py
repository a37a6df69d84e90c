#!/usr/bin/env python3
"""Tell the relay that a job of an out-of-tree backend has started or ended. Needs Python 3.8 and nothing else.

In GitHub Actions use `action.yml` beside this file. Anywhere else:

    OOT_CALLBACK_URL=https://relay.example/github/callback OOT_STATUS=completed OOT_CONCLUSION=failure OOT_RUN_ID=42 \
    OOT_JOB_NAME="test (gpu)" OOT_FAILED_TESTS=reports/ OOT_DISPATCH=dispatch.json OOT_TOKEN=$TOKEN python3 report.py

`OOT_DISPATCH` is the file with what the dispatch brought (`event_type`, `delivery_id`, `payload`, `callback_token`), or
with what `ci-pipeline oot dispatch` printed; in GitHub Actions it is the event's `client_payload`. `OOT_TOKEN` is the
OIDC token; GitHub and Buildkite are asked for one when it is not given. The exit code is 0 unless `OOT_FAIL_ON_ERROR`
is true.
"""

import http.client
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path

MOST_BYTES = 2000000
MOST_TESTS = 1000
MESSAGE_BYTES = 1024
STACKTRACE_BYTES = 4096
PAUSES = (1, 3)  # seconds before the relay is asked again
LOOPBACK = (("http", "127.0.0.1"), ("http", "localhost"))
AGAIN = (429, 500, 502, 503, 504)


class ReportError(Exception):
    """One line: what is wrong, and the way out."""


def setting(name, default=""):
    return os.environ.get("OOT_" + name, "").strip() or default


def one_line(text):
    return " ".join(text.split())


def cut(text, limit):
    """At most `limit` bytes of UTF-8, with a mark where something was cut."""
    data = text.encode("utf-8", "replace")
    mark = " …[cut]"
    return text if len(data) <= limit else data[: limit - len(mark.encode())].decode("utf-8", "ignore") + mark


def parsed(name):
    """A setting that holds a JSON object, or None when it is empty."""
    text = setting(name)
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ReportError(f"OOT_{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ReportError(f"OOT_{name} must be a JSON object")
    return value


# --- what failed ------------------------------------------------------------------------------------------------------


def read_tests(place):
    """Counts and failing tests of a JUnit XML file, a folder of them, or a pytest report folder."""
    reason = f"nothing to read at {place}"
    try:
        path = Path(place)
        files = sorted(path.rglob("*.xml")) if path.is_dir() else [path] if path.is_file() else []
        if files:
            return read_junit(files)
        if (path / "summary_short.txt").is_file():
            return read_pytest_folder(path)
    except OSError as error:
        reason = error
    print(f"warning: OOT_FAILED_TESTS: {reason}", file=sys.stderr)
    return {}, []


def read_junit(files):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed = []
    for file in files:
        try:
            for _, case in ElementTree.iterparse(str(file)):
                if case.tag == "testcase":
                    read_case(case, counts, failed)
                    case.clear()  # a file may be larger than memory
        except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
            print(f"warning: {file}: {error}; what comes before that counts", file=sys.stderr)
    return counts, failed


def read_case(case, counts, failed):
    # An element without children is false: `or` would pass over it.
    bad = case.find("failure") if case.find("failure") is not None else case.find("error")
    if bad is not None:
        counts["failed"] += 1
        failed.append(
            {
                "name": "::".join(x for x in (case.get("classname"), case.get("name")) if x),
                "file": case.get("file") or "",
                "message": cut(bad.get("message") or "", MESSAGE_BYTES),
                "stacktrace": cut(bad.text or "", STACKTRACE_BYTES),
                "duration_seconds": seconds(case.get("time")),
            }
        )
    elif case.find("skipped") is not None:
        counts["skipped"] += 1
    else:
        counts["passed"] += 1


def seconds(text):
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_pytest_folder(folder):
    summary = (folder / "summary_short.txt").read_text("utf-8", "replace")
    stats = folder / "stats.txt"
    closing = stats.read_text("utf-8", "replace") if stats.is_file() else ""
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", closing)}
    counts = {
        "passed": found.get("passed", 0),
        "failed": found.get("failed", 0) + found.get("error", 0),
        "skipped": found.get("skipped", 0),
    }
    failed = []
    for line in summary.splitlines():
        match = re.match(r"(?:FAILED|ERROR) (\S+?::.*?|\S+\.py)(?: - (.*))?$", line)
        if match:
            name, message = match.group(1), match.group(2) or ""
            failed.append({"name": name, "file": name.split("::")[0], "message": cut(message, MESSAGE_BYTES)})
    return counts if found else {}, failed


# --- what is sent -----------------------------------------------------------------------------------------------------


def dispatched():
    """What the dispatch brought: `event_type`, `delivery_id`, `payload`, and maybe `callback_token`."""
    nightly = setting("NIGHTLY")
    if nightly:
        payload = {"repository": {"full_name": setting("UPSTREAM", "pytorch/pytorch")}, "head_sha": nightly}
        return {"event_type": setting("EVENT_TYPE", "nightly"), "delivery_id": nightly, "payload": payload}
    file = setting("DISPATCH") or os.environ.get("GITHUB_EVENT_PATH", "")
    if not file:
        raise ReportError(
            "no dispatch: set OOT_DISPATCH to the file that holds it, or OOT_NIGHTLY to the tested commit"
        )
    try:
        event = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"OOT_DISPATCH: {file}: {error}") from None
    envelope = event.get("client_payload") or event if isinstance(event, dict) else {}
    if "delivery_id" not in envelope:
        raise ReportError(f"{file}: has no delivery_id: this run was not dispatched; set OOT_NIGHTLY for a nightly")
    return {k: envelope[k] for k in ("event_type", "delivery_id", "payload", "callback_token") if k in envelope}


def utc(moment):
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def body():
    status = setting("STATUS")
    if status not in ("in_progress", "completed"):
        raise ReportError(f"OOT_STATUS must be in_progress or completed, not {status!r}")
    env = os.environ
    now = utc(time.time())
    run_id = setting("RUN_ID", env.get("GITHUB_RUN_ID", env.get("BUILDKITE_BUILD_ID", "")))
    retries = env.get("BUILDKITE_RETRY_COUNT", "")
    retries = int(retries) if retries.isdecimal() else 0
    attempt = setting("RUN_ATTEMPT", env.get("GITHUB_RUN_ATTEMPT", str(retries + 1)))
    repository, server = env.get("GITHUB_REPOSITORY", ""), env.get("GITHUB_SERVER_URL", "https://github.com")
    url = f"{server}/{repository}/actions/runs/{run_id}" if repository else env.get("BUILDKITE_BUILD_URL", "")
    job = one_line(setting("JOB_NAME", env.get("GITHUB_JOB", env.get("BUILDKITE_LABEL", ""))))
    if not (run_id and job):
        raise ReportError("OOT_RUN_ID and OOT_JOB_NAME are needed outside GitHub Actions and Buildkite")
    workflow = {
        "schema_version": "1",
        "status": status,
        "conclusion": None,
        "name": one_line(setting("WORKFLOW_NAME", env.get("GITHUB_WORKFLOW", env.get("BUILDKITE_PIPELINE_SLUG", job)))),
        "url": setting("URL", url),
        "job_name": job,
        "check_run_id": setting("CHECK_RUN_ID", env.get("BUILDKITE_JOB_ID", f"{run_id}-{attempt}")),
        "run_id": run_id,
        "run_attempt": attempt,
        "started_at": setting("STARTED_AT") or (now if status == "in_progress" else None),
        "completed_at": None,
    }
    if status == "completed":
        workflow["conclusion"] = setting("CONCLUSION").lower()
        if not workflow["conclusion"]:
            raise ReportError("OOT_CONCLUSION is needed with completed: success, failure, cancelled, …")
        workflow["completed_at"] = now
        if setting("NIGHTLY") and not workflow["started_at"]:
            event = env.get("GITHUB_EVENT_PATH", "")  # the runner writes it when a job begins
            workflow["started_at"] = utc(os.path.getmtime(event)) if os.path.isfile(event) else now
        counts, failed = read_tests(setting("FAILED_TESTS")) if setting("FAILED_TESTS") else ({}, [])
        counts = parsed("TEST_RESULTS") or counts
        if counts:
            workflow["test_results"] = counts
        if failed:
            workflow["failed_tests"] = failed[:MOST_TESTS]
            if len(failed) > MOST_TESTS:
                print(f"warning: {len(failed)} failing tests, the first {MOST_TESTS} are sent", file=sys.stderr)
    if setting("ARTIFACT_URL"):
        workflow["artifact_url"] = setting("ARTIFACT_URL")
    environment = parsed("ENVIRONMENT")
    if environment:
        workflow["environment"] = environment
    return {**dispatched(), "workflow": workflow}


# --- how it is sent ---------------------------------------------------------------------------------------------------


def token(timeout):
    """The OIDC token: given, or asked of GitHub or Buildkite."""
    given = setting("TOKEN")
    if given:
        return given
    audience = setting("AUDIENCE", "pytorch-cross-repo-ci-relay")
    address = os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL")
    if address:
        request = urllib.request.Request(
            address + "&" + urllib.parse.urlencode({"audience": audience}),
            headers={"Authorization": "Bearer " + os.environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "")},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)["value"]
    if os.environ.get("BUILDKITE"):
        command = ["buildkite-agent", "oidc", "request-token", "--audience", audience]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout.strip()
    raise ReportError("no identity: give the job `permissions: id-token: write`, or set OOT_TOKEN")


def fitting(message):
    """The message as JSON; the longest texts about failing tests are cut until the relay takes it."""
    limit = STACKTRACE_BYTES
    while True:
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        if len(data) <= MOST_BYTES or limit < 32:
            return data
        limit //= 2
        for test in message["workflow"].get("failed_tests", ()):
            test.update({name: cut(text, limit) for name, text in test.items() if isinstance(text, str)})


def send(url, message, timeout):
    end = time.monotonic() + timeout
    try:
        identity = token(timeout)
    except (OSError, ValueError, KeyError, http.client.HTTPException, subprocess.SubprocessError) as error:
        raise ReportError(f"no identity token to be had: {error}") from None
    headers = {"Authorization": "Bearer " + identity, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=fitting(message), headers=headers, method="POST")
    for pause in PAUSES:
        try:
            return post(request, end)
        except (OSError, http.client.HTTPException) as error:  # HTTPError is an OSError
            if getattr(error, "code", 503) not in AGAIN or time.monotonic() + pause >= end:
                raise
        time.sleep(pause)
    return post(request, end)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that goes elsewhere goes on as a GET: a login page would take it, and nobody would have been told."""

    def redirect_request(self, *_):
        return None


def post(request, end):
    relay = urllib.request.build_opener(NoRedirect)
    with relay.open(request, timeout=max(0.1, end - time.monotonic())) as answer:
        return answer.read().decode("utf-8", "replace")


def within(seconds, work, *arguments):
    """What `work` answers. Neither a name server nor an answer that comes in drops minds a timeout of urllib."""
    outcome = []

    def run():
        try:
            outcome.append((work(*arguments), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    answer, error = outcome[0] if outcome else (None, TimeoutError(f"no answer in {seconds:g} seconds"))
    if error:
        raise error
    return answer


def main():
    url = setting("CALLBACK_URL")
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" and (parts.scheme, parts.hostname) not in LOOPBACK:
            raise ReportError(f"OOT_CALLBACK_URL must be an https address, not {url!r}")
        timeout = seconds(setting("TIMEOUT", "20"))
        if timeout is None or not 0 < timeout < 86400:
            raise ReportError(f"OOT_TIMEOUT must be a number of seconds, not {setting('TIMEOUT')!r}")
        print(within(timeout + 1, send, url, body(), timeout))
        return 0
    except urllib.error.HTTPError as error:
        reason = f"the relay answered {error.code}: {error.read(2000).decode('utf-8', 'replace')}"
    except ReportError as error:
        reason = str(error)
    except Exception as error:  # whatever it is, it is not the job's fault
        reason = f"the relay at {url} could not be told: {error or type(error).__name__}"
    wanted = setting("FAIL_ON_ERROR").lower() == "true"
    command = f"::{'error' if wanted else 'warning'}::" if os.environ.get("GITHUB_ACTIONS") else ""
    print(command + one_line(reason), file=sys.stderr)
    return 1 if wanted else 0


if __name__ == "__main__":
    sys.exit(main())
