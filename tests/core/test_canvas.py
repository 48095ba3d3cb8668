"""Squares out of pictures and back into them, against places and weights worked out by hand."""

import math

import pytest
import torch

from tokenopt_core.canvas import Placement, Square, fade, fit, stitch


def random_picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def marked(height: int, width: int, *areas: tuple[slice, slice]) -> torch.Tensor:
    """One mask for each area of rows and columns."""
    mask = torch.zeros(len(areas), 1, height, width)
    for i, (rows, columns) in enumerate(areas):
        mask[i, 0, rows, columns] = 1
    return mask


def smooth_picture(height: int, width: int) -> torch.Tensor:
    """A picture that survives being resized."""
    down, along = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return torch.stack([down + 0 * along, 0 * down + along, (down + along) / 2])[None]


@pytest.mark.parametrize(
    ("height", "width", "mode", "square"),
    [
        (4, 10, "crop", (0, 3, 4)),
        (10, 4, "crop", (3, 0, 4)),
        (5, 8, "crop", (0, 1, 5)),
        (4, 10, "pad", (-3, 0, 10)),
        (10, 4, "pad", (0, -3, 10)),
        (7, 7, "pad", (0, 0, 7)),
        (1, 1, "crop", (0, 0, 1)),
        (1, 1, "pad", (0, 0, 1)),
    ],
)
def test_places_of_crop_and_pad(height: int, width: int, mode, square) -> None:
    images, mask, placement = fit(random_picture(height, width), None, 6, mode)
    assert images.shape == (1, 3, 6, 6) and torch.equal(mask, torch.ones(1, 1, 6, 6))
    assert placement == Placement(height, width, (Square(*square),))


@pytest.mark.parametrize(
    ("area", "context", "square"),
    [
        ((slice(40, 50), slice(100, 110)), 0.0, (40, 100, 10)),  # just around it
        ((slice(40, 50), slice(100, 110)), 1.0, (35, 95, 20)),  # twice as large, 5 px on each side
        ((slice(40, 44), slice(100, 110)), 0.0, (37, 100, 10)),  # square, though the area is not
        ((slice(0, 10), slice(190, 200)), 1.0, (0, 180, 20)),  # moved into the picture
        ((slice(90, 100), slice(0, 1)), 0.5, (85, 0, 15)),
        ((slice(40, 50), slice(100, 110)), 50.0, (0, 55, 100)),  # no larger than the picture's shorter side
        ((slice(40, 50), slice(20, 170)), 1.0, (-25, 20, 150)),  # longer than that: padded, or it would be cut
        ((slice(99, 100), slice(199, 200)), 0.0, (99, 199, 1)),
    ],
)
def test_places_around_a_mask(area, context: float, square) -> None:
    mask = marked(100, 200, area)
    images, square_mask, placement = fit(random_picture(100, 200), mask, 8, "mask", context)
    assert placement.squares == (Square(*square),)
    assert images.shape == (1, 3, 8, 8) and square_mask.shape == (1, 1, 8, 8)


def test_square_of_the_right_size_holds_the_very_pixels() -> None:
    picture, mask = random_picture(9, 12), marked(9, 12, (slice(2, 6), slice(7, 11)))
    images, square_mask, _ = fit(picture, mask, 4, "mask", 0.0)
    assert torch.equal(images, picture[..., 2:6, 7:11]) and torch.equal(square_mask, torch.ones(1, 1, 4, 4))


def test_padding_repeats_the_edge_of_picture_and_mask() -> None:
    picture, mask = random_picture(2, 4), marked(2, 4, (slice(0, 1), slice(0, 2)))
    images, square_mask, _ = fit(picture, mask, 4, "pad")
    assert torch.equal(images, picture[..., [0, 0, 1, 1], :])
    assert torch.equal(square_mask, mask[..., [0, 0, 1, 1], :])


