"""The loop: its order and arithmetic, seeds and batches, callbacks, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.ema import TokenAverage
from tokenopt_core.optimize import _Compute
from tokenopt_core.stopping import Watch


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


def test_the_published_order_by_hand(tokenizer, features) -> None:
    """Noise, loss, Adam, average: each step written out, without an optimizer class."""
    noise, seed, rate, decay, weight = to.NoiseSchedule(start=0.3), 5, 0.1, 0.9, 0.05
    config = to.OptimizeConfig(iterations=4, learning_rate=rate, ema_decay=decay, seed=seed, noise=noise)
    result = to.optimize(tokenizer, features, brightness, config, [to.TokenRegularizer("seed", weight)])

    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    z, first, second, average = features.clone(), 0.0, 0.0, None
    for i in range(4):
        z = z + noise.at(i, 4) * torch.stack([torch.randn(3, 2, generator=g) for g in generators])
        z = z.detach().requires_grad_(True)
        loss = brightness(tokenizer.decode(z)) + weight * (z - features).square().mean((1, 2))
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.9 ** (i + 1)) / ((second / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
        z = z.detach() - rate * step
        average = z if average is None else decay * average + (1 - decay) * z
    torch.testing.assert_close(result.features, average)
    torch.testing.assert_close(result.images, tokenizer.decode(average).clamp(0, 1))


def test_the_loss_falls(tokenizer, features) -> None:
    result = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(iterations=60))
    assert (result.history["loss"][-1] < result.history["loss"][0]).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert result.stopped == "finished"


def test_the_input_is_left_alone(tokenizer, features) -> None:
    before = features.clone()
    result = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(iterations=3, noise=to.NoiseSchedule(1.0)))
    assert torch.equal(features, before)
    assert not result.features.requires_grad
    assert not result.images.requires_grad


def test_same_seed_same_bits_and_no_trace_in_the_global_generator(tokenizer, features, clip) -> None:
    loss = to.ClipLoss(clip, "abc", crops=4)
    config = to.OptimizeConfig(iterations=5, seed=3, noise=to.NoiseSchedule(0.2))
    state = torch.get_rng_state()
    runs = [to.optimize(tokenizer, features, loss, config) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0].features, runs[1].features)
    other = to.optimize(tokenizer, features, loss, to.OptimizeConfig(iterations=5, seed=9, noise=to.NoiseSchedule(0.2)))
    assert not torch.equal(runs[0].features, other.features)


def test_a_batch_gives_what_single_runs_give(tokenizer, features, clip) -> None:
    loss = to.WeightedSum([("clip", 1.0, to.ClipLoss(clip, "abc", crops=3)), ("dark", 0.5, brightness)])

    def run(start: torch.Tensor, seed: int) -> to.Result:
        config = to.OptimizeConfig(iterations=6, seed=seed, noise=to.NoiseSchedule(0.1))
        return to.optimize(tokenizer, start, loss, config, [to.TokenRegularizer("zero", 0.1)])

    batch, singles = run(features, 7), [run(features[i : i + 1], 7 + i) for i in range(2)]
    torch.testing.assert_close(batch.features, torch.cat([s.features for s in singles]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.history["loss"], torch.cat([s.history["loss"] for s in singles], 1))


def test_history_names_every_term(tokenizer, features) -> None:
    loss = to.WeightedSum([("dark", 2.0, brightness), ("flat", 0.5, lambda x: x.square().mean((1, 2, 3)))])
    regularizers = [to.TokenRegularizer("seed", 0.1), to.TokenRegularizer("seed", 0.2)]
    history = to.optimize(tokenizer, features, loss, to.OptimizeConfig(iterations=4), regularizers).history
    assert {k: v.shape for k, v in history.items()} == dict.fromkeys(["loss", "dark", "flat", "toward seed"], (4, 2))
    torch.testing.assert_close(history["loss"], history["dark"] + history["flat"])
    images = tokenizer.decode(features)
    torch.testing.assert_close(history["dark"][0], 2 * brightness(images))


def test_callback_sees_each_step_and_can_stop(tokenizer, features) -> None:
    seen: list[to.Step] = []

    def callback(step: to.Step) -> bool:
        seen.append(step)
        return step.iteration == 2

    result = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(iterations=50), callback=callback)
    assert result.stopped == "callback"
    assert [s.iteration for s in seen] == [0, 1, 2]
    assert len(result.history["loss"]) == 3
    torch.testing.assert_close(seen[0].image, tokenizer.decode(features))
    assert torch.equal(seen[-1].features, result.features)


class Blank:
    """A reset that paints everything one grey, once."""

    def due(self, iteration: int) -> bool:
        return iteration == 2

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full_like(images, 0.25)


@pytest.mark.parametrize("quantize", [True, False])
def test_reset_encodes_the_changed_picture(tokenizer, features, quantize) -> None:
    config = to.OptimizeConfig(iterations=3, ema_decay=0.0, quantize=quantize)
    result = to.optimize(tokenizer, features, brightness, config, reset=Blank())
    expected = tokenizer.encode(torch.full((2, 3, 8, 8), 0.25))
    torch.testing.assert_close(result.features, expected if quantize else tokenizer.quantize(expected))


def test_token_reset_puts_the_known_pixels_back() -> None:
    original, mask = torch.full((1, 3, 2, 2), 0.8), torch.tensor([[1.0, 0.5], [0.0, 0.0]]).view(1, 1, 2, 2)
    reset = to.TokenReset(original, mask, every=3)
    assert [i for i in range(9) if reset.due(i)] == [2, 5, 8]
    pasted = reset(torch.full((2, 3, 2, 2), 0.2))
    assert pasted.shape == (2, 3, 2, 2)
    torch.testing.assert_close(pasted[1, 0], torch.tensor([[0.2, 0.5], [0.8, 0.8]]))
    assert reset(torch.full((1, 3, 2, 2), 7.0)).max() == 1.0  # decoded pictures may leave [0, 1]
    with pytest.raises(ValueError, match="every 1 or more iterations, got 0"):
        to.TokenReset(original, mask, every=0)
    with pytest.raises(ValueError, match="fit the picture and its mask"):
        reset(torch.zeros(1, 3, 4, 4))


def run_watch(watch: Watch, objectives: list[list[float]]) -> list[list[float]]:
    """Features are the iteration's number: what the watch passes on for each picture. NaN stands for a faulty step."""
    passed = []
    for i, values in enumerate(objectives):
        each = torch.tensor(values)
        features = watch.update(torch.full((len(values), 1, 1), float(i)), each, torch.isnan(each))
        passed.append(features.flatten().tolist())
    return passed


