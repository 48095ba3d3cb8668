"""The tokenizers of the paper, each with the parameter names and shapes of its published checkpoint.

All of them: `encode` pictures (B, 3, S, S) to features (B, N, F), `quantize` features to tokens (B, N, D), `decode`
tokens to pictures. F is D, except for a VAE, whose features hold a mean and a log variance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import TiTokConfig
from .maskgit import GridConfig, PixelDecoder, PixelEncoder
from .quantizer import GaussianMean, VectorQuantizer
from .vit import CodeDecoder, Decoder, Encoder, TwoStageEncoder


class TiTok(nn.Module):
    """TiTok with a vector quantizer and RGB patches: BL-64, BL-128, SL-256, mini (Yu et al., arXiv 2406.07550)."""

    encoder_type: type[Encoder] = Encoder
    decoder_type: type[Decoder] = Decoder

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.image_size, self.num_tokens = config.image_size, config.num_tokens
        self.token_dim, self.codebook_size = config.token_dim, config.codebook_size
        self.feature_dim = self._feature_dim(config)
        width = config.encoder.width
        self.latent_tokens = nn.Parameter(torch.randn(config.num_tokens, width) * width**-0.5)
        self.encoder = self.encoder_type(config, self.feature_dim)
        self.decoder = self.decoder_type(config)
        self.quantize = self._quantizer(config)

    def _feature_dim(self, config: TiTokConfig) -> int:
        return config.token_dim

    def _quantizer(self, config: TiTokConfig) -> nn.Module:
        assert config.codebook_size is not None
        return VectorQuantizer(config.codebook_size, config.token_dim, config.l2_normalize)

    def encode(self, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, N, F)
        return self.encoder(images, self.latent_tokens)

    def decode(self, tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, 3, S, S)
        return self.decoder(tokens)


class VaeTiTok(TiTok):
    """TiTok with continuous tokens: LL-32, BL-64, BL-128 VAE."""

    def _feature_dim(self, config: TiTokConfig) -> int:
        return 2 * config.token_dim

    def _quantizer(self, config: TiTokConfig) -> nn.Module:
        return GaussianMean()


class TwoStageTiTok(TiTok):
    """TiTok that decodes through the MaskGIT-VQGAN: L-32, B-64, S-128."""

    encoder_type, decoder_type = TwoStageEncoder, CodeDecoder

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__(config)
        pixels = GridConfig()
        self.pixel_quantize = VectorQuantizer(pixels.codebook_size, pixels.token_dim)
        self.pixel_decoder = PixelDecoder(pixels)

    def decode(self, tokens: Tensor) -> Tensor:
        # a softmax over the codes and their mean by it, where a choice would have no gradient
        shares = self.decoder(tokens).softmax(1)
        pixels = torch.einsum("bkhw,kd->bdhw", shares, self.pixel_quantize.embedding.weight)
        return self.pixel_decoder(pixels.contiguous(memory_format=torch.channels_last))  # convolutions are faster so


class MaskgitVQGAN(nn.Module):
    """The 2D baseline: each of its tokens, 16 x 16 as published, stands for one place of the picture (Table 3)."""

    def __init__(self, config: GridConfig | None = None) -> None:
        super().__init__()
        config = config or GridConfig()
        self.grid = config.grid
        self.image_size, self.num_tokens = config.image_size, config.grid**2
        self.token_dim = self.feature_dim = config.token_dim
        self.codebook_size = config.codebook_size
        self.encoder, self.decoder = PixelEncoder(config), PixelDecoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.token_dim, config.l2_normalize)

    def encode(self, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, N, D), row by row
        return self.encoder(images).flatten(2).transpose(1, 2)

    def decode(self, tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, 3, S, S)
        return self.decoder(tokens.transpose(1, 2).unflatten(-1, (self.grid, self.grid)))


def build(config: TiTokConfig) -> TiTok:
    """The model that a config describes, with fresh weights."""
    if config.two_stage:
        return TwoStageTiTok(config)
    return VaeTiTok(config) if config.codebook_size is None else TiTok(config)
