"""Runs a recipe on a batch of pictures: what the nodes of a workflow do, each picture as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenopt_core as to
from benchmarks.recipe_steps import ClipTerm, Drawn, Encoded, Growing, Optimize, Recipe, Term
from tokenopt_core import canvas
from tokenopt_core.loss_protocols import Loss
from tokenopt_core.losses import Similarity
from tokenopt_core.masks import fill_hole, soften
from tokenopt_core.seeds import embed_prompt


class EachPrompt(Similarity):
    """The CLIP loss of a batch in which every picture has a prompt of its own: (B, 3, H, W) -> (B,)."""

    texts: Tensor  # (B, E)
    against: Tensor  # (E,)

    def __init__(self, clip: to.Clip, prompts: Sequence[str], term: ClipTerm) -> None:
        super().__init__(clip, term.crops, term.crop_scale, term.flip)
        self.register_buffer("texts", torch.stack([embed_prompt(clip, prompt) for prompt in prompts]))
        guided = term.negative.strip() and term.guidance != 1
        against = embed_prompt(clip, term.negative) if guided else torch.zeros_like(self.texts[0])
        self.register_buffer("against", (1 - term.guidance) * against)

    def of_picture(self, picture: int, count: int) -> EachPrompt:
        """The loss of one picture, for any number of pictures that are tried in its place."""
        if len(self.texts) != count:
            raise ValueError(f"there are {len(self.texts)} prompts for {count} pictures: expected one for each")
        one = copy.copy(self)
        one._buffers = self._buffers | {"texts": self.texts[picture : picture + 1]}
        return one

    def forward(self, images: Tensor) -> Tensor:
        if len(self.texts) not in (1, len(images)):
            raise ValueError(f"there are {len(self.texts)} prompts for {len(images)} pictures: expected one for each")
        embedded = self.embed(images).unflatten(0, (len(images), -1)).mean(1)  # of the crops of each picture
        return -(embedded * (self.texts + self.against)).sum(-1)


@dataclass(frozen=True)
class Given:
    """What a run is given: so many prompts, and for each a picture and a mask where the recipe takes them.

    seed: the run of prompt i draws its random numbers from `seed + i`; where a recipe draws its starts, start k of
        prompt i from `seed * batch + i * batch + k`.
    """

    prompts: Sequence[str]
    images: Tensor | None = None  # (B, 3, S, S) in [0, 1]
    masks: Tensor | None = None  # (B, 1, S, S): 1 = to be invented; before it is grown
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a run leaves; with drawn starts, `batch` of each for every prompt, one after the other."""

    pictures: Tensor  # (B, 3, S, S) in [0, 1]: the result, stitched where the recipe stitches
    squares: Tensor  # (B, 3, S, S): the same before it is stitched
    features: Tensor  # (B, N, D)
    masks: Tensor | None  # (B, 1, S, S), grown
    iterations: int
    tries: int  # pictures that were decoded to refine all of them


@dataclass(frozen=True)
class Models:
    """A tokenizer and the CLIP that guides it."""

    tokenizer: to.Tokenizer
    clip: to.Clip


def grow(masks: Tensor, growing: Growing) -> Tensor:
    """Masks (B, 1, H, W), their marked areas grown as Grow Mask grows them: squarely, or with tapered corners."""
    for _ in range(growing.expand):
        if growing.tapered_corners:
            along = [F.max_pool2d(masks, side, 1, (side[0] // 2, side[1] // 2)) for side in ((3, 1), (1, 3))]
            masks = torch.maximum(*along)
        else:
            masks = F.max_pool2d(masks, 3, 1, 1)
    return masks


def run(recipe: Recipe, models: Models, given: Given) -> Outcome:
    """Follows a recipe from its start to its result."""
    tokenizer, masks = models.tokenizer, None if given.masks is None else grow(given.masks, recipe.growing)
    squares, holes, placement = given.images, masks, None
    if given.images is not None:
        squares, marks, placement = canvas.fit(
            given.images, masks, tokenizer.image_size, recipe.fitting.mode, recipe.fitting.context
        )
        holes = None if masks is None else marks
    prompts, seed, features = given.prompts, given.seed, _start(recipe, tokenizer, given, squares, holes)
    if isinstance(recipe.start, Drawn):
        prompts, seed = [p for p in prompts for _ in range(recipe.start.batch)], seed * recipe.start.batch
    start, iterations, tries = features, 0, 0
    for stage in recipe.stages:
        loss = _loss(stage.terms, models.clip, prompts, squares, holes)
        if isinstance(stage, Optimize):
            config, reset = replace(stage.config, seed=seed), None
            if stage.reset:
                known, hole = _need(squares, holes)
                reset = to.TokenReset(known, soften(hole, stage.reset.feather), stage.reset.every)
            result = to.optimize(tokenizer, features, loss, config, stage.regularizers, reset)
            features, iterations = result.features, iterations + len(result.history["loss"])
        else:
            refined = to.refine_tokens(
                tokenizer, features, loss, stage.rounds, stage.least_gain, stage.positions or None, stage.regularizers,
                seed=start if stage.anchored else None,
            )  # fmt: skip
            features, tries = refined.features, tries + refined.tries
    with torch.no_grad():
        edited = tokenizer.decode(features, quantize=recipe.quantize).clamp(0, 1)
    pictures = edited
    if recipe.fitting.feather is not None and given.images is not None and placement is not None:
        pictures = canvas.stitch(given.images, edited, placement, masks, recipe.fitting.feather)
    return Outcome(pictures, edited, features, masks, iterations, tries)


@torch.no_grad()
def similarities(clip: to.Clip, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    """What CLIP says of whole pictures (B, 3, H, W), each beside its own prompt: (B,)."""
    return -EachPrompt(clip, prompts, ClipTerm(crops=0))(pictures)


@torch.no_grad()
def _start(
    recipe: Recipe, tokenizer: to.Tokenizer, given: Given, squares: Tensor | None, holes: Tensor | None
) -> Tensor:
    """The features (B, N, D) to start from."""
    start = recipe.start
    if isinstance(start, Encoded):
        if squares is None:
            raise ValueError("this recipe starts from pictures, and none are given")
        if start.masked and holes is not None:
            squares = fill_hole(
                squares, soften(holes, start.feather), start.fill,
                reconstruct=lambda pictures: tokenizer.decode(tokenizer.encode(pictures)).clamp(0, 1),
            )  # fmt: skip
        return tokenizer.encode(squares)
    first, count = given.seed * start.batch, len(given.prompts) * start.batch
    generators = [torch.Generator().manual_seed(first + i) for i in range(count)]
    return torch.cat([to.random_features(tokenizer, 1, start.std, g, start.start) for g in generators])


def _need(squares: Tensor | None, holes: Tensor | None) -> tuple[Tensor, Tensor]:
    if squares is None or holes is None:
        raise ValueError("this recipe holds on to known pixels, and no pictures with masks are given")
    return squares, holes


def _loss(
    terms: Sequence[Term], clip: to.Clip, prompts: Sequence[str], squares: Tensor | None, holes: Tensor | None
) -> Loss:
    """The weighted sum of the losses, as Optimize Tokens makes it."""
    parts: list[tuple[str, float, Loss]] = []
    for number, term in enumerate(terms):
        if isinstance(term, ClipTerm):
            parts.append((f"clip {number}", term.weight, EachPrompt(clip, prompts, term)))
        else:
            known, hole = _need(squares, holes)
            loss = to.MaskedL1Loss(known, soften(hole, term.feather))
            parts.append((f"known pixels {number}", term.weight, loss))
    return to.WeightedSum(parts)
