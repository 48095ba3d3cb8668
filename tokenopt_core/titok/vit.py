"""TiTok's two vision transformers: picture -> latent tokens, and latent tokens -> picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..linear import linear
from .config import PIXEL_CODES, TiTokConfig, Transformer


class Attention(nn.Module):
    """Multi-head self-attention with `nn.MultiheadAttention`'s parameter names, through the fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, wanted: slice | None = None) -> Tensor:  # (B, L, W) -> (B, L, W)
        """What all tokens learn from all, or what only the `wanted` ones do."""
        if wanted is None:
            qkv = linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, W / heads)
        else:
            width = x.shape[-1]
            asked = linear(x[:, wanted], self.in_proj_weight[:width], self.in_proj_bias[:width])
            q = asked.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            kv = linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
            k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return linear(found, self.out_proj.weight, self.out_proj.bias)


class MLP(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(linear(x, self.c_fc.weight, self.c_fc.bias))
        return linear(hidden, self.c_proj.weight, self.c_proj.bias)


class Block(nn.Module):
    """Pre-norm residual transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, wanted: slice | None = None) -> Tensor:  # (B, L, W) -> (B, L or the wanted, W)
        x = (x if wanted is None else x[:, wanted]) + self.attn(self.ln_1(x), wanted)
        return x + self.mlp(self.ln_2(x))


def _blocks(size: Transformer) -> nn.ModuleList:
    return nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


class Encoder(nn.Module):
    """Patches and latent tokens attend to each other; the latent tokens alone come out (TiTok, Eq. 3)."""

    def __init__(self, config: TiTokConfig, feature_dim: int) -> None:
        super().__init__()
        width = config.encoder.width
        self.class_embedding = _embedding(1, width)
        self.positional_embedding = _embedding(config.grid**2 + 1, width)
        self.latent_token_positional_embedding = _embedding(config.num_tokens, width)
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _blocks(config.encoder)
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, feature_dim, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:  # (B, 3, S, S), (N, W) -> (B, N, D)
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(len(images), -1, -1)
        patches = torch.cat([start, patches], 1) + self.positional_embedding
        latents = (latent_tokens + self.latent_token_positional_embedding).expand(len(images), -1, -1)
        x = self.ln_pre(torch.cat([patches, latents], 1))
        for block in self.transformer:
            x = block(x)
        channels = self.to_channels(self.ln_post(x[:, patches.shape[1] :]))
        return self.conv_out(channels.unsqueeze(-1)).squeeze(-1).transpose(1, 2)

    def to_channels(self, latents: Tensor) -> Tensor:  # (B, N, W) -> (B, W, N)
        return latents.transpose(1, 2)


class TwoStageEncoder(Encoder):
    """The encoder of the first published models."""

    def to_channels(self, latents: Tensor) -> Tensor:
        # these were trained with a reshape where a transposition was meant, and their weights fit only that
        return latents.reshape(len(latents), latents.shape[2], latents.shape[1])


class Decoder(nn.Module):
    """Tokens and mask tokens attend to each other; the mask tokens become RGB patches (TiTok, Eq. 4)."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.grid, self.patch = config.grid, config.patch_size
        self.class_embedding = _embedding(1, width)
        self.positional_embedding = _embedding(config.grid**2 + 1, width)
        self.mask_token = _embedding(1, 1, width)
        self.latent_token_positional_embedding = _embedding(config.num_tokens, width)
        self.decoder_embed = nn.Linear(config.token_dim, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _blocks(config.decoder)
        self.ln_post = nn.LayerNorm(width)
        self._make_head(width)

    def _make_head(self, width: int) -> None:
        self.ffn = nn.Sequential(nn.Conv2d(width, 3 * self.patch**2, 1))
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, 3, S, S)
        x = self.decoder_embed(tokens) + self.latent_token_positional_embedding
        masks = self.mask_token.expand(len(x), self.grid**2, -1)
        start = self.class_embedding.expand(len(x), -1, -1)
        masks = torch.cat([start, masks], 1) + self.positional_embedding
        x = self.ln_pre(torch.cat([masks, x], 1))
        for block in self.transformer[:-1]:
            x = block(x)
        # the last block need not compute what nobody looks at: of a small decoder's tokens that is half
        patches = self.ln_post(self.transformer[-1](x, slice(1, self.grid**2 + 1)))
        return self.head(patches.transpose(1, 2).unflatten(-1, (self.grid, self.grid)))

    def head(self, patches: Tensor) -> Tensor:  # (B, W, grid, grid) -> (B, 3, S, S)
        x = self.ffn(patches).unflatten(1, (self.patch, self.patch, 3))  # (B, row, column, 3, grid, grid)
        return self.conv_out(x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3))


class CodeDecoder(Decoder):
    """The decoder of the two-stage models: the mask tokens become scores of the MaskGIT-VQGAN's codes."""

    def _make_head(self, width: int) -> None:
        self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, PIXEL_CODES, 1))

    def head(self, patches: Tensor) -> Tensor:  # (B, W, grid, grid) -> (B, 1024, grid, grid)
        return self.ffn(patches)
