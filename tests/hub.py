"""A stand-in for the Hugging Face hub on loopback, for the unchanged clients: they find it by HF_ENDPOINT.

It serves model and dataset repositories with their branches and commits, and fails on request: gated, slow, cut off.
It takes uploads from those who have a token with write access.
Left out: tags, pull requests, Git LFS, Xet, the dataset viewer, abbreviated commits.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TIMEOUT = 5  # seconds a client waits for an answer: short for a test that wants it to run out, long for a busy machine
NAME = r"((?:[^/]+/)??[^/]+)"
API = re.compile(rf"/api/(models|datasets)/{NAME}(?:/(?:(refs)|(revision|tree|paths-info)/([^/]+)(?:/(.+))?))?")
UPLOAD = re.compile(rf"/api/models/{NAME}/(auth-check|auth-check/write|preupload/main|commit/main)")
RESOLVE = re.compile(rf"/(datasets/)?{NAME}/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class _File:
    blob: Path
    oid: str
    size: int


_Files = dict[str, _File]  # by their path in the repository


@dataclass(frozen=True)
class _Repository:
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, _Files] = field(default_factory=dict)


class _RefusalError(Exception):
    """An answer that is none: status, the hub's error code (may be empty), message."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | headers
        if code:
            self.headers["X-Error-Code"] = code


