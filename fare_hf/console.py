"""What a person sees of a run in the terminal: nothing of other libraries that asks nothing of them."""

from __future__ import annotations

import logging
import warnings

__all__ = ["hide_notices"]

NOTICES = {
    # The processors without torchvision are the ones meant: torchvision is never needed here.
    "transformers.utils.import_utils": "requires torchvision (not installed)",
    # True of every model that is not sharded, which is every model here.
    "transformers.distributed.tensor_parallel": "layers were not sharded",
}
"""Logger -> words of the notice that is hidden; whatever else that logger says is shown."""


class Without(logging.Filter):
    """Drops records that hold certain words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record with the words."""
        return self.words not in record.getMessage()


def hide_notices() -> None:
    """Hides `NOTICES`, and the warning that a CPU has no pinned memory, in this process; for command lines."""
    for name, words in NOTICES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(found, Without) for found in logger.filters):
            logger.addFilter(Without(words))
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true but no accelerator")
