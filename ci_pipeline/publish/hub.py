"""Uploads result files to a dataset of the Hugging Face Hub: one commit per run, made once."""

from __future__ import annotations

import json
import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay

from ci_pipeline.publish.ledger import Delivered, Ledger, name_of
from ci_pipeline.quick_ack import acknowledge_head

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else huggingface_hub asks the Hub who may be calling it

PATIENCE = 20.0
"""Seconds for which an upload is tried again."""

TIMEOUT = 60.0
"""Seconds that the Hub may be silent; huggingface_hub itself would wait for ever."""

CONNECT = 10.0
"""Seconds that a connection to it may take: behind a firewall that answers nothing, none ever comes."""


class HubUnavailable(RuntimeError):
    """The files are not on the Hub. The text is one line that says why."""


class HubRefused(HubUnavailable):
    """The Hub answered, and said no: a wrong token, a dataset that may not be written."""


class Hub(Protocol):
    """What delivery needs of the Hub: `HubClient`, or `HubOutbox` where there is no token."""

    where: Literal["hub", "outbox"]

    def upload(self, files: Mapping[str, bytes], *, repo_id: str, message: str) -> str: ...

    def url(self, repo_id: str, commit: str) -> str: ...


class HubClient:
    """The Hub's datasets. An upload also writes the dataset's card, unless a person wrote one or the Hub refuses it."""

    where: Literal["hub", "outbox"] = "hub"

    def __init__(self, token: str, endpoint: str, *, patience: float = PATIENCE) -> None:
        self._token, self._endpoint, self._patience = token, endpoint, patience

    def upload(self, files: Mapping[str, bytes], *, repo_id: str, message: str) -> str:
        """The commit's id. Raises as `upload` does."""
        commit = partial(
            upload,
            repo_id=repo_id,
            message=message,
            endpoint=self._endpoint,
            token=self._token,
            patience=self._patience,
        )
        if self._card_is_ours(repo_id):
            try:
                return commit({**files, "README.md": dataset_card(repo_id)})
            except HubRefused as refused:
                log.info("%s; trying without the dataset's card", refused)
        return commit(files)

    def who(self) -> str:
        """Whose token it is. Asks once.

        Raises:
            HubUnavailable: the Hub does not say; `HubRefused` where the token is nobody's, or may only read.
        """
        with _refusals("the Hub does not say whose token it is"):
            answer = _api(self._endpoint, self._token).whoami()
            name, role = answer["name"], answer.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubRefused(f"{name} may only read with this token: make one that may write")
        return name

    def has(self, repo_id: str) -> bool:
        """Whether there is such a dataset that the token may see. Asks once, and raises as `who` does."""
        with _refusals(f"the Hub does not say whether there is a dataset {repo_id}"):
            return _api(self._endpoint, self._token).repo_exists(repo_id, repo_type="dataset")

    def url(self, repo_id: str, commit: str) -> str:
        return f"{self._endpoint}/datasets/{repo_id}/tree/{commit}"

    def _card_is_ours(self, repo_id: str) -> bool:
        """Whether there is no card, or one that `dataset_card` made. Where nobody can tell, it is a person's."""
        import httpx2
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
        from huggingface_hub.utils import get_session, hf_raise_for_status

        prepare()
        try:
            url = f"{self._endpoint}/datasets/{repo_id}/raw/main/README.md"
            response = get_session().get(url, headers={"authorization": f"Bearer {self._token}"})
            hf_raise_for_status(response)
            return CARD_MARK in response.text
        except (EntryNotFoundError, RepositoryNotFoundError):
            return True
        except httpx2.HTTPError:
            log.debug("Cannot read the dataset's card", exc_info=True)
            return False


CARD_MARK = "<!-- written by ci_pipeline; remove this line to keep what you change -->"


def dataset_card(repo_id: str) -> bytes:
    """A README.md that makes the Hub's viewer and `datasets` load the test outcomes of all runs."""
    return f"""---
pretty_name: CI results
configs:
- config_name: test_outcomes
  data_files: "**/test_outcomes.parquet"
---
{CARD_MARK}

# CI results

One folder per day and test job: `<date>/ci_results_<job>/` for scheduled CI runs, and
`<date>/runs/<number>-<id>/ci_results_<job>/` for others. Every test of every run, one row per test and device:

```python
from datasets import load_dataset

outcomes = load_dataset("{repo_id}", "test_outcomes", split="train")
```
""".encode()


def deliver(files: Mapping[str, bytes], *, repo_id: str, message: str, key: str, hub: Hub, ledger: Ledger) -> Delivered:
    """Upload the files of the CI run of this key, or keep them in the ledger for later.

    What was kept earlier loses the files that are newer here.
    """
    if hub.where == "outbox":  # a folder of this machine is never down
        return _delivered(hub, repo_id, hub.upload(files, repo_id=repo_id, message=message), files)
    folder = f"hub/pending/{name_of(repo_id)}"
    name = f"{folder}/{name_of(key)}"
    for older in ledger.names(folder):
        with ledger.lock(older):
            _leave_out(files, older, ledger)
    with ledger.lock(name):
        encoded = {path: b64encode(content).decode() for path, content in files.items()}
        ledger.write(name, {"repo_id": repo_id, "message": message, "files": encoded})
        try:
            return _send(name, ledger, hub)
        except HubUnavailable as unavailable:
            return _kept(unavailable)


