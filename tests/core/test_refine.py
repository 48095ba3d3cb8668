"""Refining tokens against every combination of codes, and against planted losses whose best codes are known."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

import tokenopt_core as to
from tests.core.conftest import TINY, tiny_tokenizer
from tokenopt_core.crops import random_crops
from tokenopt_core.loss_protocols import of_picture, uncropped
from tokenopt_core.titok import TiTokConfig, Transformer

CODES, POSITIONS = 6, 3
SMALL = TiTokConfig(8, POSITIONS, 2, CODES, Transformer(8, 1, 2), Transformer(8, 1, 2), patch_size=4)
START = [0, 3, 5]  # the codes that the features of picture 0 have

Codes = tuple[int, ...]


@pytest.fixture
def tokenizer() -> to.Tokenizer:
    return tiny_tokenizer(SMALL)


@pytest.fixture
def features(tokenizer) -> torch.Tensor:
    """Two pictures near codes, but not on them, the first near START."""
    codes = tokenizer.lookup(torch.tensor([START, [1, 1, 2]]))
    near = codes + 0.01 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(3))
    assert tokenizer.indices(near).tolist() == [START, [1, 1, 2]]
    return near


class Planted:
    """A loss that reads a picture's codes, by comparing it with all the pictures there are, and looks them up."""

    def __init__(self, tokenizer: to.Tokenizer, value: Callable[[Codes], float]) -> None:
        self.codes = list(itertools.product(range(CODES), repeat=POSITIONS))
        with torch.no_grad():
            self.pictures = tokenizer.decode(tokenizer.lookup(torch.tensor(self.codes))).flatten(1).double()
        self.values = torch.tensor([value(codes) for codes in self.codes], dtype=torch.float64)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        nearest = (images.flatten(1).double()[:, None] - self.pictures).square().mean(2).min(1)
        assert nearest.values.max() < 1e-8, "this is none of the tokenizer's pictures"
        return self.values[nearest.indices]


def wrong(target: Codes, weights: Codes = (1, 1, 1)) -> Callable[[Codes], float]:
    """The sum of the weights at which codes are not those of the target."""
    return lambda codes: float(sum(w for w, a, b in zip(weights, codes, target, strict=True) if a != b))


def made(refined: to.Refined) -> list[tuple[int, int, int, int]]:
    """The exchanges without their gains."""
    return [(e.picture, e.position, e.before, e.after) for e in refined.exchanges]


def test_a_separable_loss_is_solved_in_one_round_the_largest_gain_first(tokenizer, features) -> None:
    loss = Planted(tokenizer, wrong((4, 2, 5), (1, 3, 2)))
    result = to.refine_tokens(tokenizer, features[:1], loss, rounds=1)
    assert tokenizer.indices(result.features).tolist() == [[4, 2, 5]]
    assert result.exchanges == [to.Exchange(0, 1, 3, 2, 3.0), to.Exchange(0, 0, 0, 4, 1.0)]
    assert result.losses.tolist() == [0.0]
    assert result.tries == CODES * (3 + 2 + 1)
    with torch.no_grad():
        assert torch.equal(result.images, tokenizer.decode(result.features).clamp(0, 1))


