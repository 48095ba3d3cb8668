"""What the evidence is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A rate of the report, by its path through the parts, and the least that it should be."""

    what: str
    path: tuple[str, ...]
    least: float


GOALS = (
    Goal("edit of the lighting", ("edits", "kinds", "lighting", "success"), 0.95),
    Goal("edit of the ground", ("edits", "kinds", "ground", "success"), 0.95),
    Goal("edit of the subject", ("edits", "kinds", "subject", "success"), 0.95),
    Goal("three attributes at once", ("edits", "kinds", "three", "success"), 0.85),
    Goal("unnamed attributes kept", ("edits", "kept"), 0.90),
    Goal("all three from a prompt alone", ("generate", "best", "success"), 0.90),
    Goal("half a subject completed", ("inpaint", "kinds", "half", "success"), 0.95),
    Goal("background invented", ("inpaint", "kinds", "background", "success"), 0.95),
    Goal("random hole filled", ("inpaint", "kinds", "box", "success"), 0.95),
    Goal("hidden subject replaced by the asked one", ("inpaint", "kinds", "hidden", "success"), 0.95),
    *(
        Goal(f"known pixels exact, {kind}", ("inpaint", "kinds", kind, "exact"), 1.0)
        for kind in ("half", "background", "box", "hidden")
    ),
)


def reached(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every goal that something was measured for, and whether it is met."""
    found = []
    for goal in GOALS:
        entry: Any = parts
        for name in goal.path:
            entry = entry.get(name) if isinstance(entry, Mapping) else None
        if entry and entry["value"] is not None:
            found.append({"goal": goal.what, "least": goal.least, **entry, "met": entry["value"] >= goal.least})
    if "published" in parts:
        verdict = parts["published"]["verdict"]
        what = "10 points ahead of the published settings, or as good in half the iterations"
        row = parts["published"]["rows"]["ours"]["success"]
        found.append({"goal": what, "least": None, **row, "met": verdict["met"]})
    return found
