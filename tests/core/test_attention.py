"""Attention of open_clip's picture towers, replaced: the same numbers, the same names of weights."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch

from tokenopt_core.attention import LastBlock, SelfAttention, fuse

SMALL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}


def made(**more: Any) -> open_clip.CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(16, SMALL | more, TEXT).eval()


@pytest.mark.parametrize("more", [{}, {"ls_init_value": 0.1}, {"pool_type": "avg"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pictures_and_gradients_are_the_same(more, dtype) -> None:
    plain = made(**more).to(dtype)
    fused = copy.deepcopy(plain)
    fuse(fused.visual)
    blocks = fused.visual.transformer.resblocks
    assert isinstance(blocks[-1], LastBlock) == ("pool_type" not in more)
    assert all(type(block.attn) is SelfAttention for block in blocks)
    assert {k: v.shape for k, v in fused.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    images = torch.rand(3, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))
    results = []
    for model in (plain, fused):
        x = images.clone().requires_grad_(True)
        embedded = model.encode_image(x)
        (gradient,) = torch.autograd.grad(embedded.square().sum(), x)
        results.append((embedded, gradient))
    torch.testing.assert_close(results[1], results[0])


def test_the_text_tower_keeps_its_mask_and_other_kinds_their_own_attention() -> None:
    model = made()
    fuse(model.visual)
    assert type(model.transformer.resblocks[0].attn) is torch.nn.MultiheadAttention
    pooled = made(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2)
    fuse(pooled.visual)
    assert type(pooled.visual.attn_pool.attn) is torch.nn.MultiheadAttention
    assert pooled.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 16)
    resnet = made(layers=(1, 1, 1, 1), width=8, image_size=64)
    fuse(resnet.visual)
    assert resnet.encode_image(torch.rand(1, 3, 64, 64)).shape == (1, 16)
