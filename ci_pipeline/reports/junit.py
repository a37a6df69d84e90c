"""JUnit XML, as pytest, Surefire, gtest and go-junit-report write it, into the same outcomes as pytest's reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, DTDForbidden
from defusedxml.ElementTree import iterparse

from ci_pipeline.model import RED, ArtifactName, Counts, Outcome, TestOutcome, TestReport
from ci_pipeline.reports.traces import NO_MESSAGE

MAX_BYTES = 256 * 1024 * 1024
"""A larger file is refused."""

_PYTHON_PLACE = re.compile(r"(?m)^(?![E>] )\S[^:\n]*\.py:(\d+):")
_PLACE = re.compile(r"(?m)^\s*[^\s:]+\.\w+:(\d+)(?::\s*|$)")  # gtest, go
_FRAME = re.compile(r"\(([\w$-]+)\.\w+:(\d+)\)")  # Java
_EXCEPTION = re.compile(r"(?m)^E +([A-Za-z_][\w.]*: .*)$")
_FAILED_ON = re.compile(r'failed on \w+ with "(.*)"', re.DOTALL)  # pytest, of setup and teardown
_COVERAGE = ("coverage", "report")
"""What the DTDs of Cobertura and JaCoCo describe: such files lie beside test reports and are none."""
_RED: dict[str, Outcome] = {"failure": "failed", "error": "error"}


class _File:
    """What one XML file says; what is read before it breaks is kept."""

    def __init__(self, path: Path, seen: set[tuple[str | None, ...]]) -> None:
        self.outcomes: list[TestOutcome] = []
        self.seconds = 0.0
        self.suites = 0
        self.problem = ""
        try:
            self._parse(path, seen)
        except OSError as error:
            self.problem = f"{path.name} cannot be read: {error.strerror}"
        except DefusedXmlException as error:
            if not (isinstance(error, DTDForbidden) and error.name in _COVERAGE):
                self.problem = f"{path.name} is refused: {type(error).__name__}"
        except (ParseError, LookupError, ValueError) as error:  # the last two: of an encoding that nobody knows
            self.problem = f"{path.name} is cut off or no XML: {str(error)[:200]}"

    def _parse(self, path: Path, seen: set[tuple[str | None, ...]]) -> None:
        if path.stat().st_size > MAX_BYTES:
            self.problem = f"{path.name} is refused: larger than {MAX_BYTES >> 20} MiB"
            return
        suites: list[Element] = []
        copy_depth = 0
        events: Iterator[tuple[str, Element]] = iterparse(str(path), events=("start", "end"), forbid_dtd=True)
        for event, element in events:
            tag = element.tag.rpartition("}")[2]
            if tag == "testsuite":
                if event == "start":
                    suites.append(element)
                    self.suites += 1
                    # Many tools also write one file with everything in it: a suite with the same clock is a copy.
                    identity = tuple(map(element.get, ("name", "timestamp", "time", "tests", "failures", "errors")))
                    if any(identity[1:3]) and identity in seen:
                        copy_depth = copy_depth or len(suites)
                    seen.add(identity)
                else:
                    if len(suites) == 1 and not copy_depth:
                        self.seconds += _seconds(element) or 0.0
                    if len(suites) == copy_depth:
                        copy_depth = 0
                    suites.pop()
                    element.clear()
            elif tag == "testcase" and event == "end":
                if not copy_depth:
                    self.outcomes += _outcomes(element, suites[-1] if suites else element)
                element.clear()


def read_junit_folder(
    folder: Path, names: Sequence[str], artifact: ArtifactName, *, every_outcome: bool = False
) -> TestReport:
    """The report in the XML files of a folder; `names` may have folders. Totals are counted, not believed."""
    seen: set[tuple[str | None, ...]] = set()
    files = [_File(folder / name, seen) for name in names]
    reasons = [file.problem for file in files if file.problem]
    if not reasons and not any(file.suites for file in files):
        reasons = [f"{', '.join(names)}: no test suite"]
    outcomes = [outcome for file in files for outcome in file.outcomes]
    counts = None
    if not reasons:
        found = Counter(outcome.outcome for outcome in outcomes)
        counts = Counts(
            passed=found["passed"],
            failed=found["failed"],
            errors=found["error"],
            skipped=found["skipped"],
            xfailed=found["xfailed"],
            rerun=found["rerun"],
            seconds=round(sum(file.seconds for file in files), 3)
            or round(sum(outcome.seconds or 0.0 for outcome in outcomes), 3),
        )
    listed = outcomes if every_outcome else [outcome for outcome in outcomes if outcome.outcome in RED]
    problems = (artifact.problem("; ".join(reasons)),) if reasons else ()
    return TestReport(artifact, counts, tuple(listed), problems=problems)


def _seconds(element: Element) -> float | None:
    """The `time` of a suite or a case; some tools write thousands with commas."""
    try:
        seconds = float(element.get("time", "").replace(",", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e9 else None


def _outcomes(case: Element, suite: Element) -> Iterator[TestOutcome]:
    node_id = _node_id(case, suite)
    seconds = _seconds(case)
    children = {child.tag.rpartition("}")[2]: child for child in reversed(case)}
    found = [tag for tag in ("failure", "error") if tag in children]
    for tag in found:
        message = _message(children[tag])
        trace = _trace(children[tag], message, case.get("classname", ""))
        yield TestOutcome(node_id, _RED[tag], message, trace, seconds)
    if found:
        return
    if any(tag.startswith("flaky") for tag in children):  # Surefire: failed, and passed when it was run again
        yield TestOutcome(node_id, "rerun", seconds=seconds)
    skipped = children.get("skipped")
    if skipped is not None:
        outcome: Outcome = "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"
        yield TestOutcome(node_id, outcome, skipped.get("message") or "", seconds=seconds)
    elif case.get("status") == "notrun" or case.get("result") in ("skipped", "suppressed"):  # gtest
        yield TestOutcome(node_id, "skipped", seconds=seconds)
    else:
        yield TestOutcome(node_id, "passed", seconds=seconds)


def _node_id(case: Element, suite: Element) -> str:
    """The test's id as pytest spells it where the class is of Python, else `<class>::<name>`."""
    name, owner = case.get("name", ""), case.get("classname", "")
    file = case.get("file") or suite.get("file") or ""
    if file.endswith(".py") and not file.startswith("/"):
        module = file[:-3].replace("/", ".")
        classes = owner.removeprefix(module).strip(".") if owner.startswith(module) else ""
        return "::".join((file, *filter(None, classes.split(".")), name))
    parts = (owner or name).split(".")
    modules = [i for i, part in enumerate(parts) if part.startswith("test_") or part.endswith("_test")]
    if modules and suite.get("name", "").startswith("pytest"):
        # Only the last may be the module: what follows it are classes.
        path = "/".join(parts[: modules[-1] + 1]) + ".py"
        return "::".join((path, *parts[modules[-1] + 1 :], name)) if owner else path
    return f"{owner}::{name}" if owner else name


