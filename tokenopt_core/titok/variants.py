"""The published checkpoints: what they are called, where they lie, what their tensors look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from ..download import Source
from .config import SIZES, TiTokConfig, Transformer
from .model import MaskgitVQGAN, TiTok, build


@dataclass(frozen=True)
class Variant:
    """One published tokenizer."""

    make: Callable[[], TiTok | MaskgitVQGAN]
    source: Source
    presets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # attribute -> positions that carry it


def _variant(name: str, config: TiTokConfig) -> Variant:
    files = ("config.json", "model.safetensors")
    source = Source(f"yucornetto/tokenizer_{name}_imagenet", files)
    return Variant(partial(build, config), source, _PRESETS.get(name, {}))


def _two_stage(size: str, tokens: int) -> TiTokConfig:
    transformer = Transformer(*SIZES[size])
    return TiTokConfig(256, tokens, 12, 4096, transformer, transformer, l2_normalize=True, two_stage=True)


def _direct(encoder: str, tokens: int, dim: int, codes: int | None) -> TiTokConfig:
    return TiTokConfig(256, tokens, dim, codes, Transformer(*SIZES[encoder]), Transformer(*SIZES["large"]))


_TITOK = {
    "titok_l32": _two_stage("large", 32),
    "titok_b64": _two_stage("base", 64),
    "titok_s128": _two_stage("small", 128),
    "titok_bl64_vq8k": _direct("base", 64, 64, 8192),
    "titok_bl128_vq8k": _direct("base", 128, 64, 8192),
    "titok_sl256_vq8k": _direct("small", 256, 64, 8192),
    "titok_ll32_vae_c16": _direct("large", 32, 16, None),
    "titok_bl64_vae_c16": _direct("base", 64, 16, None),
    "titok_bl128_vae_c16": _direct("base", 128, 16, None),
}
# found by eye in the paper (Figures 2 and 3)
_PRESETS = {
    "titok_l32": {
        "background blur": (18,),
        "colourisation": (12, 24, 27),
        "lighting": (31,),
        "pose": (21,),
        "sharpening": (12,),
    }
}
VARIANTS = {name: _variant(name, config) for name, config in _TITOK.items()} | {
    "maskgit_vqgan": Variant(MaskgitVQGAN, Source("fun-research/TiTok", ("maskgit-vqgan-imagenet-f16-256.bin",)))
}


def variant_of(config: TiTokConfig) -> str | None:
    """The published variant that has this config, if there is one."""
    return next((name for name, published in _TITOK.items() if published == config), None)


def signature(name: str) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of a published checkpoint."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in VARIANTS[name].make().state_dict().items()}


def recognise(found: Mapping[str, tuple[int, ...]]) -> str:
    """The variant that tensors of these names and shapes belong to; ValueError if none or several fit."""
    signatures = {name: signature(name) for name in VARIANTS}
    exact = [name for name, expected in signatures.items() if expected == found]
    if len(exact) == 1:
        return exact[0]
    # files with a few tensors too many or too few: name those that share the most
    shared = {name: len(expected.items() & found.items()) for name, expected in signatures.items()}
    best = max(shared.values())
    candidates = exact or [name for name, count in shared.items() if count == best and best > len(found) // 2]
    if not candidates:
        raise ValueError("its tensors are those of no published tokenizer: give a folder with its config.json")
    raise ValueError(f"its tensors may be those of {' or '.join(candidates)}: say which, variant=...")
