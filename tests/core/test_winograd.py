"""Normalization, SiLU and convolution strip by strip: the numbers and gradients of the usual three, and less kept."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.test_convolutions import assert_same, random
from tests.core.test_memory import Memory
from tokenopt_core import linear, winograd
from tokenopt_core.titok.maskgit import GridConfig, PixelDecoder, ResidualBlock
from tokenopt_core.winograd import convolve_normed


def layers(inputs: int, outputs: int, bias: bool = False, groups: int = 4) -> tuple[nn.GroupNorm, nn.Conv2d]:
    """Frozen, with weights that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.GroupNorm(groups, inputs, eps=1e-6).requires_grad_(False)
        norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1)
        return norm, nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False)


def usual(x: Tensor, norm: nn.GroupNorm, convolution: nn.Conv2d) -> Tensor:
    return convolution(F.silu(norm(x)))


@pytest.fixture(autouse=True)
def fast_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor whose matrix products keep up."""
    monkeypatch.setattr(linear, "pays", lambda: False)


@pytest.fixture
def strips(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the pictures that went through in strips."""
    seen: list[tuple[int, ...]] = []
    real = winograd._convolve

    def noted(x, *arguments):
        seen.append(tuple(x.shape))
        return real(x, *arguments)

    monkeypatch.setattr(winograd, "_convolve", noted)
    return seen