def greedy(tokenizer: to.Tokenizer, loss, codes: list[int], rounds: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """The same search with loops over single pictures: the last codes, and the exchanges."""
    exchanges = []
    for _ in range(rounds):
        waiting = [0, 1, 2]
        while waiting:
            tried = [(p, c, [*codes[:p], c, *codes[p + 1 :]]) for p in waiting for c in range(CODES)]
            value, position, code = min((one(tokenizer, loss, new), p, c) for p, c, new in tried)
            if value >= one(tokenizer, loss, codes) - 1e-6:
                break
            exchanges.append((0, position, codes[position], code))
            codes = [*codes[:position], code, *codes[position + 1 :]]
            waiting.remove(position)
    return codes, exchanges


@torch.no_grad()
def one(tokenizer: to.Tokenizer, loss, codes: list[int]) -> float:
    return float(loss(tokenizer.decode(tokenizer.lookup(torch.tensor([codes]))))[0])


def test_real_pictures_are_tried_as_loops_would_try_them(tokenizer, features) -> None:
    with torch.no_grad():
        target = tokenizer.decode(tokenizer.lookup(torch.tensor([[2, 4, 1]])))

    def loss(images: torch.Tensor) -> torch.Tensor:
        return (images - target).abs().mean((1, 2, 3))

    codes, exchanges = greedy(tokenizer, loss, START, rounds=4)
    assert len(exchanges) >= 3
    result = to.refine_tokens(tokenizer, features[:1], loss, rounds=4)
    assert made(result) == exchanges and tokenizer.indices(result.features).tolist() == [codes]
    assert result.losses.tolist() == pytest.approx([one(tokenizer, loss, codes)], abs=1e-5)
    gained = sum(exchange.gain for exchange in result.exchanges)
    assert gained == pytest.approx(one(tokenizer, loss, START) - one(tokenizer, loss, codes), abs=1e-5)


def test_a_coupled_loss_needs_a_second_round(tokenizer, features) -> None:
    def stairs(codes: Codes) -> float:  # 10, then 3 by position 0, then 2 by position 1, then 0 by position 0
        table = {(1, 3): 3.0, (1, 2): 2.0, (4, 2): 0.0}
        return table.get(codes[:2], 10.0)

    loss = Planted(tokenizer, stairs)
    once = to.refine_tokens(tokenizer, features[:1], loss, rounds=1)
    assert made(once) == [(0, 0, 0, 1), (0, 1, 3, 2)] and once.losses.tolist() == [2.0]
    twice = to.refine_tokens(tokenizer, features[:1], loss)  # two rounds are the default
    assert made(twice) == [*made(once), (0, 0, 1, 4)] and twice.losses.tolist() == [0.0]
    assert [e.gain for e in twice.exchanges] == [7.0, 1.0, 2.0]
    more = to.refine_tokens(tokenizer, features[:1], loss, rounds=50)
    assert made(more) == made(twice), "rounds go on although nothing changes"


def test_no_position_is_looked_at_again_before_another_changes(tokenizer, features) -> None:
    loss = Planted(tokenizer, wrong((0, 3, 5)))
    assert to.refine_tokens(tokenizer, features[:1], loss, rounds=5).tries == 3 * CODES
    loss = Planted(tokenizer, wrong((0, 4, 5)))
    # all three; then 0 and 2 beside the new code; in the second round all three are known
    assert to.refine_tokens(tokenizer, features[:1], loss, rounds=5).tries == 5 * CODES


@pytest.mark.parametrize(("least", "kept"), [(0.0, [4, 2, 1]), (1.0, [4, 2, 1]), (1.5, [0, 2, 1]), (3.5, START)])
def test_small_gains_are_left(tokenizer, features, least: float, kept: list[int]) -> None:
    loss = Planted(tokenizer, wrong((4, 2, 1), (1, 3, 2)))
    result = to.refine_tokens(tokenizer, features[:1], loss, least_gain=least)
    assert tokenizer.indices(result.features).tolist() == [kept]


def test_equal_gains_take_the_earlier_position_and_the_smaller_code(tokenizer, features) -> None:
    loss = Planted(tokenizer, lambda codes: float(not (codes[1] in (2, 4) or codes[2] in (0, 1))))
    result = to.refine_tokens(tokenizer, features[:1], loss)
    assert result.exchanges == [to.Exchange(0, 1, 3, 2, 1.0)]


def test_a_loss_that_nothing_changes_leaves_every_bit(tokenizer, features) -> None:
    def flat(images: torch.Tensor) -> torch.Tensor:
        return 1 + 1e-8 * images.mean((1, 2, 3))

    result = to.refine_tokens(tokenizer, features, flat)
    assert not result.exchanges and torch.equal(result.features, features)
    assert result.features is not features and result.tries == 2 * 3 * CODES


@pytest.mark.parametrize("positions", [[2], "2", (2, 2)])
def test_only_the_positions_that_are_named(tokenizer, features, positions) -> None:
    loss = Planted(tokenizer, wrong((4, 2, 1)))
    result = to.refine_tokens(tokenizer, features[:1], loss, positions=positions)
    assert made(result) == [(0, 2, 5, 1)] and result.tries == CODES
    assert torch.equal(result.features[0, :2], features[0, :2])


def test_positions_by_the_tokenizers_names(tokenizer, features) -> None:
    tokenizer.presets = {"lighting": (0, 2)}
    loss = Planted(tokenizer, wrong((4, 2, 1)))
    result = to.refine_tokens(tokenizer, features[:1], loss, positions="Lighting")
    assert [e.position for e in result.exchanges] == [0, 2]


def test_a_regularizer_keeps_the_token_whose_exchange_does_not_pay(tokenizer, features) -> None:
    """By hand: an exchange costs the weight times its squared distance over the 3 x 2 numbers of a picture."""
    loss = Planted(tokenizer, wrong((4, 2, 5), (1, 3, 2)))
    codes = tokenizer.lookup(torch.arange(CODES)[None])[0]
    costs = [float((codes[a] - codes[b]).square().sum()) / (POSITIONS * 2) for a, b in ((0, 4), (3, 2))]
    weight = 1.01 / costs[0]  # more than the gain of 1 at position 0
    expected = 3 - weight * costs[1]
    assert expected > 0.1
    held = to.TokenRegularizer("seed", weight)
    result = to.refine_tokens(tokenizer, features[:1], loss, regularizers=[held])
    assert made(result) == [(0, 1, 3, 2)]
    assert result.exchanges[0].gain == pytest.approx(expected, rel=1e-5)
    assert result.losses.tolist() == [1.0], "the losses are without the regularizer"
    half = to.refine_tokens(tokenizer, features[:1], loss, regularizers=[to.TokenRegularizer("seed", weight * 0.98)])
    assert made(half) == [(0, 1, 3, 2), (0, 0, 0, 4)]
    assert half.exchanges[1].gain == pytest.approx(1 - 0.98 * 1.01, rel=1e-3)


def test_a_regularizer_pulls_back_to_another_seed(tokenizer, features) -> None:
    """The loss says nothing: the tokens go back to the seed's codes, as far as they may."""
    flat = Planted(tokenizer, lambda codes: 1.0)
    held = [to.TokenRegularizer("seed", 0.5)]
    result = to.refine_tokens(tokenizer, features[:1], flat, regularizers=held, seed=features[1:])
    assert tokenizer.indices(result.features).tolist() == [[1, 1, 2]]
    result = to.refine_tokens(tokenizer, features, flat, regularizers=held, seed=features[1:], positions=[1])
    assert made(result) == [(0, 1, 3, 1)]
    assert not to.refine_tokens(tokenizer, features, flat, regularizers=held).exchanges
    shortest = int(tokenizer.lookup(torch.arange(CODES)[None])[0].norm(dim=1).argmin())
    result = to.refine_tokens(tokenizer, features[:1], flat, regularizers=[to.TokenRegularizer("zero", 0.5)])
    assert tokenizer.indices(result.features).tolist() == [[shortest] * 3]


def test_untouched_tokens_keep_every_bit_and_others_become_the_code(tokenizer, features) -> None:
    given = features.clone()
    result = to.refine_tokens(tokenizer, features, Planted(tokenizer, wrong((0, 2, 2))))
    assert made(result) == [(0, 1, 3, 2), (0, 2, 5, 2), (1, 0, 1, 0), (1, 1, 1, 2)]
    codes = tokenizer.lookup(torch.arange(CODES)[None])[0]
    expected = given.clone()
    expected[0, 1], expected[0, 2], expected[1, 0], expected[1, 1] = codes[[2, 2, 0, 2]]
    assert torch.equal(result.features, expected) and torch.equal(features, given)
    assert not result.features.requires_grad and not result.images.requires_grad


def test_where_length_means_nothing_the_code_gets_the_features_length() -> None:
    tokenizer = tiny_tokenizer(SMALL)
    tokenizer.model.quantize.l2_normalize = True
    codes = tokenizer.lookup(torch.arange(CODES)[None])[0]
    features = codes[[0, 3, 5]][None] * torch.tensor([7.0, 0.25, 1.0])[:, None]
    features[0, 2] = 0.0  # without a direction: whatever code it counts as
    start = tokenizer.indices(features)[0].tolist()
    target = tuple((code + 1) % CODES for code in start)
    result = to.refine_tokens(tokenizer, features, Planted(tokenizer, wrong(target)))
    assert tokenizer.indices(result.features).tolist() == [list(target)]
    expected = codes[list(target)] * torch.tensor([7.0, 0.25, 1.0])[:, None]
    torch.testing.assert_close(result.features[0], expected)


def test_a_batch_gives_what_its_pictures_give(tokenizer, features) -> None:
    loss = to.ClipLoss(two_colours(), "ab", crops=3)
    both = to.refine_tokens(tokenizer, features, loss, rounds=3)
    assert both.exchanges, "nothing to compare"
    for i in range(2):
        one = to.refine_tokens(tokenizer, features[i : i + 1], loss, rounds=3)
        assert torch.equal(one.features[0], both.features[i]) and torch.equal(one.images[0], both.images[i])
        assert one.losses[0] == both.losses[i]
        assert [e.gain for e in one.exchanges] == [e.gain for e in both.exchanges if e.picture == i]
        assert [e[1:] for e in made(one)] == [e[1:] for e in made(both) if e[0] == i]


def test_each_picture_is_compared_with_its_own_target(tokenizer, features) -> None:
    """Also where as many codes are tried at once as there are pictures."""
    wanted = torch.tensor([[0, 2, 5], [1, 1, 4]])
    with torch.no_grad():
        targets = tokenizer.decode(tokenizer.lookup(wanted))
    loss = to.WeightedSum([("known pixels", 2.0, to.MaskedL1Loss(targets, torch.zeros(1, 1, 8, 8)))])
    for batch in (1, 2, 32):
        result = to.refine_tokens(tokenizer, features, loss, batch=batch)
        assert tokenizer.indices(result.features).tolist() == wanted.tolist()
        assert result.losses.tolist() == pytest.approx([0, 0], abs=1e-5)
    with pytest.raises(ValueError, match="compares with 2 pictures, but there are 1: give one, or one for each"):
        to.refine_tokens(tokenizer, features[:1], loss)


def two_colours() -> to.Clip:
    """A CLIP that sees the share of red and green."""

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.float()

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))[:, :2] * self.weight

    return to.Clip(Towers(), lambda texts: torch.tensor([[1.0, 2.0] for _ in texts]), (0.5,) * 3, (0.5,) * 3, 8, "tiny")


