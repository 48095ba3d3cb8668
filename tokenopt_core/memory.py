"""How much memory a run takes beside the models' weights: arithmetic on their shapes, calibrated by measurement.

Weights are frozen, so a linear layer keeps nothing for the backward pass; attention, activations and norms keep what
went into them, and a convolution keeps its input whether it needs it or not. tests/core/test_memory.py holds the
numbers below against what autograd keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .attention import LastBlock
from .clip import Clip
from .loss_protocols import Loss
from .losses import Similarity
from .titok.maskgit import PixelDecoder, PixelEncoder
from .titok.model import TwoStageTiTok
from .titok.vit import Decoder, Encoder
from .tokenizer import Tokenizer

MARGIN = 1.1  # on all: blocks of the allocator that are partly empty, and work space of the device's libraries
NORMS = 2  # numbers per token and channel that a transformer block's two norms keep: their inputs
ATTENTION = 4  # and that its attention keeps: queries, keys, values and what comes out
PASSING = 3  # that come and go beside them, in units of the channels inside the block and outside of it
PICTURE = (
    12  # numbers a pixel of the tokenizer's picture keeps, and as many that pass: clamped, compared, differentiated
)
CROP = 8  # numbers a pixel of a CLIP's picture costs: cropped, resized and normalised
# numbers per pixel and root of the weights (in millions) that other image towers keep at most: of open_clip's, ResNets
# keep 80 to 115, ConvNeXts 65, MobileCLIPs 100 to 190, ViTamins 170
OTHER_TOWERS = 190


@dataclass(frozen=True)
class Footprint:
    """What one picture costs on its way through a model, in numbers of one dtype or another."""

    arithmetic: float = 0  # kept for the backward pass, in the dtype of the arithmetic
    norms: float = 0  # kept, in float32 where autocast is at work
    passing: float = 0  # at hand only while one layer is computed or differentiated
    weights: int = 0  # of the layers that are passed

    def __add__(self, after: Footprint) -> Footprint:
        return Footprint(
            self.arithmetic + after.arithmetic,
            self.norms + after.norms,
            max(self.passing, after.passing),
            self.weights + after.weights,
        )


def views(losses: Iterable[Loss]) -> list[tuple[Clip, int]]:
    """Which CLIPs look at how many pictures for each that is decoded."""
    return [(loss._clip[0], max(1, loss.crops)) for loss in losses if isinstance(loss, Similarity)]


def optimize_bytes(
    tokenizer: Tokenizer, watching: Iterable[tuple[Clip, int]], batch: int, dtype: torch.dtype = torch.float32
) -> int:
    """What one iteration takes at its peak: all that autograd keeps, and what passes beside it.

    watching: each CLIP and its number of crops, see `views`. dtype: what is computed in, `OptimizeConfig.precision`.
    """
    costs = [_bytes(decoder(tokenizer), batch, tokenizer.dtype, dtype)]
    costs += [_bytes(tower(clip), batch * crops, clip.dtype, dtype) for clip, crops in watching]
    # one layer of one model is computed at a time
    return math.ceil(MARGIN * (sum(kept for kept, _ in costs) + max(passing for _, passing in costs)))


def forward_bytes(model: Tokenizer | Clip, batch: int) -> int:
    """What encoding, decoding or embedding takes at its peak where nothing is kept for a backward pass."""
    parts = (encoder(model), decoder(model)) if isinstance(model, Tokenizer) else (tower(model),)
    return math.ceil(MARGIN * batch * max(part.passing for part in parts) * model.dtype.itemsize)


def _bytes(part: Footprint, batch: int, weights: torch.dtype, compute: torch.dtype) -> tuple[float, float]:
    """Kept and passing bytes of a batch; float32 arithmetic means the dtype of the weights, see `optimize`."""
    if compute is torch.float32:
        return batch * (part.arithmetic + part.norms) * weights.itemsize, batch * part.passing * weights.itemsize
    # autocast: norms run in float32, and weights of another dtype are cast each time they are used
    cast = 0 if weights is compute else part.weights
    kept = (batch * part.arithmetic + cast) * compute.itemsize + batch * part.norms * 4
    return kept, batch * part.passing / 2 * (compute.itemsize + 4)


def encoder(tokenizer: Tokenizer) -> Footprint:
    """A tokenizer's way from a picture to its features."""
    model: Any = tokenizer.model
    side = tokenizer.image_size
    if isinstance(model.encoder, PixelEncoder):
        return Footprint(passing=_widest(model.encoder) * side**2) + _picture(side)
    return _titok(model.encoder, tokenizer) + _picture(side)


