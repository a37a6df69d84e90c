"""The signed token of a dispatch: proof that a callback answers something that was really dispatched."""

from __future__ import annotations

import jwt

from ci_pipeline.oot import Refused
from ci_pipeline.oot.lifecycle import Dispatch, Step

_ALGORITHM = "HS256"
_KIND = "oot-callback"


def mint(dispatch: Dispatch, key: str, valid_days: float) -> str:
    """A token over `{delivery_id, repo, pr_number, head_sha, dispatched_at}`, for `callback_token`."""
    claims = {
        "aud": _KIND,
        "exp": int(dispatch.dispatched_at + valid_days * 86400),
        "delivery_id": dispatch.delivery_id,
        "repo": dispatch.repo,
        "pr_number": dispatch.pr_number,
        "head_sha": dispatch.head_sha,
        "dispatched_at": dispatch.dispatched_at,
    }
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


def verify(token: str, step: Step, key: str) -> None:
    """Hold a callback to the dispatch that its token was minted for.

    One token serves every job and every attempt of its dispatch. Completing a job consumes it for that job: the
    lifecycle accepts nothing more of it.

    Raises:
        Refused: the token is forged or too old, or is of another delivery, repository, pull request or commit (403).
    """
    try:
        claims = jwt.decode(token, key, algorithms=[_ALGORITHM], audience=_KIND, options={"require": ["exp", "aud"]})
    except jwt.PyJWTError as error:
        raise Refused(403, f"callback_token is not valid: {error}") from None
    said: dict[str, object] = {"delivery_id": step.delivery_id, "repo": step.repo.lower()}
    if step.pr_number is not None:
        said["pr_number"] = step.pr_number
    if step.head_sha:
        said["head_sha"] = step.head_sha
    known = {**claims, "repo": str(claims.get("repo")).lower()}
    for name, value in said.items():
        if known.get(name) not in (value, None, ""):
            raise Refused(403, f"callback_token is of another {name}")
