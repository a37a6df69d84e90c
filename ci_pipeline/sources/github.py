"""CI runs from GitHub's REST API."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import gidgethub
import gidgethub.httpx
import gidgethub.sansio
import httpx2
import tenacity

from ci_pipeline.model import CiJob, CiRun, FetchedRun, Problem
from ci_pipeline.quick_ack import acknowledge_head
from ci_pipeline.sources import Progress, RunPage, SourceError, Wanted, raw_store
from ci_pipeline.sources.archives import ArtifactRefused, safe_name, unpack
from ci_pipeline.sources.cursor import Cursor
from ci_pipeline.sources.github_json import Json, as_object, jobs_from, number_from, objects, run_from, time_from

log = logging.getLogger(__name__)

USER_AGENT = "ci-pipeline"
PER_PAGE = 100
PARALLEL = 8  # downloads
PAGES = 3  # of a list, side by side: each is a connection, and a small server queues five
ATTEMPTS = 6
FETCH_PATIENCE = 900.0  # seconds
MAX_OBJECTS = 100_000  # of any list
LIST_LIMIT = 1000  # GitHub cuts a list of runs that is filtered by time after so many

ACTIONS_BEGAN = datetime(2018, 1, 1, tzinfo=UTC)
FIRST_LOOK = timedelta(days=1)  # without a cursor: what completed in the last day
LOOK_BACK = timedelta(days=2)  # runs that were created so long ago may still complete …
SWEEP_BACK = timedelta(days=36)  # … and some much later: 35 days for a run; a run can be re-run for 30 days
SWEEP_EVERY = timedelta(hours=1)  # less than the cursor's OVERLAP

T = TypeVar("T")


class RateLimited(SourceError):
    """GitHub's rate limit is used up for longer than we wait."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact of a run, as GitHub lists it."""

    id: int
    name: str
    expired: bool = False
    created_at: datetime | None = None


