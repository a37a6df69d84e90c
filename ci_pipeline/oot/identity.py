"""Who sent a callback: OIDC tokens of GitHub Actions and Buildkite, verified against their issuer's keys."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx2
import jwt
from jwt.algorithms import RSAAlgorithm
from jwt.utils import base64url_decode, base64url_encode

from ci_pipeline.oot import Refused
from ci_pipeline.settings import OidcIssuer

log = logging.getLogger(__name__)

REFETCH_SECONDS = 60.0
"""An unknown key id makes the keys be fetched again, at most this often."""

FRESH_SECONDS = 3600.0
"""Keys older than this are fetched again: a key that its issuer withdrew stops working."""

CACHED_TOKENS = 4096

# None of these is the sender's to choose: the algorithm least of all.
_ALGORITHMS = ["RS256"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The repository that a verified token speaks for. `repository_id` is "" where the issuer has none."""

    repo: str
    repository_id: str = ""


class KeySet:
    """The signing keys behind one `jwks_uri`, the last good copy kept while the issuer does not answer."""

    def __init__(self, uri: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.uri = uri
        self._clock = clock
        self._lock = asyncio.Lock()
        self._keys: dict[str, Any] = {}
        self._fresh_until = 0.0
        self._next_fetch = 0.0
        self._failure = ""

    async def key(self, kid: str) -> Any:
        """The public key of this id, or None.

        Raises:
            Refused: the id is unknown and the keys cannot be fetched now (503).
        """
        # While somebody fetches them, what is known is good enough for the others.
        if self._stale(kid) and not (kid in self._keys and self._lock.locked()):
            async with self._lock:
                if self._stale(kid):  # nobody was faster
                    await self._fetch()
        key = self._keys.get(kid)
        if key is None and self._failure:
            raise Refused(503, f"the keys of the token's issuer cannot be fetched: {self._failure}", retry_after=10)
        return key

    def _stale(self, kid: str) -> bool:
        now = self._clock()
        return (kid not in self._keys or now > self._fresh_until) and now >= self._next_fetch

    async def _fetch(self) -> None:
        now = self._clock()
        try:
            keys = await fetch_keys(self.uri)
        except (httpx2.HTTPError, OSError, ValueError, RecursionError) as error:
            self._failure = str(error) or type(error).__name__
            self._next_fetch = now + (REFETCH_SECONDS if self._keys else 5.0)
            log.warning("Keys of %s not fetched, the last good copy stays: %s", self.uri, self._failure)
            return
        # The first fetch is not a second one: a key rotated right after it is found at once.
        self._next_fetch = now + REFETCH_SECONDS if self._keys else now
        self._keys, self._fresh_until, self._failure = keys, now + FRESH_SECONDS, ""


async def fetch_keys(uri: str) -> dict[str, Any]:
    """The signing keys there, by id.

    Raises:
        httpx2.HTTPError, OSError, ValueError, RecursionError: there is none.
    """
    if uri.startswith("file://"):
        return _rsa_keys(json.loads(Path(url2pathname(urlsplit(uri).path)).read_bytes()))
    async with httpx2.AsyncClient(timeout=5.0) as client:
        return _rsa_keys(json.loads((await client.get(uri)).raise_for_status().content))


def _rsa_keys(jwks: Any) -> dict[str, Any]:
    """Public RSA keys by id.

    Raises:
        ValueError: there is none.
    """
    keys: dict[str, Any] = {}
    for jwk in jwks.get("keys", ()) if isinstance(jwks, dict) else ():
        if isinstance(jwk, dict) and jwk.get("kid") and jwk.get("kty") == "RSA" and jwk.get("use", "sig") == "sig":
            try:
                keys[str(jwk["kid"])] = RSAAlgorithm.from_jwk(jwk)
            except (jwt.InvalidKeyError, ValueError) as error:
                log.warning("A key of the issuer is left out: %s", error)
    if not keys:
        raise ValueError("no RSA signing keys there")
    return keys


class _Verified(NamedTuple):
    identity: Identity
    expires_at: float
    kid: str
    key: Any
    keys: KeySet


class Verifier:
    """Verifies tokens of the issuers that a deployment trusts; a token seen before costs a look-up until it expires."""

    def __init__(
        self,
        issuers: Sequence[OidcIssuer],
        audience: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = {issuer.issuer: (issuer, KeySet(issuer.jwks_uri, clock=clock)) for issuer in issuers}
        self._audience = audience
        self._verified: dict[bytes, _Verified] = {}

    async def identity(self, authorization: str | None) -> Identity:
        """Who is behind an `Authorization` header.

        Raises:
            Refused: nobody who can be believed (401), or the issuer's keys cannot be had (503).
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refused(401, "send `Authorization: Bearer <OIDC token>`")
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        verified = self._verified.get(digest)
        # A key that was fetched again is another object: then the token proves itself anew.
        if verified and time.time() < verified.expires_at and await verified.keys.key(verified.kid) is verified.key:
            return verified.identity
        try:
            verified = await self._verify(token)
        except jwt.PyJWTError as error:
            raise Refused(401, f"the OIDC token is not valid: {error}") from None
        if len(self._verified) >= CACHED_TOKENS:
            self._verified.clear()
        self._verified[digest] = verified
        return verified.identity

    async def _verify(self, token: str) -> _Verified:
        header, payload = _unverified(token)
        issuer, keys = self._issuers.get(str(payload.get("iss")), (None, None))
        if issuer is None or keys is None:
            raise Refused(401, "the OIDC token is of an issuer that is not trusted here")
        if header.get("alg") not in _ALGORITHMS:
            raise Refused(401, "the OIDC token is not signed with RS256")
        kid = str(header.get("kid"))
        key = await keys.key(kid)
        if key is None:
            raise Refused(401, "the OIDC token is signed with a key that its issuer does not know")
        claims = _jwt.decode(
            token,
            key,
            algorithms=_ALGORITHMS,
            audience=self._audience,
            issuer=issuer.issuer,
            # A clock that is some seconds behind the issuer's is no reason to refuse.
            options={"require": ["exp", "iss", "aud"], "verify_iat": False},
        )
        return _Verified(_identity(issuer, claims), float(claims["exp"]), kid, key, keys)


class _Jws(jwt.PyJWS):
    """PyJWT looks at every character of a token in Python, which takes as long as all the rest. Encoding again what was
    decoded finds the same."""

    @staticmethod
    def _decode_base64url_segment(segment: bytes, name: str) -> bytes:
        try:
            decoded = base64url_decode(segment)
        except ValueError as error:
            raise jwt.DecodeError(f"Invalid {name} padding") from error
        if base64url_encode(decoded) != segment:
            raise jwt.DecodeError(f"Invalid {name} padding")
        return decoded


_jwt = jwt.PyJWT()
_jwt._jws = _Jws()  # pyright: ignore[reportPrivateUsage]


def _unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload as they claim to be, to find the key by which they are then verified."""
    try:
        header, payload = (json.loads(base64url_decode(part)) for part in token.split(".")[:2])
    except (ValueError, RecursionError):
        header = payload = None
    if not isinstance(header, dict) or not isinstance(payload, dict):
        raise Refused(401, "the OIDC token is not a JSON Web Token")
    return header, payload


def _identity(issuer: OidcIssuer, claims: dict[str, Any]) -> Identity:
    if issuer.kind == "github":
        repo = claims.get("repository")
        if not isinstance(repo, str) or repo.count("/") != 1:
            raise Refused(401, "the OIDC token has no `repository` claim")
        return Identity(repo, str(claims.get("repository_id") or ""))
    name = f"{claims.get('organization_slug')}/{claims.get('pipeline_slug')}"
    pipeline = issuer.pipelines.get(name)
    if pipeline is None:
        raise Refused(401, f"the Buildkite pipeline {name} is not known here")
    for claim, value in pipeline.claims.items():
        if str(claims.get(claim)) != value:
            raise Refused(401, f"the OIDC token of {name} must have the claim {claim} = {value}")
    return Identity(pipeline.repository)
