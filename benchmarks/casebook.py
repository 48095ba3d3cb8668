"""The cases that the evidence is made of: scenes, what is asked for, and what is hidden.

Every case follows from a seed, its kind and its number alone. Settings are tuned on seeds below 1000, reports are made
of seeds from 1000 on, and the two never share a scene: each draws from its own half of the world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from training.captions import Caption
from training.world import ATTRIBUTES, Scene, all_scenes

REPORT_FROM = 1000  # the first seed that no setting may be tuned on
NAMED = ("lighting", "ground", "subject")  # what a prompt names
UNNAMED = ("size", "place", "focus")
EDITS = {"lighting": 1, "ground": 1, "subject": 1, "two": 2, "three": 3}  # how many attributes change
HOLES = ("half", "background", "box", "hidden")
LEAST_BOX, MOST_BOX = 0.25, 0.5  # a random hole's sides, as shares of the picture's
MOST_HIDDEN = 0.5  # of the subject, by a random hole: of one that is gone nobody can say what it was
SOLID = 0.5  # of a subject's mask: what is opaque enough to be subject

Masks = Callable[[list[Scene]], Tensor]  # scenes -> their subjects' masks (B, 1, S, S)


@dataclass(frozen=True)
class Hole:
    """What is hidden: the left or right half of the subject, all but the subject, a box, or the whole subject.

    box: top, left, height and width as shares of the side.
    """

    kind: Literal["left", "right", "background", "box", "subject"]
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Case:
    """One picture that is asked for.

    wanted: the attributes that both judges must see. seed: of the run's random numbers.
    """

    kind: str
    number: int
    seed: int
    wanted: dict[str, str]
    prompt: str
    source: Scene | None = None
    hole: Hole | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def target(self) -> Scene:
        """The scene that is asked for: what is wanted, all else as in the source."""
        base = asdict(self.source) if self.source else {name: kinds[0] for name, kinds in ATTRIBUTES.items()}
        return Scene(**(base | self.wanted))


@cache
def pool(report: bool) -> tuple[Scene, ...]:
    """The half of the world's scenes that reports are made of, or the half that settings are tuned on."""
    scenes = all_scenes()
    random.Random("two halves").shuffle(scenes)
    middle = len(scenes) // 2
    return tuple(scenes[middle:] if report else scenes[:middle])


def draw(kind: str, seed: int, count: int, masks: Masks | None = None) -> list[Case]:
    """The first `count` cases of a kind: of `EDITS`, "generate" or `HOLES`; boxes need the subjects' masks."""
    rng = random.Random(f"{seed} {kind}")
    return [_one(kind, number, seed * 1000 + number, rng, pool(seed >= REPORT_FROM), masks) for number in range(count)]


def mixed(seed: int, count: int) -> list[Case]:
    """`count` edits, of each kind as many: the first ones that `draw` gives."""
    shares = [len(range(i, count, len(EDITS))) for i in range(len(EDITS))]
    return [case for kind, share in zip(EDITS, shares, strict=True) for case in draw(kind, seed, share)]


def _one(kind: str, number: int, seed: int, rng: random.Random, scenes: Sequence[Scene], masks: Masks | None) -> Case:
    source = rng.choice(scenes)
    if kind == "generate":
        wanted = {name: rng.choice(ATTRIBUTES[name]) for name in NAMED}
        return Case(kind, number, seed, wanted, _prompt(wanted))
    seen = {name: getattr(source, name) for name in NAMED}
    if kind in EDITS:
        names = [kind] if kind in NAMED else rng.sample(NAMED, EDITS[kind])
        wanted = seen | {name: _other(name, seen[name], rng) for name in names}
        return Case(kind, number, seed, wanted, _prompt(wanted), source)
    if kind == "hidden":
        wanted = seen | {"subject": _other("subject", source.subject, rng)}
        return Case(kind, number, seed, wanted, _prompt(wanted), source, Hole("subject"))
    if kind == "half":
        return Case(kind, number, seed, seen, _prompt(seen), source, Hole(rng.choice(("left", "right"))))
    if kind == "background":
        return Case(kind, number, seed, {"subject": source.subject}, _prompt(seen), source, Hole("background"))
    if kind == "box" and masks is not None:
        return Case(kind, number, seed, seen, _prompt(seen), source, _box(masks([source])[0, 0], rng))
    raise ValueError(f"unknown kind of case {kind!r}: expected {', '.join((*EDITS, 'generate', *HOLES))}, a box "
                     "with the subjects' masks")  # fmt: skip


def _prompt(named: dict[str, str]) -> str:
    return Caption(**named).text()


def _other(name: str, value: str, rng: random.Random) -> str:
    return rng.choice([other for other in ATTRIBUTES[name] if other != value])


def _box(subject: Tensor, rng: random.Random) -> Hole:
    """A box that leaves enough of the subject (S, S) to be seen."""
    while True:
        height, width = (rng.uniform(LEAST_BOX, MOST_BOX) for _ in range(2))
        hole = Hole("box", (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width))
        if float((subject * _marked(hole, subject)).sum()) <= MOST_HIDDEN * float(subject.sum()):
            return hole


def hole_masks(cases: Sequence[Case], masks: Masks) -> Tensor:
    """What is hidden (B, 1, S, S), 1 where it is; before it is grown."""
    subjects = masks([case.source for case in cases if case.source])
    marked = [_marked(case.hole, subject[0]) for case, subject in zip(cases, subjects, strict=True) if case.hole]
    return torch.stack(marked)[:, None]


def _marked(hole: Hole, subject: Tensor) -> Tensor:
    """A hole in the picture of this subject, (S, S) -> (S, S)."""
    solid, size = (subject > SOLID).float(), subject.shape[-1]
    if hole.kind in ("subject", "background"):
        return (subject > 0).float() if hole.kind == "subject" else 1 - solid
    marked = torch.zeros_like(solid)
    if hole.box:
        top, left, height, width = (round(share * size) for share in hole.box)
        marked[top : top + height, left : left + width] = 1
        return marked
    columns = solid.amax(0).nonzero().flatten()
    middle = int(columns[0] + columns[-1] + 1) // 2
    side = slice(None, middle) if hole.kind == "left" else slice(middle, None)
    marked[:, side] = solid[:, side]
    return marked
