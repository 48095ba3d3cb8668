"""Loading a tokenizer by name, folder or file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from . import outside
from .download import Source
from .presets import FILE, Presets, read_presets
from .titok import VARIANTS, TiTok, TiTokConfig, build, recognise, variant_of
from .tokenizer import Statistics, Tokenizer
from .weights import SUFFIXES, load_strictly, read_config, read_shapes, read_state_dict

MINI = Path(__file__).parent / "mini"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
STATISTICS = "feature_statistics.safetensors"  # "mean" and "std", (N, D) each: beside a tokenizer that has them
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name, and no path


def load_tokenizer(
    source: str | os.PathLike[str], variant: str | None = None, dtype: torch.dtype = torch.float32
) -> Tokenizer:
    """A frozen tokenizer on the CPU.

    source: "mini"; a published name ("titok_l32") or a repository of the Hugging Face hub ("owner/name"), downloaded
        into the hub's cache on first use; a folder with config.json and model.safetensors; or a lone weight file.
    variant: the published variant of a lone weight file; found out from its tensors if it is left out.
    Raises FileNotFoundError for what is not there, ValueError for what cannot be used.
    """
    path, name = Path(source), os.fspath(source)
    if name == "mini":
        return _from_folder(MINI / "tokenizer", name, dtype)
    if path.is_dir():
        return _from_folder(path, path.name, dtype)
    if path.is_file() or path.suffix in SUFFIXES:
        return _from_file(path, variant, dtype)
    if name in VARIANTS:
        return _from_folder(_snapshot(VARIANTS[name].source), name, dtype)
    if not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(
            f"unknown tokenizer {name!r}: expected mini, {', '.join(VARIANTS)}, owner/name on the Hugging Face hub, "
            "or an existing folder or weight file"
        )
    return _from_folder(_snapshot(Source(name, (CONFIG, WEIGHTS))), name, dtype)


def _from_folder(folder: Path, name: str, dtype: torch.dtype) -> Tokenizer:
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not config.is_file():
        lone = [file for file in folder.iterdir() if file.suffix in SUFFIXES]
        if len(lone) == 1:
            return _from_file(lone[0], name if name in VARIANTS else None, dtype)
        raise FileNotFoundError(f"the tokenizer folder {folder} has no {CONFIG}")
    described = read_config(config)
    try:
        titok = TiTokConfig.from_dict(described)
        model = _on_meta(titok)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error
    load_strictly(model, weights, dtype)
    tokenizer = Tokenizer(model, name)
    tokenizer.statistics = _statistics(folder / STATISTICS, (tokenizer.num_tokens, tokenizer.feature_dim))
    tokenizer.presets = _presets(folder / FILE, tokenizer.num_tokens, titok)
    tokenizer.world = outside.read_world(folder / outside.FILE)
    return tokenizer


def mini_presets() -> Presets:
    """The attributes of the shipped tokenizer, without loading it."""
    folder = MINI / "tokenizer"
    return read_presets(folder / FILE, TiTokConfig.from_dict(read_config(folder / CONFIG)).num_tokens)


def _presets(path: Path, num_tokens: int, config: TiTokConfig) -> Presets:
    """What lies beside the weights goes before what is known of the published ones."""
    published = variant_of(config)
    return read_presets(path, num_tokens) or (VARIANTS[published].presets if published else {})


def _statistics(path: Path, shape: tuple[int, int]) -> Statistics | None:
    if not path.is_file():
        return None
    if read_shapes(path) != {"mean": shape, "std": shape}:
        raise ValueError(f"{path}: expected tensors mean and std of shape {shape}")
    state = read_state_dict(path, torch.float32)
    return state["mean"], state["std"]


def _from_file(path: Path, variant: str | None, dtype: torch.dtype) -> Tokenizer:
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    shapes = read_shapes(path)
    try:
        variant = variant or recognise(shapes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        model = VARIANTS[variant].make()
    load_strictly(model, path, dtype)
    return Tokenizer(model, path.stem, presets=VARIANTS[variant].presets)


def _on_meta(config: TiTokConfig) -> TiTok:
    """A model without memory or random numbers for parameters that a file replaces."""
    with torch.device("meta"):
        return build(config)


def _snapshot(source: Source) -> Path:
    """The files in the hub's own cache, as other Python programs keep them."""
    from huggingface_hub import snapshot_download  # imported when used: it is slow to import

    try:
        return Path(snapshot_download(source.repository, allow_patterns=list(source.files)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"the tokenizer {source.repository!r} could not be downloaded ({reason}). To do it by hand, get "
            f"{' and '.join(source.files)} from {source.page} and give the folder they are in"
        ) from error
