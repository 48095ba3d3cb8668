"""The attention of open_clip's picture towers through the fused kernel, and nothing computed that nobody looks at."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .linear import Linear
from .titok.vit import Attention


class SelfAttention(Attention):
    """`nn.MultiheadAttention` as a vision transformer calls it: one input, no mask, no weights asked for."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        assert key is query and value is query and attn_mask is None and not need_weights
        return super().forward(query), None


class LastBlock(nn.Module):
    """A tower's last residual block where the first token alone is looked at: the others are not computed."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # (B, L, W) -> (B, 1, W)
        assert attn_mask is None
        first = slice(0, 1)
        x = x[:, first] + self.ls_1(Attention.forward(self.attn, self.ln_1(x), first))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def fuse(tower: nn.Module) -> None:
    """Replaces the attention of a picture tower's residual blocks by the same one, computed faster.

    PyTorch's module works with the sequence first: its linear layers see strided inputs, and become batched products.
    """
    transformer: Any = getattr(tower, "transformer", None)
    blocks: Any = getattr(transformer, "resblocks", ())
    for block in blocks:
        attention = getattr(block, "attn", None)
        if type(attention) is nn.MultiheadAttention and _plain(attention) and not hasattr(block, "ln_1_kv"):
            fused = SelfAttention(attention.embed_dim, attention.num_heads)
            fused.load_state_dict(attention.state_dict(), assign=True)
            block.attn = fused
            for name, layer in list(block.mlp.named_children()):
                if type(layer) is nn.Linear:
                    setattr(block.mlp, name, Linear(layer))
    # only open_clip's own tower that gives a picture's vector and takes it from the class token
    pools_first = getattr(tower, "pool_type", "") == "tok" and getattr(tower, "attn_pool", blocks) is None
    if len(blocks) > 1 and pools_first and not tower.output_tokens and type(blocks[-1].attn) is SelfAttention:
        blocks[-1] = LastBlock(blocks[-1])


def _plain(attention: nn.MultiheadAttention) -> bool:
    same = attention._qkv_same_embed_dim and attention.batch_first and not attention.add_zero_attn
    return same and attention.in_proj_bias is not None and attention.bias_k is None and not attention.dropout
