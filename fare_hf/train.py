"""`accelerate launch -m fare_hf.train`: the training of `fare_hf.cli.train`, under the name that launchers get."""

from __future__ import annotations

import sys

from fare_hf.cli.console import one_sentence
from fare_hf.cli.first_look import look_first

__all__ = ["main"]


def main() -> None:
    """As `fare_hf.cli.train.main`; Ctrl-C while libraries are imported is one sentence too."""
    with one_sentence("fare_hf.train", "nothing was written yet; run the same command again"):
        look_first(sys.argv[1:], "python -m fare_hf.train")
        from fare_hf.cli.train import main

        main()


if __name__ == "__main__":
    main()
