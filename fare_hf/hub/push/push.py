"""Publishing a robust encoder on the Hub: nothing lost, nothing twice, everything compared."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import RepositoryNotFoundError
from transformers import PreTrainedModel

from fare_hf.files.credentials import mask_secrets
from fare_hf.files.documents import read_object
from fare_hf.hub.push.folder import LocalFile, check_loads, check_reference, check_repo_id, read_folder, vision_shape
from fare_hf.hub.push.remote import Moved, Remote, State
from fare_hf.hub.retry import Retries, wait_asked
from fare_hf.hub.save import copy_with_text_encoder, save_robust_encoder

__all__ = ["Publication", "PushError", "check_access", "push_robust_encoder"]

COMMIT_MESSAGE = "Publish robust encoder"
T = TypeVar("T")


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


def push_robust_encoder(
    encoder: PreTrainedModel | str | os.PathLike[str],
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
        encoder: model, or folder.
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
        save: of `save_robust_encoder`, where a model is given.

    Returns:
        Where the encoder is: repository, revision, commit and address.

    Raises:
        ValueError: what was asked cannot work; nothing was sent.
        PushError: the Hub failed, or refused half-way; its message has the command to go on.

    Example:
        >>> push_robust_encoder("outputs/fare4/encoder", "user/fare4", private=True)  # doctest: +SKIP
    """
    check_repo_id(repo_id)
    check_reference(revision, "revision")
    check_reference(tag, "tag")
    if create_pr and tag:
        raise ValueError(f"tag {tag!r} cannot be put on a pull request: tag after it is merged.")
    folder, temporary = _folder(encoder, text_encoder, {"repo_id": repo_id, **save})
    push = _Push(Remote(repo_id, token, endpoint, retries), folder, private, revision, create_pr, tag, commit_message)
    kept = None
    try:
        return push.attempt(push.run)
    except PushError:
        kept = temporary  # the command to go on names it
        raise
    finally:
        if temporary != kept:
            shutil.rmtree(str(temporary), ignore_errors=True)


def check_access(
    repo_id: str, token: str | None = None, *, endpoint: str | None = None, retries: Retries | None = None
) -> str:
    """Asks the Hub whether the token may write there, before any work is done for it; returns the whole name.

    Raises:
        ValueError: no valid name, no token, or one without the right.
        PushError: the Hub does not answer.
    """
    check_repo_id(repo_id)
    push = _Push(Remote(repo_id, token, endpoint, retries), Path())
    push.attempt(push.check_account)
    return push.remote.repo_id


def _folder(
    encoder: PreTrainedModel | str | os.PathLike[str], text_encoder: str | None, save: dict[str, Any]
) -> tuple[Path, Path | None]:
    """The folder to push, and its temporary parent if it is one of ours."""
    if isinstance(encoder, (str, os.PathLike)):
        folder = Path(encoder)
        if set(save) != {"repo_id"}:
            extra = sorted(set(save) - {"repo_id"})
            raise ValueError(f"{extra} belong to an encoder, but {str(folder)!r} is a folder: save it again.")
        if text_encoder is None:
            return folder, None
        read_folder(folder, str(save["repo_id"]))
    temporary = Path(tempfile.mkdtemp(prefix="fare_hf-push-"))
    target = temporary / str(save["repo_id"]).rsplit("/", 1)[-1]
    try:
        if isinstance(encoder, (str, os.PathLike)):
            copy_with_text_encoder(folder, target, str(text_encoder))
        else:
            save_robust_encoder(encoder, target, text_encoder=text_encoder, **save)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target, temporary


