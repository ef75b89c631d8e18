"""Publishing a robust encoder on the Hub: nothing lost, nothing twice, everything compared."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError
from transformers import PreTrainedModel

from fare_hf.files.credentials import redact
from fare_hf.files.documents import read_object
from fare_hf.hub.push.folder import LocalFile, check_loads, check_reference, check_repo_id, read_folder, vision_shape
from fare_hf.hub.push.remote import Moved, Remote, State
from fare_hf.hub.retry import Retries, wait_asked
from fare_hf.hub.save import copy_with_text_encoder, save_robust_encoder

__all__ = ["Publication", "PushError", "check_access", "push_robust_encoder"]

COMMIT_MESSAGE = "Publish robust encoder"


class PushError(OSError):
    """A push that stopped half-way: one sentence says what is on the Hub, what is not, and how to go on."""


@dataclass(frozen=True)
class Publication:
    """What was published, with the hashes that the files have here.

    Attributes:
        repo_id: with its namespace.
        revision: branch, or reference of the pull request.
        commit: commit on the Hub that holds exactly these files.
        files: what was published.
        url: page of the repository, or of the pull request.
        tag: tag on the commit, or None.
    """

    repo_id: str
    revision: str
    commit: str
    files: tuple[str, ...]
    url: str
    tag: str | None = None

    def __str__(self) -> str:
        tag = f", tag {self.tag}" if self.tag else ""
        commit = f"{self.revision}{tag}, commit {self.commit[:12]}"
        return f"{self.url} ({commit}): {len(self.files)} files, equal by the Hub's hashes"


@dataclass(frozen=True)
class _Order:
    """What was asked for."""

    folder: Path
    private: bool | None = None
    revision: str = "main"
    create_pr: bool = False
    tag: str | None = None
    commit_message: str = COMMIT_MESSAGE

    def command(self, repo_id: str) -> str:
        """The same as a command line; it never holds a token."""
        words = ["fare-hf", "push", str(self.folder), repo_id]
        words += [] if self.private is None else ["--private" if self.private else "--no-private"]
        words += [] if self.revision == "main" else ["--revision", self.revision]
        words += ["--create_pr"] if self.create_pr else []
        words += ["--tag", self.tag] if self.tag else []
        words += [] if self.commit_message == COMMIT_MESSAGE else ["--commit_message", self.commit_message]
        return shlex.join(words)


def push_robust_encoder(
    source: PreTrainedModel | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str = "main",
    create_pr: bool = False,
    tag: str | None = None,
    token: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
    endpoint: str | None = None,
    retries: Retries | None = None,
    text_encoder: str | None = None,
    **save: Any,
) -> Publication:
    """Publish an encoder, or the folder that `save_robust_encoder` wrote, and compare the hashes of what is there.

    Everything local is checked first, then the account and the repository; only then something is sent. What the Hub
    holds already is not sent again, so a push that was cut off goes on when it is repeated, and one that was complete
    changes nothing. Files of an earlier push that are outdated (shards, reports) are taken away.

    Args:
        source: encoder, or folder.
        repo_id: "namespace/name", or "name" for the token's own account; made if absent.
        private: of a new repository; None is the account's usual.
        revision: branch, made from `main` if absent: one for each checkpoint of a run.
        create_pr: open a pull request to `revision` instead; needs no right to write.
        tag: put on the published commit.
        token: access token; None takes `HF_TOKEN` or that of `hf auth login`.
        commit_message: of the commit.
        endpoint: of another Hub than `HF_ENDPOINT`.
        retries: how patient to be.
        text_encoder: the original CLIP, whose text encoder and tokenizer are published too.
        save: of `save_robust_encoder`, where the source is an encoder.

    Raises:
        ValueError: what was asked cannot work; nothing was sent.
        PushError: the Hub failed, or refused half-way; its message has the command to go on.
    """
    check_repo_id(repo_id)
    check_reference(revision, "revision")
    check_reference(tag, "tag")
    if create_pr and tag:
        raise ValueError(f"tag {tag!r} cannot be put on a pull request: tag after it is merged.")
    folder, temporary = _folder(source, text_encoder, {"repo_id": repo_id, **save})
    order = _Order(folder, private, revision, create_pr, tag, commit_message)
    job = _Push(order, Remote(repo_id, token, endpoint, retries))
    failure = job.attempt(job.run)
    if temporary and not isinstance(failure, PushError):
        shutil.rmtree(temporary, ignore_errors=True)
    if failure is not None:
        # Raised outside the handler: the original error holds the request, and with it the token.
        raise failure
    assert job.result is not None
    return job.result


def check_access(
    repo_id: str, token: str | None = None, *, endpoint: str | None = None, retries: Retries | None = None
) -> str:
    """Asks the Hub whether the token may write there, before any work is done for it; returns the whole name.

    Raises:
        ValueError: no valid name, no token, or one without the right.
        PushError: the Hub does not answer.
    """
    check_repo_id(repo_id)
    job = _Push(_Order(Path()), Remote(repo_id, token, endpoint, retries))
    failure = job.attempt(job.check_account)
    if failure is not None:
        raise failure
    return job.remote.repo_id


def _folder(
    source: PreTrainedModel | str | os.PathLike[str], text_encoder: str | None, save: dict[str, Any]
) -> tuple[Path, Path | None]:
    """The folder to push, and its temporary parent if it is one of ours."""
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        if set(save) != {"repo_id"}:
            extra = sorted(set(save) - {"repo_id"})
            raise ValueError(f"{extra} belong to an encoder, but {str(folder)!r} is a folder: save it again.")
        if text_encoder is None:
            return folder, None
        read_folder(folder, str(save["repo_id"]))
    temporary = Path(tempfile.mkdtemp(prefix="fare_hf-push-"))
    target = temporary / str(save["repo_id"]).rsplit("/", 1)[-1]
    try:
        if isinstance(source, (str, os.PathLike)):
            copy_with_text_encoder(folder, target, str(text_encoder))
        else:
            save_robust_encoder(source, target, text_encoder=text_encoder, **save)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target, temporary


class _Push:
    """One push; `stage`, `sending` and `result` say how far it came."""

    def __init__(self, order: _Order, remote: Remote) -> None:
        self.order, self.remote = order, remote
        self.stage, self.sending = f"reading '{order.folder}'", False
        self.files: list[LocalFile] = []
        self.result: Publication | None = None

    def attempt(self, run: Callable[[], None]) -> ValueError | PushError | None:
        """Calls `run`; returns what it raised as one clear error, without a trace of the request (the token)."""
        try:
            run()
        except Exception as error:
            if type(error) is ValueError and not self.sending:
                return ValueError(redact(str(error), self.remote.token))
            return PushError(redact(_story(self, error), self.remote.token))
        return None

    def run(self) -> None:
        """Checks the folder, the account and the repository; then sends, and compares."""
        order, remote = self.order, self.remote
        named = remote.repo_id
        self.files = read_folder(order.folder, named, remote.token)
        check_loads(order.folder)
        self.check_account()
        if remote.repo_id != named:
            self.files = read_folder(order.folder, remote.repo_id, remote.token)
        self.stage = "looking at the repository"
        state = remote.state()
        self._check_state(state)
        self.stage, self.sending = "creating the repository", True
        if state is None:
            remote.create(order.private)
            state = remote.state() or State(bool(order.private))
        if order.revision not in state.branches:
            self.stage = f"creating the branch '{order.revision}'"
            remote.create_branch(order.revision)
        self._send()

    def _send(self) -> None:
        """Uploads and commits what differs, compares, tags."""
        order, remote = self.order, self.remote
        parent = remote.head(order.revision)
        operations = remote.changes(self.files, remote.tree(parent))
        reference, url, commit = order.revision, f"{remote.api.endpoint}/{remote.repo_id}", parent
        if operations:
            self.stage = "uploading"
            remote.upload(operations, order.revision, order.create_pr)
            self.stage = "committing"
            details = (operations, self.files, order.revision, parent, order.commit_message)
            if order.create_pr:
                reference, url = remote.open_pull_request(*details)
                commit = remote.head(reference)
            else:
                commit = remote.commit(*details)
            self.stage = "comparing what was published"
            if different := remote.missing(self.files, commit):
                raise OSError(f"{', '.join(different)} of commit {commit} has other hashes than here")
        if order.tag:
            self.stage = f"tagging commit {commit[:12]} as '{order.tag}'"
            remote.create_tag(order.tag, commit)
        names = tuple(file.path for file in self.files)
        self.result = Publication(remote.repo_id, reference, commit, names, url, order.tag)

    def check_account(self) -> None:
        """The token is known, and may write where it shall; a name without namespace gets the account's."""
        remote = self.remote
        self.stage = "asking who the token belongs to"
        account = remote.account()
        name = account["name"]
        if "/" not in remote.repo_id:
            remote.repo_id = f"{name}/{remote.repo_id}"
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise ValueError(f"the access token of {name!r} may only read: make one with the right to write.")
        spaces = {name} | {org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"}
        if remote.repo_id.split("/")[0] not in spaces and not self.order.create_pr:
            raise ValueError(
                f"the account {name!r} has no right to write to {remote.repo_id!r}: publish under one of "
                f"{sorted(spaces)}, or open a pull request (create_pr)."
            )

    def _check_state(self, state: State | None) -> None:
        """What exists already is the same kind of thing, and the Hub takes the card, unless it has it already."""
        order, remote = self.order, self.remote
        card = next(file for file in self.files if file.path == "README.md")
        if state is None and order.create_pr:
            raise ValueError(
                f"there is no repository {remote.repo_id!r} to open a pull request in: leave out create_pr."
            )
        if state is not None:
            _check_references(order, remote.repo_id, state)
            seen = order.revision if order.revision in state.branches else "main"
            self._check_architecture(seen)
            if order.tag in state.tags and remote.missing(self.files, state.tags[str(order.tag)]):
                raise ValueError(
                    f"tag {order.tag!r} of {remote.repo_id!r} is on other files already: give another tag."
                )
        if state is None or remote.missing([card], seen):
            self.stage = "asking whether the card is valid"
            remote.check_card((card.content or card.source.read_bytes()).decode("utf-8"))

    def _check_architecture(self, revision: str) -> None:
        """An encoder never replaces one of another shape."""
        config = self.remote.read_json("config.json", revision)
        if config is None:
            return
        local = next(file for file in self.files if file.path == "config.json")
        mine = vision_shape(read_object(local.source), f"'{self.order.folder}'")
        theirs = vision_shape(config, f"{self.remote.repo_id!r} on the Hub")
        for name, value in mine.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{self.remote.repo_id!r} holds an encoder with {name} {theirs[name]!r}, this one has {value!r}: "
                    "publish it under another name."
                )