def _message(child: Element) -> str:
    """What went wrong, beginning with the exception where the file names one."""
    text = (child.text or "").strip("\n")
    message = (child.get("message") or "").strip()
    kind = child.get("type") or ""
    # "Failed" of go-junit-report and "collection failure" of pytest say nothing that the tag does not say.
    if message in ("", "Failed", "collection failure"):
        exception = _EXCEPTION.search(text)
        message = exception[1] if exception else text.strip()
    elif failed_on := _FAILED_ON.fullmatch(message):
        message = failed_on[1]
    elif kind and text.lstrip().startswith(kind) and not message.startswith((kind, kind.rpartition(".")[2])):
        message = f"{kind}: {message}"
    place = _PLACE.match(message)
    return message[place.end() :].lstrip() if place and message[place.end() :].strip() else message


def _trace(child: Element, message: str, owner: str) -> str:
    text = f"{child.text or ''}\n{child.get('message') or ''}"
    frames = _FRAME.findall(text)
    own = owner.rpartition(".")[2].partition("$")[0]
    if places := _PYTHON_PLACE.findall(text):
        line = places[-1]
    elif frames:
        line = next((line for file, line in frames if file == own), frames[0][1])
    else:
        place = _PLACE.search(text)
        line = place[1] if place else ""
    first = message.partition("\n")[0].strip() or NO_MESSAGE
    return f"(line {line})  {first}" if line else first
