"""Token search against trying every code by hand."""

import pytest
import torch

import tokenopt_core as to
from tests.core.conftest import TINY, tiny_tokenizer
from tokenopt_core.losses import random_crops
from tokenopt_core.titok import TiTokConfig, Transformer

CODES = 70  # more than are decoded at once
SMALL = TiTokConfig(8, 4, 3, CODES, Transformer(8, 1, 2), Transformer(8, 1, 2), patch_size=4)


@pytest.fixture
def tokenizer() -> to.Tokenizer:
    return tiny_tokenizer(SMALL)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(3))


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


def brute_force(tokenizer, features, position, criterion) -> torch.Tensor:
    """The score of every code, one picture at a time."""
    scores = []
    for code in range(tokenizer.codebook_size):
        numbers = tokenizer.indices(features).clone()
        numbers[0, position] = code
        with torch.no_grad():
            scores.append(criterion(tokenizer.decode(tokenizer.lookup(numbers)))[0])
    return torch.stack(scores)


@pytest.mark.parametrize("position", range(4))
def test_search_is_brute_force(tokenizer, features, position: int) -> None:
    expected = brute_force(tokenizer, features, position, brightness)
    indices, scores = to.search_token(tokenizer, features, position, brightness)
    assert sorted(indices.tolist()) == list(range(CODES)) and indices.dtype is torch.int64
    torch.testing.assert_close(scores, expected.sort(descending=True).values)
    torch.testing.assert_close(scores, expected[indices])
    assert indices[0] == expected.argmax() and not scores.requires_grad


def test_the_default_is_the_change_that_is_seen(tokenizer, features) -> None:
    with torch.no_grad():
        original = tokenizer.decode(features).clamp(0, 1)
    expected = brute_force(tokenizer, features, 2, lambda x: (x.clamp(0, 1) - original).abs().mean((1, 2, 3)))
    indices, scores = to.search_token(tokenizer, features, 2)
    torch.testing.assert_close(scores, expected[indices])
    own = tokenizer.indices(features)[0, 2]
    assert scores[indices == own] == pytest.approx(0, abs=1e-6) and scores[0] > 1e-3


def test_a_loss_is_made_small(tokenizer, features) -> None:
    indices, scores = to.search_token(tokenizer, features, 0, to.Wanted(brightness))
    best = to.search_token(tokenizer, features, 0, brightness)[0]
    assert indices[0] == best[-1] and scores[0] == scores.max()


class Crops:
    """A loss that sees one random crop."""

    def with_generators(self, generators):
        bound = Crops()
        bound.generators = generators
        return bound

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return random_crops(images, 1, 0.5, 0.5, self.generators).mean((1, 2, 3))


def test_random_crops_are_the_same_for_every_code(tokenizer, features) -> None:
    seen = to.Wanted(Crops(), seed=4)
    scores = [to.search_token(tokenizer, features, 1, seen, batch=batch) for batch in (1, 32, 70)]
    for indices, values in scores[1:]:
        torch.testing.assert_close(values, scores[0][1])
        assert indices[0] == scores[0][0][0]
    other = to.search_token(tokenizer, features, 1, to.Wanted(Crops(), seed=5))[1]
    assert not torch.allclose(other, scores[0][1])


def test_equal_scores_keep_the_order_and_no_number_comes_last(tokenizer, features) -> None:
    def odd(images: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(images))
        scores[0] = float("nan")
        return scores

    indices, scores = to.search_token(tokenizer, features, 0, odd)
    assert indices.tolist() == [i for i in range(CODES) if i % 32] + [0, 32, 64]
    assert scores[-3:].tolist() == [-torch.inf] * 3


def test_progress_and_ends(tokenizer, features) -> None:
    seen: list[int] = []
    to.search_token(tokenizer, features, 0, brightness, seen.append)
    assert seen == [32, 64, 70]
    indices, _ = to.search_token(tokenizer, features, 0, brightness, lambda done: done >= 64)
    assert sorted(indices.tolist()) == list(range(64))

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to.search_token(tokenizer, features, 0, brightness, interrupt)


def test_short_of_memory_it_takes_smaller_parts(tokenizer, features) -> None:
    def short(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return brightness(images)

    found = to.search_token(tokenizer, features, 3, short)
    expected = to.search_token(tokenizer, features, 3, brightness)
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("position", [-1, 4])
def test_position_out_of_range(tokenizer, features, position: int) -> None:
    with pytest.raises(ValueError, match=f"no token position {position}: tokenizer 'tiny' has 0 to 3"):
        to.search_token(tokenizer, features, position, brightness)


def test_what_cannot_be_searched_is_explained(tokenizer, features) -> None:
    with pytest.raises(ValueError, match="one picture at a time, got 2"):
        to.search_token(tokenizer, features.expand(2, -1, -1), 0, brightness)
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        to.search_token(tokenizer, torch.zeros(1, 5, 3), 0, brightness)
    with pytest.raises(ValueError, match=r"one number a picture, \(32,\), but this one gave \(\)"):
        to.search_token(tokenizer, features, 0, torch.mean)
    vae = tiny_tokenizer(TiTokConfig(**{**vars(TINY), "codebook_size": None}))
    with pytest.raises(ValueError, match="is a VAE: its tokens are continuous"):
        to.search_token(vae, torch.zeros(1, 3, 4), 0, brightness)
