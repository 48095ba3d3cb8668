"""Copy-paste, random starts, masks, losses, resets and plots, as nodes: the core's results, and its refusals."""

from typing import Any

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.masks import fill_hole, soften

pytestmark = pytest.mark.comfyui

ITERATIONS = 4


@pytest.fixture
def mask(pack) -> torch.Tensor:
    """The sample picture's subject, (1, H, W)."""
    return pack.run("TokenOptSample")[1]


@pytest.fixture
def optimize(pack, titok):
    """Runs Optimize Tokens for a few iterations."""

    def run(features: torch.Tensor, loss: Any, **more: Any) -> tuple[Any, ...]:
        settings = {"iterations": ITERATIONS, **more}
        return pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **settings)

    return run


def bchw(image: torch.Tensor) -> torch.Tensor:
    return image.permute(0, 3, 1, 2).contiguous()


def test_only_the_named_tokens_are_pasted(pack, titok, picture) -> None:
    target = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    reference = pack.run("TokenOptEncode", titok=titok, image=picture.flip(2))[0]
    pasted = pack.run("TokenOptCopyPaste", target=target, reference=reference, positions="1, 3-4")[0]
    changed = (pasted != target).any(2)[0].nonzero().flatten().tolist()
    assert changed == [1, 3, 4]
    assert torch.equal(pasted[:, [1, 3, 4]], reference[:, [1, 3, 4]])
    count = titok.model.num_tokens
    with pytest.raises(ValueError, match=f"this tokenizer has 0 to {count - 1}"):
        pack.run("TokenOptCopyPaste", target=target, reference=reference, positions=str(count))


def test_random_batch_is_what_single_draws_are(pack, titok) -> None:
    for start in ("normal", "statistics", "codes"):
        batch = pack.run("TokenOptRandom", titok=titok, batch=3, start=start, std=0.7, seed=5)[0]
        single = pack.run("TokenOptRandom", titok=titok, batch=1, start=start, std=0.7, seed=7)[0]
        assert torch.equal(batch[2:], single)
        assert len({tuple(features.flatten().tolist()) for features in batch}) == 3
    with pytest.raises(ValueError, match="unknown start 'x'"):
        pack.run("TokenOptRandom", titok=titok, start="x")


def test_mini_comes_with_the_statistics_of_its_features(pack, titok, picture) -> None:
    mean, std = titok.model.statistics
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    assert ((features[0] - mean).abs() / std).mean() < 2
    assert 0.1 < std.mean() < 1.5


@pytest.mark.parametrize("fill", ["grey", "blur", "noise", "best"])
def test_encode_with_a_mask(pack, titok, picture, mask, plain_tokenizer, assert_same, fill) -> None:
    features, cropped, filled = pack.run(
        "TokenOptEncode", titok=titok, image=picture, mask=mask, fill=fill, feather=1.5
    )
    assert torch.equal(cropped, picture)

    def reconstruct(pictures: torch.Tensor) -> torch.Tensor:
        return plain_tokenizer.decode(plain_tokenizer.encode(pictures)).clamp(0, 1)

    with torch.no_grad():
        expected = fill_hole(bchw(picture), soften(mask[:, None], 1.5), fill, reconstruct=reconstruct)
    torch.testing.assert_close(bchw(filled), expected)
    with torch.no_grad():
        assert_same(features, plain_tokenizer.encode(expected))


def test_a_mask_of_another_size_is_resized(pack, titok, picture, mask) -> None:
    small = torch.nn.functional.avg_pool2d(mask, 2)
    for given in (small, small[0]):  # (B, H, W) and (H, W)
        filled = pack.run("TokenOptEncode", titok=titok, image=picture, mask=given)[2]
        expected = pack.run("TokenOptEncode", titok=titok, image=picture, mask=mask)[2]
        assert (filled - expected).abs().mean() < 0.01


def test_masks_at_their_extremes(pack, titok, picture) -> None:
    black = torch.zeros_like(picture[..., 0])
    white = torch.ones_like(black)
    plain = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    assert torch.equal(pack.run("TokenOptEncode", titok=titok, image=picture, mask=black)[0], plain)
    assert (pack.run("TokenOptEncode", titok=titok, image=picture, mask=white)[2] == 0.5).all()
    for node in ("TokenOptMaskedL1Loss", "TokenOptReset"):
        assert pack.run(node, image=picture, mask=black)
        with pytest.raises(ValueError, match="white everywhere: no pixel is known"):
            pack.run(node, image=picture, mask=white)
        with pytest.raises(ValueError, match="mask holds values that are not numbers"):
            pack.run(node, image=picture, mask=black * float("nan"))
        with pytest.raises(ValueError, match="2 masks do not pair up with 3 pictures"):
            pack.run(node, image=picture.expand(3, -1, -1, -1), mask=black.expand(2, -1, -1))
        with pytest.raises(ValueError, match=r"expected masks of shape \(batch, height, width\)"):
            pack.run(node, image=picture, mask=black[:0])


