"""TiTok with a vector quantizer and a decoder that puts out RGB patches (BL-64, BL-128, SL-256 and mini)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import TiTokConfig
from .quantizer import VectorQuantizer
from .vit import Decoder, Encoder


class TiTok(nn.Module):
    """Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation" (2024); published parameter names."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder.width
        self.latent_tokens = nn.Parameter(torch.randn(config.num_tokens, width) * width**-0.5)
        self.encoder = Encoder(config, out_dim=config.token_dim)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.token_dim, config.l2_normalize)

    def encode(self, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, N, D)
        return self.encoder(images, self.latent_tokens)

    def decode(self, tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, 3, S, S)
        return self.decoder(tokens)
