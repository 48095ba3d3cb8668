"""Fit to Tokenizer and Stitch Back: any picture in, the same picture out."""

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfyui


@pytest.fixture
def photo() -> torch.Tensor:
    """A picture that is neither square nor of the tokenizer's size, (1, 90, 150, 3)."""
    return torch.rand(1, 90, 150, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask() -> torch.Tensor:
    """A mask for it with 20 x 20 px at the right border in white, (1, 90, 150)."""
    white = torch.zeros(1, 90, 150)
    white[:, 30:50, 130:150] = 1
    return white


def fit(pack, titok, image: torch.Tensor, **inputs: Any) -> tuple[Any, ...]:
    return pack.run("TokenOptFit", titok=titok, image=image, **inputs)


def stitch(pack, original: torch.Tensor, edited: torch.Tensor, placement: Any, **inputs: Any) -> torch.Tensor:
    return pack.run("TokenOptStitch", original=original, edited=edited, placement=placement, **inputs)[0]


def test_fit_edit_stitch_changes_the_mask_alone(pack, titok, photo, mask) -> None:
    square, square_mask, placement = fit(pack, titok, photo, mode="mask", mask=mask)
    size = titok.model.image_size
    assert square.shape == (1, size, size, 3) and square_mask.shape == (1, size, size)
    assert placement.squares == ((25, 120, 30),)
    features = pack.run("TokenOptEncode", titok=titok, image=square)[0]
    edited = pack.run("TokenOptDecode", titok=titok, features=features)[0]
    result = stitch(pack, photo, edited, placement, mask=mask)
    assert result.shape == photo.shape and result.is_contiguous()
    assert torch.equal(result[mask == 0], photo[mask == 0])
    assert not torch.equal(result[mask == 1], photo[mask == 1])


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_unmasked_square_is_replaced(pack, titok, photo, mode: str) -> None:
    square, square_mask, placement = fit(pack, titok, photo, mode=mode)
    assert square_mask.shape == square.shape[:3] and square_mask.min() == 1
    result = stitch(pack, photo, torch.zeros_like(square), placement, feather=0)
    left, right = (30, 120) if mode == "crop" else (0, 150)
    assert not result[:, :, left:right].any()
    assert torch.equal(result[:, :, :left], photo[:, :, :left])
    assert torch.equal(result[:, :, right:], photo[:, :, right:])


def test_a_picture_that_fits_goes_through_unchanged(pack, titok, picture) -> None:
    for mode in ("crop", "pad"):
        square, _, placement = fit(pack, titok, picture, mode=mode)
        assert torch.equal(square, picture)
        assert torch.equal(stitch(pack, picture, square, placement), picture)


def test_middle_square_is_that_of_encode(pack, titok, photo) -> None:
    assert torch.equal(fit(pack, titok, photo)[0], pack.run("TokenOptEncode", titok=titok, image=photo)[1])


def test_values_outside_the_range_stay_where_nothing_is_edited(pack, titok, photo, mask) -> None:
    bright = photo * 3 - 1
    square, _, placement = fit(pack, titok, bright, mode="mask", mask=mask)
    assert square.min() >= 0 and square.max() <= 1
    result = stitch(pack, bright, square, placement, mask=mask)
    assert torch.equal(result[mask == 0], bright[mask == 0])


def test_alpha_is_dropped(pack, titok, photo, mask) -> None:
    with_alpha = torch.cat([photo, torch.rand(1, 90, 150, 1)], -1)
    square, _, placement = fit(pack, titok, with_alpha, mode="mask", mask=mask)
    assert torch.equal(square, fit(pack, titok, photo, mode="mask", mask=mask)[0])
    result = stitch(pack, with_alpha, 1 - square, placement, mask=mask)
    assert torch.equal(result, stitch(pack, photo, 1 - square, placement, mask=mask))


def test_mask_of_another_size_and_without_a_batch(pack, titok, photo, mask) -> None:
    plain = fit(pack, titok, photo, mode="mask", mask=mask[0])
    assert torch.equal(plain[1], fit(pack, titok, photo, mode="mask", mask=mask)[1])
    half = mask[:, ::2, ::2]
    square, _, placement = fit(pack, titok, photo, mode="mask", mask=half, context=0.0)
    assert placement.squares[0].side in (21, 22)  # 20 px and the soft edge of resizing
    result = stitch(pack, photo, 1 - square, placement, mask=half, feather=0)
    changed = (result != photo).any(-1)[0].nonzero()
    assert changed.min(0).values.tolist() == [29, 129] and changed.max(0).values.tolist() == [50, 149]


def test_batches(pack, titok, photo, mask) -> None:
    photos, masks = torch.cat([photo, photo.flip(1)]), torch.cat([mask, mask.flip(2)])
    squares, _, placement = fit(pack, titok, photos, mode="mask", mask=masks)
    assert placement.squares == ((25, 120, 30), (25, 0, 30))
    result = stitch(pack, photos, 1 - squares, placement, mask=masks)
    assert torch.equal(result[masks == 0], photos[masks == 0])
    shared = fit(pack, titok, photos, mode="mask", mask=mask)[2]
    assert shared.squares == ((25, 120, 30),) * 2
    versions = stitch(pack, photo, squares, fit(pack, titok, photo, mode="mask", mask=mask)[2], mask=mask)
    assert versions.shape == photos.shape


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mode": "stretch"}, "'stretch': expected one of crop, pad, mask"),
        ({"mode": "mask"}, "the mode mask needs a mask"),
        ({"mode": "mask", "mask": torch.zeros(1, 64, 64)}, "the mask of picture 1 is empty"),
        ({"mask": torch.full((1, 90, 150), float("nan"))}, "not numbers"),
        ({"mask": torch.ones(3, 90, 150)}, "3 masks"),
        ({"mask": torch.ones(1, 90, 150), "mode": "mask", "context": -1.0}, "at least 0"),
        ({"image": torch.full((1, 9, 9, 3), float("nan"))}, "not numbers"),
        ({"image": torch.zeros(1, 9, 9, 1)}, "(batch, height, width, 3), got (1, 9, 9, 1)"),
    ],
)
def test_errors_of_fit(pack, titok, photo, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        pack.run("TokenOptFit", **{"titok": titok, "image": photo, **inputs})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"edited": torch.zeros(2, 64, 64, 3), "original": torch.zeros(3, 90, 150, 3)}, "expected 3 edited pictures"),
        ({"edited": torch.zeros(1, 64, 65, 3)}, "must be square, got 65 x 64 px"),
        ({"edited": torch.full((1, 64, 64, 3), float("nan"))}, "not numbers"),
        ({"original": torch.full((1, 90, 150, 3), float("inf"))}, "not numbers"),
        ({"original": torch.zeros(1, 64, 64, 3)}, "a picture of 150 x 90 px, the original has 64 x 64"),
        ({"feather": -1}, "at least 0, got -1"),
        ({"mask": torch.ones(2, 90, 150)}, "got 2 masks"),
    ],
)
def test_errors_of_stitch(pack, titok, photo, inputs: dict[str, Any], message: str) -> None:
    square, _, placement = fit(pack, titok, photo)
    with pytest.raises(ValueError) as error:
        pack.run("TokenOptStitch", **{"original": photo, "edited": square, "placement": placement, **inputs})
    assert message in str(error.value)
