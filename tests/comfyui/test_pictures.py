"""Pictures of every kind through the nodes that take them."""

import pytest
import torch

pytestmark = pytest.mark.comfyui


def encode(pack, titok, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features, and the picture as the tokenizer saw it."""
    return pack.run("TokenOptEncode", titok=titok, image=image)[:2]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_encode_is_that_of_plain_python(pack, titok, picture, plain_tokenizer, assert_same) -> None:
    features, cropped = encode(pack, titok, picture)
    with torch.no_grad():
        expected = plain_tokenizer.encode(picture.permute(0, 3, 1, 2))
    assert_same(features, expected)
    assert torch.equal(cropped, picture)


def test_alpha_is_dropped(pack, titok, picture) -> None:
    features, cropped = encode(pack, titok, torch.cat([picture, torch.rand_like(picture[..., :1])], -1))
    assert torch.equal(features, encode(pack, titok, picture)[0])
    assert torch.equal(cropped, picture)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_picture_with_values_that_are_no_numbers_is_refused(pack, titok, picture, value: float) -> None:
    picture = picture.clone()
    picture[0, 5, 7, 1] = value
    with pytest.raises(ValueError, match="not numbers"):
        encode(pack, titok, picture)


@pytest.mark.parametrize(
    "shape", [(64, 64, 3), (1, 64, 64), (1, 64, 64, 1), (1, 3, 64, 64), (0, 64, 64, 3), (1, 0, 5, 3)]
)
def test_wrong_shape_is_refused_with_what_came_and_what_was_expected(pack, titok, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        encode(pack, titok, torch.zeros(shape))
    assert "(batch, height, width, 3)" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (7, 65), (3000, 2000)])
def test_any_size_becomes_the_tokenizers(pack, titok, height: int, width: int) -> None:
    image = torch.full((1, height, width, 3), 0.25)
    features, cropped = encode(pack, titok, image)
    size = titok.model.image_size
    assert cropped.shape == (1, size, size, 3)
    assert_close(cropped, torch.full_like(cropped, 0.25))
    assert features.shape == (1, titok.model.num_tokens, titok.model.token_dim)


def test_the_middle_square_is_what_is_seen(pack, titok, picture) -> None:
    size = titok.model.image_size
    wide = torch.zeros(1, size, 2 * size, 3)
    wide[:, :, size // 2 : size // 2 + size] = picture
    assert torch.equal(encode(pack, titok, wide)[1], picture)
    assert torch.equal(encode(pack, titok, wide.transpose(1, 2))[1], picture.transpose(1, 2))


def test_values_outside_the_range_are_clamped_not_refused(pack, titok, picture) -> None:
    features, cropped = encode(pack, titok, picture * 3 - 1)
    assert torch.equal(cropped, (picture * 3 - 1).clamp(0, 1))
    assert torch.isfinite(features).all()


def test_batch_gives_what_single_pictures_give(pack, titok, picture) -> None:
    other = picture.flip(2)
    both = encode(pack, titok, torch.cat([picture, other]))[0]
    assert_close(both, torch.cat([encode(pack, titok, image)[0] for image in (picture, other)]))
    decoded = pack.run("TokenOptDecode", titok=titok, features=both)[0]
    assert_close(decoded[1:], pack.run("TokenOptDecode", titok=titok, features=both[1:])[0])


def test_decode_without_quantization_differs(pack, titok, picture) -> None:
    features = encode(pack, titok, picture)[0]
    quantized, plain = (
        pack.run("TokenOptDecode", titok=titok, features=features, quantize=q)[0] for q in (True, False)
    )
    assert quantized.shape == plain.shape == picture.shape
    assert not torch.equal(quantized, plain)


def test_samples_are_pictures_with_masks_of_their_subject(pack, titok) -> None:
    *names, everything = pack.classes["TokenOptSample"].GET_SCHEMA().inputs[0].options
    assert len(names) >= 4 and everything == "all"
    for name in names:
        image, mask = pack.run("TokenOptSample", name=name)
        size = titok.model.image_size
        assert image.shape == (1, size, size, 3) and mask.shape == (1, size, size), name
        assert image.std() > 0.05 and 0.02 < mask.mean() < 0.8, name
