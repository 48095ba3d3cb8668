"""The optimization as it was published: the baseline that speed is measured against, and no part of the product.

Weights are left requiring a gradient, so that theirs are computed, too; attention is `nn.MultiheadAttention`; the crops
go through CLIP one after the other; every iteration waits for the loss's value.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokenopt_core as to
from tokenopt_core.attention import LastBlock, SelfAttention
from tokenopt_core.titok.vit import Attention, Block


class PlainAttention(nn.Module):
    """PyTorch's own module, called as the tokenizer calls its attention."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width = attention.out_proj.in_features
        self.attention = nn.MultiheadAttention(width, attention.heads, batch_first=True).to(attention.out_proj.weight)
        self.attention.load_state_dict(attention.state_dict())

    def forward(self, x: Tensor, wanted: slice | None = None) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class WholeBlock(nn.Module):
    """A last block that computes every token, whoever looks at it."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = block.ln_1, PlainAttention(block.attn), block.ln_2, block.mlp
        self.ls_1, self.ls_2 = (getattr(block, name, nn.Identity()) for name in ("ls_1", "ls_2"))

    def forward(self, x: Tensor, wanted: slice = slice(None), attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x)))
        return (x + self.ls_2(self.mlp(self.ln_2(x))))[:, wanted]


def plain_model(model: nn.Module) -> nn.Module:
    """A copy with PyTorch's own attention, its weights requiring a gradient."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (Block, LastBlock)):
                setattr(module, name, WholeBlock(child))
            elif isinstance(child, SelfAttention) and not isinstance(module, (WholeBlock, LastBlock)):
                setattr(module, name, PlainAttention(child).attention)
    return model.requires_grad_(True)


def random_crops(images: Tensor, count: int, generators: Sequence[torch.Generator]) -> list[Tensor]:
    """The product's random places, cut out one after the other: so many views (B, 3, h, w) of all pictures."""
    height, width = (round(0.875 * side) for side in images.shape[-2:])
    crops = []
    for image, generator in zip(images, generators, strict=True):
        for down, along, mirror in torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist():
            y, x = int(down * (image.shape[-2] - height + 1)), int(along * (image.shape[-1] - width + 1))
            crop = image[:, y : y + height, x : x + width]
            crops.append(crop.flip(-1) if mirror < 0.5 else crop)
    return [torch.stack(crops[i::count]) for i in range(count)]


def optimize(
    tokenizer: to.Tokenizer,
    features: Tensor,
    clip: to.Clip,
    prompt: str,
    config: to.OptimizeConfig,
    crops: int,
    see: Callable[[Tensor], object] = lambda averaged: None,
) -> tuple[Tensor, list[float]]:
    """The published loop on plain models: averaged features (B, N, D) and the loss of each iteration.

    see: is shown the averaged features after each iteration.
    """
    text = clip.embed_text([prompt])
    generators = [torch.Generator().manual_seed(config.seed + i) for i in range(len(features))]
    z = features.clone().requires_grad_(True)
    adam, average = torch.optim.Adam([z], lr=config.learning_rate), features.clone()
    dtype = torch.float32 if config.precision == "auto" else getattr(torch, config.precision)
    scaler = torch.amp.GradScaler(z.device.type, enabled=dtype is torch.float16)
    losses = []
    for i in range(config.iterations):
        with torch.autocast(z.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            images = tokenizer.decode(z)
            views = random_crops(images, crops, generators)
            similarity = torch.stack([F.cosine_similarity(clip.embed_image(view), text) for view in views])
        loss = -similarity.mean(0).sum()
        adam.zero_grad()
        for model in (tokenizer, clip):
            model.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        with torch.no_grad():
            decay = config.ema_decay if i else 0.0
            average = decay * average + (1 - decay) * z
        see(average)
        losses.append(loss.item())
    with torch.no_grad():
        tokenizer.decode(average)  # the result, as the published loop ends
    return average.detach(), losses
