"""The paper's Tables 1, 4 and 5 in small: the same rows on the mini world, and whether each trend holds here.

As in the paper a prompt is paired with one of a small set of seed pictures; here it names subject, ground and lighting,
of which there are 256 combinations. Success is what both judges say, in place of FID and IS. The tokenizers that are
given beside the shipped one have tables of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import tokenopt_core as to
from benchmarks.casebook import REPORT_FROM, Case, draw, mixed, pool
from benchmarks.evidence_lab import SHIPPED, Judged, Lab, Plan, fewer, named, summary
from benchmarks.evidence_parts import Part
from benchmarks.evidence_published import NOISE
from benchmarks.evidence_rates import compare, compare_numbers, mean
from benchmarks.evidence_store import weights_hash
from benchmarks.recipe_steps import ClipTerm, Drawn, Optimize, Recipe, changed
from benchmarks.recipes import read
from tokenopt_core.seeds import Pick, embed_prompt, pick_seeds

SEEDS, PERCENT = 100, 5.0  # seed pictures, and the share of them that a prompt's seed is drawn from
PIXELS = "pixels"  # the name of the tokenizer that is none
SPREAD = 0.25  # of pixels around grey: their features have about unit size, as the tokenizers' have


class Pixels:
    """A tokenizer that is none: every pixel is a token. What CLIP alone makes of a picture is adversarial."""

    feature_dim = token_dim = 3
    codebook_size = None

    def __init__(self, image_size: int) -> None:
        self.image_size, self.num_tokens = image_size, image_size**2

    def check(self, features: Tensor) -> Tensor:
        return features

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(2).transpose(1, 2) - 0.5) / SPREAD

    def quantize(self, features: Tensor) -> Tensor:
        return features

    def decode(self, features: Tensor, quantize: bool = True) -> Tensor:
        return (features * SPREAD + 0.5).transpose(1, 2).unflatten(2, (self.image_size, self.image_size))


def paired(lab: Lab, plan: Plan, mode: Pick) -> list[Case]:
    """Every prompt with its seed: the most similar picture, one of the most similar few, or any."""
    prompts = draw("generate", plan.seed, plan.n)
    generator = torch.Generator().manual_seed(plan.seed)
    scenes = pool(plan.seed >= REPORT_FROM)
    seeds = [scenes[i] for i in torch.randperm(len(scenes), generator=generator)[:SEEDS].tolist()]
    with torch.no_grad():
        embedded = lab.clip.embed_image(lab.album.pictures(seeds))
        likeness = [embedded @ embed_prompt(lab.clip, case.prompt) for case in prompts]
    picked = [int(pick_seeds(row, 1, mode, PERCENT, generator)[0]) for row in likeness]
    return [replace(case, kind="paired", source=seeds[i]) for case, i in zip(prompts, picked, strict=True)]


def steps() -> dict[str, Recipe]:
    """Table 4: each row the one before and one thing more.

    Regularizer and noise are the example workflow's, the noise in proportion to the learning rate: useful noise depends
    on the scale of the features and on how far a step goes.
    """
    shipped = read("text_edit").loop
    noise, share = shipped.config.noise, to.OptimizeConfig.learning_rate / shipped.config.learning_rate
    noise = replace(noise, start=noise.start * share, end=noise.end * share) if noise.start else NOISE
    rows = {"baseline": Optimize(to.OptimizeConfig(ema_decay=0), (ClipTerm(crops=0),))}
    rows["+ random crops"] = replace(rows["baseline"], terms=(ClipTerm(),))
    rows["+ EMA"] = changed(rows["+ random crops"], ema_decay=to.OptimizeConfig.ema_decay)
    rows["+ token noise"] = changed(rows["+ EMA"], noise=noise)
    regularizers = shipped.regularizers or (to.TokenRegularizer(),)
    rows["+ token regularizer"] = replace(rows["+ token noise"], regularizers=regularizers)
    return {name: Recipe(stages=(stage,)) for name, stage in rows.items()}


def from_random(recipe: Recipe, iterations: int) -> Recipe:
    """The same from random tokens, the generate workflow's; a regularizer pulls toward zero then."""
    start = read("generate").start
    drawn = replace(start, batch=1) if isinstance(start, Drawn) else Drawn()

    def change(stage: Optimize) -> Optimize:
        held = tuple(replace(r, toward="zero") for r in stage.regularizers)
        return replace(changed(stage, iterations=iterations), regularizers=held)

    return replace(recipe, start=drawn).with_loop(change)


@dataclass(frozen=True)
class Trial:
    """One tokenizer on the tables' cases."""

    lab: Lab
    plan: Plan
    tokenizer: str = SHIPPED

    def run(self, what: str, cases: Sequence[Case], recipe: Recipe) -> list[Judged]:
        where = "" if self.tokenizer == SHIPPED else f", {self.tokenizer}"
        return self.lab.run(what + where, cases, recipe, self.tokenizer)


def rights(judged: Sequence[Judged]) -> list[bool]:
    return [j.right for j in judged]


def likeness(judged: Sequence[Judged]) -> list[float]:
    return [j.measures["similarity"] for j in judged]