def test_whole_pictures_decide_where_a_loss_can_show_them(tokenizer, features) -> None:
    clip = two_colours()
    cropped = to.refine_tokens(tokenizer, features, to.ClipLoss(clip, "ab", crops=3, crop_scale=0.5), rounds=3)
    whole = to.refine_tokens(tokenizer, features, to.ClipLoss(clip, "ab", crops=0), rounds=3)
    assert cropped.exchanges == whole.exchanges and whole.exchanges
    assert torch.equal(cropped.losses, whole.losses)


class Corner:
    """A loss of one random crop that knows no other way to look."""

    generators: tuple[torch.Generator, ...] = ()

    def with_generators(self, generators):
        bound = Corner()
        bound.generators = generators
        return bound

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return random_crops(images, 1, 0.5, 0.5, self.generators).mean((1, 2, 3))


def test_random_crops_are_the_same_for_every_code_and_every_run(tokenizer, features) -> None:
    results = [to.refine_tokens(tokenizer, features, Corner(), rounds=20, batch=batch) for batch in (32, 32, 1)]
    assert results[0].exchanges == results[1].exchanges
    assert made(results[0]) == made(results[2]) != []
    assert torch.equal(results[0].features, results[2].features)
    for refined in results[0].features.split(1):  # no code alone would be better in the crop that was looked at
        for position, own in enumerate(tokenizer.indices(refined)[0].tolist()):
            assert to.search_token(tokenizer, refined, position, to.Wanted(Corner()))[0][0] == own