def deliver_pending(*, hub: Hub, ledger: Ledger) -> list[Delivered]:
    """Upload what is kept, oldest first; ends early when the Hub is still not available."""
    delivered: list[Delivered] = []
    for name in ledger.names("hub/pending"):
        with ledger.lock(name):
            if ledger.read(name) is None:
                continue  # another process was faster
            try:
                delivered.append(_send(name, ledger, hub))
            except HubUnavailable as unavailable:
                delivered.append(_kept(unavailable))
                if not isinstance(unavailable, HubRefused):
                    break
    return delivered


def _leave_out(files: Mapping[str, bytes], name: str, ledger: Ledger) -> None:
    """Take files out of an entry; an entry without files goes."""
    entry = ledger.read(name)
    left = {path: content for path, content in entry["files"].items() if path not in files} if entry else {}
    if entry and not left:
        ledger.remove(name)
    elif entry and len(left) < len(entry["files"]):
        ledger.write(name, entry | {"files": left})


def _kept(unavailable: HubUnavailable) -> Delivered:
    log.warning("%s; they are kept for later", unavailable)
    return Delivered("pending", detail=str(unavailable))


def _send(name: str, ledger: Ledger, hub: Hub) -> Delivered:
    pending = ledger.read(name)
    assert pending is not None
    files = {path: b64decode(content) for path, content in pending["files"].items()}
    commit = hub.upload(files, repo_id=pending["repo_id"], message=pending["message"])
    ledger.remove(name)
    return _delivered(hub, pending["repo_id"], commit, files)


def _delivered(hub: Hub, repo_id: str, commit: str, files: Mapping[str, bytes]) -> Delivered:
    return Delivered(hub.where, hub.url(repo_id, commit), f"{len(files)} files", commit)


def upload(
    files: Mapping[str, bytes | Path],
    *,
    repo_id: str,
    message: str,
    endpoint: str,
    token: str,
    patience: float = PATIENCE,
) -> str:
    """Commit files to the dataset, which is created when it is missing; the commit's id.

    A conflict, a rate limit, a server error or a lost answer is tried again for `patience` seconds. Files that
    are there already make no new commit, so trying again, and uploading again, is safe.

    Args:
        files: Contents, or where they are, by their path in the dataset.

    Raises:
        HubUnavailable: the files could not be uploaded; `HubRefused` where trying again does not help.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError

    api = _api(endpoint, token)

    def commit() -> str:
        # An operation remembers its upload: each try needs new ones.
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        try:
            return api.create_commit(repo_id, operations, commit_message=message, repo_type="dataset").oid
        except RepositoryNotFoundError:
            log.info("Creating the dataset %s", repo_id)
            api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
            raise

    def passes(error: BaseException) -> bool:
        return _is_temporary(error) or isinstance(error, RepositoryNotFoundError)  # it was created just now

    retrying = Retrying(retry=retry_if_exception(passes), wait=_wait, stop=stop_before_delay(patience), reraise=True)
    with _refusals(f"{len(files)} files not uploaded to {endpoint}/datasets/{repo_id}"):
        return retrying(commit)


@contextmanager
def _refusals(what: str) -> Generator[None]:
    """The Hub's errors as one line: `what`, and why."""
    try:
        yield
    except Exception as error:
        log.debug("%s", what, exc_info=True)
        raise (HubUnavailable if _is_temporary(error) else HubRefused)(f"{what}: {_reason(error)}") from error


def _is_temporary(error: BaseException) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (409, 412, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx2.HTTPError, OSError))


@cache
def _api(endpoint: str, token: str) -> HfApi:
    from huggingface_hub import HfApi

    prepare()
    return HfApi(endpoint, token)


@cache
def prepare() -> None:
    """What the first upload would begin with, for where there is time before it: imports, certificates."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars, get_session

    _ = huggingface_hub.CommitOperationAdd  # it is imported when it is first asked for
    timeout = httpx2.Timeout(TIMEOUT, connect=CONNECT)
    huggingface_hub.set_client_factory(
        lambda: httpx2.Client(follow_redirects=True, timeout=timeout, event_hooks={"response": [_head_is_read]})
    )
    get_session()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a failed try is told once, by us
    disable_progress_bars()


def _head_is_read(response: httpx2.Response) -> None:
    """Huggingface_hub would wait in silence, as long as the Hub likes; how patient to be is decided here."""
    from huggingface_hub.utils import hf_raise_for_status

    acknowledge_head(response)
    if response.status_code == 429 or response.status_code >= 500:
        response.read()
        hf_raise_for_status(response)


def _wait(state: RetryCallState) -> float:
    """As long as the Hub says, else 0.5, 1, 2, … seconds."""
    error: Any = state.outcome.exception() if state.outcome else None
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    from huggingface_hub.utils import parse_ratelimit_headers

    said = headers.get("retry-after", "")
    if said.isdigit():
        return float(said)
    limit = parse_ratelimit_headers(headers)
    if limit and limit.remaining == 0:
        return limit.reset_in_seconds
    return min(0.5 * 2 ** (state.attempt_number - 1), 8.0)


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, (AttributeError, KeyError, TypeError, json.JSONDecodeError)):
        return f"the Hub's answer is not understood: {error!r}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(getattr(error, "server_message", None) or error).split())[:300] or type(error).__name__
    return f"HTTP {status}: {text}" if status else text
