"""Soft edges and fillings of the hole."""

import math

import pytest
import torch

from tokenopt_core.masks import FILLS, fill_hole, gaussian_blur, soften


def square(size: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : -size // 4, size // 4 : -size // 4] = 1
    return mask


def test_a_blurred_point_is_a_gaussian() -> None:
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    spread = gaussian_blur(point, 3.0)[0, 0]
    assert spread.sum().item() == pytest.approx(1)
    offsets = torch.arange(41) - 20.0
    assert (spread.sum(0) * offsets**2).sum().sqrt().item() == pytest.approx(3.0, rel=0.03)
    torch.testing.assert_close(spread, spread.T)
    assert gaussian_blur(point, 0) is point


def test_softening_keeps_flat_parts_and_halves_the_edge() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    soft = soften(mask, 3.0)
    assert soft[..., :20].max() == 0 and soft[..., 44:].min() == 1
    assert soft[0, 0, 5, 31:33].mean().item() == pytest.approx(0.5, abs=1e-5)
    for bad in (-1.0, float("inf")):
        with pytest.raises(ValueError, match="feather must be a finite number of pixels"):
            soften(mask, bad)


@pytest.mark.parametrize("fill", FILLS)
def test_known_pixels_stay_and_the_hole_is_forgotten(fill) -> None:
    images, mask = torch.rand(2, 3, 32, 32), square()
    other = torch.where(mask > 0, torch.rand_like(images), images)
    filled = fill_hole(images, mask, fill)
    assert torch.equal(torch.where(mask > 0, 0, filled), torch.where(mask > 0, 0, images))
    assert torch.equal(filled, fill_hole(other, mask, fill))  # nothing of what was there remains
    assert filled.min() >= 0 and filled.max() <= 1


def test_fillings() -> None:
    images, mask = torch.full((1, 3, 64, 64), 0.8), square(64)
    images[:, 0] = 0.2
    assert (fill_hole(images, mask, "grey")[..., 32, 32] == 0.5).all()
    torch.testing.assert_close(fill_hole(images, mask, "blur"), images, atol=1e-3, rtol=0)
    noise = fill_hole(images.expand(2, -1, -1, -1), mask, "noise", seed=3)
    assert noise[0, :, 20:44, 20:44].std() > 0.15
    assert torch.equal(noise[1:], fill_hole(images, mask, "noise", seed=4))
    half = fill_hole(images, 0.5 * mask, "grey")
    assert half[0, 0, 32, 32].item() == pytest.approx(0.35)
    assert (fill_hole(images, torch.ones_like(mask), "blur") == 0.5).all()
    with pytest.raises(ValueError, match="unknown fill 'x'"):
        fill_hole(images, mask, "x")


def test_the_best_fill_is_found_for_each_picture() -> None:
    images, mask = torch.rand(3, 3, 32, 32), square()
    every = {fill: fill_hole(images, mask, fill, seed=1) for fill in FILLS}

    def reconstruct(filled: torch.Tensor) -> torch.Tensor:
        """Nothing is lost of picture i if it is filled in the i-th way."""
        lost = torch.tensor([0.0 if torch.equal(filled[i], every[fill][i]) else 0.1 for i, fill in enumerate(FILLS)])
        return filled + lost.view(-1, 1, 1, 1)

    best = fill_hole(images, mask, "best", 1, reconstruct)
    assert torch.equal(best, torch.stack([every[fill][i] for i, fill in enumerate(FILLS)]))
    assert torch.equal(fill_hole(images, mask, "best", 1, lambda filled: filled), every["grey"])  # all are as good
    # what is in the hole has no say, and neither has a reconstruction that is not a number
    elsewhere = fill_hole(images, mask, "best", 1, lambda filled: filled + mask * (filled - every["blur"]))
    assert torch.equal(elsewhere, every["grey"])

    def broken(filled: torch.Tensor) -> torch.Tensor:
        return filled * math.nan if torch.equal(filled, every["grey"]) else filled

    assert torch.equal(fill_hole(images, mask, "best", 1, broken), every["blur"])
    with pytest.raises(ValueError, match="expected `reconstruct`"):
        fill_hole(images, mask, "best")