def decoder(tokenizer: Tokenizer) -> Footprint:
    """A tokenizer's way from features to a picture, and the losses that compare pixels."""
    model: Any = tokenizer.model
    side = tokenizer.image_size
    if isinstance(model.decoder, PixelDecoder):
        return _pixel_decoder(model.decoder, model.grid) + _picture(side)
    made = _titok(model.decoder, tokenizer) + _picture(side)
    return made + _pixel_decoder(model.pixel_decoder, model.decoder.grid) if isinstance(model, TwoStageTiTok) else made


def tower(clip: Clip) -> Footprint:
    """A CLIP's way from a picture to its vector."""
    visual = clip.model.visual
    pixels = clip.image_size**2
    weights = sum(p.numel() for p in visual.parameters())
    shape = _transformer_of(visual)
    if shape is None:
        numbers = OTHER_TOWERS * math.sqrt(weights / 1e6) * pixels
        return Footprint(numbers, passing=numbers / 20, weights=weights)
    return _transformer(*shape, weights) + Footprint(CROP * pixels)


def _transformer_of(visual: nn.Module) -> tuple[int, int, int, int, float] | None:
    """Layers, tokens, those the last layer computes, width and kept hidden numbers of open_clip's or timm's vision
    transformer; None of another."""
    module: Any = visual
    try:
        if hasattr(module, "trunk"):
            trunk = module.trunk
            tokens = trunk.patch_embed.num_patches + trunk.num_prefix_tokens
            extra = 2 * trunk.embed_dim if getattr(trunk, "rope", None) is not None else 0  # turned queries and keys
            return len(trunk.blocks), tokens, tokens, trunk.embed_dim, trunk.blocks[0].mlp.fc1.out_features + extra
        blocks = module.transformer.resblocks
        tokens, width = module.positional_embedding.shape
        mlp = blocks[0].mlp
        products = 2 if type(mlp.gelu).__name__ == "QuickGELU" else 1  # x * sigmoid(1.7 x) keeps both factors
        last = 1 if isinstance(blocks[-1], LastBlock) else tokens
        return len(blocks), tokens, last, width, products * mlp.c_fc.out_features
    except AttributeError:
        return None


def _titok(part: Encoder | Decoder, tokenizer: Tokenizer) -> Footprint:
    places, width = part.positional_embedding.shape
    first: Any = part.transformer[0]
    weights = sum(p.numel() for p in part.parameters())
    hidden = first.mlp.c_fc.out_features
    tokens = places + tokenizer.num_tokens
    last = places - 1 if isinstance(part, Decoder) else tokens
    return _transformer(len(part.transformer), tokens, last, width, hidden, weights)


def _transformer(layers: int, tokens: int, last: int, width: int, hidden: float, weights: int) -> Footprint:
    """last: tokens that the last layer computes; all have keys and values there."""
    others = tokens - last
    return Footprint(
        arithmetic=layers * tokens * (ATTENTION * width + hidden) - others * (ATTENTION / 2 * width + hidden),
        # the last layer's head counts as a layer more
        norms=(layers + 1) * tokens * NORMS * width - others * 1.5 * NORMS * width,
        passing=PASSING * tokens * (width + hidden),
        weights=weights,
    )


def _pixel_decoder(part: PixelDecoder, grid: int) -> Footprint:
    """The VQGAN's convolutions: each keeps its input, and a norm the input of its own and that of the SiLU after it."""
    kept, side = _convolutions(part.mid, grid), grid
    level: Any
    for level in reversed(part.up):
        kept += _convolutions(level.block, side)
        if level.upsample_conv is not None:
            side *= 2
            kept += _convolutions(level.upsample_conv, side)
    last = _convolutions(part.conv_out, side) + _convolutions(part.norm_out, side)
    passing = Footprint(passing=_widest(part) * side**2)
    return kept + last + passing


def _convolutions(part: nn.Module, side: int) -> Footprint:
    inputs = sum(m.in_channels for m in part.modules() if isinstance(m, nn.Conv2d))
    norms = sum(2 * m.num_channels for m in part.modules() if isinstance(m, nn.GroupNorm))
    weights = sum(p.numel() for p in part.parameters())
    return Footprint(inputs * side**2, norms * side**2, weights=weights)


def _widest(part: PixelEncoder | PixelDecoder) -> int:
    """Numbers a pixel of the full size has at once: a block's input and output, normed, activated and convolved."""
    ends = part.conv_in.out_channels if isinstance(part, PixelEncoder) else part.conv_out.in_channels
    return 5 * ends


def _picture(side: int) -> Footprint:
    return Footprint(PICTURE * side**2, passing=PICTURE * side**2)
