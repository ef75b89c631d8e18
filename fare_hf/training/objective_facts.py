"""What cards, recipes and checkpoints say of an objective."""

from __future__ import annotations

import inspect
from typing import Any

from fare_hf.objectives import OBJECTIVES

__all__ = ["objective_facts"]


def objective_facts(objective: Any) -> dict[str, str]:
    """`objective`, its name.

    Of one that is none of `OBJECTIVES` also `objective is`, the first paragraph of its class's docstring, and
    `objective citation`. Its name is its class's, unless that gives a name itself: a subclass is not what it is made
    of.
    """
    kind = type(objective)
    if kind in OBJECTIVES.values():
        return {"objective": objective.name}
    own = vars(objective).get("name", vars(kind).get("name"))
    named = isinstance(own, str) and own not in OBJECTIVES
    said = inspect.cleandoc(vars(kind).get("__doc__") or "").split("\n\n")[0]
    facts = {"objective": own if named else kind.__name__, "objective is": " ".join(said.split())}
    citation = vars(kind).get("citation")
    return facts | ({"objective citation": citation} if isinstance(citation, str) else {})