class Hub:
    """A hub that runs while the context is open.

    Attributes:
        endpoint: its address, ``http://127.0.0.1:PORT``.
        gated: names of repositories whose files are refused, with 401 without a token and 403 with one. As on
            the real hub, what they hold and at which commit stays public.
        delay: seconds before each answer.
        cut: file name -> bytes of its next GET after which the connection is closed, once. huggingface_hub keeps
            a download's whole chunks of 10 MiB and asks for the rest by Range; below that it starts over.
        tokens: token -> its role, "read" or "write"; all are of the user ``me``.
        full: whether commits are refused, as for a user without storage left.
        private: names of the repositories that were created as private ones.
        requests: (method, path without the query) as they arrived.
        answers: (method, path without the query, status) as they were answered.
    """

    def __init__(self, root: Path) -> None:
        """`root` is a folder for copies of the files."""
        self.gated: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.full = False
        self.private: set[str] = set()
        self.delay = 0.0
        self.cut: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.answers: list[tuple[str, str, int]] = []
        self.repositories: dict[tuple[str, str], _Repository] = {}
        self.closing = threading.Event()
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._counter = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add_model(self, name: str, folder: Path, revision: str = "main") -> str:
        """Copy a folder into a new commit, move the branch `revision` to it, and return the commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self._add("models", name, files, revision)

    def add_dataset(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Make a new commit of these files, move the branch `revision` to it, and return the commit."""
        return self._add("datasets", name, files, revision)

    def _add(self, kind: str, name: str, files: dict[str, bytes], revision: str) -> str:
        self._counter += 1  # the same files again are another commit
        digest = hashlib.sha1(f"{kind} {name} {self._counter}".encode())
        copies: _Files = {}
        for path, content in sorted(files.items()):
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # git's
            digest.update(f"\n{oid} {path}".encode())
            copies[path] = _File(self._root / oid, oid, len(content))
            if not copies[path].blob.exists():
                copies[path].blob.write_bytes(content)
        commit = digest.hexdigest()
        repository = self.repositories.setdefault((kind, name), _Repository())
        repository.commits[commit] = copies
        repository.branches[revision] = commit
        return commit

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables to add to a subprocess's own: the clients read them when they are imported."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_TOKEN": "",  # nobody's own token is sent; one below HF_HOME would be
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Server(ThreadingHTTPServer):
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up; everything else is a fault of this server, and printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets, and the second would wait for 40 ms
    server: _Server

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append((self.command, url.path))
        if hub.closing.wait(hub.delay):
            self.close_connection = True
            return
        try:
            if upload := UPLOAD.fullmatch(url.path):
                self._json(self._upload(*upload.groups(), body))
            elif url.path in ("/api/whoami-v2", "/api/repos/create", "/api/validate-yaml"):
                self._json(*self._account(url.path, json.loads(body or b"{}")))
            elif api := API.fullmatch(url.path):
                kind, name, refs, action, revision, path = (unquote(part or "") for part in api.groups())
                asked = parse_qs(url.query) | parse_qs(body.decode())
                self._json(self._api(kind, name, refs or action, revision or "main", path, asked))
            elif resolve := RESOLVE.fullmatch(url.path):
                dataset, *rest = (unquote(part or "") for part in resolve.groups())
                self._resolve("datasets" if dataset else "models", *rest)
            else:
                raise _RefusalError(404, "", "This stand-in for the hub does not serve that path.")
        except _RefusalError as refusal:
            self._json({"error": str(refusal)}, refusal.status, refusal.headers)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Tests read `Hub.answers`."""

    def _role(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.hub.tokens:
            raise _RefusalError(401, "", "Invalid credentials in Authorization header")
        return self.server.hub.tokens[token]

    def _account(self, path: str, asked: dict[str, Any]) -> tuple[Any, int]:
        role, hub = self._role(), self.server.hub
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}}, 200
        if path == "/api/validate-yaml":
            metadata = yaml.safe_load(asked["content"].split("---")[1])
            if not isinstance(metadata, dict):
                raise _RefusalError(400, "", "Invalid metadata")
            return {"errors": [], "warnings": []}, 200
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if role != "write" or not name.startswith("me/"):
            raise _RefusalError(403, "", f"You don't have the rights to create a model under the namespace of {name}")
        answer = {"url": f"{hub.endpoint}/{name}", "name": name}
        if ("models", name) in hub.repositories:
            return answer | {"error": "You already created this model repo"}, 409
        hub._add("models", name, {}, "main")
        hub.private |= {name} if asked.get("visibility") == "private" else set()
        return answer, 200

    def _upload(self, name: str, action: str, body: bytes) -> Any:
        role, hub = self._role(), self.server.hub
        self._find("models", name, "main")
        if action == "auth-check":
            return {}
        if role != "write" or not name.startswith("me/"):
            raise _RefusalError(403, "", f"You don't have write access to {name}")
        if action == "auth-check/write":
            return {}
        if action == "preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]}
        if hub.full:
            raise _RefusalError(403, "", "Private repository storage limit reached")
        lines = [json.loads(line) for line in body.splitlines()]
        added = {line["value"]["path"]: b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        commit = hub._add("models", name, added, "main")
        return {"commitUrl": f"{hub.endpoint}/{name}/commit/{commit}", "commitOid": commit}

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, _Files]:
        """The commit that a branch or commit names, and its files."""
        repository = self.server.hub.repositories.get((kind, name))
        if repository is None:
            raise _RefusalError(404, "RepoNotFound", "Repository not found")
        commit = repository.branches.get(revision.removeprefix("refs/heads/"), revision)
        if commit not in repository.commits:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def _api(self, kind: str, name: str, action: str, revision: str, path: str, asked: dict[str, list[str]]) -> Any:
        commit, files = self._find(kind, name, revision)
        if action == "refs":
            branches = self.server.hub.repositories[kind, name].branches
            heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in branches.items()]
            return {"branches": heads, "converts": [], "tags": [], "pullRequests": []}
        if action == "tree":
            recursive = asked.get("recursive", [""])[0].lower() in ("true", "1")
            within = f"{path}/" if path else ""
            found = [entry for entry in _entries(files) if entry["path"].startswith(within)]
            if not found and path:
                raise _RefusalError(404, "EntryNotFound", f"{path} does not exist on {revision}")
            return [entry for entry in found if recursive or "/" not in entry["path"].removeprefix(within)]
        if action == "paths-info":
            return [entry for entry in _entries(files) if entry["path"] in asked.get("paths", [])]
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in files]
        if asked.get("blobs", [""])[0].lower() in ("true", "1"):
            siblings = [{"rfilename": path, "size": file.size, "blobId": file.oid} for path, file in files.items()]
        gated = "manual" if name in self.server.hub.gated else False
        return {"id": name, "sha": commit, "siblings": siblings, "gated": gated, "private": False, "tags": []}

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        commit, files = self._find(kind, name, revision)
        if name in self.server.hub.gated:
            status = 403 if "Authorization" in self.headers else 401
            raise _RefusalError(status, "GatedRepo", f"Access to {name} is restricted. Ask for it on its page.")
        if path not in files:
            raise _RefusalError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        file = files[path]
        headers = {"ETag": f'"{file.oid}"', "X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
        headers |= {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, stop, status = 0, file.size, 200
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip()):
            first, last = span.groups()
            start = int(first) if first else max(file.size - int(last or 0), 0)
            stop = min(int(last) + 1, file.size) if first and last else file.size
            if start >= stop:
                raise _RefusalError(416, "", "Range not satisfiable", **{"Content-Range": f"bytes */{file.size}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        cut = self.server.hub.cut.pop(path, None) if self.command == "GET" else None
        self._send(file.blob.read_bytes()[start:stop], status, headers, cut)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content: bytes, status: int, headers: dict[str, str], cut: int | None = None) -> None:
        self.server.hub.answers.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        self.close_connection |= cut is not None


def _entries(files: _Files) -> list[dict[str, Any]]:
    """All folders and files of a commit, as the hub lists them."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    listed = [{"type": "directory", "path": p, "size": 0, "oid": hashlib.sha1(p.encode()).hexdigest()} for p in folders]
    listed += [{"type": "file", "path": path, "size": file.size, "oid": file.oid} for path, file in files.items()]
    return sorted(listed, key=lambda entry: str(entry["path"]))