@dataclass
class _Push:
    """One push, as it was asked for; `stage` and `sending` say how far it came."""

    remote: Remote
    folder: Path
    private: bool | None = None
    revision: str = "main"
    create_pr: bool = False
    tag: str | None = None
    commit_message: str = COMMIT_MESSAGE
    stage: str = ""
    sending: bool = False
    files: list[LocalFile] = field(default_factory=list)

    def command(self) -> str:
        """The same as a command line; it never holds a token."""
        words = ["fare-hf", "push", str(self.folder), self.remote.repo_id]
        words += [] if self.private is None else ["--private" if self.private else "--no-private"]
        words += [] if self.revision == "main" else ["--revision", self.revision]
        words += ["--create_pr"] if self.create_pr else []
        words += ["--tag", self.tag] if self.tag else []
        words += [] if self.commit_message == COMMIT_MESSAGE else ["--commit_message", self.commit_message]
        return shlex.join(words)

    def attempt(self, step: Callable[[], T]) -> T:
        """Calls a step; what it raises becomes one clear error, without a trace of the request (the token)."""
        try:
            return step()
        except Exception as error:
            refused = type(error) is ValueError and not self.sending
            told = mask_secrets(str(error) if refused else _story(self, error), self.remote.token)
        # Raised outside the handler: the original error holds the request.
        raise ValueError(told) if refused else PushError(told)

    def run(self) -> Publication:
        """Checks the folder, the account and the repository; then sends, and compares."""
        remote, named = self.remote, self.remote.repo_id
        self.stage = f"reading '{self.folder}'"
        self.files = read_folder(self.folder, named, remote.token)
        check_loads(self.folder)
        self.check_account()
        if remote.repo_id != named:
            self.files = read_folder(self.folder, remote.repo_id, remote.token)
        self.stage = "looking at the repository"
        state = remote.state()
        self._check_state(state)
        self.stage, self.sending = "creating the repository", True
        if state is None:
            remote.create(self.private)
            state = remote.state() or State(bool(self.private))
        if self.revision not in state.branches:
            self.stage = f"creating the branch '{self.revision}'"
            remote.create_branch(self.revision)
        return self._send()

    def _send(self) -> Publication:
        """Uploads and commits what differs, compares, tags."""
        remote = self.remote
        parent = remote.head(self.revision)
        operations = remote.changes(self.files, remote.tree(parent))
        reference, url, commit = self.revision, f"{remote.api.endpoint}/{remote.repo_id}", parent
        if operations:
            self.stage = "uploading"
            remote.upload(operations, self.revision, self.create_pr)
            self.stage = "committing"
            details = (operations, self.files, self.revision, parent, self.commit_message)
            if self.create_pr:
                reference, url = remote.open_pull_request(*details)
                commit = remote.head(reference)
            else:
                commit = remote.commit(*details)
            self.stage = "comparing what was published"
            if different := remote.missing(self.files, commit):
                raise OSError(f"{', '.join(different)} of commit {commit} has other hashes than here")
        if self.tag:
            self.stage = f"tagging commit {commit[:12]} as '{self.tag}'"
            remote.create_tag(self.tag, commit)
        names = tuple(file.path for file in self.files)
        return Publication(remote.repo_id, reference, commit, names, url, self.tag)

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
        if remote.repo_id.split("/")[0] not in spaces and not self.create_pr:
            raise ValueError(
                f"the account {name!r} has no right to write to {remote.repo_id!r}: publish under one of "
                f"{sorted(spaces)}, or open a pull request (create_pr)."
            )

    def _check_state(self, state: State | None) -> None:
        """What exists already is the same kind of thing, and the Hub takes the card, unless it has it already."""
        remote, card = self.remote, next(file for file in self.files if file.path == "README.md")
        if state is not None:
            self._check_references(state)
        elif self.create_pr:
            raise ValueError(
                f"there is no repository {remote.repo_id!r} to open a pull request in: leave out create_pr."
            )
        seen = self.revision if state is None or self.revision in state.branches else "main"
        if state is None or remote.missing([card], seen):
            self.stage = "asking whether the card is valid"
            remote.check_card((card.content or card.source.read_bytes()).decode("utf-8"))

    def _check_references(self, state: State) -> None:
        """Visibility, branch, tag and architecture of a repository that exists."""
        repo_id, branch = self.remote.repo_id, self.revision in state.branches
        if self.private not in (None, state.private):
            now, wanted = ("private", "public") if state.private else ("public", "private")
            raise ValueError(f"{repo_id!r} is {now} already: make it {wanted} on its page, or leave out private.")
        if self.revision in state.tags or (self.create_pr and not branch):
            raise ValueError(f"revision {self.revision!r} of {repo_id!r} is no branch: name a branch.")
        self._check_architecture(self.revision if branch else "main")
        if self.tag in state.tags and self.remote.missing(self.files, state.tags[str(self.tag)]):
            raise ValueError(f"tag {self.tag!r} of {repo_id!r} is on other files already: give another tag.")

    def _check_architecture(self, revision: str) -> None:
        """An encoder never replaces one of another shape."""
        config = self.remote.read_json("config.json", revision)
        if config is None:
            return
        mine = vision_shape(read_object(self.folder / "config.json"), f"'{self.folder}'")
        theirs = vision_shape(config, f"{self.remote.repo_id!r} on the Hub")
        different = [name for name, value in mine.items() if theirs[name] != value]
        if different:
            name = different[0]
            raise ValueError(
                f"{self.remote.repo_id!r} holds an encoder with {name} {theirs[name]!r}, this one has {mine[name]!r}: "
                "publish it under another name."
            )


def _story(push: _Push, error: Exception) -> str:
    """What happened, what is on the Hub, what is not, and the command to go on."""
    start = f"publishing to '{push.remote.repo_id}' stopped while {push.stage}: {_cause(error)}"
    command = f" To go on: {push.command()}" if push.files else ""
    if not push.sending:
        return f"{start}. Nothing was sent.{command}"
    there, missing = _look(push)
    return f"{start}. On the Hub: {there}. Not on the Hub: {missing}.{command}"


def _look(push: _Push) -> tuple[str, str]:
    """One last look, which does not insist."""
    remote = push.remote
    remote.retries = Retries(tries=1)
    there = ""
    everything = ", ".join(f"{file.path} ({file.size} bytes)" for file in push.files)
    try:
        remote.head("main")
        there = "the repository"
        missing = remote.missing(push.files, push.revision)
    except Exception as error:
        if not there and isinstance(error, RepositoryNotFoundError):
            return "nothing", everything
        return there or "unknown, as it does not answer", f"perhaps {everything}"
    names = [file.path for file in push.files if file.path not in missing]
    tag = [f"the tag {push.tag}"] if push.tag and "tagging" in push.stage else []
    return f"{there} with {', '.join(names) or 'none of these files'}", ", ".join(missing + tag) or "nothing"


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
