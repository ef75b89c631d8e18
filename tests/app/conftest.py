"""The lab's LLaVA, original and robust, once for all tests of the page."""

from __future__ import annotations

import pytest

from fare_hf.app.models import Model, load_models


@pytest.fixture(scope="session")
def models() -> list[Model]:
    """Of `fare-hf app` without options."""
    return load_models("lab:llava", "lab:fare-4")[0]
