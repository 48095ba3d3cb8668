"""CLIP similarity, random crops and weighted sums against values worked out by hand."""

import math

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.losses import random_crops
from tokenopt_core.prompts import parse_prompts


def flat(r: float, g: float, b: float) -> torch.Tensor:
    return torch.tensor([r, g, b]).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_similarity_by_hand(clip) -> None:
    # (1, 0.5, 0.5) in [0, 1] is (1, 0, 0) after normalisation, which the tiny tower maps to (1, 0)
    loss = to.ClipLoss(clip, "bcd", crops=0)  # its vector is (3, 1): three letters, the second of the alphabet first
    assert loss(flat(1.0, 0.5, 0.5)).tolist() == pytest.approx([-cosine((1, 0), (3, 1))])


def test_negative_prompt_by_hand(clip) -> None:
    picture, prompt, negative = (1, 0), (3, 1), (1, 3)
    for guidance in (1.5, 1.0, 0.0):
        loss = to.ClipLoss(clip, "bcd", negative="d", guidance=guidance, crops=0)
        expected = -cosine(picture, prompt) - (1 - guidance) * cosine(picture, negative)
        assert loss(flat(1.0, 0.5, 0.5)).tolist() == pytest.approx([expected])


def test_crops_of_a_flat_picture_change_nothing(clip) -> None:
    picture = flat(0.9, 0.3, 0.6)
    whole = to.ClipLoss(clip, "bcd", crops=0)(picture)
    torch.testing.assert_close(to.ClipLoss(clip, "bcd", crops=5)(picture), whole)


def test_text_and_pictures_are_unit_vectors_and_pictures_differentiable(clip) -> None:
    images = torch.rand(2, 3, 12, 12, requires_grad=True)
    embedded = clip.embed_image(images)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(clip.embed_text(["abc", "b"]).norm(dim=-1), torch.ones(2))
    embedded[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_gradient_of_the_clip_loss(clip) -> None:
    clip = clip.double()
    loss = to.ClipLoss(clip, "bcd", negative="d", guidance=1.3, crops=0).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (images,))


def test_crops_are_what_slices_of_the_picture_are() -> None:
    image = torch.arange(3 * 10 * 10.0).view(1, 3, 10, 10)
    crops = random_crops(image, 200, 0.8, 0.5, [torch.Generator().manual_seed(0)])
    assert crops.shape == (200, 3, 8, 8)
    places, mirrored = set(), 0
    for crop in crops:
        flipped = bool(crop[0, 0, 0] > crop[0, 0, 1])
        upright = crop.flip(-1) if flipped else crop
        y, x = divmod(int(upright[0, 0, 0]), 10)
        assert torch.equal(upright, image[0, :, y : y + 8, x : x + 8])
        places.add((y, x))
        mirrored += flipped
    assert places == {(y, x) for y in range(3) for x in range(3)}  # every place is reached, the edges too
    assert 70 < mirrored < 130


def test_each_picture_has_its_own_generator() -> None:
    images = torch.rand(2, 3, 10, 10)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in (4, 5)]

    both = random_crops(images, 3, 0.7, 0.5, generators())
    single = random_crops(images[1:], 3, 0.7, 0.5, generators()[1:])
    assert torch.equal(both[3:], single)


def test_weighted_sum_by_hand() -> None:
    loss = to.WeightedSum([("a", 2.0, lambda x: x[:, 0, 0, 0]), ("b", -0.5, lambda x: x[:, 1, 0, 0])])
    images = torch.tensor([1.0, 4.0, 0.0]).view(1, 3, 1, 1)
    assert loss(images).tolist() == [2 * 1.0 - 0.5 * 4.0]
    assert {k: v.tolist() for k, v in loss.terms(images).items()} == {"a": [2.0], "b": [-2.0]}


def test_prompts_with_weights() -> None:
    assert parse_prompts("a fox") == [("a fox", 1.0)]
    assert parse_prompts(" a red apple:2 | at night ") == [("a red apple", 2.0), ("at night", 1.0)]
    assert parse_prompts("a: b : .5|c:0") == [("a: b", 0.5), ("c", 0.0)]
    assert parse_prompts("at 10:30") == [("at 10:30", 1.0)]
    assert parse_prompts("a fox \N{FOX FACE}:1.5") == [("a fox \N{FOX FACE}", 1.5)]
    assert parse_prompts("a fox:-1") == [("a fox:-1", 1.0)]


def test_several_prompts_by_hand(clip) -> None:
    picture = flat(1.0, 0.5, 0.5)  # (1, 0) in the tiny tower
    loss = to.ClipLoss(clip, "bcd:3 | d", crops=0)
    expected = -(0.75 * cosine((1, 0), (3, 1)) + 0.25 * cosine((1, 0), (1, 3)))
    assert loss(picture).tolist() == pytest.approx([expected])
    assert to.ClipLoss(clip, "bcd:7", crops=0)(picture).tolist() == pytest.approx([-cosine((1, 0), (3, 1))])


