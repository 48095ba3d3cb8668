"""The tokenizer: shapes, the quantizer's arithmetic, gradients through it, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from tokenopt_core.titok.quantizer import VectorQuantizer

from .conftest import TINY, tiny_tokenizer


def quantizer(l2_normalize: bool) -> VectorQuantizer:
    vq = VectorQuantizer(3, 2, l2_normalize).double()
    vq.embedding.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -3.0]], dtype=torch.float64)
    return vq.requires_grad_(False)


def test_nearest_code_by_hand() -> None:
    z = torch.tensor([[[0.9, 0.2], [0.4, 1.5], [-1.0, -1.2]]], dtype=torch.float64)
    # squared distances: 0.05, 4.05, 25.45 of the first; 2.61, 0.41, 31.81 of the second; 5.44, 11.24, 7.24 of the third
    assert quantizer(False).indices(z).tolist() == [[0, 1, 0]]
    # at unit length the third code is (-0.71, -0.71): now the third feature (-0.64, -0.77) is nearest to it
    assert quantizer(True).indices(z).tolist() == [[0, 1, 2]]


def test_straight_through_gradient_by_hand() -> None:
    slope = torch.tensor([3.0, -2.0], dtype=torch.float64)
    z = torch.tensor([[[0.3, 0.4]]], dtype=torch.float64, requires_grad=True)
    quantized = quantizer(False)(z)
    assert quantized.tolist() == [[[1.0, 0.0]]]
    (quantized * slope).sum().backward()
    assert z.grad.tolist() == [[[3.0, -2.0]]]


def test_straight_through_gradient_of_unit_features_by_hand() -> None:
    z = torch.tensor([[[0.3, 0.4]]], dtype=torch.float64, requires_grad=True)
    (quantizer(True)(z) * torch.tensor([3.0, -2.0], dtype=torch.float64)).sum().backward()
    # the derivative of z / |z| is (1 - u u^T) / |z| with u = (0.6, 0.8), |z| = 0.5; u . slope = 0.2
    expected = torch.tensor([(3.0 - 0.6 * 0.2) / 0.5, (-2.0 - 0.8 * 0.2) / 0.5], dtype=torch.float64)
    torch.testing.assert_close(z.grad[0, 0], expected)


def test_gradient_of_a_loss_through_decoder_and_quantizer(features: torch.Tensor) -> None:
    """d loss / d features equals the central difference of the loss in the tokens that the decoder sees."""
    tokenizer = tiny_tokenizer().double()
    target = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(tokens: torch.Tensor) -> float:
        return float((tokenizer.decode(tokens, quantize=False) - target).square().sum())

    z = features.double().requires_grad_(True)
    (tokenizer.decode(z) - target).square().sum().backward()
    tokens = tokenizer.quantize(z).detach()
    step = 1e-6
    for position in range(tokens.numel()):
        shift = torch.zeros_like(tokens)
        shift.view(-1)[position] = step
        slope = (loss(tokens + shift) - loss(tokens - shift)) / (2 * step)
        assert z.grad.view(-1)[position].item() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_shapes_and_constants(tokenizer, features) -> None:
    images = torch.rand(2, 3, 8, 8)
    assert (tokenizer.image_size, tokenizer.num_tokens, tokenizer.token_dim, tokenizer.codebook_size) == (8, 3, 2, 5)
    encoded = tokenizer.encode(images)
    assert encoded.shape == (2, 3, 2)
    assert encoded.dtype == torch.float32
    assert tokenizer.decode(encoded).shape == (2, 3, 8, 8)
    indices = tokenizer.indices(features)
    assert indices.dtype == torch.int64
    torch.testing.assert_close(tokenizer.lookup(indices), tokenizer.quantize(features))
    torch.testing.assert_close(tokenizer.decode(features), tokenizer.decode(tokenizer.lookup(indices), quantize=False))


def test_a_vae_decodes_the_mean_and_has_no_codes() -> None:
    vae = tiny_tokenizer(replace(TINY, codebook_size=None))
    z = vae.encode(torch.rand(2, 3, 8, 8))
    assert z.shape == (2, 3, 4)  # means and log variances of two channels
    assert vae.codebook_size is None
    torch.testing.assert_close(vae.quantize(z), z[..., :2])
    torch.testing.assert_close(vae.decode(z), vae.decode(z[..., :2], quantize=False))
    for refused in (lambda: vae.indices(z), lambda: vae.lookup(torch.zeros(1, 3, dtype=torch.int64))):
        with pytest.raises(ValueError, match="is a VAE"):
            refused()
    with pytest.raises(ValueError, match=r"takes tokens of shape \(batch, 3, 2\)"):
        vae.decode(z, quantize=False)


def test_no_weight_of_a_loaded_tokenizer_wants_a_gradient(tokenizer) -> None:
    assert not any(p.requires_grad for p in tokenizer.parameters())


def test_half_precision_weights_keep_features_and_pictures_in_float32(tokenizer) -> None:
    exact = tokenizer.encode(torch.full((1, 3, 8, 8), 0.5))
    half = tiny_tokenizer().to(torch.bfloat16)
    encoded = half.encode(torch.full((1, 3, 8, 8), 0.5))
    assert encoded.dtype == half.decode(encoded).dtype == half.quantize(encoded).dtype == torch.float32
    torch.testing.assert_close(encoded, exact, atol=0.05, rtol=0.05)


def test_wrong_sizes_are_explained(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"takes pictures of shape \(batch, 3, 8, 8\), got \(1, 3, 16, 8\)"):
        tokenizer.encode(torch.rand(1, 3, 16, 8))
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenizer.decode(torch.rand(1, 3, 4))
    with pytest.raises(ValueError, match="codes 0 to 4, got 0 to 5"):
        tokenizer.lookup(torch.tensor([[0, 5, 1]]))


@pytest.mark.parametrize("change", [{"num_tokens": 0}, {"num_tokens": 10**9}, {"image_size": -8}, {"patch_size": 3}])
def test_impossible_configs_are_refused(change) -> None:
    with pytest.raises(ValueError, match="impossible tokenizer config"):
        replace(TINY, **change)
