"""The evidence against the published loop: the same models and cases, and each of our changes left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tokenopt_core as to
from benchmarks.casebook import Case, mixed
from benchmarks.evidence_lab import Judged, Lab, Plan, summary
from benchmarks.evidence_parts import Part, kept_rate, new
from benchmarks.evidence_rates import compare
from benchmarks.evidence_sheets import Tile
from benchmarks.recipe_steps import ClipTerm, Optimize, Recipe, Refine, changed, with_clip
from benchmarks.recipes import read

BETTER = 0.10  # by how much ours is to succeed more often in as many iterations
FASTER = 2  # or in how many times fewer iterations as often
NOISE = to.NoiseSchedule(start=2e-4)  # the most that published scripts use
PUBLISHED = Optimize(to.OptimizeConfig(noise=NOISE), (ClipTerm(),), (to.TokenRegularizer(),))


def iterations(recipe: Recipe) -> int:
    return sum(stage.config.iterations for stage in recipe.stages if isinstance(stage, Optimize))


def published(recipe: Recipe, count: int | None = None) -> Recipe:
    """The published loop from the same start: its own settings, and as many iterations as it is given."""
    return replace(recipe, stages=(changed(PUBLISHED, iterations=count or PUBLISHED.config.iterations),))


def without(ours: Recipe) -> dict[str, Recipe]:
    """Our recipe with one change after the other taken back to what is published; only those that there are."""
    theirs, (term,) = PUBLISHED.config, PUBLISHED.terms
    views = {name: getattr(term, name) for name in ("crops", "crop_scale", "flip")}
    found = {
        "refinement": replace(ours, stages=tuple(s for s in ours.stages if not isinstance(s, Refine))),
        "learning rate": ours.with_loop(lambda s: changed(s, learning_rate=theirs.learning_rate)),
        "learning rate decay": ours.with_loop(lambda s: changed(s, decay=theirs.decay)),
        "views of CLIP": ours.with_loop(lambda s: replace(s, terms=with_clip(s.terms, **views))),
        "token noise": ours.with_loop(lambda s: changed(s, noise=theirs.noise)),
        "regularizer": ours.with_loop(lambda s: replace(s, regularizers=PUBLISHED.regularizers)),
        "averaging": ours.with_loop(lambda s: changed(s, ema_decay=theirs.ema_decay)),
    }
    return {name: recipe for name, recipe in found.items() if recipe != ours}


def against_published(lab: Lab, plan: Plan) -> Part:
    """Ours against the published settings, and what each of our changes is worth."""
    ours, cases = read("text_edit"), mixed(plan.seed, plan.n)
    budget = iterations(ours)
    counts = sorted({budget, iterations(published(ours)), max(FASTER * budget, iterations(published(ours)))})
    rows = {"ours": lab.run("published, ours", cases, ours)}
    for count in counts:
        rows[f"published, {count}"] = lab.run(f"published, {count} iterations", cases, published(ours, count))
    found = {name: summary(judged) | {"kept": kept_rate(judged)} for name, judged in rows.items()}
    table: dict[str, Any] = {"rows": found, "verdict": verdict(found, budget)}
    table["comparisons"] = [
        compare(f"ours succeeds more often than {name}", [j.right for j in judged], [j.right for j in rows["ours"]])
        for name, judged in rows.items() if name != "ours"
    ]  # fmt: skip
    table["settings"] = {"ours": ours.settings(), "published": published(ours).settings()}
    alone = replace(ours, stages=tuple(s for s in ours.stages if not isinstance(s, Refine)))
    table["left_out"] = {"ours": ablation(lab, cases, ours, "ours")}
    if alone != ours:  # refining makes up for much that the descent leaves undone
        table["left_out"]["the descent alone"] = ablation(lab, cases, alone, "the descent alone")
    names = ["ours", *(name for name in rows if name != "ours")]
    sheet = [[Tile(p, "source") for p in lab.sources(shown(cases))]]
    sheet += [[tile(name, judged) for judged in shown(rows[name])] for name in names]
    return Part(table, {"published": sheet})


def shown(entries: list[Any]) -> list[Any]:
    """Eight of them, from each kind of edit some: they lie one kind after the other."""
    return entries[:: max(1, len(entries) // 8)][:8]


def tile(name: str, judged: Judged) -> Tile:
    return Tile(judged.picture, f"{name.replace('published, ', 'published ')}\n{new(judged.case)}", judged.right)


def verdict(rows: dict[str, Any], budget: int) -> dict[str, Any]:
    """Whether the goal is met: 10 points better in as many iterations, or as good in at most half as many."""
    value = {name: row["success"]["value"] for name, row in rows.items()}
    counts = {name: int(name.split(", ")[1]) for name in rows if name != "ours"}
    same = value[f"published, {budget}"]
    more = [name for name, count in counts.items() if count >= FASTER * budget]
    as_good = bool(more) and value["ours"] > 0 and all(value["ours"] >= value[name] for name in more)
    ahead = round(value["ours"] - same, 4)
    better = ahead >= BETTER
    found = {"iterations": budget, "ahead": ahead, "better": better, "as_good_in_half": as_good}
    return found | {"met": better or as_good}


def ablation(lab: Lab, cases: list[Case], whole: Recipe, name: str) -> dict[str, Any]:
    """What each change is worth: a recipe, and the same with one change after the other left out."""
    full = lab.run(f"ablation, {name}", cases, whole)
    rows, worth = {name: summary(full) | {"kept": kept_rate(full)}}, []
    for change, recipe in without(whole).items():
        judged = lab.run(f"ablation, {name} without {change}", cases, recipe)
        rows[f"without {change}"] = summary(judged) | {"kept": kept_rate(judged)}
        worth.append(compare(change, [j.right for j in judged], [j.right for j in full]))
    worth.sort(key=lambda entry: -entry["difference"])
    return {"rows": rows, "worth": worth}
