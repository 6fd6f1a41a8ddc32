"""A Hugging Face hub on this machine, for the real client: what a push and a download ask for.

Every file is a regular one of Git, sent within the commit: the storage of large files (LFS, Xet) is
not retold.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

#: A token that may write.
TOKEN = "hf_of_the_tests"

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit)/(.+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(ThreadingHTTPServer):
    """The hub's repositories.

    Attributes:
        repositories: name -> commit -> path -> content; the last commit is `main`.
        tags: name -> tag -> commit.
        gated: names of repositories that only those may read who have asked.
        asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Adds a commit with these files beside those of before; returns its id."""
        commits = self.repositories.setdefault(name, {})
        before = list(commits.values())[-1] if commits else {}
        content = json.dumps([len(commits), sorted(files), name]).encode()
        commits[identity := hashlib.sha1(content).hexdigest()] = {**before, **files}
        return identity

    def resolve(self, name: str, revision: str) -> str | None:
        """The commit of a revision."""
        commits = self.repositories.get(name, {})
        if revision == "main":
            return list(commits)[-1] if commits else None
        revision = self.tags.get(name, {}).get(revision, revision)
        return revision if revision in commits else None


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        path = self._path()
        found = _API.fullmatch(path)
        if found is None:
            self._file(body=True)
            return
        name, _, revision = found.groups()
        commit = self._found(name, unquote(revision or "main"))
        if commit is not None:
            files = [{"rfilename": file} for file in self.server.repositories[name][commit]]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": files})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if path == "/api/validate-yaml":
            whole = json.loads(body)["content"].startswith("---\n")
            errors = [] if whole else [{"message": "no front matter"}]
            self._json({"errors": errors, "warnings": []}, 200 if whole else 400)
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refused(401, "", "Invalid credentials")
        elif path == "/api/repos/create":
            self._created(json.loads(body))
        elif (found := _API.fullmatch(path)) and found[2] == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            self._json({"files": modes})
        elif found and found[2] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.server.commit(found[1], files)
            url = f"{self.server.address}/{found[1]}/commit/{commit}"
            self._json({"commitUrl": url, "commitOid": commit, "hookOutput": ""})
        else:
            self._refused(404, "", "no such address")

    def _created(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self._json({"url": f"{self.server.address}/{name}"}, status)

    def _file(self, *, body: bool) -> None:
        found = _FILE.fullmatch(self._path())
        if found is None:
            self._refused(404, "RepoNotFound", "Repository not found")
            return
        name, revision, file = (unquote(part) for part in found.groups())
        if name in self.server.gated:
            self._refused(403, "GatedRepo", "Access to this model is restricted")
            return
        commit = self._found(name, revision)
        if commit is None:
            return
        content = self.server.repositories[name][commit].get(file)
        if content is None:
            self._refused(404, "EntryNotFound", "Entry not found")
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _found(self, name: str, revision: str) -> str | None:
        """The commit; where there is none, the answer is sent."""
        if not self.server.repositories.get(name):
            self._refused(401, "RepoNotFound", "Invalid username or password.")
            return None
        commit = self.server.resolve(name, revision)
        if commit is None:
            self._refused(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _refused(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, **{"X-Error-Code": code, "X-Error-Message": message})

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers during the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
