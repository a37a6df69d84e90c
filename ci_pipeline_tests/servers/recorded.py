"""One server that plays GitHub, Slack and the Hub from a folder of recorded answers.

`<folder>/github/routes.json` lists what GitHub's API answers (`url`, `status`, and `file`, `location` or `zip_dir`);
anything else is a 404. Messages and uploads are kept in `messages` and `files`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ci_pipeline_tests.servers.base import Request, Response, Server


class RecordedServices(Server):
    in_two_pieces = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.messages: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        routes: list[dict[str, Any]] = json.loads((folder / "github" / "routes.json").read_text("utf-8"))
        self._routes = {_address(route["url"]): route for route in routes}

    def handle(self, request: Request) -> Response:
        if request.method == "GET":
            return self._github(request)
        method = request.path.rpartition("/")[2]
        if method == "chat.postMessage":
            message = request.json() if request.body[:1] == b"{" else request.form()
            self.messages.append(message)
            ts = f"1770000000.{len(self.messages):06d}"
            return Response(body={"ok": True, "ts": ts, "channel": message["channel"], "message": {"ts": ts}})
        if method == "files.getUploadURLExternal":
            return Response(body={"ok": True, "upload_url": f"{self.url}/upload/F1", "file_id": "F1"})
        if method == "files.completeUploadExternal":
            return Response(body={"ok": True, "files": [{"id": "F1"}]})
        if request.path.startswith("/upload/"):
            return Response(body=b"OK")
        if request.path.startswith("/api/") and "." in method:
            return Response(body={"ok": True, "messages": [], "has_more": False})
        if "/preupload/" in request.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in request.json()["files"]
            ]
            return Response(body={"files": files})
        if "/commit/" in request.path:
            for entry in map(json.loads, request.body.splitlines()):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            oid = hashlib.sha1(request.body).hexdigest()
            dataset = request.path.removeprefix("/api").partition("/commit/")[0]
            url = f"{self.url}{dataset}/commit/{oid}"
            return Response(body={"success": True, "commitOid": oid, "commitUrl": url})
        return Response(404, {"error": "not found"})

    def _github(self, request: Request) -> Response:
        path = request.path.removeprefix("/api/v3")
        route = self._routes.get((path, tuple(sorted(request.query.items()))))
        if route is None:
            return Response(404, {"message": "Not Found"})
        if "location" in route:
            return Response(302, headers={"location": self.url + urlsplit(route["location"]).path})
        if "zip_dir" in route:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for file in sorted((self.folder / route["zip_dir"]).iterdir()):
                    archive.writestr(file.name, file.read_bytes())
            return Response(body=buffer.getvalue(), headers={"content-type": "application/zip"})
        body = (self.folder / "github" / route["file"]).read_bytes()
        return Response(route["status"], body.replace(b"https://api.github.com/", self.url.encode() + b"/"))


def _address(url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    parts = urlsplit(url)
    return parts.path, tuple(sorted(parse_qsl(parts.query, keep_blank_values=True)))


def main() -> None:
    """`python -m ci_pipeline_tests.servers.recorded FOLDER`: serve until standard input closes; prints the address."""
    with RecordedServices(Path(sys.argv[1])) as server:
        print(server.url, flush=True)
        sys.stdin.read()
        print(json.dumps({"messages": len(server.messages), "files": len(server.files)}), flush=True)


if __name__ == "__main__":
    main()
