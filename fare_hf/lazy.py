"""Names of a package that are imported on first use, so that its small modules can be read without its large ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["on_first_use"]


def on_first_use(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], Callable[[str], Any], Callable[[], list[str]]]:
    """What a package's `__init__` needs to import nothing.

    Args:
        package: its `__name__`.
        names: module of the package -> the public names that it defines.

    Returns:
        Name -> module, and the package's `__getattr__` and `__dir__`.
    """
    homes = {name: module for module, defined in names.items() for name in defined}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names_there() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return homes, get, names_there
