"""Properties that hold for whatever comes in: parsers, schedules, masks, placement, operations on tokens."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from torch import Tensor

import tokenopt_core as to
from devtools.paths import CACHE
from tokenopt_core.canvas import MODES, Placement, fit, stitch
from tokenopt_core.masks import FILLS, fill_hole, gaussian_blur, soften
from tokenopt_core.prompts import parse_prompts
from tokenopt_core.schedules import DECAYS, SHAPES, learning_rate
from tokenopt_core.tokens import STARTS, parse_positions

from .conftest import tiny_tokenizer

set_hypothesis_home_dir(CACHE / "hypothesis")

# the same examples in every run, and nothing written into the checkout
steady = settings(derandomize=True, deadline=None, database=None, max_examples=60,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])  # fmt: skip

seeds = st.integers(0, 2**32)
sides = st.integers(1, 24)
anything = st.floats(allow_nan=True, allow_infinity=True)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def blobs(seed: int, *shape: int, share: float = 0.3) -> Tensor:
    """A mask with hard and soft places."""
    draw = noise(seed, *shape)
    return torch.where(draw < share, noise(seed + 1, *shape), (draw < 2 * share).float())


# parsers

words = st.text(st.characters(exclude_characters=":|", exclude_categories=["Cs", "Nd", "Nl", "No"]), min_size=1).map(
    str.strip
)
weights = st.one_of(st.none(), st.integers(0, 999).map(str), st.floats(0, 99).map(lambda w: f"{w:.3f}"))


@steady
@given(st.lists(st.tuples(words.filter(bool), weights), min_size=1, max_size=5), st.sampled_from(["|", " | ", "\n|\t"]))
def test_prompts_come_back_as_they_were_written(parts, bar) -> None:
    expected = [(word, 1.0 if weight is None else float(weight)) for word, weight in parts]
    text = bar.join(word if weight is None else f"{word}:{weight}" for word, weight in parts)
    if any(weight for _, weight in expected):
        assert parse_prompts(text) == expected
    else:
        with pytest.raises(ValueError, match="every prompt has weight 0"):
            parse_prompts(text)


@steady
@given(st.text() | st.text(alphabet=":|. 019a") | st.integers(1, 400).map(lambda n: f"a:{'9' * n}|b:.{'0' * n}1"))
@example("a:" + "9" * 400)
@example("a:." + "0" * 50 + "1")
def test_any_text_is_prompts_with_usable_weights_or_refused(text: str) -> None:
    try:
        prompts = parse_prompts(text)
    except ValueError as error:
        assert str(error)
        return
    assert len(prompts) == text.count("|") + 1
    assert all(prompt and prompt == prompt.strip() and prompt in text for prompt, _ in prompts)
    shares = torch.tensor([weight for _, weight in prompts])
    shares = shares / shares.sum()
    assert shares.min() >= 0 and shares.sum().item() == pytest.approx(1)


@st.composite
def written_positions(draw: st.DrawFn) -> tuple[str, set[int]]:
    """Ranges in any order and spelling, and what they mean."""
    spans = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=6))
    parts = []
    for first, length in spans:
        spelt = [f"{first}-{first + length}", f" {first} -\t{first + length}", f"0{first}-{first + length}"]
        parts.append(draw(st.sampled_from([*spelt, str(first)] if not length else spelt)))
    text = draw(st.sampled_from([",", ", ", ";", "\n", ",,"])).join(parts)
    return text, {i for first, length in spans for i in range(first, first + length + 1)}


@steady
@given(written_positions(), st.integers(1, 60))
def test_positions_are_what_was_written(written, tokens: int) -> None:
    text, expected = written
    if max(expected) < tokens:
        assert parse_positions(text, tokens) == sorted(expected)
        assert parse_positions(sorted(expected, reverse=True), tokens) == sorted(expected)
    else:
        with pytest.raises(ValueError, match="there is no token position"):
            parse_positions(text, tokens)


@steady
@given(st.text() | st.text(alphabet="0123456789-,; \n"), st.integers(1, 300))
def test_any_text_is_positions_or_refused(text: str, tokens: int) -> None:
    try:
        found = parse_positions(text, tokens)
    except ValueError as error:
        assert str(error)
        return
    assert found == sorted(set(found)) and set(found) <= set(range(tokens))
    assert {int(number) for number in re.findall(r"\d+", text)} <= set(found)  # both ends of every range


# schedules

scales = st.floats(0, 10)
shares = st.floats(0.001, 1)


@steady
@given(scales, scales, shares, st.sampled_from(SHAPES), st.integers(1, 300))
def test_noise_goes_one_way_from_its_start_to_its_end(start, end, until, shape, iterations) -> None:
    schedule = to.NoiseSchedule(start, end, until, shape)
    values = [schedule.at(i, iterations) for i in range(iterations)]
    low, high = min(start, end), max(start, end)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    assert values[0] == pytest.approx(start)
    steps = [after - before for before, after in pairwise(values)]
    assert all(step * (end - start) >= -1e-9 for step in steps)
    if iterations > 1:
        assert all(values[i] == pytest.approx(end) for i in range(iterations) if i >= until * (iterations - 1) + 1e-6)


@steady
@given(anything, anything, anything, st.sampled_from([*SHAPES, "", "cos"]))
def test_a_noise_schedule_is_usable_or_refused(start, end, until, shape) -> None:
    usable = math.isfinite(start) and start >= 0 and math.isfinite(end) and end >= 0
    if usable and 0 < until <= 1 and shape in SHAPES:
        assert all(math.isfinite(to.NoiseSchedule(start, end, until, shape).at(i, 9)) for i in range(9))
    else:
        with pytest.raises(ValueError):
            to.NoiseSchedule(start, end, until, shape)


@steady
@given(st.integers(1, 300), st.floats(1e-4, 10), st.sampled_from(DECAYS))
def test_the_learning_rate_starts_as_given_and_never_rises(iterations, start, decay) -> None:
    rates = [learning_rate(i, iterations, start, decay) for i in range(iterations)]
    assert rates[0] == start
    assert all(after <= before for before, after in pairwise(rates))
    assert all(0 < rate <= start for rate in rates)
    if decay == "cosine":
        naive = [start * math.cos(math.pi * i / iterations / 2) ** 2 for i in range(iterations)]
        assert rates == pytest.approx(naive, abs=1e-9)


@steady
@given(st.integers(-3, 3), anything, anything, st.integers(-2, 2), anything, st.sampled_from([*DECAYS, "x"]))
def test_the_settings_of_a_run_are_usable_or_refused(iterations, rate, ema, patience, tolerance, decay) -> None:
    usable = iterations >= 1 and 0 < rate < math.inf and 0 <= ema < 1 and patience >= 0 and 0 <= tolerance < math.inf
    if usable and decay in DECAYS:
        to.OptimizeConfig(iterations, rate, decay, ema, patience=patience, tolerance=tolerance)
    else:
        with pytest.raises(ValueError):
            to.OptimizeConfig(iterations, rate, decay, ema, patience=patience, tolerance=tolerance)


# masks


@steady
@given(seeds, sides, sides, st.floats(0, 12))
def test_softening_stays_in_range_and_far_from_the_edge_changes_nothing(seed, height, width, feather) -> None:
    mask = (noise(seed, 1, 1, height, width) < 0.2).float()
    soft = soften(mask, feather)
    assert soft.shape == mask.shape and soft.min() >= 0 and soft.max() <= 1
    reach = math.ceil(3 * feather)
    near = torch.nn.functional.max_pool2d(mask, 2 * reach + 1, 1, reach)
    assert soft[near == 0].eq(0).all()
    assert soft[torch.nn.functional.max_pool2d(1 - mask, 2 * reach + 1, 1, reach) == 0].eq(1).all()
    assert torch.equal(soften(mask, 0), mask)


@steady
@given(seeds, sides, sides, st.floats(0, 6))
def test_softening_is_monotone_and_knows_no_direction(seed, height, width, feather) -> None:
    small = blobs(seed, 1, 1, height, width)
    large = torch.maximum(small, blobs(seed + 2, 1, 1, height, width))
    assert (soften(large, feather) >= soften(small, feather) - 2e-5).all()
    for turn in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT):
        torch.testing.assert_close(soften(turn(small), feather), turn(soften(small, feather)), atol=3e-5, rtol=0)


@steady
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.floats(0.3, 3))
def test_the_blur_agrees_with_a_naive_one(seed, height, width, std) -> None:
    image = noise(seed, 1, 1, height, width).double()
    reach = math.ceil(3 * std)
    kernel = {i: math.exp(-0.5 * (i / std) ** 2) for i in range(-reach, reach + 1)}
    expected = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            for di, a in kernel.items():
                row = image[0, 0, min(max(i + di, 0), height - 1)]
                expected[0, 0, i, j] += a * sum(b * row[min(max(j + dj, 0), width - 1)] for dj, b in kernel.items())
    torch.testing.assert_close(gaussian_blur(image, std), expected / sum(kernel.values()) ** 2)


@steady
@given(seeds, st.integers(1, 3), sides, sides, st.sampled_from(FILLS), st.booleans())
def test_filling_a_hole_keeps_the_known_and_forgets_the_rest(seed, batch, height, width, fill, shared) -> None:
    images = noise(seed, batch, 3, height, width)
    mask = blobs(seed + 1, 1 if shared else batch, 1, height, width)
    filled = fill_hole(images, mask, fill, seed)
    assert filled.shape == images.shape and filled.min() >= 0 and filled.max() <= 1
    known = (mask == 0).expand_as(images)
    assert torch.equal(filled[known], images[known])
    hard = (mask > 0).float()
    other = torch.where(hard > 0, noise(seed + 2, *images.shape), images)
    assert torch.equal(fill_hole(images, hard, fill, seed), fill_hole(other, hard, fill, seed))


# placement

counts = st.integers(1, 3)
some_mode = st.sampled_from(["x", *MODES])


@st.composite
def canvases(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, int, str, float]:
    """Pictures, some with values beyond [0, 1], perhaps a mask, and how to fit them."""
    seed, batch, height, width = draw(seeds), draw(st.integers(1, 3)), draw(sides), draw(sides)
    images = noise(seed, batch, 3, height, width) * 1.2 - 0.1
    mode = draw(st.sampled_from(MODES))
    mask = None
    if draw(st.booleans()) or mode == "mask":
        mask = blobs(seed + 1, draw(st.sampled_from([1, batch])), 1, height, width, share=draw(st.floats(0, 0.3)))
    return images, mask, draw(st.integers(1, 20)), mode, draw(st.floats(0, 3))


@settings(steady, max_examples=150)
@given(canvases(), st.integers(0, 6), seeds)
def test_outside_of_the_square_and_the_mask_every_bit_stays(canvas, feather: int, seed: int) -> None:
    images, mask, size, mode, context = canvas
    if mode == "mask" and not mask.amax((1, 2, 3)).all():
        with pytest.raises(ValueError, match="is empty"):
            fit(images, mask, size, mode, context)
        return
    squares, marks, placement = fit(images, mask, size, mode, context)
    assert squares.shape == (len(images), 3, size, size) and marks.shape == (len(images), 1, size, size)
    assert all(t.min() >= 0 and t.max() <= 1 for t in (squares, marks))
    edited = noise(seed, *squares.shape)
    stitched = stitch(images, edited, placement, mask, feather)
    assert stitched.shape == images.shape and torch.isfinite(stitched).all()
    for i, (top, left, side) in enumerate(placement.squares):
        changed = (stitched[i] != images[i]).any(0)
        inside = torch.zeros_like(changed)
        inside[max(top, 0) : top + side, max(left, 0) : left + side] = True
        assert not changed[~inside].any()
        if mask is not None:
            assert not changed[mask[i % len(mask), 0] == 0].any()


@steady
@given(canvases())
def test_the_square_holds_what_it_must(canvas) -> None:
    images, mask, size, mode, context = canvas
    assume(mode != "mask" or mask.amax((1, 2, 3)).all())
    height, width = images.shape[2:]
    _, _, placement = fit(images, mask, size, mode, context)
    for i, (top, left, side) in enumerate(placement.squares):
        if mode == "crop":
            assert side == min(height, width) and 0 <= top <= height - side and 0 <= left <= width - side
        elif mode == "pad":
            assert side == max(height, width) and top <= 0 and left <= 0
            assert top + side >= height and left + side >= width
        else:
            rows, columns = (mask[i % len(mask), 0] > 0).nonzero().T
            assert top <= rows.min() and rows.max() < top + side
            assert left <= columns.min() and columns.max() < left + side


@steady
@given(seeds, sides, sides, st.integers(1, 3))
def test_a_picture_of_the_tokenizers_size_comes_back_untouched(seed, size, batch, times) -> None:
    images = noise(seed, batch % 3 + 1, 3, size, size)
    squares, _, placement = fit(images, None, size)
    assert torch.equal(squares, images)
    assert torch.equal(stitch(images, squares, placement), images)
    copies = squares[:1].expand(times, -1, -1, -1)  # several edits of a single original
    once = Placement(size, size, placement.squares[:1])
    assert torch.equal(stitch(images[:1], copies, once), copies)


@steady
@given(st.tuples(sides, sides, sides, sides), st.tuples(counts, counts), st.integers(-2, 3), anything, some_mode)
def test_what_does_not_belong_together_is_refused(sizes, numbers, feather, context, mode) -> None:
    (height, width, other, size), (batch, masks) = sizes, numbers
    images, mask = noise(0, batch, 3, height, width), torch.ones(masks, 1, other, width)
    fits = other == height and masks in (1, batch)
    usable = mode in MODES and math.isfinite(context) and context >= 0
    if not (fits and usable):
        with pytest.raises(ValueError):
            fit(images, mask, size, mode, context)
    squares, _, placement = fit(images, None, size)
    if fits and feather >= 0:
        assert stitch(images, squares, placement, mask, feather).shape == images.shape
    else:
        with pytest.raises(ValueError):
            stitch(images, squares, placement, mask, feather)


# tokens


@steady
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.floats(0, 1), st.data())
def test_pasting_changes_the_chosen_tokens_alone(seed, targets, references, tokens, strength, data) -> None:
    target, reference = noise(seed, targets, tokens, 4), noise(seed + 1, references, tokens, 4)
    chosen = data.draw(st.sets(st.integers(0, tokens - 1), min_size=1))
    if targets != references and 1 not in (targets, references):
        with pytest.raises(ValueError, match="do not pair up"):
            to.copy_paste(target, reference, sorted(chosen), strength)
        return
    before = target.clone()
    pasted = to.copy_paste(target, reference, sorted(chosen), strength)
    assert torch.equal(target, before)
    count = max(targets, references)
    target, reference = target.expand(count, -1, -1), reference.expand(count, -1, -1)
    for i in range(tokens):
        naive = target[:, i] + strength * (reference[:, i] - target[:, i]) if i in chosen else target[:, i]
        torch.testing.assert_close(pasted[:, i], naive)
    rest = sorted(set(range(tokens)) - chosen)
    assert torch.equal(pasted[:, rest], target[:, rest])
    assert torch.equal(to.copy_paste(target, reference, sorted(chosen), 0), target)
    if rest:  # what is left, pasted from the target over the reference, gives the same
        assert torch.equal(to.copy_paste(reference, target, rest), to.copy_paste(target, reference, sorted(chosen)))


@steady
@given(seeds, st.integers(-1, 4), anything | st.floats(0, 3), st.sampled_from([*STARTS, "x"]))
def test_random_features_are_those_of_their_seed_or_refused(seed, batch, std, start) -> None:
    tokenizer = TOKENIZER

    def draw() -> Tensor:
        return to.random_features(tokenizer, batch, std, torch.Generator().manual_seed(seed), start)

    if batch < 1 or not (math.isfinite(std) and std >= 0) or start in ("statistics", "x"):
        with pytest.raises(ValueError):
            draw()
        return
    drawn = draw()
    assert drawn.shape == (batch, tokenizer.num_tokens, tokenizer.feature_dim) and drawn.dtype == torch.float32
    assert torch.equal(drawn, draw())
    if start == "codes":
        assert torch.equal(tokenizer.lookup(tokenizer.indices(drawn)), drawn)
    else:
        unit = to.random_features(tokenizer, batch, 1.0, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(drawn, unit * std)


TOKENIZER = tiny_tokenizer()
