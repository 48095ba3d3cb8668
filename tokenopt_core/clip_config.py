"""What the open_clip_config.json in a CLIP's folder may ask for.

open_clip builds what such a file says, and hands parts of it to timm and transformers, which can fetch models from the
network and run code that lies beside them. A folder comes from anywhere, so only what shapes a model is let through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .weights import Shapes, read_config

NAME = "open_clip_config.json"
TIMM_NAME = re.compile(r"\w[\w.]*")  # of its own models: with a colon or a slash it would be a place to fetch one from

# Limits on numbers: far above any published model, far below what would exhaust a machine.
LIMIT = 16_384
WORDS = 1_048_576
LIMITS = {"vocab_size": WORDS, "eos_id": WORDS, "pad_id": WORDS, "layers": 256, "image_size": 4096,
          "context_length": 4096}  # fmt: skip

# what may stand in the dictionaries that open_clip hands on as arguments
_ARGUMENTS = {
    "norm_kwargs": {"eps"},
    "act_kwargs": {"approximate"},
    "tokenizer_kwargs": {"clean", "strip_sep_token"},
}


def read(folder: Path) -> dict[str, Any]:
    """The config of a folder; ValueError if it asks for more than a model of a sensible size."""
    path = folder / NAME
    config = read_config(path)
    try:
        _check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _check(config: Mapping[str, Any]) -> None:
    model = _part(config, "model_cfg")
    text, vision = _part(model, "text_cfg"), _part(model, "vision_cfg")
    if not text or not vision:
        raise ValueError("it describes no text tower or no picture tower: no config of a CLIP")
    for part in (model, text, vision, _part(model, "multimodal_cfg")):
        for key, value in part.items():
            if isinstance(value, dict) and key not in ("text_cfg", "vision_cfg", "multimodal_cfg"):
                _check_arguments(key, value)
            else:
                _check_value(key, value)
    if text.get("hf_model_name"):
        raise ValueError(
            f"its text tower {str(text['hf_model_name'])[:80]!r} would be fetched from the network, which a folder "
            "must not ask for: load it in Python by its open_clip name, or choose another CLIP"
        )
    timm = vision.get("timm_model_name")
    if timm is not None and not (isinstance(timm, str) and TIMM_NAME.fullmatch(timm)):
        raise ValueError(f"timm_model_name must be the name of one of timm's models, got {str(timm)[:80]!r}")
    _check_normalisation(_part(config, "preprocess_cfg"))


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = config.get(key, {})
    if not isinstance(part, dict):
        raise ValueError(f"{key} must be an object, got {str(part)[:40]!r}")
    return part


def _check_arguments(key: str, value: Mapping[str, Any]) -> None:
    surplus = value.keys() - _ARGUMENTS.get(key, set())
    if surplus:
        raise ValueError(f"{key} may not hold {min(surplus)[:80]!r}: it is no part of a model's shape")
    for inner, entry in value.items():
        if isinstance(entry, (dict, list)):
            raise ValueError(f"{inner} in {key} must be a single value")


def _check_value(key: str, value: Any) -> None:
    limit = LIMITS.get(key, LIMIT)
    if isinstance(value, list):
        if len(value) > 8:
            raise ValueError(f"{key[:40]} has {len(value)} entries")
        for entry in value:
            _check_value(key, entry)
    elif isinstance(value, (int, float)) and not -limit <= value <= limit:
        raise ValueError(f"impossible: {key[:40]} is {str(value)[:20]}, expected at most {limit}")


def _check_normalisation(config: Mapping[str, Any]) -> None:
    for key in ("mean", "std"):
        values = config.get(key)
        numbers = isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) for v in values)
        if values is not None and not (numbers and all(math.isfinite(v) and abs(v) < 100 for v in values)):
            raise ValueError(f"{key} must be three numbers, got {str(values)[:40]!r}")
    if config.get("std") is not None and min(config["std"]) <= 0:
        raise ValueError(f"std must be above 0, got {config['std']}")


def check_size(config: Mapping[str, Any], weights: Shapes, source: str) -> None:
    """ValueError if the model is much larger than its weight file, before memory is taken for it."""
    needed = _parameters(config["model_cfg"])
    there = sum(math.prod(shape) for shape in weights.values())
    if needed > 2 * there + 10**6:  # position embeddings may be stretched
        raise ValueError(f"{source}: the config describes {needed:,} numbers, the weight file holds {there:,}")


def _parameters(model: Mapping[str, Any]) -> int:
    """How many numbers a model has, found without memory for them."""
    import open_clip

    vision = {**model["vision_cfg"], "timm_model_pretrained": False}  # which would be a download
    model = {**model, "vision_cfg": vision}
    kind = open_clip.CustomTextCLIP if model.pop("custom_text", False) else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in model else kind
    try:
        with torch.device("meta"):
            built = kind(**model)
    except RuntimeError:
        if not vision.get("timm_model_name"):
            raise
        # earlier versions of timm cannot build without memory; then its part, whose size its name fixes, is left out
        small = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}
        with torch.device("meta"):
            built = kind(**{**model, "vision_cfg": small})
    return sum(parameter.numel() for parameter in built.parameters())
