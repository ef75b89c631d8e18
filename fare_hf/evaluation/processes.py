"""Work divided among the processes that accelerate or torchrun started; every one of them gets all results."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import distributed as torch_distributed
from tqdm.auto import tqdm

from fare_hf.data.folder_listing import found_by_the_first, listed_once

__all__ = [
    "agreed",
    "counted",
    "divided",
    "held_by_the_first",
    "leave_group_at_exit",
    "opening_together",
    "process_state",
]

Part = TypeVar("Part")
Result = TypeVar("Result")
LONGEST_WAIT = timedelta(days=30)
"""Of one process for another: a batch of 10,000 steps takes hours, and torch gives up after minutes by itself."""


def process_state() -> PartialState:
    """The processes that accelerate or torchrun started; on a CPU `PartialState` sees one alone, if it is not told."""
    leave_group_at_exit()
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=LONGEST_WAIT)


@cache
def leave_group_at_exit() -> None:
    """Has this process leave its group of gloo before the interpreter goes.

    Threads of a group that is still there when the interpreter is taken down abort the process at times ("terminate
    called without an active exception"), and the launcher calls a run failed that had done all its work.
    """
    atexit.register(_leave_group)


def _leave_group() -> None:
    """Not after an error: leaving waits for what was sent to the others, which may never take it."""
    failed = hasattr(sys, "last_value")
    grouped = torch_distributed.is_available() and torch_distributed.is_initialized()
    if grouped and not failed and "gloo" in torch_distributed.get_backend():
        torch_distributed.destroy_process_group()


@contextmanager
def opening_together() -> Iterator[None]:
    """Inside, all processes open the same data sets, and the first one alone lists their folders (`listed_once`)."""
    process_state()
    with listed_once():
        yield


@contextmanager
def held_by_the_first(hold: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Inside, the first process holds something for all, such as a folder's lock; what it raises is raised in all.

    Were the others to look for themselves, they would see a folder that the first one writes to already.
    """
    process_state()
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(hold())

        found_by_the_first(enter)
        yield


def divided(parts: Sequence[Part], work: Callable[[Part], Result], *, distributed: bool) -> Iterator[Result]:
    """Results of work on all parts, in the order of the parts; part i is done by process i modulo their number.

    Args:
        parts: the same in all processes, which must all take all results.
        work: of one part; its result is sent to the others, round after round.
        distributed: whether to divide; otherwise this process does everything.
    """
    state = process_state() if distributed else None
    rank, processes = (state.process_index, state.num_processes) if state else (0, 1)
    for start in range(0, len(parts), processes):
        own = [work(part) for part in parts[start : start + processes][rank : rank + 1]]
        yield from own if processes == 1 else gather_object(own)


def counted(batches: Iterable[Part], number: int, what: str) -> Iterator[Part]:
    """Batches as they come, with a bar in the first process's terminal that goes when they are done.

    Args:
        batches: which, or what was found in them.
        number: how many.
        what: is done with them.
    """
    first = os.environ.get("RANK", "0") == "0"
    shown = {"leave": False, "dynamic_ncols": True, "disable": None if first else True}  # None: without a terminal
    return iter(tqdm(batches, total=number, desc=what, unit="batch", **shown))


def agreed(decide: Callable[[], Result], *, distributed: bool) -> Result:
    """What the first process finds, in all: what lies on the disk, say, which others may be writing to."""
    if not distributed or process_state().num_processes == 1:
        return decide()
    return gather_object([decide()] if process_state().is_main_process else [])[0]
