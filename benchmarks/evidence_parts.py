"""The evidence on editing, generating and inpainting with the example workflows' settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.casebook import EDITS, HOLES, NAMED, UNNAMED, Case, draw, hole_masks
from benchmarks.evidence_lab import Judged, Lab, Plan, named, summary
from benchmarks.evidence_rates import Rate, mean
from benchmarks.evidence_sheets import Tile
from benchmarks.recipe_run import grow
from benchmarks.recipe_steps import Growing, Recipe
from benchmarks.recipes import read
from training.world import held_out

SHOWN = 4  # cases of a kind on a sheet: the first ones, whatever came of them


@dataclass
class Part:
    """What a part found: numbers, sheets, and results among which failures are looked for."""

    found: dict[str, Any]
    sheets: dict[str, list[list[Tile]]] = field(default_factory=dict)
    judged: list[Judged] = field(default_factory=list)


def kept_rate(judged: Sequence[Judged], names: Sequence[str] = UNNAMED) -> dict[str, Any]:
    """The share of attributes that no prompt named and that are as in the source, over cases and attributes."""
    return Rate.of([j.kept[name] for j in judged for name in names]).to_json()


def new(case: Case) -> str:
    """What an edit changes, in few letters."""
    before = named(case.source) if case.source else {}
    return ", ".join(case.wanted[name] for name in NAMED if case.wanted[name] != before.get(name))


def edits(lab: Lab, plan: Plan) -> Part:
    """One, two and three named attributes changed; what nobody named is to stay."""
    recipe = read("text_edit")
    groups = {kind: lab.run(f"edits, {kind}", draw(kind, plan.seed, plan.n), recipe) for kind in EDITS}
    everything = [j for group in groups.values() for j in group]
    kinds = {kind: summary(group) | {"kept": kept_rate(group)} for kind, group in groups.items()}
    each = {name: kept_rate(everything, [name]) for name in UNNAMED}
    part = Part({"settings": recipe.settings(), "kinds": kinds, "kept": kept_rate(everything), "kept_each": each})
    part.found |= bounds(lab, everything) | {"held_out": by_training(everything)}
    part.sheets["edits"] = [
        [tile for j in group[:SHOWN] for tile in pair(lab, j, new(j.case))] for group in groups.values()
    ]
    part.judged = everything
    return part


def bounds(lab: Lab, judged: Sequence[Judged]) -> dict[str, Any]:
    """What is the most that can be reached, and what is there without an edit, of the same cases."""
    cases = [j.case for j in judged]
    sources = lab.sources(cases)
    shown = lab.reconstructions(cases)
    same = [replace(case, wanted=named(case.source), kind="source") for case in cases if case.source]
    back, untouched = lab.judged(same, shown), lab.as_they_are(cases)
    errors = (shown - sources).square().mean((1, 2, 3)).clamp(min=1e-10)
    return {
        "reconstruction_psnr": mean((-10 * errors.log10()).tolist()),
        "ceiling_reconstruction": Rate.of([j.right for j in back]).to_json(),
        "ceiling_kept": kept_rate(back),
        "floor_unedited": Rate.of([j.right for j in untouched]).to_json(),
    }


def by_training(judged: Sequence[Judged]) -> dict[str, Any]:
    """Success where the training knew the combination that is asked for, and where it was held out."""
    split = {flag: [j.right for j in judged if held_out(j.case.target) is flag] for flag in (False, True)}
    return {"seen": Rate.of(split[False]).to_json(), "held out": Rate.of(split[True]).to_json()}


def generate(lab: Lab, plan: Plan) -> Part:
    """Without a seed picture: subject, ground and lighting from a prompt alone."""
    recipe = read("generate")
    judged = lab.run("generate", draw("generate", plan.seed, plan.n), recipe)
    found: dict[str, Any] = {"settings": recipe.settings(), "best": summary(judged)}
    found["single"] = Rate.of([start for j in judged for start in j.starts]).to_json()
    found["starts"] = len(judged[0].starts) if judged else 0
    found["held_out"] = by_training(judged)
    tiles = [Tile(j.picture, lines(j.case.wanted), j.right) for j in judged[: 4 * SHOWN]]
    return Part(found, {"generate": [tiles[i : i + 8] for i in range(0, len(tiles), 8)]}, judged)


def inpaint(lab: Lab, plan: Plan) -> Part:
    """Hidden parts invented from what is known, and a hidden subject replaced by the one that is asked for."""
    plain, prompted = read("inpaint"), read("inpaint_with_prompt")
    by_kind: dict[str, Recipe] = dict.fromkeys(HOLES, replace(plain, growing=Growing()))
    by_kind |= {"half": replace(plain, growing=prompted.growing), "hidden": prompted}
    kinds, everything, rows = {}, list[Judged](), list[list[Tile]]()
    for kind, recipe in by_kind.items():
        judged = lab.run(f"inpaint, {kind}", draw(kind, plan.seed, plan.n, lab.album.masks), recipe)
        exact = [bool(j.measures.get("exact")) for j in judged]
        kinds[kind] = summary(judged) | {
            "exact": Rate.of(exact).to_json(),
            "right_and_exact": Rate.of([j.right and e for j, e in zip(judged, exact, strict=True)]).to_json(),
            "known_error": mean([j.measures["known_error"] for j in judged if "known_error" in j.measures]),
        }
        everything += judged
        rows.append([tile for j in judged[:SHOWN] for tile in hidden(lab, j, recipe)])
    whole = [j.right and bool(j.measures.get("exact")) for j in everything]
    settings = {"inpaint": plain.settings(), "inpaint_with_prompt": prompted.settings()}
    found = {"settings": settings, "kinds": kinds, "all": Rate.of(whole).to_json()}
    return Part(found, {"inpaint": rows}, everything)


def pair(lab: Lab, judged: Judged, caption: str) -> list[Tile]:
    """The source and the result beside it."""
    source = judged.case.source
    return [Tile(lab.sources([judged.case])[0], source.subject if source else ""),
            Tile(judged.picture, caption, judged.right)]  # fmt: skip


def hidden(lab: Lab, judged: Judged, recipe: Recipe) -> list[Tile]:
    """The source with the hole in grey, and the result."""
    mask = grow(hole_masks([judged.case], lab.album.masks), recipe.growing)[0]
    shown = lab.sources([judged.case])[0] * (1 - mask) + 0.5 * mask
    return [Tile(shown, judged.case.kind), Tile(judged.picture, judged.case.wanted["subject"], judged.right)]


def lines(wanted: dict[str, str]) -> str:
    return f"{wanted['subject']}\n{wanted['ground']}, {wanted['lighting']}"


def rates(parts: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """The rates that anyone can check, by short names; None for what was not measured."""
    edited, made, filled = (parts.get(name, {}) for name in ("edits", "generate", "inpaint"))
    kinds = edited.get("kinds", {})
    entries = {
        "light": kinds.get("lighting", {}).get("success"),
        "ground": kinds.get("ground", {}).get("success"),
        "subject": kinds.get("subject", {}).get("success"),
        "kept": edited.get("kept"),
        "generate": made.get("best", {}).get("success"),
        "inpaint": filled.get("all"),
        "reconstruction_psnr": edited.get("reconstruction_psnr"),
        "floor_unedited": edited.get("floor_unedited"),
        "ceiling_reconstruction": edited.get("ceiling_reconstruction"),
    }
    return {name: entry["value"] if entry else None for name, entry in entries.items()}
