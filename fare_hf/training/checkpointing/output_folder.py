"""The folder of a run: what of it may be written over, and where an interrupted run goes on."""

from __future__ import annotations

import logging
from pathlib import Path

from fare_hf.files.folders import LOCK
from fare_hf.training.checkpointing.manifest import fault_of, latest_checkpoint

__all__ = ["checkpoint_to_resume", "how_to_go_on"]

logger = logging.getLogger(__name__)

OWN = ("checkpoint-", "failure-step-", "replaced_images.", "training.json", ".")
"""How the names of what a run leaves in its folder begin, before its end."""


def checkpoint_to_resume(output_dir: str | Path, resumed: str | None) -> str | None:
    """Looks at the folder before anything is written there.

    Args:
        output_dir: of the run.
        resumed: `resume_from_checkpoint`: None, `latest` or the folder of a checkpoint.

    Returns:
        The folder of the checkpoint; None for a run from the beginning.

    Raises:
        ValueError: a file would be written over, or there is no complete checkpoint.
    """
    folder = Path(output_dir)
    encoder = folder / "encoder"
    if encoder.is_dir() and any(encoder.iterdir()):
        raise ValueError(f"{str(encoder)!r} holds a trained encoder already; give another output_dir.")
    elsewhere = resumed not in (None, "latest") and Path(str(resumed)).resolve().parent != folder.resolve()
    if resumed is None or elsewhere:  # whose own checkpoints would take the place of what is there
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise ValueError(
                f"output_dir={str(folder)!r} is not empty; give another, or --resume_from_checkpoint latest."
            )
    if resumed == "latest":
        return _latest(folder)
    if resumed is not None and (fault := fault_of(Path(resumed))) is not None:
        raise ValueError(
            f"resume_from_checkpoint={resumed!r} is no complete checkpoint: {fault}; give another, or say latest."
        )
    return resumed


def how_to_go_on(output_dir: str | Path) -> str:
    """What to do after Ctrl-C."""
    folder = Path(output_dir)
    if (folder / "encoder").is_dir():
        return f"the trained encoder is whole in '{folder / 'encoder'}'"
    found = latest_checkpoint(folder)
    where = f"from {Path(found).name}" if found else "from the beginning, as no checkpoint is complete"
    return f"the same command with --resume_from_checkpoint latest goes on {where}"


def _latest(folder: Path) -> str | None:
    """The newest complete checkpoint; None, with a warning, where a kill came before the first."""
    found = latest_checkpoint(folder)
    if found is not None:
        return found
    others = [path.name for path in folder.glob("*") if not path.name.startswith(OWN)]
    if others:
        raise ValueError(
            f"output_dir={str(folder)!r} has no complete checkpoint, but {', '.join(sorted(others)[:5])}; empty it, "
            "or give another."
        )
    logger.warning("output_dir=%r has no complete checkpoint; the run starts from the beginning.", str(folder))
    return None