def test_uncropped_and_of_picture_are_copies(clip) -> None:
    loss = to.ClipLoss(clip, "bcd", crops=5)
    image = to.ImagePromptLoss(clip, torch.rand(1, 3, 8, 8), crops=2)
    plain = len  # no loss of ours: left as it is
    both = uncropped(to.WeightedSum([("a", 1.0, loss), ("b", 2.0, image)]))
    assert both.crops == 0 and (loss.crops, image.crops) == (5, 2) and uncropped(plain) is plain
    pictures = torch.rand(2, 3, 8, 8)
    expected = to.ClipLoss(clip, "bcd", crops=0)(pictures)
    assert torch.equal(uncropped(loss)(pictures), expected)
    targets, masks = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    masked = to.MaskedL1Loss(targets, masks)
    second = of_picture(masked, 1, 2)
    assert torch.equal(second(pictures[:1]), to.MaskedL1Loss(targets[1:], masks[1:])(pictures[:1]))
    assert len(masked.target) == 2 and len(masked(pictures)) == 2
    assert of_picture(plain, 0, 1) is plain
    shared = of_picture(to.MaskedL1Loss(targets[:1], masks), 1, 2)
    assert torch.equal(shared(pictures), to.MaskedL1Loss(targets[:1], masks[1:])(pictures))


