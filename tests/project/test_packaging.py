"""What the package says it needs is what it is tested with."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TESTED = [*PROJECT["dependencies"], *EXTRAS["fast"], *EXTRAS["plots"], *EXTRAS["test"]]
# torch is tested at the pinned version alone; pyautoattack is pinned in pyproject.toml itself.
NOT_LOWEST = {"torch", "pyautoattack", "fare_hf"}
# Extended at private methods: a release that nobody has tried may break a training in its middle.
PRIVATE_HOOKS = ("transformers", "accelerate", "datasets", "huggingface_hub")


def pins(name: str) -> dict[str, str]:
    """Package -> version of a constraints file."""
    lines = (ROOT / name).read_text().lower().splitlines()
    return dict(re.split("==", line.replace("-", "_")) for line in lines if "==" in line)


def requirements() -> dict[str, Requirement]:
    """Package -> what pyproject.toml accepts."""
    found = [Requirement(text) for text in TESTED]
    return {requirement.name.lower().replace("-", "_"): requirement for requirement in found}


def test_the_lowest_lane_has_the_lowest_versions() -> None:
    lowest = {
        name: next(part.version for part in requirement.specifier if part.operator == ">=")
        for name, requirement in requirements().items()
        if name not in NOT_LOWEST
    }
    found = pins("constraints-lowest.txt")
    assert found.keys() == lowest.keys()
    assert {name: Version(version) for name, version in found.items()} == {
        name: Version(version) for name, version in lowest.items()
    }


def test_the_pinned_versions_are_accepted() -> None:
    pinned = pins("constraints.txt")
    for name, requirement in requirements().items():
        assert name == "fare_hf" or requirement.specifier.contains(pinned[name]), name


@pytest.mark.parametrize("name", PRIVATE_HOOKS)
def test_what_is_extended_at_private_methods_has_an_upper_bound(name: str) -> None:
    assert any(part.operator == "<" for part in requirements()[name].specifier)


def test_nothing_is_imported_that_is_not_required() -> None:
    """A library that comes with another one goes with it too, as the Hub's HTTP client did."""
    imported: set[str] = set()
    for path in (ROOT / "fare_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    names = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit_learn"}
    names["imagecorruptions"] = "imagecorruptions_imaug"
    extras = {Requirement(text).name.lower().replace("-", "_") for texts in EXTRAS.values() for text in texts}
    known = {*requirements(), *extras, "fare_hf", "lmms_eval"}
    assert {names.get(name, name) for name in imported - set(sys.stdlib_module_names)} <= known
