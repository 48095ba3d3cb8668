"""One face for every tokenizer: pictures to features, features to quantized tokens, tokens to pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .titok import TiTok
from .titok.quantizer import at_least_float32


class Tokenizer(nn.Module):
    """A frozen image tokenizer. Pictures are (B, 3, S, S) in [0, 1], features (B, N, D) in float32.

    S is `image_size`, N `num_tokens`, D `token_dim`. The weights may be in half precision: the features, the
    quantizer and the decoded picture stay float32.
    """

    def __init__(self, model: TiTok, name: str = "") -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.name = name

    @property
    def image_size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.model.config.image_size

    @property
    def num_tokens(self) -> int:
        return self.model.config.num_tokens

    @property
    def token_dim(self) -> int:
        return self.model.config.token_dim

    @property
    def codebook_size(self) -> int | None:
        """Number of codes a token is chosen from; None where tokens are continuous."""
        return self.model.config.codebook_size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.latent_tokens.dtype

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] -> features (B, N, D), float32, before quantization (paper, Eq. 4)."""
        size = (3, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != size or not len(images):
            raise ValueError(f"{self} takes pictures of shape (batch, {size[0]}, {size[1]}, {size[2]}), got "
                             f"{tuple(images.shape)}: resize or crop them first")  # fmt: skip
        return at_least_float32(self.model.encode(images.to(self.dtype)))

    def quantize(self, features: Tensor) -> Tensor:
        """Features (B, N, D) -> the nearest codes (B, N, D), with a straight-through gradient."""
        return self.model.quantize(self.check(features))

    def indices(self, features: Tensor) -> Tensor:
        """Features (B, N, D) -> the nearest codes' numbers (B, N), int64."""
        return self.model.quantize.indices(self.check(features))

    def lookup(self, indices: Tensor) -> Tensor:
        """Code numbers (B, N) -> quantized tokens (B, N, D)."""
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.model.config.codebook_size:
            raise ValueError(f"{self} has codes 0 to {self.model.config.codebook_size - 1}, got "
                             f"{int(indices.min())} to {int(indices.max())}")  # fmt: skip
        return self.model.quantize.lookup(indices)

    def decode(self, features: Tensor, quantize: bool = True) -> Tensor:
        """Features (B, N, D) -> pictures (B, 3, S, S), not clamped; `quantize=False` decodes them as they are."""
        tokens = self.quantize(features) if quantize else self.check(features)
        return at_least_float32(self.model.decode(tokens.to(self.dtype)))

    def check(self, features: Tensor) -> Tensor:
        """`features` themselves, or a ValueError that says what this tokenizer takes."""
        if features.ndim != 3 or features.shape[1:] != (self.num_tokens, self.token_dim):
            raise ValueError(
                f"{self} takes features of shape (batch, {self.num_tokens}, {self.token_dim}), got "
                f"{tuple(features.shape)}: they come from another tokenizer"
            )
        return features

    def __str__(self) -> str:
        return f"tokenizer {self.name!r}" if self.name else "this tokenizer"
