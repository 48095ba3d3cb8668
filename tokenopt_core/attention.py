"""Self-attention in open_clip's picture towers through the fused kernel, without the detours of PyTorch's module."""

from __future__ import annotations

from torch import Tensor, nn

from .titok.vit import Attention


class SelfAttention(Attention):
    """`nn.MultiheadAttention` as a vision transformer calls it: one input, no mask, no weights asked for."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        assert key is query and value is query and attn_mask is None and not need_weights
        return super().forward(query), None


def fuse(tower: nn.Module) -> None:
    """Replaces the attention of a picture tower's residual blocks by the same one, computed faster.

    PyTorch's module works with the sequence first: its linear layers see strided inputs, and become batched products.
    """
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    for block in blocks:
        attention = getattr(block, "attn", None)
        if type(attention) is nn.MultiheadAttention and _plain(attention) and not hasattr(block, "ln_1_kv"):
            fused = SelfAttention(attention.embed_dim, attention.num_heads)
            fused.load_state_dict(attention.state_dict(), assign=True)
            block.attn = fused


def _plain(attention: nn.MultiheadAttention) -> bool:
    same = attention._qkv_same_embed_dim and attention.batch_first and not attention.add_zero_attn
    return same and attention.in_proj_bias is not None and attention.bias_k is None and not attention.dropout