def test_resizing_averages_instead_of_skipping() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    images, mask, _ = fit(stripes, stripes[:, :1], 4)
    torch.testing.assert_close(images, torch.full_like(images, 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(mask, torch.full_like(mask, 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (33, 20), (64, 64), (100, 37)])
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_round_trip_of_an_unchanged_square(height: int, width: int, mode) -> None:
    picture = smooth_picture(height, width)
    images, _, placement = fit(picture, None, 64, mode)
    back = stitch(picture, images, placement)
    torch.testing.assert_close(back, picture, atol=0.03, rtol=0)
    top, left, side = placement.squares[0]
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[max(top, 0) : top + side, max(left, 0) : left + side] = False
    assert torch.equal(back[..., outside], picture[..., outside])


def test_round_trip_without_resizing_is_exact() -> None:
    picture, mask = random_picture(30, 50), marked(30, 50, (slice(5, 13), slice(40, 48)))
    images, _, placement = fit(picture, mask, 8, "mask", 0.0)
    assert torch.equal(stitch(picture, images, placement, mask, feather=3), picture)


@pytest.mark.parametrize(
    ("square", "rows", "columns"),  # where it goes in the picture, where that is in the square
    [
        ((2, 5, 4), (slice(2, 6), slice(0, 4)), (slice(5, 9), slice(0, 4))),
        ((-1, 10, 4), (slice(0, 3), slice(1, 4)), (slice(10, 12), slice(0, 2))),
        ((-2, -1, 14), (slice(0, 8), slice(2, 10)), (slice(0, 12), slice(1, 13))),
    ],
)
def test_edit_stands_where_it_belongs(square, rows, columns) -> None:
    edited, expected = random_picture(square[2], square[2]), torch.zeros(1, 3, 8, 12)
    expected[..., rows[0], columns[0]] = edited[..., rows[1], columns[1]]
    back = stitch(torch.zeros(1, 3, 8, 12), edited, Placement(8, 12, (Square(*square),)))
    assert torch.equal(back, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("feather", [0, 1, 5])
def test_pixels_outside_of_the_mask_keep_their_bits(dtype: torch.dtype, feather: int) -> None:
    picture = (random_picture(61, 83) * 3 - 1).to(dtype)  # with values outside of the range, as some nodes give them
    mask = marked(61, 83, (slice(10, 35), slice(50, 83)))
    mask[..., 12:20, 40:50] = 0.3  # a soft part
    images, _, placement = fit(picture, mask, 16, "mask", 0.3)
    back = stitch(picture, 1 - images, placement, mask, feather)
    outside = (mask == 0).expand_as(picture)
    assert back.dtype == dtype and back.shape == picture.shape
    assert torch.equal(back[outside], picture[outside])
    assert not torch.equal(back, picture)


def test_inputs_are_not_written_into() -> None:
    picture, edited = random_picture(8, 8), torch.zeros(1, 3, 4, 4)
    before = picture.clone()
    stitch(picture, edited, Placement(8, 8, (Square(0, 0, 8),)))
    assert torch.equal(picture, before)


def test_mask_says_how_much_changes() -> None:
    picture, edited = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.6)
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(1, 1, 4, 4)
    back = stitch(picture, edited, Placement(4, 4, (Square(0, 0, 4),)), mask)
    torch.testing.assert_close(back[0, 0, 0], torch.tensor([0.2, 0.3, 0.4, 0.6]))


def test_part_of_the_mask_outside_of_the_square_changes_nothing() -> None:
    picture = random_picture(4, 12)
    back = stitch(picture, 1 - picture[..., 4:8], Placement(4, 12, (Square(0, 4, 4),)), torch.ones(1, 1, 4, 12))
    assert torch.equal(back[..., :4], picture[..., :4]) and torch.equal(back[..., 8:], picture[..., 8:])
    assert torch.equal(back[..., 4:8], 1 - picture[..., 4:8])


def test_weights_of_the_feather_by_hand() -> None:
    # taps at 0, 1 and 2 px of a Gaussian of standard deviation 1 px, cut off there and summing to 1
    middle, near, far = (math.exp(-(i**2) / 2) for i in range(3))
    total = middle + 2 * near + 2 * far
    expected = [0, 0, middle / total, (middle + 2 * near) / total, 1, 1]
    area = torch.tensor([0, 0, 1, 1, 1, 1]).bool().expand(1, 1, 3, 6)
    weights = fade(area, 2, (False, True, True, True))
    torch.testing.assert_close(weights, torch.tensor(expected).expand(1, 1, 3, 6))
    ending = fade(area, 2, (False, False, True, True))  # the area ends at the right side, too
    assert ending[0, 0, 0].tolist() == pytest.approx([0, 0, expected[2], expected[3], expected[3], expected[2]])


def test_feather_is_at_the_squares_border_but_not_at_the_pictures() -> None:
    picture, edited = torch.zeros(1, 3, 8, 20), torch.ones(1, 3, 8, 8)
    row = stitch(picture, edited, Placement(8, 20, (Square(0, 12, 8),)), feather=2)[0, 0]
    assert torch.equal(row[0], row[7])  # the picture ends above and below
    assert row[0, 12] < row[0, 13] < row[0, 14] and row[0, 11] == 0
    torch.testing.assert_close(row[0, 14:], torch.ones(6))


def test_feather_at_the_masks_edge_inside_the_square() -> None:
    picture, edited, mask = (
        torch.zeros(1, 3, 20, 20),
        torch.ones(1, 3, 20, 20),
        marked(20, 20, (slice(0, 20), slice(8))),
    )
    back = stitch(picture, edited, Placement(20, 20, (Square(0, 0, 20),)), mask, feather=3)
    torch.testing.assert_close(back[..., :5], torch.ones(1, 3, 20, 5))
    row = back[0, 0, 10]
    assert 1 > row[5] > row[6] > row[7] > 0 and not row[8:].any()


def test_feather_wider_than_the_picture() -> None:
    picture = random_picture(5, 9)
    back = stitch(picture, 1 - picture[..., 2:7], Placement(5, 9, (Square(0, 2, 5),)), feather=64)
    assert torch.isfinite(back).all() and torch.equal(back[..., :2], picture[..., :2])


def test_batch_with_a_mask_each_gives_what_single_pictures_give() -> None:
    pictures = random_picture(40, 60, batch=2)
    masks = marked(40, 60, (slice(0, 8), slice(0, 8)), (slice(20, 40), slice(30, 45)))
    images, square_masks, placement = fit(pictures, masks, 16, "mask")
    assert placement.squares == (Square(0, 0, 12), Square(10, 22, 30))
    back = stitch(pictures, 1 - images, placement, masks, feather=2)
    for i in range(2):
        image, mask, own = fit(pictures[i : i + 1], masks[i : i + 1], 16, "mask")
        assert torch.equal(image[0], images[i]) and torch.equal(mask[0], square_masks[i])
        assert torch.equal(stitch(pictures[i : i + 1], 1 - image, own, masks[i : i + 1], feather=2)[0], back[i])


def test_one_mask_for_a_batch_and_one_original_for_several_edits() -> None:
    pictures, mask = random_picture(40, 60, batch=3), marked(40, 60, (slice(10, 20), slice(10, 20)))
    images, square_masks, placement = fit(pictures, mask, 16, "mask", 0.0)
    assert placement.squares == (Square(10, 10, 10),) * 3 and square_masks.shape == (3, 1, 16, 16)
    single = fit(pictures[:1], mask, 16, "mask", 0.0)[2]
    back = stitch(pictures[:1], 1 - images, single, mask)
    assert back.shape == pictures.shape
    for i in range(3):
        assert torch.equal(back[i : i + 1], stitch(pictures[:1], 1 - images[i : i + 1], single, mask))


def test_edited_square_of_another_size() -> None:
    picture = smooth_picture(50, 80)
    _, _, placement = fit(picture, None, 16)
    for size in (1, 7, 200):
        assert stitch(picture, torch.full((1, 3, size, size), 0.5), placement).shape == picture.shape


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["crop", "pad", "mask"])
def test_huge_picture(mode) -> None:
    picture = torch.full((1, 3, 6000, 8000), 0.25)
    mask = marked(6000, 8000, (slice(5900, 6000), slice(7000, 8000)))
    images, _, placement = fit(picture, mask, 64, mode)
    torch.testing.assert_close(images, torch.full_like(images, 0.25))
    back = stitch(picture, images + 0.5, placement, mask, feather=16)
    assert back.shape == picture.shape
    changed = (slice(5900, 6000), slice(7000, 7000 if mode == "crop" else 8000))  # the middle square ends at 7000
    inner = back[..., 5920:, changed[1]][..., 20:]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.75))
    back[..., changed[0], changed[1]] = 0.25
    assert torch.equal(back, picture)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: fit(p, None, 8, "stretch"), "'stretch': expected one of crop, pad, mask"),
        (lambda p: fit(p, None, 0), "at least 1 px"),
        (lambda p: fit(p, None, 8, "mask"), "the mode mask needs a mask"),
        (lambda p: fit(p, marked(6, 9, (slice(1), slice(1))), 8, "mask", -0.5), "context of at least 0"),
        (lambda p: fit(p, marked(6, 9, (slice(1), slice(1))), 8, "mask", float("inf")), "context of at least 0"),
        (lambda p: fit(p, torch.zeros(1, 1, 6, 9), 8, "mask"), "picture 1 is empty"),
        (lambda p: fit(p, marked(6, 9, (slice(1), slice(1)), (slice(0), slice(0))), 8, "mask"), "picture 2 is empty"),
        (lambda p: fit(p, torch.ones(3, 1, 6, 9), 8), "each of the 2 pictures, got 3 masks"),
        (lambda p: fit(p, torch.ones(1, 1, 9, 6), 8), "mask of the picture's 9 x 6 px, got 6 x 9"),
        (lambda p: stitch(p[..., :5], p[..., :6], PLACE), "a picture of 9 x 6 px, the original has 5 x 6"),
        (lambda p: stitch(p, p, PLACE), "must be square, got 9 x 6 px"),
        (lambda p: stitch(p, p[:1, :, :, :6], PLACE), "expected 2 edited pictures, one for each of the original"),
        (lambda p: stitch(p[:1], p[:1, :, :, :6].expand(3, 3, 6, 6), PLACE), "one for each of the fitted pictures"),
        (lambda p: stitch(p, p[..., :6], PLACE, feather=-1), "at least 0, got -1"),
        (lambda p: stitch(p, p[..., :6], PLACE, torch.ones(1, 1, 6, 6)), "got 6 x 6"),
    ],
)
def test_errors_say_what_was_expected(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call(random_picture(6, 9, batch=2))
    assert message in str(error.value)


PLACE = Placement(6, 9, (Square(0, 1, 6),) * 2)