def watch_of(batch: int, patience: int = 0, tolerance: float = 0.0, keep_best: bool = False) -> Watch:
    return Watch(batch, torch.device("cpu"), patience, tolerance, keep_best)


def test_each_picture_converges_on_its_own() -> None:
    # the first never falls after the start, the second always does
    watch = watch_of(2, patience=3, tolerance=0.01)
    passed = run_watch(watch, [[1.0, 5.0 - i] for i in range(6)])
    assert passed == [[0, 0], [1, 1], [2, 2], [3, 3], [3, 4], [3, 5]]
    assert not watch.all_ended(6)
    assert torch.isnan(watch.running(torch.zeros(2))).tolist() == [True, False]
    assert run_watch(watch_of(1, 3, 0.01), [[1.0]] * 4)[-1] == [3]


def test_falling_by_less_than_the_tolerance_is_not_falling() -> None:
    slow, fast = watch_of(1, 4, 0.1), watch_of(1, 4, 0.001)
    objectives = [[1 - 0.01 * i] for i in range(8)]
    run_watch(slow, objectives)
    run_watch(fast, objectives)
    assert slow.all_ended(8) and not fast.all_ended(8)
    assert slow.verdict == "converged"


def test_best_is_where_the_smoothed_objective_was_lowest() -> None:
    watch = watch_of(2, keep_best=True)
    run_watch(watch, [[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [9.0, 4.0]])
    assert watch.result(torch.zeros(2, 1, 1)).flatten().tolist() == [2, 0]


def test_three_faults_in_a_row_end_a_picture_and_two_do_not() -> None:
    nan = math.nan
    watch = watch_of(3, keep_best=True)
    objectives = [[3.0, nan, 3.0], [nan, nan, 2.0], [nan, nan, 1.0], [1.0, 1.0, nan], [2.0, 1.0, nan], [2.0, 1.0, nan]]
    passed = run_watch(watch, [*objectives, [1.0, 1.0, 0.0]])
    assert passed[-1] == [6, 2, 5]
    assert watch.diverged.tolist() == [False, True, True]
    assert watch.skipped.tolist() == [2, 3, 3]
    assert watch.good.tolist() == [5, 0, 3]
    assert watch.result(torch.zeros(3, 1, 1)).flatten().tolist() == [
        6,
        0,
        2,
    ]  # the second never was better than at first


def test_early_stopping_ends_a_run_and_a_batch_stops_like_single_runs(tokenizer, features) -> None:
    def run(start: torch.Tensor) -> to.Result:
        config = to.OptimizeConfig(iterations=200, patience=4, tolerance=1e-4)
        return to.optimize(tokenizer, start, brightness, config)

    batch, singles = run(features), [run(features[i : i + 1]) for i in range(2)]
    assert batch.stopped == singles[0].stopped == singles[1].stopped == "converged"
    lengths = [len(single.history["loss"]) for single in singles]
    assert lengths[0] != lengths[1] and max(lengths) < 200
    torch.testing.assert_close(batch.features, torch.cat([s.features for s in singles]), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(batch.history["loss"]).sum(0).tolist() == lengths


def test_keep_best_undoes_a_run_that_went_wrong(tokenizer, features) -> None:
    settings = {"iterations": 40, "learning_rate": 0.2, "ema_decay": 0.0, "noise": to.NoiseSchedule(3.0, 3.0)}
    last = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(**settings))
    best = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(**settings, keep_best=True))
    assert not torch.equal(best.features, last.features)
    assert torch.equal(best.history["loss"], last.history["loss"])


