"""Options that `FareConfig` once had."""

from __future__ import annotations

__all__ = ["REMOVED"]

REMOVED = dict.fromkeys(
    ("attack_warm_start", "lora_rank"),
    "an option that was removed because it did not pay (examples/benchmarks/results/cheaper.md); leave it out.",
)
"""What is said of each, for old recipes and checkpoints; those made without them are as any other."""
