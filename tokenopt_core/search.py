"""The replacement of one token that a criterion likes best, by trying every code (paper, Section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .loss_protocols import Loss, with_generators
from .thrift import Thrift
from .tokenizer import Tokenizer

Criterion = Callable[[Tensor], Tensor]  # pictures (B, 3, H, W) -> (B,), larger is better
AT_ONCE = 32  # pictures


class L1Change:
    """How much pictures differ from one: the mean absolute difference of what is seen, (B, 3, H, W) -> (B,)."""

    def __init__(self, original: Tensor) -> None:
        self._original = original.detach().clamp(0, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return (images.clamp(0, 1) - self._original.to(images)).abs().mean((1, 2, 3))


class Wanted:
    """A loss as a criterion: what it makes small, this makes large.

    A loss that looks at random crops sees the same crops of every picture, or chance would choose among the codes.
    """

    def __init__(self, loss: Loss, seed: int = 0) -> None:
        self._loss, self._seed = loss, seed

    def __call__(self, images: Tensor) -> Tensor:
        same = [torch.Generator().manual_seed(self._seed) for _ in images]
        return -with_generators(self._loss, same)(images)


@torch.no_grad()
def search_token(
    tokenizer: Tokenizer,
    features: Tensor,
    position: int,
    criterion: Criterion | None = None,
    callback: Callable[[int], bool | None] | None = None,
    batch: int = AT_ONCE,
    thrift: Thrift | None = None,
) -> tuple[Tensor, Tensor]:
    """Every code in place of one token of one picture: code numbers (K,) and their scores (K,), best first (Eq. 2).

    features: of one picture, (1, N, D), on the tokenizer's device; the other tokens stay at their nearest codes.
    criterion: takes the decoded pictures (B, 3, H, W), not clamped, and gives (B,) where LARGER is better; None is the
        paper's, the change against the picture as it is (`L1Change`). For a loss: `Wanted(loss)`.
    callback: called after each batch with the number of codes tried so far; returning True ends the search, and what
        comes back is of the codes tried. batch: pictures decoded at once; less when memory runs short.

    Equal scores keep the codes' order; a score that is no number comes last. The picture's own code is among the
    results. Raises ValueError for a VAE, which has no codes, for more than one picture and for a position out of range.
    """
    tokens = tokenizer.lookup(tokenizer.indices(features))  # ValueError for a VAE
    if len(tokens) != 1:
        raise ValueError(f"the search is for one picture at a time, got {len(tokens)}: pick one of the batch")
    if not 0 <= position < tokenizer.num_tokens:
        raise ValueError(f"there is no token position {position}: {tokenizer} has 0 to {tokenizer.num_tokens - 1}")
    judge = criterion or L1Change(tokenizer.decode(tokens, quantize=False))
    thrift = thrift or Thrift()

    def score(codes: Tensor) -> Tensor:
        tried = tokens.expand(len(codes), -1, -1).clone()
        tried[:, position] = tokenizer.lookup(codes[:, None])[:, 0]
        scores = judge(tokenizer.decode(tried, quantize=False))
        if scores.shape != codes.shape:
            raise ValueError(
                f"a criterion gives one number a picture, ({len(codes)},), but this one gave {tuple(scores.shape)}"
            )
        return scores

    found: list[Tensor] = []
    codes = torch.arange(tokenizer.codebook_size or 0, device=tokens.device)
    for part in codes.split(batch):
        found.append(thrift.over(score, part, "the search").float())
        if callback and callback(int(part[-1]) + 1):
            break
    scores = torch.cat(found).cpu()
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    order = scores.argsort(descending=True, stable=True)
    return order, scores[order]
