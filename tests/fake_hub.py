"""A small server that speaks the Hugging Face Hub's API as `huggingface_hub` asks it: repositories in memory."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Messages."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    """Kinds of requests that get a 403: create, commit."""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(hub: Hub):
    """Serve `hub` on loopback while the block runs. Yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._route()

    def do_POST(self):
        self._route()

    def do_HEAD(self):
        self._route()

    def log_message(self, *_):
        pass

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self._answer(200, {"type": "user", "name": "acme"})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            return self._model(found[1], found[2] or "", body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(found[1], found[2])
        return self._answer(404, {"error": "not found"})

    def _create(self, asked: dict) -> None:
        if "create" in self.hub.refuses:
            return self._answer(403, {"error": "You have no right to write here"})
        name = f"{asked.get('organization') or 'acme'}/{asked['name']}"
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[name] = Repository(private)
        return self._answer(200, {"url": f"http://{self.headers['Host']}/{name}"})

    def _model(self, name: str, rest: str, body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if rest.startswith("/preupload/"):
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._answer(200, {"files": [{"path": file["path"], **regular} for file in files]})
        if rest.startswith("/commit/"):
            return self._commit(name, repository, body)
        files = sorted(repository.files)
        if rest.startswith("/tree/"):
            rows = [{"type": "file", "path": f, "size": len(repository.files[f]), "oid": "0" * 40} for f in files]
            return self._answer(200, rows)
        siblings = [{"rfilename": file} for file in files]
        shown = {"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings}
        return self._answer(200, shown)

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        if "commit" in self.hub.refuses:
            return self._answer(403, {"error": "You have no right to write here"})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        url = f"http://{self.headers['Host']}/{name}/commit/{repository.sha}"
        return self._answer(200, {"commitUrl": url, "commitOid": repository.sha, "hookOutput": "", "success": True})

    def _file(self, name: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        content = repository.files.get(path) if repository else None
        if repository is None or content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        tags = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repository.sha}
        return self._send(200, content, {"Content-Type": "application/octet-stream", **tags})

    def _answer(self, status: int, value, headers=None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
