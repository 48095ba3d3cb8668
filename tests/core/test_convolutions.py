"""Convolutions in another form: the same numbers, the same gradient, and the usual way wherever that does not suit."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenopt_core as to
from tokenopt_core import convolutions as module
from tokenopt_core.convolutions import Patches, convolve_doubled, embed_patches_by_products
from tokenopt_core.titok.maskgit import GridConfig, Level, PixelDecoder

ROUNDING = 1e-5  # relative norm


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def frozen(*arguments: int, **settings: object) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(*arguments, **settings).requires_grad_(False)  # type: ignore[arg-type]


def doubled(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """What is meant, computed the usual way."""
    return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), convolution.weight, convolution.bias, padding=1)


def assert_same(function, expected, x: Tensor) -> None:
    """Results and gradients of a weighted sum of them."""
    found = []
    for way in (function, expected):
        leaf = x.clone().requires_grad_(True)
        out = way(leaf)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append((out.detach(), torch.autograd.grad(out, leaf, upstream)[0]))
    for mine, other in zip(*found, strict=True):
        assert mine.shape == other.shape and mine.dtype is other.dtype
        assert (mine - other).norm() < ROUNDING * other.norm()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the other forms were computed."""
    calls: list[str] = []
    for holder, name in ((F, "conv_transpose2d"), (module, "linear")):
        real = getattr(holder, name)

        def noted(*arguments, name=name, real=real, **settings):
            calls.append(name)
            return real(*arguments, **settings)

        monkeypatch.setattr(holder, name, noted)
    return calls