def test_inpainting_is_that_of_plain_python(pack, titok, picture, mask, optimize, plain_tokenizer, assert_same) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=picture, mask=mask)[0]
    loss = pack.run("TokenOptMaskedL1Loss", image=picture, mask=mask, feather=1.0, weight=3.0)[0]
    reset = pack.run("TokenOptReset", image=picture, mask=mask, feather=1.0, every=2)[0]
    optimized, _, history, _ = optimize(features, loss, reset=reset)
    soft = soften(mask[:, None], 1.0)
    expected = to.optimize(
        plain_tokenizer,
        features.clone(),
        to.WeightedSum([("known pixels", 3.0, to.MaskedL1Loss(bchw(picture), soft))]),
        to.OptimizeConfig(iterations=ITERATIONS),
        reset=to.TokenReset(bchw(picture), soft, every=2),
    )
    assert_same(optimized, expected.features)
    assert_same(history["known pixels"], expected.history["known pixels"])


def test_known_pixels_of_another_size_are_explained(pack, titok, picture, mask, optimize) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptMaskedL1Loss", image=torch.rand(1, 80, 100, 3), mask=mask)[0]
    size = titok.model.image_size
    with pytest.raises(ValueError, match=f"1 pictures of 100 x 80 px, but 1 of {size} x {size} px are optimised: fit"):
        optimize(features, loss)


def test_losses_combine_and_stay_apart_in_the_history(pack, titok, openclip, picture, mask, optimize) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    clip = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox:2 | at night", crops=1, weight=0.5)[0]
    likeness = pack.run("TokenOptImagePromptLoss", openclip=openclip, image=picture.flip(2), crops=0)[0]
    known = pack.run("TokenOptMaskedL1Loss", image=picture, mask=mask, weight=2.0)[0]
    combined = pack.run("TokenOptCombineLosses", loss_1=clip, loss_2=likeness, loss_5=clip)[0]
    combined = pack.run("TokenOptCombineLosses", loss_1=combined, loss_2=known)[0]
    assert len(combined.models) == 1
    history = optimize(features, combined)[2]
    assert list(history) == ["loss", "clip", "image prompt", "clip 2", "known pixels"]
    parts = torch.stack([curve for name, curve in history.items() if name != "loss"]).sum(0)
    torch.testing.assert_close(history["loss"], parts)


def test_losses_that_all_have_weight_0_are_refused(pack, titok, openclip, picture, mask, optimize) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    off = pack.run("TokenOptMaskedL1Loss", image=picture, mask=mask, weight=0.0)[0]
    with pytest.raises(ValueError, match="every loss has weight 0"):
        optimize(features, pack.run("TokenOptCombineLosses", loss_1=off, loss_2=off)[0])


@pytest.mark.parametrize(
    "prompt", ["a fox at night " * 400, "a fox \N{FOX FACE} at night", "a fox at night\nby moonlight"]
)
def test_odd_prompts_work(pack, openclip, prompt) -> None:
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt=prompt)[0].terms[0][2]
    assert torch.isfinite(loss.text).all()


def test_trajectory_and_plot(pack, titok, openclip, picture, optimize) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=torch.cat([picture, picture.flip(2)]))[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox at night", crops=1)[0]
    _, images, history, trajectory = optimize(features, loss, iterations=5, trajectory_every=2)
    size = titok.model.image_size
    assert trajectory.shape == (4, size, 2 * size, 3)  # iterations 0, 2 and 4, then the result
    assert torch.equal(trajectory[-1], torch.cat([*images], 1))
    start = pack.run("TokenOptDecode", titok=titok, features=features)[0]
    torch.testing.assert_close(trajectory[0], torch.cat([*start], 1))
    assert len(optimize(features, loss, trajectory_every=0)[3]) == 1
    plot = pack.run("TokenOptLossPlot", history=history, width=300, height=100)[0]
    assert plot.shape == (1, 200, 300, 3)  # a panel for the loss, one for its term
    assert plot.min() >= 0 and plot.max() == 1 and plot.std() > 0.02


def test_early_stopping_on_the_node(pack, titok, openclip, picture, optimize) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox at night", crops=0)[0]
    history = optimize(features, loss, iterations=50, patience=3, tolerance=10.0, keep_best=True)[2]
    assert len(history["loss"]) == 3 + 1
    with pytest.raises(ValueError, match="patience must be at least 0, got -1"):
        optimize(features, loss, patience=-1)
