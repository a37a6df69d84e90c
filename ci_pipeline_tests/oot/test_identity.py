"""Who is believed: real tokens against a real issuer over HTTP, and every way to forge one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.utils import base64url_encode

from ci_pipeline.oot import Refused
from ci_pipeline.oot.identity import Identity, Verifier, _Jws  # pyright: ignore
from ci_pipeline.settings import OidcIssuer
from ci_pipeline_tests.servers.oidc import AUDIENCE, OidcServer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def verifier(issuer: OidcServer, clock: Callable[[], float] = time.monotonic) -> Verifier:
    return Verifier([OidcIssuer.model_validate(issuer.issuer)], AUDIENCE, clock=clock)


def identity(verifier: Verifier, token: str | None, scheme: str = "Bearer") -> Identity:
    return asyncio.run(verifier.identity(None if token is None else f"{scheme} {token}"))


def refusal(verifier: Verifier, token: str | None, scheme: str = "Bearer") -> Refused:
    with pytest.raises(Refused) as refused:
        identity(verifier, token, scheme)
    return refused.value


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(issuer: OidcServer) -> str:
    return f"{encoded({'alg': 'none', 'kid': issuer.kid})}.{encoded(issuer.claims())}."


def signed_with_the_public_key(issuer: OidcServer) -> str:
    """The forgery of verifiers that let the token choose: HS256 with what everybody can read."""
    public = issuer.keys[issuer.kid].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = f"{encoded({'alg': 'HS256', 'kid': issuer.kid, 'typ': 'JWT'})}.{encoded(issuer.claims())}"
    signature = hmac.new(public, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def tampered(issuer: OidcServer) -> str:
    head, _, signature = issuer.token("org/other").split(".")
    return f"{head}.{encoded(issuer.claims('org/backend'))}.{signature}"


def of_another_key(issuer: OidcServer, **headers: Any) -> str:
    return issuer.sign(issuer.claims(), rsa.generate_private_key(public_exponent=65537, key_size=2048), **headers)


def test_a_token_speaks_for_its_repository(issuer: OidcServer):
    assert identity(verifier(issuer), issuer.token("org/backend", repository_id="42")) == Identity("org/backend", "42")


def test_the_keys_of_an_issuer_may_be_in_a_file(issuer: OidcServer, tmp_path: Path):
    jwks = tmp_path / "jwks with a blank.json"
    jwks.write_bytes(httpx2.get(f"{issuer.url}/.well-known/jwks").content)
    of_file = OidcIssuer(issuer=issuer.url, jwks_uri=jwks.as_uri())
    assert identity(Verifier([of_file], AUDIENCE), issuer.token()).repo == "org/backend"
    nowhere = OidcIssuer(issuer=issuer.url, jwks_uri="file:///nowhere/jwks.json")
    assert refusal(Verifier([nowhere], AUDIENCE), issuer.token()).status == 503


@pytest.mark.parametrize("odd", [{"kid": "odd", "kty": "RSA", "n": "!", "e": "!"}, {"kid": "odd", "kty": "RSA"}, "odd"])
def test_a_key_that_cannot_be_read_costs_no_other(issuer: OidcServer, tmp_path: Path, odd: Any):
    keys = httpx2.get(f"{issuer.url}/.well-known/jwks").json()["keys"]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [odd, *keys]}))
    of_file = OidcIssuer(issuer=issuer.url, jwks_uri=(tmp_path / "jwks.json").as_uri())
    assert identity(Verifier([of_file], AUDIENCE), issuer.token()).repo == "org/backend"


def test_the_scheme_minds_no_case(issuer: OidcServer):
    assert identity(verifier(issuer), issuer.token(), "bearer").repo == "org/backend"


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(unsigned, id="alg none"),
        pytest.param(signed_with_the_public_key, id="HS256 with the public key"),
        pytest.param(tampered, id="payload of another token"),
        pytest.param(of_another_key, id="somebody's own key under a known id"),
        pytest.param(lambda issuer: of_another_key(issuer, kid="unknown"), id="unknown key id"),
        pytest.param(lambda issuer: of_another_key(issuer, jku="https://evil.example/jwks"), id="its own jku"),
        pytest.param(
            lambda issuer: issuer.sign(issuer.claims(), ec.generate_private_key(ec.SECP256R1()), "ES256"), id="ES256"
        ),
        pytest.param(lambda issuer: issuer.sign(issuer.claims(), algorithm="RS512"), id="RS512"),
        pytest.param(lambda issuer: issuer.token(aud="somebody-else"), id="audience"),
        pytest.param(lambda issuer: issuer.token(aud=None), id="no audience"),
        pytest.param(lambda issuer: issuer.token(iss="https://evil.example"), id="issuer"),
        pytest.param(lambda issuer: issuer.token(iss=None), id="no issuer"),
        pytest.param(lambda issuer: issuer.token(exp=int(time.time()) - 1), id="expired"),
        pytest.param(lambda issuer: issuer.token(exp=None), id="no expiry"),
        pytest.param(lambda issuer: issuer.token(nbf=int(time.time()) + 60), id="not yet valid"),
        pytest.param(lambda issuer: issuer.token(repository=None), id="no repository"),
        pytest.param(lambda issuer: issuer.token(repository=["org/backend"]), id="repository that is a list"),
        pytest.param(lambda issuer: issuer.token(repository="org/backend/x"), id="repository that is none"),
        pytest.param(lambda _: "a.b.c", id="no JWT"),
        pytest.param(lambda _: "é.é.é", id="no ASCII"),
        pytest.param(lambda _: "W10.W10.W10", id="JWT of lists"),
        pytest.param(lambda _: "W1tb" * 10_000 + ".W10.W10", id="lists in lists without end"),
        pytest.param(lambda _: "", id="empty"),
        pytest.param(lambda issuer: issuer.token() + ".x", id="four parts"),
        pytest.param(lambda issuer: issuer.token()[:-30], id="cut"),
    ],
)
def test_a_forged_token_is_refused(issuer: OidcServer, forge: Callable[[OidcServer], str]):
    assert refusal(verifier(issuer), forge(issuer)).status == 401


def test_a_token_seen_before_vouches_for_no_other(issuer: OidcServer):
    known, token = verifier(issuer), issuer.token()
    identity(known, token)
    head, payload, signature = token.split(".")
    assert refusal(known, f"{head}.{payload}.{signature[:-6]}AAAAAA").status == 401
    assert refusal(known, f"{head}.{encoded(issuer.claims('org/victim'))}.{signature}").status == 401


def test_an_issuer_cannot_speak_for_another(issuer: OidcServer):
    with OidcServer() as other:
        other.rotate()  # its key has an id of its own
        both = Verifier([OidcIssuer.model_validate(each.issuer) for each in (issuer, other)], AUDIENCE)
        for trusted in (issuer, other):
            assert identity(both, trusted.token()).repo == "org/backend"
        for kid in (issuer.kid, other.kid):
            assert refusal(both, issuer.sign(issuer.claims(), other.keys[other.kid], kid=kid)).status == 401


def test_a_clock_that_is_behind_is_no_reason_to_refuse(issuer: OidcServer):
    assert identity(verifier(issuer), issuer.token(iat=int(time.time()) + 30)).repo == "org/backend"


@given(st.one_of(st.binary(max_size=40), st.text("abcAZ09-_=+/ ", max_size=40).map(str.encode)))
def test_a_part_of_a_token_is_read_as_pyjwt_reads_it(segment: bytes):
    def read(how: Callable[[bytes, str], bytes]) -> bytes | None:
        with contextlib.suppress(jwt.DecodeError):
            return how(segment, "payload")
        return None

    ours = read(_Jws._decode_base64url_segment)  # pyright: ignore
    assert ours is None or ours == read(jwt.PyJWS._decode_base64url_segment)  # pyright: ignore
    encoded = base64url_encode(segment)
    assert _Jws._decode_base64url_segment(encoded, "payload") == segment  # pyright: ignore


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic dXNlcg==", "token"])
def test_a_callback_without_a_token_is_refused(issuer: OidcServer, header: str | None):
    with pytest.raises(Refused, match="Authorization: Bearer"):
        asyncio.run(verifier(issuer).identity(header))


def test_a_rotated_key_is_found_at_once_and_the_old_one_stops_working():
    with OidcServer() as issuer:
        known = verifier(issuer)
        old = issuer.token()
        identity(known, old)
        withdrawn, withdrawn_kid = issuer.keys[issuer.kid], issuer.kid
        issuer.rotate()
        assert identity(known, issuer.token()).repo == "org/backend"
        assert refusal(known, old).status == 401
        assert refusal(known, issuer.sign(issuer.claims(jti="2"), withdrawn, kid=withdrawn_kid)).status == 401


def test_unknown_key_ids_make_the_keys_be_fetched_at_most_once_a_minute():
    clock = Clock()
    with OidcServer() as issuer:
        known = verifier(issuer, clock)
        identity(known, issuer.token())
        for n in range(20):
            refusal(known, of_another_key(issuer, kid=f"unknown-{n}"))
        assert len(issuer.requests) == 2
        clock.now += 61
        issuer.rotate()
        identity(known, issuer.token())
        assert len(issuer.requests) == 3


def test_a_withdrawn_key_stops_working_within_the_hour():
    clock = Clock()
    with OidcServer() as issuer:
        known = verifier(issuer, clock)
        token = issuer.token()
        identity(known, token)
        issuer.rotate()
        assert identity(known, token)
        clock.now += 3601
        assert refusal(known, token).status == 401


def test_known_keys_go_on_working_while_the_issuer_is_down():
    clock = Clock()
    with OidcServer() as issuer:
        known = verifier(issuer, clock)
        identity(known, issuer.token())
        issuer.fail(status=500, times=100)
        clock.now += 3601
        assert identity(known, issuer.token(jti="2")).repo == "org/backend"


def test_an_issuer_that_is_slow_keeps_one_callback_waiting_and_no_other():
    clock = Clock()
    with OidcServer() as issuer:
        known = verifier(issuer, clock)
        authorization = f"Bearer {issuer.token()}"

        async def callbacks() -> list[Identity]:
            await known.identity(authorization)
            clock.now += 3601
            issuer.fail(delay=2.0)
            waiting = asyncio.create_task(known.identity(authorization))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(1.0):
                others = [await known.identity(authorization) for _ in range(3)]
            return [await waiting, *others]

        assert asyncio.run(callbacks()) == [Identity("org/backend", "1")] * 4
        assert len(issuer.requests) == 2


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": True}, {"status": 200, "body": {"keys": []}}])
def test_an_issuer_that_does_not_answer_is_a_503_and_is_not_asked_at_every_callback(fault: dict[str, Any]):
    clock = Clock()
    with OidcServer() as issuer:
        issuer.fail(**fault)
        known = verifier(issuer, clock)
        assert refusal(known, issuer.token()).status == 503
        assert refusal(known, issuer.token()).status == 503
        assert len(issuer.requests) == 1
        clock.now += 6
        assert identity(known, issuer.token()).repo == "org/backend"


def test_a_token_seen_before_is_refused_when_it_has_expired(issuer: OidcServer):
    known = verifier(issuer)
    expires = int(time.time()) + 3
    token = issuer.token(exp=expires)
    identity(known, token)
    time.sleep(expires + 0.1 - time.time())
    assert refusal(known, token).status == 401


def test_remembered_tokens_are_bounded(issuer: OidcServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ci_pipeline.oot.identity.CACHED_TOKENS", 3)
    known = verifier(issuer)
    for n in range(10):
        identity(known, issuer.token(jti=str(n)))
    assert 1 <= len(known._verified) <= 3  # pyright: ignore[reportPrivateUsage]


# --- Buildkite ------------------------------------------------------------------------------------------------------


@pytest.fixture
def buildkite(issuer: OidcServer) -> Verifier:
    pipelines = {"acme/nightly": {"repository": "org/backend", "claims": {"build_branch": "main"}}}
    trusted = {**issuer.issuer, "kind": "buildkite", "pipelines": pipelines}
    return Verifier([OidcIssuer.model_validate(trusted)], AUDIENCE)


def test_a_buildkite_pipeline_speaks_for_the_repository_that_it_is_mapped_to(issuer: OidcServer, buildkite: Verifier):
    claims = {"organization_slug": "acme", "pipeline_slug": "nightly", "build_branch": "main"}
    token = issuer.token(repository="org/victim", **claims)
    assert identity(buildkite, token) == Identity("org/backend")


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"organization_slug": "acme", "pipeline_slug": "other", "build_branch": "main"},
        {"organization_slug": "acme", "pipeline_slug": "nightly", "build_branch": "attack"},
        {"organization_slug": "acme", "pipeline_slug": "nightly"},
    ],
)
def test_another_pipeline_or_claim_is_refused(issuer: OidcServer, buildkite: Verifier, claims: dict[str, str]):
    assert refusal(buildkite, issuer.token(**claims)).status == 401
