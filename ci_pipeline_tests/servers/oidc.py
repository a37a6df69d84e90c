"""An OIDC issuer: its keys at `/.well-known/jwks`, tokens signed with them, and keys that rotate."""

from __future__ import annotations

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from ci_pipeline_tests.servers.base import Request, Response, Server

AUDIENCE = "pytorch-cross-repo-ci-relay"


class OidcServer(Server):
    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.kid = ""
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key; the old ones are withdrawn."""
        self.kid = f"key-{int(self.kid.rpartition('-')[2] or 0) + 1}"
        self.keys = {self.kid: rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    @property
    def issuer(self) -> dict[str, str]:
        """What `CI_PIPELINE_OIDC_ISSUERS` takes."""
        return {"issuer": self.url, "jwks_uri": f"{self.url}/.well-known/jwks", "kind": "github"}

    def token(self, repo: str = "org/backend", **claims: Any) -> str:
        return self.sign(self.claims(repo, **claims))

    def claims(self, repo: str = "org/backend", **claims: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "iat": now, "nbf": now - 5, "exp": now + 300}
        every = {**usual, "repository": repo, "repository_id": "1", **claims}
        return {name: value for name, value in every.items() if value is not None}

    def sign(self, claims: dict[str, Any], key: Any = None, algorithm: str = "RS256", **headers: Any) -> str:
        return jwt.encode(claims, key or self.keys[self.kid], algorithm=algorithm, headers={"kid": self.kid, **headers})

    def handle(self, request: Request) -> Response:
        if request.path != "/.well-known/jwks":
            return Response(404)
        keys = [
            {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": "RS256"}
            for kid, key in self.keys.items()
        ]
        return Response(200, {"keys": keys})
