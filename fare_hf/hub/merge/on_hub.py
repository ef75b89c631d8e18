"""A merge on the Hub: what stays is copied there by the Hub itself, only the tower's files travel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, RepoFile, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from fare_hf.files.credentials import mask_secrets
from fare_hf.files.folders import relative_name
from fare_hf.hub.merge.inputs import EncoderFiles, check_encoder, check_held
from fare_hf.hub.merge.plan import PROCESSORS, Merge, MergePlan, plan_merge, vlm_config
from fare_hf.hub.merge.write import write_changed
from fare_hf.hub.push.folder import LocalFile, check_repo_id
from fare_hf.hub.push.push import PushError
from fare_hf.hub.push.remote import Remote
from fare_hf.hub.retry import persist
from fare_hf.pretrained.weight_files import INDEX, LARGEST_INDEX, PICKLE, PICKLE_INDEX, SINGLE

__all__ = ["merge_on_hub"]

OpenedEncoder = Callable[[Any], AbstractContextManager[EncoderFiles]]
"""For the configuration of a vision-language model, the encoder that is to take its tower's place."""

COMMIT_MESSAGE = "Merge robust vision encoder"
SMALL = ("config.json", INDEX, *PROCESSORS, "README.md")
"""What a merge reads of the model besides the files that hold its tower."""


def merge_on_hub(
    source: Remote, target: Remote, opened: OpenedEncoder, private: bool | None, revision: str | None
) -> Merge:
    """`merge_vision_tower(..., push_to_hub=True)`; one commit, so that nothing half-merged is ever on the Hub.

    Raises:
        TypeError, ValueError: as `merge_vision_tower`; a repository that holds files, or no access token.
        PushError: the Hub refused or failed; nothing was committed.
    """
    check_repo_id(target.repo_id)
    target.check_token()
    try:
        return _merge(source, target, opened, private, revision)
    except (HfHubHTTPError, ConnectionError, TimeoutError) as error:
        told = f"the merge into '{target.repo_id}' failed ({error}): nothing was committed; run it again."
    # Raised outside the handler: the original error holds the request, and with it the token.
    raise PushError(mask_secrets(told, target.token))


def _merge(source: Remote, target: Remote, opened: OpenedEncoder, private: bool | None, revision: str | None) -> Merge:
    commit = source.head(revision or "main")
    tree = source.tree(commit)
    _check_source(source.repo_id, tree)
    _check_empty(target)
    with tempfile.TemporaryDirectory(prefix="fare_hf-merge-") as temporary:
        folder, part = Path(temporary) / "parent", Path(temporary) / "child"
        names = [*SMALL, SINGLE] if INDEX not in tree else SMALL
        _download(source, [name for name in names if name in tree], commit, folder)
        config, _ = vlm_config(folder)
        with opened(config) as files:
            plan = plan_merge(source.repo_id, folder, list(tree), files)
            check_encoder(files)
            _download(source, plan.tower_files, commit, folder)
            check_held(folder, plan.tower_files, plan.weight_map, plan.family)
            done = write_changed(plan, folder, part, target.repo_id)
        target.create(private)
        return replace(done, commit=_commit(source, target, plan, commit, part, tree))


def _check_source(repo_id: str, tree: dict[str, RepoFile]) -> None:
    """Names that stay where they are put, small files that are small, and weights that the Hub can copy."""
    for name, file in tree.items():
        relative_name(name, f"the repository '{repo_id}'")
        if name in SMALL and file.size > LARGEST_INDEX:
            raise ValueError(
                f"{name!r} of '{repo_id}' has {file.size:,} bytes, more than any such file: do not use it."
            )
    if not {INDEX, SINGLE} & set(tree) and {PICKLE, PICKLE_INDEX} & set(tree):
        raise ValueError(
            f"'{repo_id}' has pickled weights alone ({PICKLE}), which have to be written anew as safetensors: merge "
            "into a folder (without push_to_hub), and upload that."
        )


def _check_empty(target: Remote) -> None:
    """Nothing is overwritten: the repository is new, or has no files yet (after a merge that was cut off)."""
    if target.state() is None:
        return
    files = [name for name in target.tree(target.head("main")) if name != ".gitattributes"]
    if files:
        raise ValueError(f"the repository '{target.repo_id}' holds {files[0]!r} already: name a new one.")


def _download(source: Remote, names: list[str], commit: str, folder: Path) -> None:
    for name in names:
        fetch = partial(hf_hub_download, source.repo_id, name, revision=commit, local_dir=folder)
        persist(partial(fetch, token=source.token, endpoint=source.api.endpoint), source.retries)


def _commit(
    source: Remote, target: Remote, plan: MergePlan, commit: str, part: Path, tree: dict[str, RepoFile]
) -> str:
    """Send the changed files, let the Hub copy the others, and compare what is there then."""
    local = [LocalFile(path.relative_to(part).as_posix(), path) for path in part.rglob("*") if path.is_file()]
    adds = [CommitOperationAdd(file.path, str(file.source)) for file in local]
    parent = target.head("main")

    def send() -> str:
        # Made anew for each try: the client marks what it has copied already.
        copies = [
            CommitOperationCopy(name, name, src_revision=commit, src_repo_id=source.repo_id, src_repo_type="model")
            for name in plan.result.copied
        ]
        return target.api.create_commit(
            target.repo_id, [*adds, *copies], commit_message=COMMIT_MESSAGE, parent_commit=parent
        ).oid

    def look() -> str | None:
        head = target.head("main")
        return None if head == parent else head

    done = persist(send, target.retries, look)
    there = target.tree(done)
    wrong = [file.path for file in local if not file.is_same_as(there.get(file.path))]
    wrong += [name for name in plan.result.copied if not _same(tree[name], there.get(name))]
    if wrong:
        raise PushError(f"'{wrong[0]}' of '{target.repo_id}' is not what was merged: delete it and merge again.")
    return done


def _same(old: RepoFile, new: RepoFile | None) -> bool:
    """The Hub states the same hash."""
    if new is None:
        return False
    return old.lfs.sha256 == new.lfs.sha256 if old.lfs and new.lfs else old.blob_id == new.blob_id