def test_a_doubled_pixel_by_hand(taken) -> None:
    # one pixel of value 1: each corner of the 2 x 2 sees it under four taps, the others fall on the border
    convolution = frozen(1, 1, 3, padding=1)
    convolution.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    convolution.bias.fill_(100)
    corners = [[4 + 5 + 7 + 8, 3 + 4 + 6 + 7], [1 + 2 + 4 + 5, 0 + 1 + 3 + 4]]
    assert torch.equal(convolve_doubled(torch.ones(1, 1, 1, 1), convolution), 100 + torch.tensor([[corners]]))
    assert taken == ["conv_transpose2d"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_doubling_convolutions_are_the_same(taken, bias, memory_format) -> None:
    convolution = frozen(24, 16, 3, padding=1, bias=bias)
    x = random(2, 24, 6, 5).contiguous(memory_format=memory_format)
    assert_same(lambda x: convolve_doubled(x, convolution), lambda x: doubled(x, convolution), x)
    assert convolve_doubled(x, convolution).is_contiguous(memory_format=memory_format)
    with torch.no_grad():
        torch.testing.assert_close(convolve_doubled(x, convolution), doubled(x, convolution))
    assert taken == ["conv_transpose2d"] * 3


def test_gradients_in_float64() -> None:
    convolution = frozen(2, 3, 3, padding=1).double()
    x = random(1, 2, 3, 2, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: convolve_doubled(x, convolution), x)
    assert torch.autograd.gradgradcheck(lambda x: convolve_doubled(x, convolution).square(), x)
    patches = Patches(frozen(2, 3, 2, stride=2).double())
    images = random(1, 2, 4, 6, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(patches, images)


def test_changed_weights_are_those_that_count() -> None:
    convolution, x = frozen(4, 4, 3, padding=1), random(1, 4, 3, 3)
    convolve_doubled(x, convolution)
    convolution.weight.mul_(2)
    torch.testing.assert_close(convolve_doubled(x, convolution), doubled(x, convolution))
    convolution.load_state_dict(frozen(4, 4, 3, padding=1).state_dict())
    torch.testing.assert_close(convolve_doubled(x, convolution), doubled(x, convolution))


def test_weights_of_inference_mode() -> None:
    with torch.inference_mode():
        convolution, patches = frozen(4, 4, 3, padding=1), Patches(frozen(3, 4, 2, stride=2))
        assert convolve_doubled(random(1, 4, 3, 3), convolution).is_inference()
    x = random(1, 4, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(convolve_doubled(x, convolution), doubled(x, convolution))
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(convolve_doubled(x, convolution).sum(), x)
    # a pixel inside is four of the doubled picture, each under every tap
    assert gradient.shape == x.shape
    torch.testing.assert_close(gradient[0, :, 1, 1], 4 * convolution.weight.sum((0, 2, 3)))
    assert not patches(random(1, 3, 4, 4)).requires_grad


@pytest.mark.parametrize("kind", ["trained", "half precision"])
def test_what_does_not_suit_goes_the_usual_way(taken, kind) -> None:
    convolution, patches, x = frozen(3, 4, 3, padding=1), Patches(frozen(3, 4, 2, stride=2)), random(1, 3, 4, 4)
    if kind == "trained":
        convolution.requires_grad_(True), patches.requires_grad_(True)
    else:
        x = x.bfloat16()
        convolution.bfloat16(), patches.bfloat16()
    assert torch.equal(convolve_doubled(x, convolution), convolution(F.interpolate(x, scale_factor=2.0)))
    assert torch.equal(patches(x), F.conv2d(x, patches.weight, patches.bias, stride=2))
    assert convolve_doubled(x, convolution).requires_grad is patches(x).requires_grad is (kind == "trained")
    assert Patches(patches).weight.requires_grad is (kind == "trained")
    assert not taken


def test_autocast_and_other_devices_go_the_usual_way(taken) -> None:
    convolution, patches, x = frozen(3, 4, 3, padding=1), Patches(frozen(3, 4, 2, stride=2)), random(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve_doubled(x, convolution).dtype is patches(x).dtype is torch.bfloat16
    with torch.device("meta"):
        elsewhere = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
        assert convolve_doubled(torch.empty(1, 3, 4, 4), elsewhere).shape == (1, 4, 8, 8)
    assert not taken
    convolve_doubled(x, convolution), patches(x)
    assert taken == ["conv_transpose2d", "linear"]


def test_a_decoder_gives_the_pictures_and_gradients_it_gave(monkeypatch, taken) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        level = Level(32, 32, upsample=True).requires_grad_(False)
    names = [f"up.{i}.upsample_conv.{name}" for i in (1, 2, 3, 4) for name in ("weight", "bias")]
    with torch.device("meta"):
        assert [key for key in PixelDecoder(GridConfig()).state_dict() if "upsample" in key] == names
    usual = copy.deepcopy(level)
    monkeypatch.setattr(usual, "forward", lambda x: doubled(usual.block[1](usual.block[0](x)), usual.upsample_conv))
    assert_same(level, usual, random(2, 32, 4, 4))
    assert taken == ["conv_transpose2d"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (2, 3)])
def test_patches_are_the_same(taken, bias, size) -> None:
    convolution = frozen(3, 16, size, stride=size, bias=bias)
    patches = Patches(convolution)
    assert patches.weight.data_ptr() == convolution.weight.data_ptr() and not patches.weight.requires_grad
    assert patches.state_dict().keys() == convolution.state_dict().keys()
    assert_same(patches, convolution, random(2, 3, 8, 12))
    assert taken == ["linear"]
    assert torch.equal(patches(random(1, 3, 9, 13)), convolution(random(1, 3, 9, 13)))  # not a whole number of patches
    assert taken == ["linear"]


def test_the_embedding_of_patches_is_found_in_both_kinds_of_towers() -> None:
    own = SimpleNamespace(conv1=frozen(3, 4, 4, stride=4, bias=False))
    timm = SimpleNamespace(trunk=SimpleNamespace(patch_embed=SimpleNamespace(proj=frozen(3, 4, 4, stride=4))))
    resnet = SimpleNamespace(conv1=frozen(3, 4, 3, stride=2, padding=1))
    for tower in (own, timm, resnet, SimpleNamespace()):
        embed_patches_by_products(tower)  # type: ignore[arg-type]
    assert type(own.conv1) is Patches and type(timm.trunk.patch_embed.proj) is Patches
    assert type(resnet.conv1) is nn.Conv2d
    assert type(to.load_clip("mini").model.visual.conv1) is Patches
