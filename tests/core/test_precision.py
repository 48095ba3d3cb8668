"""Half precision finds what float32 finds.

With a quantizer a single run is chaotic: one code that tips over in one iteration changes all that follow, in float32
as well (another number of threads is enough). So whole runs are compared without one, and with one the gradient. Even
so some pictures end in another optimum than in float32, better or worse: the median is what is held.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import tokenopt_core as to
from training.world import World, sample_scenes

PROMPT = "a fox on grass at night"
HALVES = ["bfloat16", "float16"]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def models() -> tuple[to.Tokenizer, to.Clip]:
    return to.load_tokenizer("mini").to(DEVICE), to.load_clip("mini").to(DEVICE)


@pytest.fixture(scope="module")
def pictures(models) -> Tensor:
    """Eight to start from, and eight to become."""
    size = models[0].image_size
    return World(size).render(sample_scenes(16, random.Random(5)))[0].to(DEVICE)


@pytest.fixture(scope="module")
def start(models, pictures) -> Tensor:
    with torch.no_grad():
        return models[0].encode(pictures[:8])


@pytest.fixture(scope="module")
def exact(models, pictures, start) -> Tensor:
    return final_loss(models[0], pictures[8:], start, "float32")


def final_loss(tokenizer: to.Tokenizer, wanted: Tensor, start: Tensor, precision: str) -> Tensor:
    """Of each picture after a hundred iterations toward another, as float32 sees the result."""
    loss = to.MaskedL1Loss(wanted, torch.zeros_like(wanted[:1, :1]))
    config = to.OptimizeConfig(iterations=100, precision=precision, quantize=False)  # type: ignore[arg-type]
    return loss(to.optimize(tokenizer, start, loss, config).images)


# float16 takes minutes on a CPU
@pytest.mark.parametrize("precision", HALVES if DEVICE == "cuda" else HALVES[:1])
def test_a_hundred_iterations_end_within_a_hundredth(models, pictures, start, exact, precision) -> None:
    half = final_loss(models[0], pictures[8:], start, precision)
    assert abs(float((half / exact).median()) - 1) < 0.01
    assert not torch.equal(half, exact)  # it was half precision


@pytest.mark.parametrize("precision", HALVES)
def test_the_gradient_through_the_quantizer_points_the_same_way(models, start, precision) -> None:
    tokenizer, clip = models
    loss = to.ClipLoss(clip, PROMPT, crops=0)
    gradients = []
    for enabled in (False, True):
        z = start.clone().requires_grad_(True)
        with torch.autocast(DEVICE, getattr(torch, precision), enabled=enabled):
            value = loss(tokenizer.decode(z))
        scale = 2.0**10 if precision == "float16" else 1.0
        gradients.append(torch.autograd.grad(value.float().sum() * scale, z)[0].flatten(1) / scale)
    similarity = torch.cosine_similarity(*gradients)
    assert similarity.min() > (0.999 if precision == "bfloat16" else 0.99999)
    assert not torch.equal(*gradients)
