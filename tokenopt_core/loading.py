"""Loading a tokenizer by name, folder or file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from .titok import VARIANTS, TiTok, TiTokConfig
from .tokenizer import Tokenizer
from .weights import SUFFIXES, load_strictly, read_state_dict

MINI = Path(__file__).parent / "mini"

# name in this project -> repository on the Hugging Face hub, each with config.json and model.safetensors
PUBLISHED = {name: f"yucornetto/tokenizer_{name}_imagenet" for name in VARIANTS}


def load_tokenizer(
    source: str | os.PathLike[str], variant: str | None = None, dtype: torch.dtype = torch.float32
) -> Tokenizer:
    """A frozen tokenizer on the CPU.

    source: "mini"; a published name ("titok_bl64_vq8k") or any repository of the Hugging Face hub ("owner/name",
        downloaded on first use); a folder with config.json and model.safetensors; or a lone weight file.
    variant: the published variant of a lone weight file, which has no config.
    Raises FileNotFoundError for what is not there, ValueError for what cannot be used.
    """
    path, name = Path(source), os.fspath(source)
    if name == "mini":
        return _from_folder(MINI / "tokenizer", name, dtype)
    if path.is_dir():
        return _from_folder(path, path.name, dtype)
    if path.is_file() or path.suffix in SUFFIXES:
        return _from_file(path, variant, dtype)
    repository = PUBLISHED.get(name, name)
    if repository.count("/") != 1 or repository.startswith((".", "/")) or path.is_absolute():
        raise FileNotFoundError(
            f"unknown tokenizer {name!r}: expected mini, {', '.join(PUBLISHED)}, owner/name on the Hugging Face hub, "
            "or an existing folder or weight file"
        )
    return _from_folder(download(repository), name, dtype)


def _from_folder(folder: Path, name: str, dtype: torch.dtype) -> Tokenizer:
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"the tokenizer folder {folder} has no config.json")
    try:
        parsed = TiTokConfig.from_dict(json.loads(config.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error
    return _build(parsed, folder / "model.safetensors", name, dtype)


def _from_file(path: Path, variant: str | None, dtype: torch.dtype) -> Tokenizer:
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    if variant not in VARIANTS:
        raise ValueError(
            f"{path.name} comes without a config.json: name its variant, load_tokenizer(path, variant=...), one of "
            f"{', '.join(VARIANTS)}" + (f"; {variant!r} is none of them" if variant else "")
        )
    return _build(VARIANTS[variant], path, path.stem, dtype)


def _build(config: TiTokConfig, weights: Path, name: str, dtype: torch.dtype) -> Tokenizer:
    state = read_state_dict(weights)
    with torch.device("meta"):  # no memory and no random numbers for parameters that the file replaces
        model = TiTok(config)
    load_strictly(model, state, str(weights), dtype)
    return Tokenizer(model, name)


def download(repository: str, folder: Path | None = None) -> Path:
    """Fetches a tokenizer of the Hugging Face hub, into `folder` or the hub's own cache; returns where it lies."""
    from huggingface_hub import snapshot_download  # imported when used: it is slow to import

    try:
        return Path(
            snapshot_download(repository, local_dir=folder, allow_patterns=["config.json", "model.safetensors"])
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise FileNotFoundError(
            f"the tokenizer {repository!r} could not be downloaded ({reason}). Without a network, put config.json and "
            f"model.safetensors of https://huggingface.co/{repository} into {folder or 'a folder and name that'}"
        ) from error
