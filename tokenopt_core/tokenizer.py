"""One face for every tokenizer: pictures to features, features to quantized tokens, tokens to pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import graphs
from .outside import KnownWorld
from .presets import Presets
from .titok.model import MaskgitVQGAN, TiTok
from .titok.quantizer import VectorQuantizer, at_least_float32

Statistics = tuple[Tensor, Tensor]  # mean and standard deviation of the features over real pictures, (N, D) each


class Tokenizer(nn.Module):
    """A frozen image tokenizer. Pictures are (B, 3, S, S) in [0, 1], features (B, N, D) in float32.

    S is `image_size`, N `num_tokens`, D `token_dim`; a VAE's features are (B, N, 2 D), means beside log variances.
    The weights may be in half precision: the features, the quantizer and the decoded picture stay float32.
    """

    model: TiTok | MaskgitVQGAN
    statistics: Statistics | None
    presets: Presets  # attributes by name, and the positions that carry them
    world: KnownWorld | None  # of one that knows nothing else

    def __init__(
        self,
        model: TiTok | MaskgitVQGAN,
        name: str = "",
        statistics: Statistics | None = None,
        presets: Presets | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.statistics = statistics
        self.presets = presets or {}
        self.world = None

    @property
    def image_size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.model.image_size

    @property
    def num_tokens(self) -> int:
        return self.model.num_tokens

    @property
    def token_dim(self) -> int:
        return self.model.token_dim

    @property
    def feature_dim(self) -> int:
        """Numbers a token has before quantization: `token_dim`, of a VAE twice that."""
        return self.model.feature_dim

    @property
    def codebook_size(self) -> int | None:
        """Number of codes a token is chosen from; None where tokens are continuous (VAE)."""
        return self.model.codebook_size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] -> features (B, N, D), float32, before quantization (paper, Eq. 4)."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
            raise ValueError(
                f"{self} takes pictures of shape (batch, 3, {size}, {size}), got {tuple(images.shape)}: resize or crop "
                "them first"
            )
        # in one order in memory, however they travel: sums over them would differ in the last bit
        return at_least_float32(self.model.encode(images.to(self.dtype))).contiguous()

    def quantize(self, features: Tensor) -> Tensor:
        """Features -> the nearest codes (B, N, D), with a straight-through gradient; of a VAE the mean."""
        return self.model.quantize(self.check(features))

    def indices(self, features: Tensor) -> Tensor:
        """Features -> the nearest codes' numbers (B, N), int64; ValueError for a VAE, which has no codes."""
        return self._codes().indices(self.check(features))

    def lookup(self, indices: Tensor) -> Tensor:
        """Code numbers (B, N) -> quantized tokens (B, N, D); ValueError for a VAE, which has no codes."""
        quantizer, codes = self._codes(), self.codebook_size or 0
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codes:
            raise ValueError(f"{self} has codes 0 to {codes - 1}, got {int(indices.min())} to {int(indices.max())}")
        return quantizer.lookup(indices)

    def decode(self, features: Tensor, quantize: bool = True) -> Tensor:
        """Features -> pictures (B, 3, S, S), not clamped.

        `quantize=False` ("without VQ") takes tokens (B, N, D) and decodes them as they are.
        """
        tokens = self.quantize(features) if quantize else self._check(features, self.token_dim, "tokens")
        return graphs.through(self, self._to_pictures, tokens)

    def _to_pictures(self, tokens: Tensor) -> Tensor:
        return at_least_float32(self.model.decode(tokens.to(self.dtype)))

    def check(self, features: Tensor) -> Tensor:
        """`features` themselves, or a ValueError that says what this tokenizer takes."""
        return self._check(features, self.feature_dim, "features")

    def _check(self, features: Tensor, dim: int, what: str) -> Tensor:
        if features.ndim != 3 or features.shape[1:] != (self.num_tokens, dim):
            raise ValueError(
                f"{self} takes {what} of shape (batch, {self.num_tokens}, {dim}), got {tuple(features.shape)}: they "
                "come from another tokenizer"
            )
        return features

    def _codes(self) -> VectorQuantizer:
        quantizer = self.model.quantize
        if not isinstance(quantizer, VectorQuantizer):
            raise ValueError(f"{self} is a VAE: its tokens are continuous, there are no codes to count")
        return quantizer

    def __str__(self) -> str:
        return f"tokenizer {self.name!r}" if self.name else "this tokenizer"