def table(rows: dict[str, list[Judged]], trends: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": {name: summary(judged) for name, judged in rows.items()}, "trends": trends}


def tables(lab: Lab, plan: Plan) -> Part:
    """All three, of every tokenizer."""
    plan, rows = fewer(plan), steps()
    beside = {name: other(lab, plan, name, rows) for name in lab.tokenizers if name not in (SHIPPED, PIXELS)}
    return Part({
        "seeds": SEEDS,
        "percent": PERCENT,
        "settings": {name: recipe.settings() for name, recipe in rows.items()},
        "tables": all_three(Trial(lab, plan), rows),
        "beside": beside,
    })  # fmt: skip


def all_three(trial: Trial, rows: dict[str, Recipe]) -> dict[str, Any]:
    """Tables 1, 4 and 5 of one tokenizer."""
    few = paired(trial.lab, trial.plan, "top percent")
    four = {name: trial.run(f"table 4, {name}", few, recipe) for name, recipe in rows.items()}
    random = trial.run("random seeds", paired(trial.lab, trial.plan, "random"), rows["+ EMA"])
    return {
        "table 1": table_one(trial, rows["+ EMA"], few, four["+ EMA"]),
        "table 4": table_four(four),
        "table 5": table_five(trial, rows, four, random),
    }


def other(lab: Lab, plan: Plan, name: str, rows: dict[str, Recipe]) -> dict[str, Any]:
    """The same of a tokenizer beside the shipped one, with what it can at most, and text_edit's edits with both."""
    cases, shipped = mixed(plan.seed, 2 * plan.n), read("text_edit")
    judged = {kind: lab.run(f"edits, {kind}", cases, shipped, kind) for kind in (SHIPPED, name)}
    return about(lab, name, cases) | {
        "edits": {kind: summary(results) for kind, results in judged.items()},
        "trend": compare("told what to carry beats untold", rights(judged[name]), rights(judged[SHIPPED])),
        "tables": all_three(Trial(lab, plan, name), rows),
    }  # fmt: skip


def about(lab: Lab, name: str, cases: Sequence[Case]) -> dict[str, Any]:
    """A tokenizer in numbers; what the judges make of its mere reconstructions is the most that edits can reach."""
    model, back = lab.tokenizers[name], lab.reconstructions(cases, name)
    errors = (back - lab.sources(cases)).square().mean((1, 2, 3)).clamp(min=1e-10)
    same = [replace(case, wanted=named(case.source), kind="source") for case in cases if case.source]
    return {
        "tokens": model.num_tokens,
        "codes": model.codebook_size,
        "weights": weights_hash(model),
        "reconstruction_psnr": mean((-10 * errors.log10()).tolist()),
        "ceiling": summary(lab.judged(same, back)),
    }


def table_four(four: dict[str, list[Judged]]) -> dict[str, Any]:
    """What each tweak brings."""
    names = list(four)
    trends = [
        compare(f"{after} succeeds more often than the row before", rights(four[before]), rights(four[after]))
        for before, after in pairwise(names)
    ]
    trends.append(compare("all of them together beat the baseline", rights(four[names[0]]), rights(four[names[-1]])))
    return table(four, trends)


def table_one(trial: Trial, recipe: Recipe, few: list[Case], top: list[Judged]) -> dict[str, Any]:
    """How seeds are picked, what is there before anything is optimized, and what pixels alone give."""
    lab, plan = trial.lab, trial.plan
    top_name = f"top {PERCENT:g} %"
    cases = {"random": paired(lab, plan, "random"), top_name: few, "top 1": paired(lab, plan, "most similar")}
    rows, optimized = {}, {top_name: top}
    for name, chosen in cases.items():
        rows[f"{name}: as it is"] = lab.as_they_are(chosen)
        if name == "random":
            rows["random: adversarial"] = lab.run("table 1, pixels", chosen, recipe, PIXELS)
        if name not in optimized:
            optimized[name] = trial.run(f"table 1, {name}", chosen, recipe)
        rows[f"{name}: optimized"] = optimized[name]
    pixels, tokens = rows["random: adversarial"], optimized["random"]
    trends = [
        compare(
            f"optimizing a {name} seed beats leaving it", rights(rows[f"{name}: as it is"]), rights(optimized[name])
        )
        for name in cases
    ]
    trends += [
        compare(f"{top_name} seeds succeed more often than random ones", rights(tokens), rights(top)),
        compare("top 1 seeds succeed more often than random ones", rights(tokens), rights(optimized["top 1"])),
        compare_numbers("optimized pixels please the guiding CLIP more", likeness(tokens), likeness(pixels)),
        compare("and the judges less", rights(pixels), rights(tokens)),
    ]  # fmt: skip
    return table(rows, trends)


def table_five(
    trial: Trial, rows: dict[str, Recipe], four: dict[str, list[Judged]], random: list[Judged]
) -> dict[str, Any]:
    """With a seed and without, with the tweaks and without."""
    prompts = draw("generate", trial.plan.seed, trial.plan.n)
    plain, tweaked = "+ EMA", "+ token regularizer"
    found = {
        "no tweaks, seeds, 300": four[plain],
        "no tweaks, random tokens, 300": trial.run("table 5, plain", prompts, from_random(rows[plain], 300)),
        "tweaks, seeds, 300": four[tweaked],
        "tweaks, random tokens, 400": trial.run("table 5, tweaks", prompts, from_random(rows[tweaked], 400)),
    }
    seeds, bare, seeds_tweaked, bare_tweaked = (rights(judged) for judged in found.values())
    return table(found, [
        compare("without tweaks, seeds beat random tokens", bare, seeds),
        compare("with tweaks, seeds beat random tokens", bare_tweaked, seeds_tweaked),
        compare("tweaks and 100 iterations more help random tokens", bare, bare_tweaked),
        compare("random tokens beat seeds picked at random", rights(random), bare),
    ])  # fmt: skip
