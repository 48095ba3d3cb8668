"""Seeds against numpy, and what is said of wishes that cannot be met."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
import torch

from tokenopt_core.seeds import PICKS, embed_prompt, pick_seeds


@pytest.fixture
def similarities() -> torch.Tensor:
    return torch.randn(1000, generator=torch.Generator().manual_seed(0))


def drawn(similarities: torch.Tensor, count: int, mode: str, percent: float = 1.0, seed: int = 0) -> list[int]:
    return pick_seeds(similarities, count, mode, percent, torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_most_similar_is_numpys_order(similarities, count: int) -> None:
    assert drawn(similarities, count, "most similar") == np.argsort(-similarities.numpy())[:count].tolist()


def test_of_equal_ones_the_earlier_comes_first() -> None:
    assert drawn(torch.tensor([0.1, 0.5, 0.3, 0.5, 0.5]), 4, "most similar") == [1, 3, 4, 2]


@pytest.mark.parametrize(("percent", "pool"), [(0, 1), (0.05, 1), (0.1, 1), (0.11, 2), (1, 10), (7, 70), (100, 1000)])
def test_top_percent_draws_from_these_alone_and_from_each(similarities, percent: float, pool: int) -> None:
    best = set(np.argsort(-similarities.numpy())[:pool].tolist())
    seen = Counter(drawn(similarities, 1, "top percent", percent, seed)[0] for seed in range(60 if pool > 10 else 200))
    assert set(seen) <= best
    if pool <= 10:
        assert set(seen) == best
        # a fair draw: 200 of them miss the expected share by less than five standard deviations
        spread = 5 * math.sqrt(200 * (1 / pool) * (1 - 1 / pool))
        assert all(abs(n - 200 / pool) <= spread for n in seen.values())


def test_top_percent_draws_none_twice_and_enough(similarities) -> None:
    """One percent of a thousand are ten: twelve are drawn from the best twelve."""
    picked = drawn(similarities, 12, "top percent", 1)
    assert picked == drawn(similarities, 12, "most similar")
    for mode in ("top percent", "random"):
        picked = drawn(similarities, 50, mode, 10)
        assert len(set(picked)) == 50
        values = similarities[picked]
        assert torch.equal(values, values.sort(descending=True).values)


def test_random_looks_at_no_similarity(similarities) -> None:
    """The same places in the order of similarities, whatever these are."""
    flat = drawn(torch.zeros(1000), 300, "random", seed=3)
    order = similarities.sort(descending=True, stable=True).indices
    assert drawn(similarities, 300, "random", seed=3) == order[flat].tolist()
    assert 350 < np.mean(flat) < 650


@pytest.mark.parametrize("mode", PICKS)
def test_a_seed_says_what_is_drawn(similarities, mode: str) -> None:
    first, again, other = (drawn(similarities, 5, mode, 50, seed) for seed in (1, 1, 2))
    assert first == again
    assert (first == other) == (mode == "most similar")


@pytest.mark.parametrize("mode", PICKS)
def test_one_picture_is_picked(mode: str) -> None:
    assert drawn(torch.tensor([0.3]), 1, mode) == [0]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"count": 4}, "4 pictures are to be picked out of 3: expected at most as many"),
        ({"count": 0}, "0 pictures are to be picked out of 3"),
        ({"mode": "best"}, "unknown way to pick 'best': expected one of most similar, top percent, random"),
        ({"percent": 101.0}, "the top percent must be from 0 to 100, got 101"),
        ({"percent": math.nan}, "the top percent must be from 0 to 100, got nan"),
    ],
)
def test_wishes_that_cannot_be_met(wish: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        pick_seeds(torch.tensor([0.1, 0.2, 0.3]), **wish)
    assert message in str(error.value)


@pytest.mark.parametrize("bad", [torch.tensor([0.1, math.nan]), torch.zeros(2, 2), torch.zeros(0)])
def test_similarities_that_are_none(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected|out of 0"):
        pick_seeds(bad)


def test_several_prompts_count_by_their_weights(clip) -> None:
    """Its product with a picture is the weighted mean of the similarities."""
    first, second = clip.embed_text(["a fox", "night"])
    got = embed_prompt(clip, "a fox:3 | night")
    torch.testing.assert_close(got, 0.75 * first + 0.25 * second)
    torch.testing.assert_close(embed_prompt(clip, "a fox"), first)
    with pytest.raises(ValueError, match="the prompt is empty"):
        embed_prompt(clip, "  ")


def test_a_hundred_thousand_pictures_are_searched_in_less_than_a_second() -> None:
    """A tenth of it on a busy machine: benchmarks/seeds.py."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(10_000, 512, generator=generator).repeat(10, 1)
    query, seconds = torch.randn(512, generator=generator), []
    for _ in range(3):
        start = time.perf_counter()
        picked = pick_seeds(embeddings @ query, 10)
        seconds.append(time.perf_counter() - start)
    best = int((embeddings[:10_000] @ query).argmax())
    assert picked.tolist() == [best + 10_000 * i for i in range(10)]
    assert min(seconds) < 1
