"""A Hub on 127.0.0.1 for tests: real HTTP, standard library only, for an unmodified `huggingface_hub` client.

`with LoopbackHub() as hub:` serves the API at `hub.url` and, on a second port (another origin, as on the real Hub),
the storage of large files: LFS (basic, or multipart with `hub.part_size`) and Xet uploads. Everything lives in memory:
`hub.repos` is what would be on the Hub and `hub.requests` what came in. `hub.fail(...)` makes the next matching
requests go wrong. Downloads are plain HTTP also of what came through Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.loopback_repos import TOKEN, USERS, Fault, File, Refusal, Repo, Tree, write_allowed
from helpers.loopback_xet import XetStore

__all__ = ["TOKEN", "Fault", "File", "LoopbackHub", "Repo"]


class LoopbackHub:
    """The state of the Hub and its two servers."""

    def __init__(self, part_size: int | None = None) -> None:
        self.part_size = part_size
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.xet = XetStore()
        self.requests: list[tuple[str, int]] = []
        self.received = self.sent = 0  # bytes of bodies
        self.leaks: list[str] = []
        self.gives_ranges = True
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> LoopbackHub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.wait:
                fault.wait.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fail(self, where: str, **what: Any) -> Fault:
        """Adds a fault, see `Fault`."""
        self.faults.append(Fault(where, **what))
        return self.faults[-1]

    def count(self, where: str) -> int:
        """How many requests matched, whatever became of them."""
        return sum(bool(re.search(where, request)) for request, _ in self.requests)

    def create(self, repo_id: str, private: bool = False) -> Repo:
        """A repository as it is after its creation."""
        repo = self.repos[repo_id] = Repo(private)
        repo.branches["main"] = repo.add({".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, None)
        return repo

    def take_fault(self, request: str) -> Fault | None:
        """The fault for this request, used up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, request):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    body: bytes

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _serve(self) -> None:
        request = f"{self.command} {unquote(urlsplit(self.path).path)}"
        fault = self.hub.take_fault(request)
        if fault and fault.read_bytes is not None:
            self.rfile.read(fault.read_bytes)
        if fault and fault.wait:
            fault.arrived.set()
            fault.wait.wait(60)
        if fault and fault.read_bytes is not None:
            return self._reset(request)
        self.body = self._read_body()
        self.hub.received += len(self.body)
        if fault and fault.status:
            return self._answer(request, fault.status, fault.body.encode(), fault.headers)
        try:
            with self.hub.lock:
                status, answer, headers = self._route()
        except Refusal as error:
            status, answer, headers = error.status, {"error": str(error)}, error.headers
        if fault and fault.lose_answer:
            return self._reset(request)
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if status == 200 and (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            if self.hub.gives_ranges:
                begin, end = int(asked[1]), min(int(asked[2]) + 1, len(raw))
                status, headers = 206, {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(raw)}"}
                raw = raw[begin:end]
        self._answer(request, status, raw, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, request: str, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append((request, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent += len(raw)
            self.wfile.write(raw)

    def _reset(self, request: str) -> None:
        """RST instead of FIN: the client sees a reset connection."""
        self.hub.requests.append((request, 0))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # socketserver would say goodbye politely first; the descriptor goes away at once instead.
        self.rfile.close()
        self.connection.close()

    def _route(self) -> tuple[int, Any, dict[str, str]]:
        address = urlsplit(self.path)
        path, self.query = address.path, parse_qs(address.query)
        if int(self.headers["Host"].rsplit(":", 1)[1]) == int(self.hub.storage.rsplit(":", 1)[1]):
            if TOKEN in str(self.headers):
                self.hub.leaks.append(path)
            return self._storage(path)
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command.replace("HEAD", "GET") and match:
                return getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict().items()})
        raise Refusal(404, "", f"no such page {path}")

    # Who asks, and for what.

    def _user(self) -> dict[str, Any]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in USERS:
            # The real Hub does not repeat the token; a proxy might.
            raise Refusal(401, "", "Invalid credentials in Authorization header" + f" {token}" * bool(token))
        return USERS[token]

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not write_allowed(self._user(), repo_id)):
            raise Refusal(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        if write and not write_allowed(self._user(), repo_id):
            raise Refusal(403, "", "You don't have the rights to write here")
        return repo

    def _head(self, repo_id: str, revision: str) -> tuple[Repo, str]:
        repo = self._repo(repo_id)
        head = repo.head(revision)
        if head is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, head

    # The API.

    def whoami(self) -> tuple[int, Any, dict[str, str]]:
        return 200, self._user(), {}

    def create_repo(self) -> tuple[int, Any, dict[str, str]]:
        asked, user = json.loads(self.body), self._user()
        repo_id = f"{asked.get('organization') or user['name']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if not write_allowed(user, repo_id):
            raise Refusal(403, "", "You don't have the rights to create a model under this namespace")
        if repo_id in self.hub.repos:
            return 409, {"error": "You already created this model repo", **url}, {}
        self.hub.create(repo_id, asked.get("visibility") == "private")
        return 200, url, {}

    def validate_yaml(self) -> tuple[int, Any, dict[str, str]]:
        """As the Hub refuses a card; of its rules the one that trainings in folders break."""
        found = re.search(r"^base_model: (.*)$", json.loads(self.body)["content"], re.MULTILINE)
        if found is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", found[1]):
            return 200, {"errors": [], "warnings": []}, {}
        message = f'"base_model" with value "{found[1]}" is not valid. Use a model id from https://hf.co/models.'
        return 400, {"errors": [{"message": message}], "warnings": []}, {}

    def model_info(self, repo_id: str, revision: str = "main") -> tuple[int, Any, dict[str, str]]:
        repo, head = self._head(repo_id, revision)
        siblings = [{"rfilename": path} for path in repo.tree(head)]
        return 200, {"id": repo_id, "sha": head, "private": repo.private, "tags": [], "siblings": siblings}, {}

    def tree(self, repo_id: str, revision: str, folder: str = "") -> tuple[int, Any, dict[str, str]]:
        repo, head = self._head(repo_id, revision)
        found = [file.entry(path) for path, file in repo.tree(head).items() if path.startswith(folder)]
        if folder and not found:
            raise Refusal(404, "EntryNotFound", f"no folder {folder}")
        return 200, found, {}

    def paths_info(self, repo_id: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        repo, head = self._head(repo_id, revision)
        asked = parse_qs(self.body.decode())["paths"] if self.body[:1] != b"{" else json.loads(self.body)["paths"]
        tree = repo.tree(head)
        found = [(path, tree[path]) for path in asked if path in tree]
        # Without the hash of Xet the client copies nothing to another repository.
        return (
            200,
            [{**file.entry(path), **({"xetHash": file.sha256} if file.lfs else {})} for path, file in found],
            {},
        )

    def duplicate(self, repo_id: str) -> tuple[int, Any, dict[str, str]]:
        """Server-side copy of large files into another repository."""
        asked = json.loads(self.body)
        self._repo(asked["target"]["name"], write=True)
        known = {f.sha256: f.data for tree, _ in self._repo(repo_id).commits.values() for f in tree.values()}
        self.hub.stored |= {file["sha256"]: known[file["sha256"]] for file in asked["files"]}
        return 200, {"success": asked["files"], "failed": []}, {}

    def refs(self, repo_id: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(repo_id)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
        return 200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}, {}

    def discussions(self, repo_id: str) -> tuple[int, Any, dict[str, str]]:
        when: dict[str, Any] = {"createdAt": "2026-01-01T00:00:00.000Z", "author": {"name": "me"}, "status": "open"}
        when["repo"] = {"name": repo_id, "type": "model"}
        pulls = self._repo(repo_id).pulls
        found = [{"num": n, "title": t, "isPullRequest": True, **when} for n, (_, t) in enumerate(pulls.values(), 1)]
        return 200, {"discussions": found, "count": len(found), "start": 0}, {}

    def branch(self, repo_id: str, name: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(repo_id, write=True)
        if name in repo.branches:
            raise Refusal(409, "", "Reference already exists")
        repo.branches[name] = str(repo.head(json.loads(self.body).get("startingPoint", "main")))
        return 200, {}, {}

    def tag(self, repo_id: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        repo, name = self._repo(repo_id, write=True), json.loads(self.body)["tag"]
        if name in repo.tags:
            raise Refusal(409, "", "Tag already exists")
        repo.tags[name] = str(repo.head(revision))
        return 200, {}, {}

    def preupload(self, repo_id: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        repo, head = self._head(repo_id, revision)
        files = []
        for file in json.loads(self.body)["files"]:
            path, there = file["path"], repo.tree(head).get(file["path"])
            mode = "lfs" if path.endswith((".safetensors", ".png")) or file["size"] > 1_000_000 else "regular"
            oid = {} if there is None else {"oid": there.sha256 if there.lfs else there.oid}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return 200, {"files": files}, {}

    def commit(self, repo_id: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        pull = "create_pr" in self.query
        self._repo(repo_id, write=not pull)
        repo, head = self._head(repo_id, revision)
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", head) != head:
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.tree(head))
        for change in changes:
            self._change(tree, change["key"], change["value"])
        oid = repo.add(tree, head)
        answer = {"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}
        if pull:
            number = len(repo.pulls) + 1
            repo.pulls[f"refs/pr/{number}"] = (oid, header["value"]["summary"])
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        else:
            repo.branches[revision] = oid
        return 200, answer, {}

    def _change(self, tree: Tree, key: str, value: dict[str, Any]) -> None:
        if key == "deletedFile":
            del tree[value["path"]]
        elif key == "file":
            tree[value["path"]] = File(base64.b64decode(value["content"]), False)
        elif value["oid"] in self.hub.stored:
            tree[value["path"]] = File(self.hub.stored[value["oid"]], True)
        else:
            raise Refusal(400, "", f"LFS pointer pointed to a file that does not exist: {value['oid']}")

    def resolve(self, repo_id: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        repo, commit = self._head(repo_id, revision)
        file = repo.tree(commit).get(path)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        if not file.lfs:
            return 200, file.data, {**headers, "ETag": f'"{file.oid}"'}
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        return 302, b"", {**headers, "Location": f"{self.hub.storage}/lfs/{file.sha256}"}

    def xet_token(self, repo_id: str, **_: str) -> tuple[int, Any, dict[str, str]]:
        self._repo(repo_id)
        return 200, {"casUrl": self.hub.storage, "exp": int(time.time()) + 3600, "accessToken": "xet"}, {}

    def lfs_batch(self, repo_id: str) -> tuple[int, Any, dict[str, str]]:
        self._repo(repo_id)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            upload: dict[str, Any] = {"href": f"{self.hub.storage}/lfs/{oid}"}
            if self.hub.part_size:
                parts = range(1, -(-size // self.hub.part_size) + 1)
                upload["header"] = {str(n): f"{self.hub.storage}/lfs/{oid}/{n}" for n in parts}
                upload["header"]["chunk_size"] = str(self.hub.part_size)
            objects.append(asked if oid in self.hub.stored else {**asked, "actions": {"upload": upload}})
        return 200, {"objects": objects, "transfer": "multipart" if self.hub.part_size else "basic"}, {}

    # The storage of large files.

    def _storage(self, path: str) -> tuple[int, Any, dict[str, str]]:
        kind, *names = path.strip("/").split("/")
        if kind == "lfs" and self.command in ("GET", "HEAD") and names[0] in self.hub.stored:
            return 200, self.hub.stored[names[0]], {}
        if kind == "lfs" and self.command != "GET":
            return self._store(names)
        if names[:1] == ["xorbs"]:
            self.hub.xet.add_xorb(names[-1], self.body)
            return 200, {"was_inserted": True}, {}
        if kind == "v1" and names == ["shards"]:
            self.hub.stored |= self.hub.xet.add_shard(self.body)
            return 200, {"result": 1}, {}
        raise Refusal(404, "", f"no such object {path}")

    def _store(self, names: list[str]) -> tuple[int, Any, dict[str, str]]:
        oid = names[0]
        if len(names) == 2:
            self.hub.parts[oid, int(names[1])] = self.body
            return 200, b"", {"ETag": f'"{names[1]}"'}
        if self.command == "POST":
            count = len(json.loads(self.body)["parts"])
            self.body = b"".join(self.hub.parts[oid, number] for number in range(1, count + 1))
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "the content has another SHA-256")
        self.hub.stored[oid] = self.body
        return 200, b"", {}


MODEL, REPO = r"/api/models/(?P<repo_id>[^/]+/[^/]+)", r"/(?P<repo_id>[^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create_repo"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", MODEL, "model_info"),
    ("GET", MODEL + "/revision/(?P<revision>[^/]+)", "model_info"),
    ("GET", MODEL + "/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", MODEL + "/tree/(?P<revision>[^/]+)/(?P<folder>.+)", "tree"),
    ("POST", MODEL + "/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", MODEL + "/lfs-files/duplicate", "duplicate"),
    ("GET", MODEL + "/refs", "refs"),
    ("GET", MODEL + "/discussions", "discussions"),
    ("POST", MODEL + "/branch/(?P<name>[^/]+)", "branch"),
    ("POST", MODEL + "/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", MODEL + "/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", MODEL + "/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", MODEL + "/xet-write-token/(?P<revision>[^/]+)", "xet_token"),
    ("POST", REPO + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("GET", REPO + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
