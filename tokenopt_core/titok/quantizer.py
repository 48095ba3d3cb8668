"""From features to the tokens that are decoded: the nearest code, or the mean of a Gaussian."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class VectorQuantizer(nn.Module):
    """The nearest of `codes` vectors, at unit length if `l2_normalize` (van den Oord et al., 2017; TiTok, Eq. 5)."""

    def __init__(self, codes: int, dim: int, l2_normalize: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        self.l2_normalize = l2_normalize
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def normalize(self, x: Tensor) -> Tensor:
        """Unit length along the last dimension, or `x` itself where the model does not normalise."""
        return F.normalize(x, dim=-1) if self.l2_normalize else x

    def codes(self) -> Tensor:  # (K, D)
        return self.normalize(at_least_float32(self.embedding.weight))

    def indices(self, z: Tensor) -> Tensor:  # (B, N, D) -> (B, N) int64
        # float32 even under autocast: half precision picks wrong neighbours
        with torch.autocast(z.device.type, enabled=False):
            z, codes = self.normalize(at_least_float32(z)), self.codes()
            # |z - c|^2 without the (B, N, K, D) differences, and without |z|^2, on which no argmin depends
            return (codes.square().sum(1) - 2 * z @ codes.T).argmin(-1)

    def lookup(self, indices: Tensor) -> Tensor:  # (B, N) -> (B, N, D)
        return F.embedding(indices, self.codes())

    def forward(self, z: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        codes = self.lookup(self.indices(z.detach()))
        z = self.normalize(at_least_float32(z))
        return z + (codes - z).detach()


class GaussianMean(nn.Module):
    """A VAE's features are a mean and a log variance side by side; the mean is what is decoded."""

    def forward(self, z: Tensor) -> Tensor:  # (B, N, 2 D) -> (B, N, D)
        return at_least_float32(z).chunk(2, dim=-1)[0]
