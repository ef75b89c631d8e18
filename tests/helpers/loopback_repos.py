"""What the loopback Hub keeps: users, files, repositories with their commits; and the faults a test asks for."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

__all__ = ["TOKEN", "USERS", "Fault", "File", "Refusal", "Repo", "Tree", "commit_name", "write_allowed"]

TOKEN = "hf_loopbackMeWritesHere"
USERS = {
    TOKEN: {"name": "me", "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]},
    "hf_loopbackOnlyReads": {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
    "hf_loopbackYouAreOther": {"name": "you", "orgs": []},
}
Tree = dict[str, "File"]


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        """Name of the content in the storage of large files."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Name of the blob in git."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        blob = pointer.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """As a tree lists it; without a `xetHash`, with which the client would download by Xet."""
        large = {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}}
        lfs: dict[str, Any] = large if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid, **lfs}


@dataclass
class Repo:
    """Commits by id (each a whole tree and its parent), and references by name (`main`, `refs/pr/1`)."""

    private: bool
    commits: dict[str, tuple[Tree, str | None]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, tuple[str, str]] = field(default_factory=dict)

    def head(self, revision: str) -> str | None:
        """The commit that a revision names."""
        pull = self.pulls.get(revision, (None,))[0]
        return (
            self.branches.get(revision)
            or self.tags.get(revision)
            or pull
            or (revision if revision in self.commits else None)
        )

    def tree(self, revision: str = "main") -> Tree:
        """The files of a revision."""
        return self.commits[str(self.head(revision))][0]

    def add(self, tree: Tree, parent: str | None) -> str:
        """A new commit; it is on no branch yet."""
        oid = commit_name(len(self.commits), parent)
        self.commits[oid] = (tree, parent)
        return oid


def commit_name(number: int, parent: str | None) -> str:
    """The id of a repository's commit, which counts from 0."""
    return hashlib.sha1(f"{number}{parent}".encode()).hexdigest()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path" matches `where`.

    Attributes:
        where: regular expression.
        status, body, headers: the answer given instead of the true one.
        read_bytes: reads so much of the body, then resets the connection.
        lose_answer: does what was asked, then resets the connection.
        wait: stops, with `read_bytes` in the middle of the body, until this event is set, after `arrived` was.
    """

    where: str
    times: int = 1
    status: int | None = None
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    read_bytes: int | None = None
    lose_answer: bool = False
    wait: threading.Event | None = None
    arrived: threading.Event = field(default_factory=threading.Event)


class Refusal(Exception):
    """An error answer of the Hub."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message or code}


def write_allowed(user: dict[str, Any], repo_id: str) -> bool:
    """Whether the user's token may write there."""
    spaces = {user["name"], *(org["name"] for org in user["orgs"] if org["roleInOrg"] != "read")}
    return user.get("auth", {}).get("accessToken", {}).get("role") != "read" and repo_id.split("/")[0] in spaces
