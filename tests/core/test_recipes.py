"""Recipes are what the workflows say, and running one is what their nodes do, each picture as if it were alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenopt_core as to
from benchmarks import recipes
from benchmarks.evidence_tables import Pixels
from benchmarks.recipe_run import EachPrompt, Given, Models, grow, run, similarities
from benchmarks.recipe_steps import ClipTerm, Drawn, Encoded, Growing, KnownTerm, Optimize, Recipe, Refine, changed
from tokenopt_core.loss_protocols import of_picture, uncropped


def test_recipes_are_what_the_workflows_say() -> None:
    for name in ("text_edit", "generate", "inpaint", "inpaint_with_prompt"):
        nodes = json.loads((recipes.WORKFLOWS / f"{name}.api.json").read_text(encoding="utf-8"))
        by_class = {node["class_type"]: node["inputs"] for node in nodes.values()}
        recipe = recipes.read(name)
        loop = by_class["TokenOptOptimize"]
        for setting in ("iterations", "learning_rate", "decay", "ema_decay", "quantize"):
            assert getattr(recipe.loop.config, setting) == loop[setting]
        noise = by_class.get("TokenOptNoise", {"start": 0.0})
        assert recipe.loop.config.noise.start == noise["start"]
        assert recipe.refined == ("TokenOptRefine" in by_class)
        terms = {type(term): term for term in recipe.loop.terms}
        assert (ClipTerm in terms) == ("TokenOptCLIPLoss" in by_class)
        assert (KnownTerm in terms) == ("TokenOptMaskedL1Loss" in by_class)
        if ClipTerm in terms:
            assert terms[ClipTerm].crops == by_class["TokenOptCLIPLoss"]["crops"]
        assert recipe.growing.expand == by_class.get("GrowMask", {"expand": 0})["expand"]
        assert isinstance(recipe.start, Drawn if name == "generate" else Encoded)
        assert json.loads(json.dumps(recipe.settings())) == recipe.settings()
    assert recipes.read("inpaint").start.masked and not recipes.read("text_edit").start.masked


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": f"TokenOpt{kind}", "inputs": inputs}


def chain() -> dict[str, dict[str, Any]]:
    return {
        "1": node("Encode", fill="blur", feather=3, image=["9", 0]),
        "2": node("CLIPLoss", prompt=["10", 0], crops=["11", 0], openclip=["9", 0]),
        "3": node("MaskedL1Loss", feather=1, weight=4),
        "4": node("CombineLosses", loss_1=["2", 0], loss_2=["3", 0]),
        "5": node("Regularizer", toward="seed", weight=0.5),
        "6": node("Regularizer", toward="zero", weight=0.25, chain=["5", 0]),
        "7": node("Optimize", iterations=7, seed=3, trajectory_every=10, features=["1", 0], loss=["4", 0],
                  regularizer=["6", 0]),
        "8": node("Refine", rounds=3, positions="0-2", features=["7", 0], loss=["2", 0], seed_features=["1", 0]),
        "9": {"class_type": "TokenOptTiTokLoad", "inputs": {"name": "mini"}},
        "10": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a fox"}},
        "11": {"class_type": "PrimitiveInt", "inputs": {"value": 5}},
        "12": node("Decode", quantize=True, features=["8", 0]),
    }  # fmt: skip


def test_a_recipe_follows_the_wires() -> None:
    recipe = recipes.parse(chain())
    regularizers = (to.TokenRegularizer("seed", 0.5), to.TokenRegularizer("zero", 0.25))
    optimize = Optimize(to.OptimizeConfig(iterations=7, seed=3), (ClipTerm(crops=5), KnownTerm(1, 4)), regularizers)
    refine = Refine(3, positions="0-2", anchored=True, terms=(ClipTerm(crops=5),))
    assert recipe == Recipe(Encoded("blur", 3), (optimize, refine))
    other_seed = recipe.with_loop(lambda stage: changed(stage, seed=4))
    assert other_seed.settings() == recipe.settings() != recipe.with_loop(lambda s: changed(s, iterations=8)).settings()


def test_nodes_that_are_not_there_are_not_missed() -> None:
    nodes = chain()
    del nodes["8"], nodes["12"]
    nodes["7"]["inputs"] = {"features": ["1", 0], "loss": ["2", 0]}
    assert recipes.parse(nodes) == Recipe(Encoded("blur", 3), (Optimize(terms=(ClipTerm(crops=5),)),))


@pytest.mark.parametrize(
    ("where", "inputs", "message"),
    [
        ("7", {"momentum": 0.5}, "OptimizeConfig knows nothing of the setting momentum"),
        (
            "7",
            {"features": ["9", 0]},
            "expected features from TokenOptEncode or TokenOptRandom, got them from TokenOptTi",
        ),
        ("7", {"loss": ["9", 0]}, "expected a loss of .* got one of TokenOptTiTokLoad"),
        ("8", {"features": ["1", 0]}, "expected one chain of .* got 2"),
        ("8", {"seed_features": ["9", 0]}, "expected seed_features from"),
    ],
)
def test_what_no_recipe_stands_for_is_said(where: str, inputs: dict[str, Any], message: str) -> None:
    nodes = chain()
    nodes[where]["inputs"] |= inputs
    with pytest.raises(ValueError, match=message):
        recipes.parse(nodes)


def test_a_workflow_without_an_optimization_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.api.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"empty\.api\.json: expected one chain"):
        recipes.read(path)


def test_every_picture_has_the_loss_of_its_own_prompt(clip: to.Clip) -> None:
    images, prompts = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["fox", "a panda:2 | bee"]
    generators = lambda: [torch.Generator().manual_seed(i) for i in (3, 4)]  # noqa: E731
    for term in (ClipTerm(crops=0), ClipTerm(crops=3), ClipTerm("dog", 1.5, 2, 0.5)):
        ours = EachPrompt(clip, prompts, term).with_generators(generators())(images)
        settings = (term.negative, term.guidance, term.crops, term.crop_scale, term.flip)
        for i, (prompt, generator) in enumerate(zip(prompts, generators(), strict=True)):
            theirs = to.ClipLoss(clip, prompt, *settings).with_generators([generator])
            torch.testing.assert_close(ours[i : i + 1], theirs(images[i : i + 1]))
    whole = uncropped(EachPrompt(clip, prompts, ClipTerm(crops=3)))
    alone = of_picture(whole, 1, 2)
    torch.testing.assert_close(alone(images[[1, 1, 0]])[:2], whole(images)[[1, 1]])
    torch.testing.assert_close(similarities(clip, images, prompts), -whole(images))
    with pytest.raises(ValueError, match="2 prompts for 1 pictures"):
        whole(images[:1])


def test_a_batch_is_what_single_pictures_are(tokenizer: to.Tokenizer, clip: to.Clip) -> None:
    recipe = Recipe(
        stages=(Optimize(to.OptimizeConfig(iterations=4, noise=to.NoiseSchedule(0.1)), (ClipTerm(crops=2),)),)
    )
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    models, prompts = Models(tokenizer, clip), ["fox", "panda", "bee"]
    together = run(recipe, models, Given(prompts, images, seed=7))
    alone = run(recipe, models, Given(prompts[2:], images[2:], seed=9))
    torch.testing.assert_close(together.features[2:], alone.features, atol=1e-4, rtol=1e-4)
    by_hand = to.optimize(
        tokenizer, tokenizer.encode(images[2:]), to.ClipLoss(clip, "bee", crops=2),
        to.OptimizeConfig(iterations=4, noise=to.NoiseSchedule(0.1), seed=9),
    )  # fmt: skip
    torch.testing.assert_close(alone.pictures, by_hand.images)
    assert together.iterations == 4 and together.tries == 0


def test_drawn_starts_are_those_of_the_node(tokenizer: to.Tokenizer, clip: to.Clip) -> None:
    recipe = Recipe(
        Drawn(2, "normal", 0.5), (Optimize(to.OptimizeConfig(iterations=1, learning_rate=1e-9, ema_decay=0)),)
    )
    outcome = run(recipe, Models(tokenizer, clip), Given(["fox", "bee"], seed=10))
    drawn = [to.random_features(tokenizer, 1, 0.5, torch.Generator().manual_seed(20 + i)) for i in range(4)]
    torch.testing.assert_close(outcome.features, torch.cat(drawn), atol=1e-6, rtol=0)


def test_inpainting_keeps_known_pixels_to_the_bit(tokenizer: to.Tokenizer, clip: to.Clip) -> None:
    loop = Optimize(to.OptimizeConfig(iterations=2), (KnownTerm(0.0),))
    recipe = Recipe(Encoded("grey", 0, True), (loop,), growing=Growing(1))
    recipe = replace(recipe, fitting=replace(recipe.fitting, feather=0))
    images, hidden = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.zeros(1, 1, 8, 8)
    hidden[..., 2:4, 2:4] = 1
    outcome = run(recipe, Models(tokenizer, clip), Given(["fox"], images, hidden))
    grown = torch.zeros(1, 1, 8, 8)
    grown[..., 1:5, 1:5] = 1
    assert torch.equal(outcome.masks, grown)
    known = (grown == 0).expand(1, 3, -1, -1)
    assert torch.equal(outcome.pictures[known], images[known])
    assert torch.equal(outcome.pictures[~known], outcome.squares[~known])
    with pytest.raises(ValueError, match="known pixels, and no pictures with masks"):
        run(recipe, Models(tokenizer, clip), Given(["fox"], images))


def test_masks_grow_as_grow_mask_does() -> None:
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1
    assert grow(point, Growing(1))[0, 0].sum() == 9 and grow(point, Growing(2))[0, 0].sum() == 25
    assert grow(point, Growing(1, True))[0, 0].tolist() == [
        [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0],
    ]  # fmt: skip
    assert torch.equal(grow(point, Growing()), point)


def test_refining_uses_each_pictures_prompt(tokenizer: to.Tokenizer, clip: to.Clip) -> None:
    recipe = Recipe(stages=(Optimize(to.OptimizeConfig(iterations=1)), Refine(rounds=1)))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    outcome = run(recipe, Models(tokenizer, clip), Given(["fox", "bee"], images, seed=5))
    loop = replace(recipe, stages=recipe.stages[:1])
    for i, prompt in enumerate(("fox", "bee")):
        features = run(loop, Models(tokenizer, clip), Given([prompt], images[i : i + 1], seed=5 + i)).features
        alone = to.refine_tokens(tokenizer, features, to.ClipLoss(clip, prompt, crops=0), rounds=1)
        torch.testing.assert_close(outcome.features[i : i + 1], alone.features, atol=1e-4, rtol=1e-4)
    assert outcome.tries > 0


def test_pixels_are_a_tokenizer_that_changes_nothing(clip: to.Clip) -> None:
    pixels, images = Pixels(8), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(pixels.decode(pixels.encode(images)), images)
    before = similarities(clip, images, ["fox", "bee"])
    outcome = run(
        Recipe(stages=(Optimize(to.OptimizeConfig(iterations=20)),)),
        Models(pixels, clip),
        Given(["fox", "bee"], images),
    )
    assert (similarities(clip, outcome.pictures, ["fox", "bee"]) > before).all()
