"""What several tiers share: one live ComfyUI for the whole run, and a tokenizer that is not the mini one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from devtools.server import ComfyServer
from tokenopt_core.titok import TiTokConfig, Transformer, build


@pytest.fixture(scope="session")
def comfy_server() -> Iterator[ComfyServer]:
    """A running ComfyUI with the checkout as its custom node, cut off from the Hugging Face hub."""
    with ComfyServer(env={"HF_HUB_OFFLINE": "1"}) as server:
        yield server


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[Path], Path]:
    """Writes a tokenizer of the published picture size, 256 px, with few and random weights, into a folder."""

    def write(folder: Path) -> Path:
        size = Transformer(width=16, layers=1, heads=2)
        config = TiTokConfig(256, num_tokens=8, token_dim=4, codebook_size=32, encoder=size, decoder=size)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = build(config).state_dict()
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        return folder

    return write