def test_without_vq_the_quantized_tokens_are_optimised(tokenizer, features) -> None:
    config = to.OptimizeConfig(iterations=1, learning_rate=1e-6, quantize=False)
    result = to.optimize(tokenizer, features, brightness, config)
    torch.testing.assert_close(result.features, tokenizer.quantize(features), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_half_precision_stays_near(tokenizer, features, precision) -> None:
    exact = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(iterations=3, precision="float32"))
    result = to.optimize(tokenizer, features, brightness, to.OptimizeConfig(iterations=3, precision=precision))
    assert result.features.dtype == torch.float32
    torch.testing.assert_close(result.features, exact.features, atol=0.05, rtol=0.05)


def test_attention_is_the_plain_one_where_deterministic_algorithms_are_asked_for() -> None:
    cuda = _Compute(torch.device("cuda"), torch.float32)
    with cuda.context():
        assert torch.backends.cuda.flash_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with cuda.context():
            assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
        with _Compute(torch.device("cpu"), torch.float32).context():
            assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_average_by_hand() -> None:
    average = TokenAverage(0.75)
    assert average.update(torch.tensor([4.0])).tolist() == [4.0]
    assert average.update(torch.tensor([8.0])).tolist() == [5.0]
    assert average.update(torch.tensor([1.0])).tolist() == [4.0]


def test_noise_schedule_by_hand() -> None:
    cosine = to.NoiseSchedule(start=2.0, end=0.5)
    assert cosine.at(0, 301) == 2.0
    assert cosine.at(100, 301) == pytest.approx(0.5 + 1.5 * 0.5)
    assert cosine.at(200, 301) == pytest.approx(0.5)
    assert cosine.at(300, 301) == 0.5
    for i in range(10):  # the published formula
        published = 2.0 * 0.5 * (1 + math.cos(math.pi * min(1, 1.5 * i / 9)))
        assert to.NoiseSchedule(start=2.0).at(i, 10) == pytest.approx(published)
    assert [to.NoiseSchedule(1.0, until=1.0, shape="linear").at(i, 5) for i in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [to.NoiseSchedule(1.0, until=0.5, shape="constant").at(i, 5) for i in range(5)] == [1, 1, 0, 0, 0]
    assert to.NoiseSchedule(1.0).at(0, 1) == 1.0


def test_regularizer_by_hand() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    seed = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert to.TokenRegularizer("seed", 0.5)(features, seed).tolist() == [0.5 * (0 + 4 + 9 + 0) / 4]
    assert to.TokenRegularizer("zero", 0.5)(features, seed).tolist() == [0.5 * (1 + 4 + 9 + 0) / 4]


@pytest.mark.parametrize("toward", ["seed", "zero"])
def test_gradient_of_the_regularizer(toward) -> None:
    features, seed = torch.rand(2, 2, 3, 2, dtype=torch.float64)
    features.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: to.TokenRegularizer(toward, 0.3)(z, seed), (features,))


def test_cosine_decay_ends_small(tokenizer, features) -> None:
    steps: list[torch.Tensor] = []
    config = to.OptimizeConfig(iterations=40, decay="cosine", ema_decay=0.0)
    to.optimize(tokenizer, features, brightness, config, callback=lambda s: steps.append(s.features))
    moved = [(b - a).abs().max().item() for a, b in pairwise(steps)]
    assert moved[-1] < 0.05 * moved[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"learning_rate": math.nan}, "learning rate must be a finite number above 0, got nan"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"ema_decay": 1.0}, "below 1"),
        ({"decay": "step"}, "constant, cosine"),
        ({"precision": "int8"}, "float32"),
    ],
)
def test_bad_settings_are_explained(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        to.OptimizeConfig(**settings)


def test_bad_schedules_and_regularizers_are_explained() -> None:
    with pytest.raises(ValueError, match="noise start"):
        to.NoiseSchedule(start=-1.0)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        to.NoiseSchedule(until=0.0)
    with pytest.raises(ValueError, match="cosine, linear, constant"):
        to.NoiseSchedule(shape="square")
    with pytest.raises(ValueError, match="seed, zero"):
        to.TokenRegularizer("one")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        to.TokenRegularizer("seed", -1)


def test_bad_features_and_losses_are_explained(tokenizer, features) -> None:
    with pytest.raises(ValueError, match="not finite"):
        to.optimize(tokenizer, features * math.nan, brightness)
    with pytest.raises(ValueError, match="empty"):
        to.optimize(tokenizer, features[:0], brightness)
    with pytest.raises(ValueError, match="another tokenizer"):
        to.optimize(tokenizer, features[:, :2], brightness)
    with pytest.raises(ValueError, match=r"one number a picture, shape \(2,\), got \(\)"):
        to.optimize(tokenizer, features, lambda images: images.mean())
