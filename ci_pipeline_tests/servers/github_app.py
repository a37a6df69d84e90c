"""GitHub as an App sees it: installations, their tokens, and `repository_dispatch`."""

from __future__ import annotations

from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ci_pipeline_tests.servers.base import Request, Response, Server


class GitHubAppServer(Server):
    """`dispatched` is what was sent where; repositories in `missing` have no installation."""

    app_id = "4711"

    def __init__(self) -> None:
        super().__init__()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.private_key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.dispatched: dict[str, dict[str, Any]] = {}
        self.missing: set[str] = set()

    def handle(self, request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        parts = request.path.strip("/").split("/")
        if parts[0] == "app" or parts[-1] == "installation":
            assert scheme.lower() == "bearer"
            jwt.decode(token, self._key.public_key(), algorithms=["RS256"], issuer=self.app_id)
            if parts[0] == "app":
                expires = {"expires_at": "2099-01-01T00:00:00Z"}
                return Response(201, {"token": f"installation-{parts[2]}", **expires})
            repo = "/".join(parts[1:3])
            return Response(404, {"message": "Not Found"}) if repo in self.missing else Response(200, {"id": 99})
        if token != "installation-99":
            return Response(401, {"message": "Bad credentials"})
        if len(request.body) > 65_535:
            return Response(422, {"message": "client_payload is too large"})
        self.dispatched["/".join(parts[1:3])] = request.json()
        return Response(204)
