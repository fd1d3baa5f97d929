"""A Hugging Face Hub on loopback: the endpoints that publishing and loading use, kept in memory, faults on demand."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWNER, TOKEN, READ_ONLY = "someone", "hf_secretOfTheOwner", "hf_secretThatOnlyReads"
LARGE = (".safetensors",)
"""Suffixes of the files that go through LFS."""


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    """The files after each commit; the first is the Hub's own."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Fault:
    """What to do instead with the next `times` requests whose `METHOD /path` matches `pattern`."""

    pattern: str
    status: int | None = None
    """None: the connection drops after half of the file."""
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: a dropped connection is what some tests want."""

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


def oid(path: str, content: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_one(self) -> None:
        address = urlsplit(self.path)
        self.route, self.query = unquote(address.path), parse_qs(address.query)
        fault = self.server.fault(f"{self.command} {self.route}")
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.status is None and self.command == "PUT":
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(length)
        self.drop = fault is not None and fault.status is None
        if fault and fault.status is not None:
            return self.answer({"error": "injected"}, fault.status, fault.headers)
        for methods, pattern, action in ROUTES:
            found = re.fullmatch(pattern, self.route)
            if found and self.command in methods:
                return action(self, **found.groupdict())
        self.answer({"error": "no such endpoint"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.drop:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def repository(self, kind: str, name: str, write: bool = False) -> Repository | None:
        """The repository, or None after the refusal has been sent. A private one does not exist for strangers."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        found = self.server.repositories.get((kind.removesuffix("s"), name))
        if found is None or (found.private and token not in (TOKEN, READ_ONLY)):
            self.answer({"error": "not found"}, 404 if token else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and (token != TOKEN or not name.startswith(f"{OWNER}/")):
            self.answer({"error": "forbidden"}, 403)
            return None
        return found

    def create(self) -> None:
        values = json.loads(self.body)
        kind, owner = values.get("type") or "model", values.get("organization") or OWNER
        name = f"{owner}/{values['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" or owner != OWNER:
            authorised = self.headers.get("Authorization") in (f"Bearer {TOKEN}", f"Bearer {READ_ONLY}")
            return self.answer({"error": "forbidden"}, 403 if authorised else 401)
        if (kind, name) in self.server.repositories:
            return self.answer({"error": "You already created this repo", "url": f"{self.server.url}/{name}"}, 409)
        self.server.repositories[kind, name] = Repository(values.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{name}", "name": name})

    def validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def info(self, kind: str, name: str) -> None:
        if found := self.repository(kind, name):
            siblings = [{"rfilename": path} for path in sorted(found.files)]
            self.answer({"id": name, "sha": found.sha, "private": found.private, "tags": [], "siblings": siblings})

    def tree(self, kind: str, name: str, folder: str | None) -> None:
        if found := self.repository(kind, name):
            recursive = self.query.get("recursive", ["False"])[0].lower() in ("true", "1")
            start = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
            inside = [path for path in sorted(found.files) if path.startswith(start)]
            if start and not inside:
                return self.answer({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})
            rest = {path: path.removeprefix(start) for path in inside}
            folders = {start + text.partition("/")[0] for text in rest.values() if "/" in text}
            files = [path for path, text in rest.items() if recursive or "/" not in text]
            self.answer(
                [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
                + [entry(path, found.files[path]) for path in files]
            )

    def paths(self, kind: str, name: str) -> None:
        if found := self.repository(kind, name):
            text = self.body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            self.answer([entry(path, found.files[path]) for path in asked if path in found.files])

    def preupload(self, kind: str, name: str) -> None:
        if found := self.repository(kind, name, write=True):
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            self.answer(
                {
                    "files": [
                        {
                            "path": path,
                            "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                            "shouldIgnore": False,
                            "oid": oid(path, found.files[path]) if path in found.files else None,
                        }
                        for path in paths
                    ]
                }
            )

    def batch(self, kind: str | None, name: str) -> None:
        if self.repository(kind or "model", name, write=True):
            wanted = json.loads(self.body)["objects"]
            objects = []
            for item in wanted:
                here = item["oid"] in self.server.objects
                upload = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}?signature=secret"}}
                objects.append(item if here else item | {"actions": upload})
            self.answer({"transfer": "basic", "objects": objects})

    def put(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self.answer({"error": "not what was announced"}, 400)
        self.server.objects[digest] = self.body
        self.answer({})

    def commit(self, kind: str, name: str) -> None:
        if found := self.repository(kind, name, write=True):
            files = dict(found.files)
            for line in self.body.decode().splitlines():
                operation = json.loads(line)
                value = operation["value"]
                match operation["key"]:
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = self.server.objects[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
            found.commits.append(files)
            address = f"{self.server.url}/{name}/commit/{found.sha}"
            self.answer({"success": True, "commitOid": found.sha, "commitUrl": address, "hookOutput": ""})

    def resolve(self, kind: str | None, name: str, path: str) -> None:
        if found := self.repository(kind or "model", name):
            content = found.files.get(path)
            headers = {"X-Repo-Commit": found.sha}
            if content is None:
                return self.answer({"error": "no entry"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
            headers |= {"ETag": f'"{oid(path, content)}"', "Accept-Ranges": "bytes"}
            start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if start:
                first = int(start[1])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                return self.answer(content[first:], 206, headers)
            self.answer(content, 200, headers)


def entry(path: str, content: bytes) -> dict[str, Any]:
    digest = oid(path, content)
    large = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}} if path.endswith(LARGE) else {}
    return {"type": "file", "path": path, "oid": digest, "size": len(content), **large}


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_FILES = r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+?)"
ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate),
    (("GET", "HEAD"), _API + r"(/revision/[^/]+)?", Handler.info),
    (("GET",), _API + r"/tree/[^/]+(?P<folder>/.*)?", Handler.tree),
    (("POST",), _API + r"/paths-info/[^/]+", Handler.paths),
    (("POST",), _API + r"/preupload/[^/]+", Handler.preupload),
    (("POST",), _API + r"/commit/[^/]+", Handler.commit),
    (("POST",), _FILES + r"\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), r"/lfs/(?P<digest>\w+)", Handler.put),
    (("GET", "HEAD"), _FILES + r"/resolve/[^/]+/(?P<path>.+)", Handler.resolve),
]


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