def _check_references(order: _Order, repo_id: str, state: State) -> None:
    if order.private not in (None, state.private):
        now, wanted = ("private", "public") if state.private else ("public", "private")
        raise ValueError(f"{repo_id!r} is {now} already: make it {wanted} on its page, or leave out private.")
    if order.revision in state.tags or (order.create_pr and order.revision not in state.branches):
        raise ValueError(f"revision {order.revision!r} of {repo_id!r} is no branch: name a branch.")


def _story(job: _Push, error: Exception) -> str:
    """What happened, what is on the Hub, what is not, and the command to go on."""
    start = f"publishing to '{job.remote.repo_id}' stopped while {job.stage}: {_cause(error)}"
    command = f" To go on: {job.order.command(job.remote.repo_id)}" if job.files else ""
    if not job.sending:
        return f"{start}. Nothing was sent.{command}"
    there, missing = _look(job)
    return f"{start}. On the Hub: {there}. Not on the Hub: {missing}.{command}"


def _look(job: _Push) -> tuple[str, str]:
    """One last look, which does not insist."""
    remote, order = job.remote, job.order
    remote.retries = Retries(tries=1)
    everything = ", ".join(f"{file.path} ({file.size} bytes)" for file in job.files)
    try:
        remote.head("main")
    except RepositoryNotFoundError:
        return "nothing", everything
    except Exception:
        return "unknown, as it does not answer", f"perhaps {everything}"
    try:
        missing = remote.missing(job.files, order.revision)
    except Exception:
        return "the repository", f"perhaps {everything}"
    there = [file.path for file in job.files if file.path not in missing]
    tag = [f"the tag {order.tag}"] if order.tag and "tagging" in job.stage else []
    return "the repository with " + (", ".join(there) or "none of these files"), ", ".join(missing + tag) or "nothing"


def _cause(error: Exception) -> str:
    """The first line that says something, with the status and the wait that was asked for."""
    if isinstance(error, Moved):
        return str(error)
    links = [error, error.__cause__, error.__context__]
    shown = [str(link) if isinstance(link, OSError) else f"{type(link).__name__} {link}" for link in links if link]
    texts = [" ".join(text.split()) for text in shown]
    told = "; ".join(dict.fromkeys(texts))[:300] or type(error).__name__
    asked = wait_asked(error)
    return told + ("" if asked is None else f" (the Hub asks to wait {asked:.0f} s)")
