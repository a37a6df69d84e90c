"""Plays the Hugging Face Hub's dataset repositories: create, preupload, commit, raw files."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from ci_pipeline_tests.servers.base import Request, Response, Server


class HubServer(Server):
    """`repos`: the files of each dataset by their path; `commits`: their messages, oldest first."""

    def __init__(self, *repos: str) -> None:
        super().__init__()
        self.repos: dict[str, dict[str, bytes]] = {repo: {} for repo in repos}
        self.commits: dict[str, list[str]] = {repo: [] for repo in repos}
        self.role = "write"  # of the token

    def handle(self, request: Request) -> Response:
        with self._lock:
            if request.headers.get("authorization") != "Bearer hf_test":
                return Response(401, {"error": "Invalid username or password."})
            if request.path == "/api/repos/create":
                body = request.json()
                repo = f"{body['organization']}/{body['name']}"
                if body["type"] != "dataset" or repo in self.repos:
                    return Response(409, {"error": "You already created this repo"})
                self.repos[repo], self.commits[repo] = {}, []
                return Response(body={"url": f"{self.url}/datasets/{repo}"})
            if request.path == "/api/whoami-v2":
                return Response(body={"name": "acme-bot", "auth": {"accessToken": {"role": self.role}}})
            if request.path == "/api/validate-yaml":
                return Response(body={"errors": [], "warnings": []})
            path = re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(\w+)/main(?:/(.+))?)?", request.path)
            if path is None or path[1] not in self.repos:
                return Response(404, {"error": "Repository not found"}, {"x-error-code": "RepoNotFound"})
            return self._repo(request, path[1], path[2] or "info", path[3] or "")

    def _repo(self, request: Request, repo: str, action: str, path: str) -> Response:
        files = self.repos[repo]
        if action == "preupload":
            asked = request.json()["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": _oid(files.get(f["path"]))}
                for f in asked
            ]
            return Response(body={"files": modes})
        if action == "commit":
            header, *operations = map(json.loads, request.body.splitlines())
            files |= {o["value"]["path"]: base64.b64decode(o["value"]["content"]) for o in operations}
            self.commits[repo].append(header["value"]["summary"])
            return Response(body={"commitOid": self.head(repo), "commitUrl": self._commit_url(repo), "success": True})
        if action in ("raw", "resolve"):
            return Response(200, files[path]) if path in files else Response(404, {}, {"x-error-code": "EntryNotFound"})
        return Response(body={"id": repo, "sha": self.head(repo), "siblings": []})

    def head(self, repo: str) -> str:
        return hashlib.sha1("\n".join([repo, *self.commits[repo]]).encode()).hexdigest()

    def _commit_url(self, repo: str) -> str:
        return f"{self.url}/datasets/{repo}/commit/{self.head(repo)}"


def _oid(content: bytes | None) -> str | None:
    """git's id of a file."""
    return content if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