def test_progress_counts_to_the_end(tokenizer, features) -> None:
    seen: list[tuple[int, int]] = []
    loss = Planted(tokenizer, wrong((0, 4, 5)))
    result = to.refine_tokens(tokenizer, features, loss, batch=4, callback=lambda *at: seen.append(at))
    done, most = zip(*seen, strict=True)
    assert seen[:2] == [(4, 2 * 2 * 6 * CODES), (6, 2 * 2 * 6 * CODES)]
    assert list(done) == sorted(done) and list(most) == sorted(most, reverse=True)
    assert done[-1] == most[-1] == result.tries


def test_a_callback_ends_it_with_what_there_is(tokenizer, features) -> None:
    loss = Planted(tokenizer, wrong((4, 2, 1)))
    at_once = to.refine_tokens(tokenizer, features, loss, callback=lambda done, most: True)
    assert torch.equal(at_once.features, features) and at_once.tries == CODES and not at_once.exchanges
    assert at_once.losses.tolist() == [3.0, 3.0] and len(at_once.images) == 2
    # position 0 is exchanged after 18 tries, position 1 after 12 more
    later = to.refine_tokens(tokenizer, features, loss, callback=lambda done, most: done >= 31)
    assert made(later) == [(0, 0, 0, 4), (0, 1, 3, 2)] and later.losses.tolist() == [1.0, 3.0]

    def interrupt(done: int, most: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to.refine_tokens(tokenizer, features, loss, callback=interrupt)


def test_short_of_memory_it_takes_smaller_parts(tokenizer, features) -> None:
    from tokenopt_core.thrift import Thrift

    loss, thrift = Planted(tokenizer, wrong((4, 2, 1))), Thrift()

    def short(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(images)

    result = to.refine_tokens(tokenizer, features, short, thrift=thrift)
    assert result.exchanges == to.refine_tokens(tokenizer, features, loss).exchanges
    assert thrift.pieces == 4 and thrift.notes


def test_codes_whose_loss_is_no_number_are_not_taken(tokenizer, features) -> None:
    target = Planted(tokenizer, wrong((4, 2, 1)))

    def broken(images: torch.Tensor) -> torch.Tensor:
        values = target(images)
        return torch.where(values == 0, torch.nan, torch.where(values == 3, torch.nan, values))

    result = to.refine_tokens(tokenizer, features[:1], broken)  # from a loss that is none to one that is
    assert made(result)[0] == (0, 0, 0, 4) and result.exchanges[0].gain == math.inf
    assert result.losses.tolist() == [1.0]
    with pytest.raises(FloatingPointError, match="not a finite number"):
        to.refine_tokens(tokenizer, features, lambda images: images.mean((1, 2, 3)) * torch.nan)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"least_gain": -0.5}, "the least gain must be a finite number of at least 0, got -0.5"),
        ({"least_gain": math.nan}, "the least gain must be a finite number of at least 0, got nan"),
        ({"least_gain": math.inf}, "the least gain must be a finite number of at least 0, got inf"),
        ({"positions": [3]}, "no token position 3: this tokenizer has 0 to 2"),
        ({"positions": [-1]}, "no token position -1"),
        ({"positions": []}, "no token positions given"),
        ({"positions": "sky"}, "knows no attribute 'sky'"),
        ({"seed": torch.zeros(3, 3, 2)}, "one picture's, or 2 pictures', got 3"),
        ({"seed": torch.zeros(2, 3, 4)}, "they come from another tokenizer"),
        ({"features": torch.zeros(2, 4, 2)}, "they come from another tokenizer"),
        ({"features": torch.zeros(0, 3, 2)}, "the batch of features is empty"),
        ({"features": torch.full((1, 3, 2), math.nan)}, "not finite"),
        ({"loss": torch.mean}, r"one number a picture, \(6,\), but this one gave \(\)"),
    ],
)
def test_what_cannot_be_refined_is_explained(tokenizer, features, settings, message: str) -> None:
    good = {"features": features, "loss": lambda images: images.mean((1, 2, 3))}
    with pytest.raises(ValueError, match=message):
        to.refine_tokens(tokenizer, **{**good, **settings})


def test_a_vae_has_no_codes() -> None:
    vae = tiny_tokenizer(TiTokConfig(**{**vars(TINY), "codebook_size": None}))
    with pytest.raises(ValueError, match="is a VAE: its tokens are continuous"):
        to.refine_tokens(vae, torch.zeros(1, 3, 4), lambda images: images.mean((1, 2, 3)))
