"""Uploads result files to a dataset of the Hugging Face Hub: one commit per run, made once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds that one request may take; huggingface_hub itself would wait for ever."""


class HubUnavailable(RuntimeError):
    """The files are not on the Hub. The text is one line that says why."""


class HubRefused(HubUnavailable):
    """The Hub answered, and said no: a wrong token, a dataset that may not be written."""


def upload(
    files: Mapping[str, bytes],
    *,
    repo_id: str,
    message: str,
    endpoint: str = "https://huggingface.co",
    token: str,
    patience: float = 20.0,
) -> str:
    """Commit files to the dataset, which is created when it is missing; the commit's id.

    A conflict, a rate limit, a server error or a lost answer is tried again for about `patience` seconds. Files that
    are there already make no new commit, so trying again, and uploading again, is safe.

    Args:
        files: Contents by their path in the dataset.

    Raises:
        HubUnavailable: the files could not be uploaded; `HubRefused` where trying again does not help.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

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

    def is_temporary(error: BaseException) -> bool:
        if isinstance(error, RepositoryNotFoundError):
            return True  # it was created just now
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (409, 412, 429) or error.response.status_code >= 500
        return isinstance(error, (httpx2.HTTPError, OSError))

    retrying = Retrying(
        retry=retry_if_exception(is_temporary),
        wait=_wait,
        stop=stop_after_attempt(6) | stop_after_delay(patience),
        reraise=True,
    )
    try:
        return retrying(commit)
    except Exception as error:
        log.debug("Upload to %s failed", repo_id, exc_info=True)
        kind = HubUnavailable if is_temporary(error) and not isinstance(error, RepositoryNotFoundError) else HubRefused
        raise kind(f"{len(files)} files not uploaded to {endpoint}/datasets/{repo_id}: {_reason(error)}") from error


@cache
def _api(endpoint: str, token: str) -> HfApi:
    import httpx2
    from huggingface_hub import HfApi, set_client_factory

    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=TIMEOUT))
    return HfApi(endpoint, token)


def _wait(state: RetryCallState) -> float:
    """As long as the Hub says, else 0.5, 1, 2, … seconds."""
    error: Any = state.outcome.exception() if state.outcome else None
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    said = headers.get("retry-after", "")
    return float(said) if said.isdigit() else min(0.5 * 2 ** (state.attempt_number - 1), 8.0)


def _reason(error: Exception) -> str:
    """An error in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join(str(getattr(error, "server_message", None) or error).split())[:300] or type(error).__name__
    return f"HTTP {status}: {text}" if status else text
