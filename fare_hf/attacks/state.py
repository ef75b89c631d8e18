"""The state of an interrupted run: sealed when it is saved, and opened for that run alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fare_hf.attacks.threat_model import ThreatModel

__all__ = ["open_state", "seal_state"]

RUN, CONTENT = "sealed_run", "sealed_content"
SEALS = (RUN, CONTENT)


def seal_state(
    state: Mapping[str, Tensor], clean: Tensor, threat_model: ThreatModel, settings: str
) -> dict[str, Tensor]:
    """Tensors of a run, with digests of what run it is and of themselves.

    Args:
        state: on the CPU.
        clean: the run's clean images.
        threat_model: its ball.
        settings: whatever else makes it another run.
    """
    sealed = dict(state)
    return sealed | {RUN: _run(clean, threat_model, settings), CONTENT: _content(sealed)}


def open_state(
    saved: Mapping[str, Tensor],
    clean: Tensor,
    threat_model: ThreatModel,
    settings: str,
    *,
    names: Collection[str],
    optional: Collection[str] = (),
    where: str = "the saved state",
) -> dict[str, Tensor]:
    """The tensors that `seal_state` was given, for the same run.

    Args:
        saved: what was saved.
        clean, threat_model, settings: of the run that is to go on.
        names, optional: of the tensors.
        where: it was saved, for the message.

    Raises:
        ValueError: no such state, one of other images, another ball or other settings, or one that was changed.
    """
    missing = sorted({*names, *SEALS} - set(saved))
    unknown = sorted(set(saved) - {*names, *optional, *SEALS})
    if missing or unknown:
        raise ValueError(
            f"{where} lacks {missing} and has unknown {unknown}: it is no state of this version; delete it."
        )
    if not torch.equal(saved[RUN].cpu(), _run(clean, threat_model, settings)):
        raise ValueError(
            f"{where} is of other images, another threat model than {threat_model}, or other settings than "
            f"{settings}: resume the run that was saved."
        )
    state = {name: tensor for name, tensor in saved.items() if name not in SEALS}
    if not torch.equal(saved[CONTENT].cpu(), _content(state)):
        raise ValueError(f"{where} was changed after it was saved: delete it, and begin the run again.")
    return state


def _run(clean: Tensor, threat_model: ThreatModel, settings: str) -> Tensor:
    found = hashlib.sha256(f"{threat_model.norm} {threat_model.eps.hex()} {settings}\n".encode())
    _add(found, clean.float())
    return _as_tensor(found)


def _content(state: Mapping[str, Tensor]) -> Tensor:
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(f"{name}\n".encode())
        _add(found, state[name])
    return _as_tensor(found)


def _add(found: hashlib._Hash, tensor: Tensor) -> None:
    found.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    found.update(tensor.detach().cpu().contiguous().numpy().tobytes())


def _as_tensor(found: hashlib._Hash) -> Tensor:
    return torch.tensor(list(found.digest()), dtype=torch.uint8)
