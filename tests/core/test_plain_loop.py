"""The product's loop beside the published one (benchmarks/plain.py)."""

from __future__ import annotations

import pytest
import torch

import tokenopt_core as to
from benchmarks import plain

PROMPT = "a fox on grass at night"


@pytest.fixture(scope="module")
def mini() -> tuple[to.Tokenizer, to.Clip, torch.Tensor]:
    """Tokenizer, CLIP and features of two pictures."""
    tokenizer = to.load_tokenizer("mini")
    return tokenizer, to.load_clip("mini"), to.random_features(tokenizer, 2, 0.5, torch.Generator().manual_seed(4))


def test_ten_iterations_are_those_of_the_published_loop(mini) -> None:
    tokenizer, clip, start = mini
    config = to.OptimizeConfig(iterations=10, seed=3)
    models = plain.plain_model(tokenizer), plain.plain_model(clip)
    features, losses = plain.optimize(models[0], start, models[1], PROMPT, config, crops=4)
    result = to.optimize(tokenizer, start, to.ClipLoss(clip, PROMPT, crops=4), config)
    assert (result.features - features).norm() < 1e-4 * features.norm()
    torch.testing.assert_close(result.history["loss"].sum(1), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    assert any(p.requires_grad for p in models[0].parameters()) and not any(
        p.requires_grad for p in tokenizer.parameters()
    )
