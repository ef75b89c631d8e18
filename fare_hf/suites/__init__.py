"""A whole evaluation from one YAML file: models x sets x radii, row after row, resumable."""

from __future__ import annotations

from fare_hf.suites.suite import load_suite, run_suite

__all__ = ["load_suite", "run_suite"]
