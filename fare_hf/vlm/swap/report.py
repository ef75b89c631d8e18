"""What a swap did, and the way back; one swap of a tower at a time."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import nn

from fare_hf.vlm.swap.compatibility import check_writable
from fare_hf.vlm.swap.resolution import Edits

__all__ = ["SwapReport", "only_one"]

# Swaps in force with the encoder's name, oldest first, by tower: only the newest can be put back. A report that nobody
# keeps goes, with the old weights that it holds: else they and the tower would stay in memory for good.
_active: WeakKeyDictionary[nn.Module, list[tuple[ReferenceType[SwapReport], str]]] = WeakKeyDictionary()
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


@dataclass(eq=False)
class SwapReport:
    """What a swap did, and the way back.

    Use it as a context manager to have the new tower only for a while:

        with swap_vision_tower(llava, "user/robust-encoder"):
            ...  # robust
        ...      # the old weights again

    Attributes:
        vlm_class: class of the vision-language model.
        tower: path of the tower inside it; several are joined by commas.
        source: folder, repository, file or class name of the encoder that was put in.
        converted: whether it came in open_clip's format.
        tensors: number of weight tensors written.
        changed: how many of them differ from the old ones.
        resolution: pixels a side, before and after.
        weight_cosine: lowest cosine of a weight matrix with the tower's old one; about 0 in an encoder of another
            training, or where layers or heads were mixed up.
        image_tokens: placeholders of one image, before and after; None without a processor.
        probe_difference: largest absolute difference, over all hidden states of one probe image, between the
            swapped tower and the encoder run on its own in the same dtype (0.0 where the kernels are the same).
        cosine: mean cosine of the clean embeddings of old tower and new encoder; near 1 for an encoder that was
            fine-tuned from this tower with FARE.
        base_model: what the encoder's card says it was fine-tuned from, or None.
        normalization: whose mean and standard deviation were taken for the encoder, where it brings none of its own.
        base_cosine: mean cosine of that base model and the old tower (1.0 for the very same), where it is at hand.
    """

    vlm_class: str
    tower: str
    source: str
    converted: bool
    tensors: int
    changed: int
    resolution: tuple[int, int]
    cosine: float
    base_model: str | None = None
    base_cosine: float | None = None
    weight_cosine: float = 1.0
    image_tokens: tuple[int, int] | None = None
    probe_difference: float = 0.0
    normalization: str | None = None
    towers: Mapping[str, Any] = field(repr=False, default_factory=dict)
    old_states: Mapping[str, dict[str, torch.Tensor]] = field(repr=False, default_factory=dict)
    edits: Edits = field(repr=False, default_factory=Edits)

    def undo(self) -> None:
        """Put back weights, configuration and processor; calling it again changes nothing more.

        Raises:
            RuntimeError: a later swap of the same tower is in force.
            ValueError: the tower was offloaded or quantised since; it keeps the new weights.
        """
        with only_one(self.towers.values()):
            self._undo()

    def _undo(self) -> None:
        stacks = [_active.get(tower, []) for tower in self.towers.values()]
        if not any(swap() is self for stack in stacks for swap, _ in stack):
            return
        for stack in stacks:
            if stack and stack[-1][0]() is not self:
                raise RuntimeError(
                    f"the encoder '{stack[-1][1]}' was swapped in after '{self.source}': undo that swap first."
                )
        check_writable(self.towers)
        self.edits.undo()
        for path, tower in self.towers.items():
            tower.load_state_dict(self.old_states[path], strict=True)
        for stack in stacks:
            stack.pop()

    def in_force(self) -> None:
        """From now on this is the newest swap of its towers."""
        for tower in self.towers.values():
            _active.setdefault(tower, []).append((ref(self), self.source))

    def __enter__(self) -> SwapReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def _repr_html_(self) -> str:
        """In a notebook: the lines of `str(report)` as a list."""
        first, *others = (html.escape(line) for line in str(self).splitlines())
        return f"<b>{first}</b><ul>{''.join(f'<li>{line}</li>' for line in others)}</ul>"

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.tower} of {self.vlm_class}{' (from open_clip)' if self.converted else ''}"]
        lines += [
            f"{self.changed} of {self.tensors} tensors changed; probe image differs by {self.probe_difference:g}"
        ]
        if self.resolution[0] != self.resolution[1]:
            lines += [f"resolution {self.resolution[0]} -> {self.resolution[1]} px"]
        if self.image_tokens and self.image_tokens[0] != self.image_tokens[1]:
            lines += [f"image tokens {self.image_tokens[0]} -> {self.image_tokens[1]}"]
        if self.normalization:
            lines += [f"the encoder brings no image processor: its pixels are normalised as {self.normalization}"]
        base = f"; its card names {self.base_model} as its original" if self.base_model else ""
        base += f", whose cosine is {self.base_cosine:.3f}" if self.base_cosine is not None else ""
        lines += [f"lowest cosine of a weight matrix to the old tower: {self.weight_cosine:.3f}"]
        return "\n".join([*lines, f"cosine of clean embeddings to the old tower: {self.cosine:.3f}{base}"])


@contextmanager
def only_one(towers: Iterable[nn.Module]) -> Iterator[None]:
    """Another thread that swaps one of these towers, or puts it back, waits until this one has finished."""
    with ExitStack() as held:
        for tower in sorted(towers, key=id):  # always in the same order, so that no two wait for each other
            with _guard:
                lock = _locks.setdefault(tower, threading.RLock())
            held.enter_context(lock)
        yield
