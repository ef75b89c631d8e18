"""What becomes of a process's group at its end, told on standard error."""

from __future__ import annotations

import atexit
import os
import sys

from torch import distributed

LEFT, STILL_THERE = "this process left its group", "this process still has its group"


def tell_group_at_exit() -> None:
    """To be called before anything else can ask for the same: what is registered first is done last."""
    atexit.register(_tell)


def _tell() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(STILL_THERE if distributed.is_initialized() else LEFT, file=sys.stderr, flush=True)