def test_image_prompt_by_hand(clip) -> None:
    red, green = flat(1.0, 0.5, 0.5), flat(0.5, 1.0, 0.5)  # (1, 0) and (0, 1)
    assert to.ImagePromptLoss(clip, red, crops=0)(torch.cat([red, green])).tolist() == pytest.approx([-1, 0])
    assert to.ImagePromptLoss(clip, torch.cat([red, green]), crops=3)(red).tolist() == pytest.approx([-0.5])
    likeness = to.ImagePromptLoss(clip.double(), red.double(), crops=0).double()
    assert torch.autograd.gradcheck(likeness, (torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True),))
    with pytest.raises(ValueError, match=r"pictures of shape \(P, 3, H, W\)"):
        to.ImagePromptLoss(clip, red[0])


def test_masked_l1_by_hand() -> None:
    target = torch.full((1, 3, 2, 2), 0.5)
    mask = torch.tensor([[1.0, 0.5], [0.0, 0.0]]).view(1, 1, 2, 2)
    images = torch.stack([torch.tensor([[9.0, 0.7], [0.5, 0.6]]).expand(3, 2, 2), target[0]])
    # one pixel is ignored, one counts half: (0.5 * 0.2 + 0 + 0.1) / 2.5
    assert to.MaskedL1Loss(target, mask)(images).tolist() == pytest.approx([0.08, 0.0])
    pair = to.MaskedL1Loss(images, torch.cat([mask, 0 * mask]))
    assert pair(images).tolist() == [0, 0]


def test_gradient_of_masked_l1_is_zero_in_the_hole() -> None:
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1
    loss = to.MaskedL1Loss(torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), mask)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (images,))
    loss(images).sum().backward()
    assert (images.grad[..., :2] == 0).all() and (images.grad[..., 2:] != 0).all()


def test_bad_masks_are_explained() -> None:
    target = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="white everywhere"):
        to.MaskedL1Loss(target, torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="of the same size"):
        to.MaskedL1Loss(target, torch.zeros(1, 1, 8, 8))
    for bad in (float("nan"), 2.0):
        with pytest.raises(ValueError, match=r"from 0 \(known\) to 1"):
            to.MaskedL1Loss(target, torch.full((1, 1, 4, 4), bad))
    with pytest.raises(ValueError, match="1 pictures of 4 x 4 px, but 2 of 8 x 8 px are optimised"):
        to.MaskedL1Loss(target, torch.zeros(1, 1, 4, 4))(torch.rand(2, 3, 8, 8))


def test_bad_losses_are_explained(clip) -> None:
    for prompt in ("", "  \n"):
        with pytest.raises(ValueError, match="prompt is empty"):
            to.ClipLoss(clip, prompt)
    with pytest.raises(ValueError, match="between the bars is empty"):
        to.ClipLoss(clip, "a | | b")
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        to.ClipLoss(clip, "a:0 | b:0")
    with pytest.raises(ValueError, match="every loss has weight 0"):
        to.WeightedSum([("a", 0.0, torch.mean), ("b", 0.0, torch.mean)])
    with pytest.raises(ValueError, match="crop_scale above 0"):
        to.ClipLoss(clip, "a", crop_scale=0.0)
    with pytest.raises(ValueError, match="finite guidance"):
        to.ClipLoss(clip, "a", guidance=math.inf)
    with pytest.raises(ValueError, match="at least one"):
        to.WeightedSum([])
    with pytest.raises(ValueError, match="different names"):
        to.WeightedSum([("a", 1.0, torch.mean), ("a", 1.0, torch.mean)])
    with pytest.raises(ValueError, match="weight of 'a' must be a finite number, got nan"):
        to.WeightedSum([("a", math.nan, torch.mean)])


@pytest.mark.parametrize("batch", [1, 3])
def test_gathered_crops_are_the_cut_ones(batch: int) -> None:
    from tokenopt_core.crops import cut, gather

    images = torch.rand(batch, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corners = [(0, 0, False), (2, 3, True), (5, 6, False), (5, 0, True)]
    places = [corners] * (batch - 1) + [[*corners[:1], (1, 1, False), *corners[2:]]]
    results = []
    for crop in (cut, gather):
        leaf = images.clone().requires_grad_(True)
        crops = crop(leaf, places, 15, 18)
        crops.square().sum().backward()
        results.append((crops.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)
    assert results[0][0].shape == (4 * batch, 3, 15, 18)
    torch.testing.assert_close(results[1][0][3], images[0, :, 5:20, 0:18].flip(-1))
