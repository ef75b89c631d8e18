"""`accelerate launch -m fare_hf.train`: the training of `fare_hf.cli.train`, under the name that launchers get."""

from __future__ import annotations

from fare_hf.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
