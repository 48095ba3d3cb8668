"""The failures, and what they have in common: counted, so that nobody has to guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.evidence_lab import Judged, Lab
from benchmarks.evidence_rates import Rate
from benchmarks.evidence_sheets import Tile
from training.world import held_out

LEAST = 5  # cases with something in common before it is spoken of
SHOWN = 16  # of the worst


def failures(judged: Sequence[Judged]) -> dict[str, Any]:
    """How many failed, what was wrong with them, and in which cases they are more frequent than chance explains."""
    failed = [j for j in judged if not j.right]
    wrong = Counter(" and ".join(j.faults) for j in failed)
    return {
        "failed": Rate(len(failed), len(judged)).to_json(),
        "faults": dict(wrong.most_common()),
        "stand_out": standing_out(judged),
        "groups": groups(judged),
    }


def traits(judged: Judged) -> list[str]:
    """What a case may have in common with others."""
    case = judged.case
    found = [f"kind: {case.kind}"] + [f"asked {name}: {value}" for name, value in case.wanted.items()]
    if case.source:
        found += [f"source {name}: {value}" for name, value in asdict(case.source).items()]
    if case.kind != "background":
        found.append("combination held out of training" if held_out(case.target) else "combination seen in training")
    return found


def groups(judged: Sequence[Judged]) -> dict[str, Any]:
    """The share of failures by trait, the highest first."""
    flags: dict[str, list[bool]] = {}
    for j in judged:
        for trait in traits(j):
            flags.setdefault(trait, []).append(not j.right)
    rates = {trait: Rate.of(values) for trait, values in flags.items() if len(values) >= LEAST}
    return {trait: rate.to_json() for trait, rate in sorted(rates.items(), key=lambda e: -e[1].value) if rate.hits}


def standing_out(judged: Sequence[Judged]) -> list[str]:
    """The traits whose cases fail more often than all do, the lower end of the interval against the overall share."""
    overall = Rate.of([not j.right for j in judged]).value
    return [trait for trait, rate in groups(judged).items() if rate["low"] > overall]


def worst(judged: Sequence[Judged]) -> list[Judged]:
    """Failures, those with the most faults first, of equal ones those that are least like any picture of the world."""
    failed = [j for j in judged if not j.right]
    return sorted(failed, key=lambda j: (-len(j.faults), j.opinion.nearest.psnr))[:SHOWN]


def sheet(lab: Lab, judged: Sequence[Judged]) -> list[list[Tile]]:
    """The worst, each beside its source: what was asked for, and what is wrong."""
    tiles = []
    for j in worst(judged):
        wanted = ", ".join(j.case.wanted.values()).replace(", ", "\n", 1)
        before = [Tile(lab.sources([j.case])[0], f"{j.case.kind}:")] if j.case.source else []
        wrong = ", ".join(j.faults)
        after = Tile(j.picture, f"{wanted}\n{wrong}", False)
        tiles.append([*before, after] if before else [Tile(j.picture * 0 + 1, f"{j.case.kind}:"), after])
    flat = [tile for pair in tiles for tile in pair]
    return [flat[i : i + 8] for i in range(0, len(flat), 8)]