class GitHubSource:
    """A `Source` on GitHub's REST API; not to be called from inside a running event loop.

    `patience`: for how many seconds requests may be tried again while all of them fail; a rate limit that is lifted
    later than that is an error that says when. A GitHub that has never answered in that time is not asked again for as
    long. While a whole run is fetched, downloads have `FETCH_PATIENCE`: GitHub allows 900 a minute.
    `attempts`: how often each request is made at most.
    `workflows`: the ids or files of those whose runs `runs_after` lists; all when empty.
    """

    def __init__(
        self,
        api_url: str,
        token: str | None,
        repository: str,
        *,
        workflows: Sequence[int | str] = (),
        patience: float = 45.0,  # Dagster cuts a sensor's tick at 60
        attempts: int = ATTEMPTS,
    ) -> None:
        self.repository = repository
        self._workflows = workflows
        self._api_url = api_url.rstrip("/")
        self._token = token or None
        self._patience = patience
        self._attempts = attempts
        self._answered = False
        self._failing_since: float | None = None  # as time.monotonic() has it
        self._gone_until = 0.0
        self._runner = asyncio.Runner()
        self._one_at_a_time = threading.Lock()
        self._downloads = asyncio.Semaphore(PARALLEL)
        self._pages = asyncio.Semaphore(PAGES)

    # --- the Source protocol ------------------------------------------------------------------------------------

    def runs_after(self, cursor: str | None, limit: int = 100) -> RunPage:
        runs, after = self._run(self._runs_after(cursor, limit))
        return RunPage.of(runs, after)

    def run(self, run_id: int, attempt: int | None = None) -> CiRun:
        return self._ci_run(self._run(self._run_object(run_id, attempt)))

    def jobs(self, run: CiRun) -> tuple[CiJob, ...]:
        try:
            return jobs_from(self._run(self._job_objects(run)))
        except SourceError as error:
            raise SourceError(str(error), jobs_from(list(error.read))) from error

    def workflow_runs(
        self, workflow_id: int | str, *, event: str = "", branch: str = "", limit: int = 7
    ) -> list[CiRun]:
        query = {
            "branch": branch,
            "exclude_pull_requests": "true",
            "per_page": str(min(limit, PER_PAGE)),
            "event": event,
        }
        path = f"{self._runs_path(workflow_id)}?{urlencode({k: v for k, v in query.items() if v})}"
        runs = self._run(self._list(path, "workflow_runs", limit))
        return [self._ci_run(run) for run in runs[:limit] if run.get("id")]

    def artifact(self, run_id: int, name: str, into: Path) -> Path:
        return self._run(self._one_artifact(run_id, name, into))

    def fetch(
        self, run: CiRun, into: Path, *, wanted: Wanted | None = None, progress: Progress | None = None
    ) -> FetchedRun:
        return self._run(self._fetch(run, into, wanted, progress))

    # --- and what only GitHub knows -----------------------------------------------------------------------------

    def artifacts(self, run_id: int) -> list[Artifact]:
        """All artifacts of a run, expired ones too; where a re-run made one again, the newer one alone."""
        return self._run(self._artifacts(run_id))

    def fetch_artifacts(self, run_id: int, into: Path, wanted: Wanted) -> list[Problem]:
        """Unpack the artifacts of a run's newest attempt to `into/<name>`; what cannot be had is returned."""

        async def fetch() -> list[Problem]:
            return await self._fetch_all([a for a in await self._artifacts(run_id) if wanted(a.name)], into)

        return self._run(fetch())

    def commit_author(self, sha: str) -> str | None:
        """The login of a commit's author; None when GitHub knows no account of that person."""
        return _login(self._run(self._get(f"/repos/{self.repository}/commits/{quote(sha)}")).get("author"))

    def pull_request(self, number: int) -> tuple[str | None, str | None]:
        """The logins of who opened a pull request and who merged it."""
        pull = self._run(self._get(f"/repos/{self.repository}/pulls/{number}"))
        return _login(pull.get("user")), _login(pull.get("merged_by"))

    def close(self) -> None:
        if "_client" in vars(self):
            self._run(self._client.aclose())
        self._runner.close()

    # --- requests -----------------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The one place where synchronous callers meet the asynchronous client."""
        with self._one_at_a_time:
            return self._runner.run(work)

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(min(30.0, self._patience), connect=min(10.0, self._patience)),
            limits=httpx2.Limits(max_connections=2 * PARALLEL),
            follow_redirects=True,  # of renamed repositories, and to the blob storage
            verify=_certificates(),
            event_hooks={"response": [_head_is_read]},
        )

    @cached_property
    def _github(self) -> _GitHub:
        return _GitHub(
            self._client, USER_AGENT, oauth_token=self._token, base_url=self._api_url, cache=_RecentAnswers()
        )

    async def _try(
        self, what: str, request: Callable[..., Awaitable[T]], *args: Any, patience: float | None = None
    ) -> T:
        """Do it, again after failures that pass.

        Raises:
            SourceError: it failed for good, or would not succeed within `patience`.
        """
        if time.monotonic() < self._gone_until:
            raise SourceError(f"GitHub: {what}: not asked, nobody answered a moment ago")
        out_of_patience = self._is_out_of_patience if patience is None else tenacity.stop_before_delay(patience)
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: _pause(error, 1) is not None),
            wait=lambda state: _pause(_outcome(state), state.attempt_number) or 0,
            stop=lambda state: state.attempt_number >= self._attempts or out_of_patience(state),
            before_sleep=lambda state: log.warning(
                "GitHub: %s: %s: trying again in %.1f s", what, _outcome(state), state.upcoming_sleep
            ),
            reraise=True,
        )
        try:
            answer = await tries(request, *args)
        except (SourceError, OSError):
            raise
        except Exception as error:
            if _pause(error, 1) is None:  # a no is an answer too
                self._answered, self._failing_since = True, None
            elif isinstance(error, httpx2.TransportError) and not self._answered:
                self._gone_until = time.monotonic() + self._patience
            raise _error(what, error) from error
        self._answered, self._failing_since = True, None
        return answer

    def _is_out_of_patience(self, state: tenacity.RetryCallState) -> bool:
        self._failing_since = self._failing_since or state.start_time
        return time.monotonic() + state.upcoming_sleep >= self._failing_since + self._patience

    async def _get(self, path: str, holds: str = "") -> Json:
        """The JSON object at `path`; `holds` names the list that must be in it."""
        async with self._pages:
            answer = await self._try(f"GET {path}", self._github.getitem, path)
        if not isinstance(answer, Mapping) or (holds and not isinstance(answer.get(holds), list)):
            raise SourceError(f"GitHub: GET {path}: the answer is not a JSON object{holds and f' with {holds}'}")
        return answer

    async def _list(self, path: str, key: str, limit: int = MAX_OBJECTS, first: Json | None = None) -> list[Json]:
        """All objects of a paged list, or at least the first `limit`; the pages behind the first side by side.

        Raises:
            SourceError: a page could not be read; `read` holds the objects of the others.
        """
        per_page = min(limit, PER_PAGE)  # as the path says
        first = first or await self._get(path, key)
        total = first.get("total_count")
        pages = [objects(first, key)]
        failed: SourceError | None = None

        async def page(number: int) -> list[Json]:
            nonlocal failed
            try:
                return objects(await self._get(f"{path}&page={number}", key), key)
            except SourceError as error:
                failed = failed or error
                return []

        def whole() -> bool:
            found = sum(map(len, pages))
            if failed or not pages[-1] or pages[-1:] == pages[-2:-1]:  # it does not get better
                return True
            return found >= min(total, limit) if isinstance(total, int) else len(pages[-1]) < per_page or found >= limit

        if isinstance(total, int):
            pages += await asyncio.gather(*map(page, range(2, -(-min(total, limit) // per_page) + 1)))
        while not whole():  # its length is not known, or a server gives less at once than it is asked for
            pages.append(await page(len(pages) + 1))
        # A list that grows while it is read shows some objects on two pages.
        items = list({str(item.get("id") or id(item)): item for page in pages for item in page}.values())
        if failed:
            raise SourceError(str(failed), tuple(items)) from failed
        return items

    async def _download(self, artifact: Artifact, file: Path, patience: float | None) -> None:
        """The artifact's zip file. GitHub redirects to a blob storage, which must not see our token."""
        url = f"{self._api_url}/repos/{self.repository}/actions/artifacts/{artifact.id}/zip"
        headers = gidgethub.sansio.create_headers(USER_AGENT, oauth_token=self._token)

        async def download() -> None:
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    status, body = _answer(response.status_code, await response.aread())
                    gidgethub.sansio.decipher_response(status, response.headers, body)
                with file.open("wb") as out:
                    async for chunk in response.aiter_bytes():
                        out.write(chunk)
            if "content-length" not in response.headers and not zipfile.is_zipfile(file):
                raise httpx2.RemoteProtocolError("the download broke off")

        await self._try(f"GET {url.removeprefix(self._api_url)}", download, patience=patience)

    # --- runs ---------------------------------------------------------------------------------------------------

    def _runs_path(self, workflow: int | str) -> str:
        name = quote(str(workflow).rpartition("/")[2])
        return f"/repos/{self.repository}/actions/workflows/{name}/runs"

    def _ci_run(self, payload: Json) -> CiRun:
        try:
            return run_from(payload, repository=self.repository)
        except ValueError as error:
            raise SourceError(f"GitHub: {self.repository}: {error}") from None

    async def _run_object(self, run_id: int, attempt: int | None) -> Json:
        run = await self._get(f"/repos/{self.repository}/actions/runs/{run_id}")
        if attempt and run.get("run_attempt", attempt) != attempt:
            return await self._get(f"/repos/{self.repository}/actions/runs/{run_id}/attempts/{attempt}")
        return run

    async def _runs_after(self, text: str | None, limit: int) -> tuple[list[CiRun], Cursor]:
        now = datetime.now(UTC)
        cursor = Cursor.load(text) if text else Cursor.since(now - FIRST_LOOK)
        sweep = cursor.swept is None or now - cursor.swept >= SWEEP_EVERY
        start = max(cursor.at - (SWEEP_BACK if sweep else LOOK_BACK), ACTIONS_BEGAN)
        # The same question all day: while its answer does not change, it costs nothing of the rate limit.
        end = now.replace(hour=0, minute=0, second=0) + timedelta(days=2)

        def completed(found: list[Json]) -> list[tuple[datetime, str, CiRun]]:
            runs = [self._ci_run(run) for run in found if run.get("id")]
            return [
                (run.updated_at or run.created_at or now, run.key, run) for run in runs if run.status == "completed"
            ]

        def enough(found: list[Json], before: datetime) -> bool:
            return len(cursor.page([run for run in completed(found) if run[0] < before], limit)[0]) >= limit

        paths = [self._runs_path(workflow) for workflow in self._workflows]
        paths = paths or [f"/repos/{self.repository}/actions/runs"]
        found = [run for path in paths for run in await self._created_between(path, start, end, enough)]
        taken, after = cursor.page(completed(found), limit)
        return taken, replace(after, swept=now) if sweep else after

    async def _created_between(
        self, path: str, start: datetime, end: datetime, enough: Callable[[list[Json], datetime], bool]
    ) -> list[Json]:
        """Completed runs by time of creation. A window with more of them than GitHub lists is cut in two.

        The later half is not asked for when `enough` of the earlier one completed before it began.
        """
        window = f"{start:%Y-%m-%dT%H:%M:%SZ}..{end:%Y-%m-%dT%H:%M:%SZ}"
        query = {"status": "completed", "created": window, "exclude_pull_requests": "true", "per_page": PER_PAGE}
        url = f"{path}?{urlencode(query)}"
        first = await self._get(url, "workflow_runs")
        if number_from(first.get("total_count")) <= LIST_LIMIT or end - start <= timedelta(seconds=2):
            return await self._list(url, "workflow_runs", first=first)
        middle = start + (end - start) / 2
        early = await self._created_between(path, start, middle, enough)
        if enough(early, middle):
            return early
        # A window holds the whole of its first and its last second.
        return early + await self._created_between(path, middle + timedelta(seconds=1), end, enough)

    # --- one run ------------------------------------------------------------------------------------------------

    async def _job_objects(self, run: CiRun) -> list[Json]:
        async def listed(path: str) -> tuple[list[Json], int]:
            first = await self._get(path, "jobs")
            return await self._list(path, "jobs", first=first), number_from(first.get("total_count"))

        run_path = f"/repos/{self.repository}/actions/runs/{run.run_id}"
        path = f"{run_path}/jobs?per_page={PER_PAGE}"
        jobs, total = await listed(path)
        # That is the list of the newest attempt.
        if any(number_from(job.get("run_attempt")) > run.run_attempt for job in jobs):
            path = f"{run_path}/attempts/{run.run_attempt}/jobs?per_page={PER_PAGE}"
            jobs, total = await listed(path)
        if len(jobs) < total:
            raise SourceError(f"GitHub: GET {path}: only {len(jobs)} of {total} jobs", tuple(jobs))
        return jobs

    async def _artifacts(self, run_id: int, before: datetime | None = None) -> list[Artifact]:
        path = f"/repos/{self.repository}/actions/runs/{run_id}/artifacts?per_page={PER_PAGE}"
        listed = [
            Artifact(
                number_from(item.get("id")),
                str(item.get("name") or ""),
                item.get("expired") is True,
                time_from(item.get("created_at")),
            )
            for item in await self._list(path, "artifacts")
        ]
        listed = [a for a in listed if not (before and a.created_at and a.created_at >= before)]
        return sorted({a.name: a for a in sorted(listed, key=lambda a: a.id)}.values(), key=lambda a: a.name)

    async def _one_artifact(self, run_id: int, name: str, into: Path) -> Path:
        artifact = next((a for a in await self._artifacts(run_id) if a.name == name), None)
        if artifact is None:
            raise SourceError(f"GitHub: run {run_id} has no artifact {name!r}")
        if artifact.expired:
            raise SourceError(f"GitHub: the artifact {name!r} of run {run_id} has expired")
        return await self._download_and_unpack(artifact, into)

    async def _download_and_unpack(self, artifact: Artifact, into: Path, patience: float | None = None) -> Path:
        if not safe_name(artifact.name):
            raise ArtifactRefused(artifact.name, "its name is not a file name")
        into.mkdir(parents=True, exist_ok=True)
        file = into / f".{artifact.id}.zip"
        try:
            async with self._downloads:
                await self._download(artifact, file, patience)
                return await asyncio.to_thread(unpack, file, into / artifact.name)
        finally:
            file.unlink(missing_ok=True)

    async def _fetch(self, run: CiRun, into: Path, wanted: Wanted | None, progress: Progress | None) -> FetchedRun:
        newest = await self._get(f"/repos/{self.repository}/actions/runs/{run.run_id}")
        payload, before = newest, None
        if number_from(newest.get("run_attempt")) > run.run_attempt:
            attempts = f"/repos/{self.repository}/actions/runs/{run.run_id}/attempts"
            payload = await self._get(f"{attempts}/{run.run_attempt}")
            before = time_from((await self._get(f"{attempts}/{run.run_attempt + 1}")).get("run_started_at"))
        problems: list[Problem] = []
        try:
            jobs = await self._job_objects(run)
        except SourceError as error:
            problems.append(Problem("jobs", f"the list of jobs could not be read: {error}"))
            jobs = list(error.read)
        artifacts = [a for a in await self._artifacts(run.run_id, before) if wanted is None or wanted(a.name)]
        patience = max(self._patience, FETCH_PATIENCE)
        problems += await self._fetch_all(artifacts, into / "artifacts", progress, patience)
        identity = {"id": run.run_id, "run_attempt": run.run_attempt, "repository": {"full_name": run.repository}}
        return raw_store.save(into, {**payload, **identity}, {"jobs": jobs}, problems)

    async def _fetch_all(
        self, artifacts: list[Artifact], into: Path, progress: Progress | None = None, patience: float | None = None
    ) -> list[Problem]:
        """Download side by side; what cannot be had is returned.

        Raises:
            SourceError: the rate limit is used up, or not one could be downloaded: later may be better.
        """
        problems: list[Problem] = []
        missing: list[SourceError] = []
        done = 0

        async def fetch(artifact: Artifact) -> None:
            nonlocal done
            try:
                if artifact.expired:
                    problems.append(Problem(artifact.name, "expired"))
                else:
                    await self._download_and_unpack(artifact, into, patience)
            except RateLimited:
                raise
            except ArtifactRefused as error:
                problems.append(Problem(artifact.name, f"refused: {error.reason}"))
            except SourceError as error:
                problems.append(Problem(artifact.name, f"could not be downloaded: {error}"))
                missing.append(error)
            done += 1
            if progress:
                progress(done, len(artifacts), artifact.name)

        try:
            async with asyncio.TaskGroup() as tasks:
                for artifact in artifacts:
                    tasks.create_task(fetch(artifact))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        if missing and len(missing) == len(artifacts):
            raise missing[0]
        return problems


@cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # 40 ms, once per process


async def _head_is_read(response: httpx2.Response) -> None:
    acknowledge_head(response)


class _GitHub(gidgethub.httpx.GitHubAPI):
    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        status, answer_headers, answer = await super()._request(method, url, headers, body)
        status, answer = _answer(status, answer)
        return status, answer_headers, answer


class _RecentAnswers(OrderedDict[str, Any]):
    """gidgethub's cache of answers by their ETags, without those of long ago."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > 2 * PARALLEL:
            self.popitem(last=False)


def _answer(status: int, body: bytes) -> tuple[int, bytes]:
    """A status and a body that gidgethub can read: it fails on statuses that Python does not know, such as a proxy's
    520, and on pages of proxies and of the blob storage that call themselves JSON.
    """
    known = status if status in set(HTTPStatus) else status // 100 * 100
    return known, b"" if status >= 400 and not body.lstrip().startswith(b"{") else body


def _pause(error: BaseException | None, attempt: int) -> float | None:
    """How many seconds to wait before trying again; None: it would fail again."""
    backoff = min(2.0 ** (attempt - 2), 30.0) * random.uniform(0.75, 1.25)
    if isinstance(error, gidgethub.HTTPException):
        if (limited := _limited_for(error)) is not None:
            return limited
        return backoff if error.status_code >= 500 or error.status_code in (408, 429) else None
    if isinstance(error, httpx2.UnsupportedProtocol):
        return None
    return backoff if isinstance(error, httpx2.TransportError | httpx2.DecodingError | json.JSONDecodeError) else None


def _limited_for(error: gidgethub.HTTPException) -> float | None:
    """For how many seconds GitHub asks to wait; None where it does not.

    The secondary limits say `retry-after`, the primary one that nothing remains until `x-ratelimit-reset`.
    """
    after, reset = error.headers.get("retry-after", ""), error.headers.get("x-ratelimit-reset", "")
    if after.isdecimal():
        return float(after)
    if date := _http_date(after):
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    if error.headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal() and error.status_code in (403, 429):
        return max(0.0, float(reset) - time.time()) + 1  # clocks differ
    return None


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None


def _outcome(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _error(what: str, error: Exception) -> SourceError:
    """One line about what failed, and what to do where that is known."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        text = "the answer is not JSON"
    if not isinstance(error, gidgethub.HTTPException):
        return SourceError(f"GitHub: {what}: {text}")
    text = f"GitHub: {what}: {int(error.status_code)} {text}"
    seconds = _limited_for(error)
    if seconds is not None and error.status_code in (403, 429):
        lifted = datetime.now(UTC) + timedelta(seconds=min(seconds, 1e6))
        return RateLimited(f"{text}: the rate limit is lifted at {lifted:%Y-%m-%d %H:%M:%S} UTC: try again then")
    if error.status_code == 401:
        text += ": is the token in ACCESS_REPO_INFO_TOKEN (or GITHUB_TOKEN) still valid?"
    return SourceError(text)


def _login(account: object) -> str | None:
    login = as_object(account).get("login")
    return login if isinstance(login, str) and login else None