def test_the_minimal_filter_is_a_correlation() -> None:
    pixels, taps = random(6, 6, dtype=torch.float64), random(3, 3, dtype=torch.float64)
    results, into, weights = (m.double() for m in (winograd.RESULTS, winograd.PIXELS, winograd.TAPS))
    found = results @ ((weights @ taps.flatten()) * (into @ pixels.flatten()))
    expected = [[(pixels[i : i + 3, j : j + 3] * taps).sum() for j in range(4)] for i in range(4)]
    torch.testing.assert_close(found.view(4, 4), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tiles", [1, 20, 1000], ids=["a row of tiles", "uneven strips", "one strip"])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(8, 12, False), (12, 3, True)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_numbers_and_gradients_are_the_same(monkeypatch, strips, tiles, inputs, outputs, bias, memory_format) -> None:
    monkeypatch.setattr(winograd, "TILES", tiles)
    norm, convolution = layers(inputs, outputs, bias)
    x = (3 * random(2, inputs, 44, 32) + 1).contiguous(memory_format=memory_format)
    assert_same(lambda x: convolve_normed(x, norm, convolution), lambda x: usual(x, norm, convolution), x)
    assert strips == [(2, 44, 32, inputs), (2, 44, 32, outputs)]
    with torch.no_grad():
        torch.testing.assert_close(
            convolve_normed(x, norm, convolution), usual(x, norm, convolution), rtol=1e-4, atol=1e-4
        )


def test_flat_and_far_off_pictures() -> None:
    """Of a flat group only rounding is left beside the zero that is meant; a large mean costs digits everywhere."""
    norm, convolution = layers(8, 8)
    flat = torch.full((1, 8, 32, 32), 2.0)
    assert_same(lambda x: convolve_normed(x, norm, convolution), lambda x: usual(x, norm, convolution), flat * 0)
    assert torch.isfinite(convolve_normed(flat, norm, convolution)).all()
    far = random(1, 8, 32, 32) + 30
    exact = usual(far.double(), copy.deepcopy(norm).double(), copy.deepcopy(convolution).double())
    assert (convolve_normed(far, norm, convolution) - exact).norm() < 1e-3 * exact.norm()


def test_a_batch_gives_what_its_pictures_give(strips) -> None:
    norm, convolution = layers(8, 8)
    x = random(3, 8, 32, 32).requires_grad_(True)
    together = convolve_normed(x, norm, convolution)
    (gradient,) = torch.autograd.grad(together.square().sum(), x)
    for i in range(3):
        one = x.detach()[i : i + 1].clone().requires_grad_(True)
        alone = convolve_normed(one, norm, convolution)
        assert torch.equal(alone, together[i : i + 1])
        assert torch.equal(torch.autograd.grad(alone.square().sum(), one)[0], gradient[i : i + 1])
    assert len(strips) == 8


def test_upstream_gradients_of_any_layout() -> None:
    norm, convolution = layers(8, 8)
    x, expanded = random(1, 8, 32, 32), torch.tensor(0.5).expand(1, 8, 32, 32)
    found = []
    for way in (convolve_normed, usual):
        leaf = x.clone().requires_grad_(True)
        found.append(torch.autograd.grad(way(leaf, norm, convolution), leaf, expanded)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert expanded.stride() == (0, 0, 0, 0) and bool((expanded == 0.5).all())  # nothing was written into it


def test_changed_weights_are_those_that_count() -> None:
    (norm, convolution), x = layers(8, 8), random(1, 8, 32, 32)
    convolve_normed(x, norm, convolution)
    convolution.weight.mul_(2), norm.bias.add_(1)
    torch.testing.assert_close(convolve_normed(x, norm, convolution), usual(x, norm, convolution), rtol=1e-4, atol=1e-4)


def test_weights_of_inference_mode(strips) -> None:
    with torch.inference_mode():
        norm, convolution = layers(8, 8)
        assert convolve_normed(random(1, 8, 32, 32), norm, convolution).is_inference()
    x = random(1, 8, 32, 32).requires_grad_(True)
    (gradient,) = torch.autograd.grad(convolve_normed(x, norm, convolution).sum(), x)
    assert torch.isfinite(gradient).all() and len(strips) == 3


@pytest.mark.parametrize(
    "kind",
    [
        "trained convolution",
        "trained norm",
        "bfloat16",
        "float64",
        "autocast",
        "small",
        "not by four",
        "slow products",
    ],
)
def test_what_does_not_suit_goes_the_usual_way(monkeypatch, strips, kind) -> None:
    norm, convolution = layers(8, 8)
    x, autocast = random(1, 8, 32, 32), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")
    match kind:
        case "trained convolution":
            convolution.requires_grad_(True)
        case "trained norm":
            norm.requires_grad_(True)
        case "bfloat16" | "float64":
            x, norm, convolution = (each.to(getattr(torch, kind)) for each in (x, norm, convolution))
        case "small":
            x = x[..., :28, :]
        case "not by four":
            x = random(1, 8, 32, 34)
        case "slow products":
            monkeypatch.setattr(linear, "pays", lambda: True)
    with autocast:
        found = convolve_normed(x, norm, convolution)
        assert torch.equal(found, usual(x, norm, convolution))
    assert found.requires_grad is kind.startswith("trained")
    assert not strips
    with torch.device("meta"):
        norm, convolution = layers(8, 8)
        assert convolve_normed(torch.empty(1, 8, 32, 32), norm, convolution).shape == (1, 8, 32, 32)
    assert not strips


def test_less_is_kept_for_the_gradient() -> None:
    norm, convolution = layers(8, 8)
    kept = []
    for way in (convolve_normed, usual):
        x = random(1, 8, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_(True)
        with Memory() as memory:
            out = way(x, norm, convolution)
        kept.append(memory.now / (out.numel() * out.element_size()))
        del out
    assert kept[0] < 1.1  # the result; in small pictures the normalization's numbers are seen
    assert kept[1] > 2.9  # with what was normalized, and what came of that


def test_a_pixel_decoder_gives_the_pictures_and_gradients_it_gave(strips) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = PixelDecoder(GridConfig(image_size=64, channels=(32, 64))).requires_grad_(False)
    block: ResidualBlock = decoder.up[0].block[0]  # type: ignore[assignment]
    assert block.nin_shortcut is not None
    x = random(1, 256, 32, 32)

    def the_usual_way(x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "_suits", lambda *layers: False)
            return decoder(x)

    assert_same(decoder, the_usual_way, x)
    # four blocks of two at 32 px, two at 64 px, and the picture; each forward and backward
    assert len(strips) == 2 * 13
