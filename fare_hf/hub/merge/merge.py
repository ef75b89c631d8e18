"""A published vision-language model becomes a published robust one, without loading its language model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from fare_hf.files.folders import check_new_folder, files_in, whole_folder
from fare_hf.hub.merge.inputs import check_encoder, check_held, opened_encoder
from fare_hf.hub.merge.on_hub import merge_on_hub
from fare_hf.hub.merge.pickled import with_safetensors
from fare_hf.hub.merge.plan import Merge, MergePlan, plan_merge, vlm_config
from fare_hf.hub.merge.shards import copy_file
from fare_hf.hub.merge.write import write_changed
from fare_hf.hub.push.remote import Remote
from fare_hf.pretrained.weight_files import INDEX, PICKLE, PICKLE_INDEX, SINGLE

__all__ = ["Merge", "merge_vision_tower"]

LINKED_FROM = 1 << 20


def merge_vision_tower(
    vlm: str | os.PathLike[str],
    encoder: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    push_to_hub: bool = False,
    hub_model_id: str | None = None,
    hard_links: bool = False,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
    encoder_revision: str | None = None,
    base: str | os.PathLike[str] | None = None,
) -> Merge:
    """Write a vision-language model whose tower is a robust encoder; the language model is never loaded.

    Only the safetensors files that hold the tower are rewritten, tensor by tensor. File names, index and configuration
    stay (an encoder of another resolution changes configuration and processor), so whatever reads the original's
    repository reads this one. A card names both parents. One tensor at a time is in memory, also while the
    encoder answers two images before anything is written; an encoder in open_clip's format while it is converted.

    Args:
        vlm: folder or Hub name of a model of `vlm.families.table.FAMILIES`, in safetensors; pickled weights
            (`pytorch_model.bin`) are read as weights alone and written as safetensors, into a folder only.
        encoder: folder, Hub name, or file, as `fare_hf.swap_vision_tower` takes it (no module).
        output_dir: new folder, to which all other files are copied (sharing blocks where the file system can).
        push_to_hub: make the repository `hub_model_id` instead, of a `vlm` on the same Hub, which copies the other
            files itself: nothing else is down- or uploaded.
        hub_model_id: "namespace/name" of the new repository.
        hard_links: large files in `output_dir` are those of the source (or of the Hub's cache) under a second name,
            where the disk can: no room is taken, and who edits one edits both.
        private: of the new repository.
        token: access token; None takes `HF_TOKEN` or that of `hf auth login`.
        endpoint: of another Hub than `HF_ENDPOINT`.
        revision: of `vlm` on the Hub.
        encoder_revision: of `encoder` on the Hub.
        base: for a bare file of open_clip weights, the CLIP it was fine-tuned from; None takes what the file does not
            say from the tower.

    Returns:
        What was written.

    Raises:
        TypeError: not a known family.
        ValueError: parents that do not fit, an encoder whose weights or answers are not finite, weights that are
            quantised, or pickled beside code, files or links that leave their folder, an index that its files do not
            fit, an `output_dir` that is not empty, neither of folder and repository or
            both, a revision of what lies here. Nothing is left behind.
        OSError: something cannot be read or written.

    Example:
        >>> merge_vision_tower("llava-hf/llava-1.5-7b-hf", "fare4/encoder", "robust-llava")  # doctest: +SKIP
    """
    _check_output(output_dir, push_to_hub, hub_model_id, hard_links, private)
    _check_revision("revision", revision, vlm)
    _check_revision("encoder_revision", encoder_revision, encoder)
    opened = partial(opened_encoder, encoder, revision=encoder_revision, base=base)
    if push_to_hub:
        source, target = (Remote(str(name), token, endpoint, None) for name in (vlm, hub_model_id))
        return merge_on_hub(source, target, opened, private, revision)
    target_folder, folder = Path(str(output_dir)), Path(vlm)
    check_new_folder(target_folder)
    if not folder.is_dir():
        found = snapshot_download(str(vlm), revision=revision, token=token, endpoint=endpoint or constants.ENDPOINT)
        folder = Path(found)
    config, _ = vlm_config(folder)
    with (
        opened(config) as files,
        whole_folder(target_folder) as part,
        _in_safetensors(folder, part) as (parent, unpickled),
    ):
        plan = plan_merge(str(vlm), parent, files_in(parent), files)
        check_held(parent, sorted(set(plan.weight_map.values())), plan.weight_map, plan.family)
        check_encoder(files)
        done = write_changed(plan, parent, part)
        # The copy that was made for the safetensors goes away: what is linked to it is nobody else's.
        linked = _copy_others(plan, parent, part, hard_links or bool(unpickled))
    return replace(done, out=str(output_dir), linked=() if unpickled else linked, unpickled=unpickled)


def _check_output(
    output_dir: object, push_to_hub: bool, hub_model_id: str | None, hard_links: bool, private: bool | None
) -> None:
    """Either a folder or a repository, and the options of that one alone."""
    on_hub = {
        "push_to_hub needs hub_model_id, the name of the new repository: give it.": not hub_model_id,
        "output_dir is of a merge into a folder: with push_to_hub leave it out.": output_dir,
        "hard_links is for a merge into a folder: on the Hub nothing is linked, leave it out.": hard_links,
    }
    here = {
        "hub_model_id is of a new repository: give it with push_to_hub.": hub_model_id,
        "private is of a new repository: give it with push_to_hub.": private is not None,
        "a merge needs an output: give output_dir, or push_to_hub and hub_model_id.": not output_dir,
    }
    for sentence, wrong in (on_hub if push_to_hub else here).items():
        if wrong:
            raise ValueError(sentence)


def _check_revision(option: str, revision: str | None, parent: object) -> None:
    if revision and Path(str(parent)).exists():
        raise ValueError(f"{option} is of a repository, and {str(parent)!r} lies here: leave it out.")


@contextmanager
def _in_safetensors(folder: Path, part: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The model's folder, or one beside `part` with safetensors for its pickled weights, and their names."""
    files = files_in(folder)
    if INDEX in files or SINGLE in files or not {PICKLE, PICKLE_INDEX} & set(files):
        yield folder, ()
        return
    with tempfile.TemporaryDirectory(prefix=".fare_hf-merge-", dir=part.parent) as copy:
        yield Path(copy), tuple(with_safetensors(folder, files, Path(copy)))


def _copy_others(plan: MergePlan, folder: Path, part: Path, hard_links: bool) -> tuple[str, ...]:
    """The files that stay as they are; returns those that are linked."""
    linked = tuple(name for name in plan.result.copied if hard_links and _link(folder / name, part / name))
    for name in plan.result.copied:
        if name not in linked:
            copy_file(folder / name, part / name)
    return linked


def _link(source: Path, target: Path) -> bool:
    """Large files are linked where the disk can; small ones, which people edit, never."""
    real = source.resolve()
    if real.stat().st_size < LINKED_FROM:
        return False
    try:
        os.link(real, target)
    except OSError:  # another disk, or no links there
        return False
    return True
