"""A repository on the Hub as a publisher sees it: every request persists, and what was done is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_session, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from fare_hf.files.documents import parse_json
from fare_hf.hub.download import read_start
from fare_hf.hub.push.folder import LocalFile, is_published
from fare_hf.hub.retry import Retries, persist, status_of

__all__ = ["Moved", "Remote", "State"]

Operations = list[CommitOperationAdd | CommitOperationDelete]


class Moved(ValueError):
    """Somebody else committed to the branch meanwhile."""


@dataclass(frozen=True)
class State:
    """What is on the Hub: whether it is private, and the commit of each branch and tag."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Remote:
    """One repository.

    Args:
        repo_id: "name", or "namespace/name".
        token: access token; None takes `HF_TOKEN` or that of `hf auth login`.
        endpoint: of another Hub than the usual one.
        retries: how patient to be.
    """

    def __init__(self, repo_id: str, token: str | None, endpoint: str | None, retries: Retries | None) -> None:
        self.token = token or get_token()
        self.api = HfApi(endpoint=endpoint, token=self.token, library_name="fare_hf")
        self.repo_id, self.retries = repo_id, retries or Retries()

    def check_token(self) -> None:
        """Raises ValueError where there is no access token."""
        if not self.token:
            raise ValueError(
                "there is no access token: run `hf auth login`, or set the environment variable HF_TOKEN."
            )

    def account(self) -> dict[str, Any]:
        """Who the token belongs to; raises ValueError where there is none, or the Hub does not accept it."""
        self.check_token()
        try:
            return persist(self.api.whoami, self.retries)
        except Exception as error:
            status = status_of(error)
            if status not in (401, 403):
                raise
        raise ValueError(f"the Hub does not accept the access token ({status}): log in again.")

    def state(self) -> State | None:
        """The repository, or None where there is none that the token sees."""
        try:
            info = persist(lambda: self.api.model_info(self.repo_id), self.retries)
            refs = persist(lambda: self.api.list_repo_refs(self.repo_id), self.retries)
        except RepositoryNotFoundError:
            return None
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        return State(bool(info.private), branches, {ref.name: ref.target_commit for ref in refs.tags})

    def tree(self, revision: str) -> dict[str, RepoFile]:
        """The files of a revision by path."""

        def look() -> dict[str, RepoFile]:
            entries = self.api.list_repo_tree(self.repo_id, revision=revision, recursive=True)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return persist(look, self.retries)

    def head(self, revision: str) -> str:
        """The commit that a revision names."""
        return str(persist(lambda: self.api.model_info(self.repo_id, revision=revision), self.retries).sha)

    def create(self, private: bool | None) -> None:
        """Makes the repository; a lost answer does no harm, as one that exists is taken."""
        persist(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True), self.retries)

    def create_branch(self, branch: str) -> None:
        """Makes a branch from `main`."""
        persist(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True), self.retries)

    def create_tag(self, tag: str, commit: str) -> None:
        """Makes a tag; the caller has seen that it names nothing else."""
        persist(lambda: self.api.create_tag(self.repo_id, tag=tag, revision=commit, exist_ok=True), self.retries)

    def check_card(self, card: str) -> None:
        """Asks the Hub whether it takes a card's metadata; the client does so too, but after the large files are sent.

        Raises:
            ValueError: it does not.
        """

        def ask() -> list[dict[str, Any]]:
            address = f"{self.api.endpoint}/api/validate-yaml"
            headers = build_hf_headers(token=self.token, library_name="fare_hf")
            response = get_session().post(address, json={"content": card, "repoType": "model"}, headers=headers)
            if response.status_code == 400:
                return response.json().get("errors", [])
            hf_raise_for_status(response)
            return []

        if errors := persist(ask, self.retries):
            told = "; ".join(str(error.get("message")) for error in errors)
            raise ValueError(f"the Hub does not take the metadata of README.md ({told}): mend it.")

    def changes(self, files: list[LocalFile], tree: dict[str, RepoFile]) -> Operations:
        """What a commit must do: new and different files, and old weights, report and the like taken away."""
        adds = [_addition(file) for file in files if not file.is_same_as(tree.get(file.path))]
        mine = {file.path for file in files}
        stale = [path for path in tree if is_published(path) and path not in mine]
        return [*adds, *(CommitOperationDelete(path, is_folder=False) for path in stale)]

    def upload(self, operations: Operations, revision: str, create_pr: bool) -> None:
        """Sends the large files; those that the storage holds already, of this push or another, are not sent."""
        additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        send = self.api.preupload_lfs_files
        # Here the client tries each request six times by itself.
        persist(
            lambda: send(self.repo_id, additions, revision=revision, create_pr=create_pr, free_memory=False),
            replace(self.retries, tries=-(-self.retries.tries // 3)),
        )

    def commit(self, operations: Operations, files: list[LocalFile], revision: str, parent: str, message: str) -> str:
        """Commits once. A lost answer is recognised by the head of the branch; returns the commit.

        Raises:
            Moved: the branch has another head than `parent`, with other files.
        """

        def send() -> str:
            return self.api.create_commit(
                self.repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
            ).oid

        def look() -> str | None:
            head = self.head(revision)
            if head == parent:
                return None
            if not self.holds(files, head):
                raise Moved(f"somebody else has changed '{revision}' meanwhile")
            return head

        try:
            return persist(send, self.retries, look)
        except HfHubHTTPError as error:
            # Precondition failed: the head is not the parent. It may be our own commit, its answer lost.
            found = look() if status_of(error) == 412 else None
            if found is None:
                raise
            return found

    def open_pull_request(
        self, operations: Operations, files: list[LocalFile], revision: str, parent: str, message: str
    ) -> tuple[str, str]:
        """Opens one pull request, or finds the one with these files: returns its reference and its page."""

        def send() -> int:
            info = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=revision,
                parent_commit=parent,
                create_pr=True,
            )
            return int(str(info.pr_num))

        def look() -> int | None:
            found = self.api.get_repo_discussions(
                self.repo_id, discussion_type="pull_request", discussion_status="open"
            )
            numbers = [pull.num for pull in found if pull.title == message]
            return next((number for number in numbers if self.holds(files, f"refs/pr/{number}")), None)

        number = persist(look, self.retries) or persist(send, self.retries, look)
        return f"refs/pr/{number}", f"{self.api.endpoint}/{self.repo_id}/discussions/{number}"

    def holds(self, files: list[LocalFile], revision: str) -> bool:
        """Whether a revision has exactly these files, by the hashes that the Hub states."""
        return not self.changes(files, self.tree(revision))

    def missing(self, files: list[LocalFile], revision: str) -> list[str]:
        """Paths that a revision does not have as they are here."""
        tree = self.tree(revision)
        return [file.path for file in files if not file.is_same_as(tree.get(file.path))]

    def read_json(self, path: str, revision: str) -> dict[str, Any] | None:
        """A small JSON file; None where it is absent or no JSON object."""
        where = {"revision": revision, "endpoint": self.api.endpoint, "token": self.token}
        try:
            text = persist(lambda: read_start(self.repo_id, path, **where), self.retries)
            found = parse_json(text, f"{path!r} on the Hub")
        except (EntryNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _addition(file: LocalFile) -> CommitOperationAdd:
    """The client would read the file once more for the hash that is known."""
    addition = CommitOperationAdd(file.path, str(file.source) if file.content is None else file.content)
    addition.upload_info.sha256 = bytes.fromhex(file.hashes[0])
    return addition
