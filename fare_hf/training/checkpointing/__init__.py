"""Checkpoints: written whole, found again, and only for the run that they are of."""
