"""The evidence on copy-paste: what each single token takes along, and what it leaves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.casebook import REPORT_FROM, pool
from benchmarks.evidence_lab import SHIPPED, Lab, Plan
from benchmarks.evidence_parts import Part
from benchmarks.evidence_rates import Rate
from benchmarks.evidence_tables import PIXELS
from benchmarks.presets import paste_effects
from training.world import ATTRIBUTES, Scene

PAIRS = 5  # pairs of pictures for each case of another group: a paste costs one decoding


def copy_paste(lab: Lab, plan: Plan) -> Part:
    """Every position of every tokenizer pasted between pictures, read by the judges."""
    scenes = pasted_scenes(plan)
    found = {name: positions(lab, name, scenes) for name in lab.tokenizers if name != PIXELS}
    return Part({"pairs": len(scenes), "tokenizers": found, "shipped": SHIPPED})


def pasted_scenes(plan: Plan) -> list[Scene]:
    """Scenes of which each is pasted from the one after it."""
    rng = random.Random(f"{plan.seed} copy-paste")
    return rng.sample(pool(plan.seed >= REPORT_FROM), PAIRS * plan.n)


@torch.no_grad()
def positions(lab: Lab, name: str, scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    """By position: of the pairs that differ in an attribute, how many took it over, and how many that alone."""
    model, names = lab.tokenizers[name], list(ATTRIBUTES)
    features = torch.cat([model.encode(part) for part in lab.album.pictures(list(scenes)).split(lab.batch)])

    def seen(images: Tensor) -> list[Scene]:
        opinions = lab.look(images)
        return [Scene(**{name: o.shows(name) or "" for name in names}) for o in opinions]  # "": they disagree

    differ = {n: differing(scenes, n) for n in names}
    found = []
    for position in range(model.num_tokens):
        effects = paste_effects(model, features, scenes, names, seen, [position])
        found.append({
            n: {"reached": rate(effects[n].reached, differ[n]), "kept": rate(effects[n].kept, differ[n])} for n in names
        })  # fmt: skip
    return found


def differing(scenes: Sequence[Scene], name: str) -> int:
    """How many pictures differ in an attribute from the one that comes after them."""
    return sum(getattr(a, name) != getattr(b, name) for a, b in zip(scenes, [*scenes[1:], scenes[0]], strict=True))


def rate(share: float, n: int) -> dict[str, Any]:
    return Rate(round(share * n), n).to_json()
