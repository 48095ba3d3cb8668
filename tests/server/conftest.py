"""The shared live server, the text edit over its API, and the same edit in plain Python."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenopt_core as to
from api_examples.client import ComfyClient, Graph, find_node
from devtools.paths import ROOT, WORKFLOWS
from devtools.server import ComfyServer

ITERATIONS = 20


def text_edit(seed: int = 0, iterations: int = ITERATIONS) -> Graph:
    """The example workflow, with fewer iterations and one token refined."""
    graph: Graph = json.loads((WORKFLOWS / "text_edit.api.json").read_text(encoding="utf-8"))
    inputs_of(graph, "TokenOptOptimize").update(seed=seed, iterations=iterations)
    inputs_of(graph, "TokenOptRefine").update(rounds=1, positions="lighting")
    return graph


def inputs_of(graph: Graph, class_type: str) -> dict[str, Any]:
    """The inputs of the only node of a class."""
    (node,) = (node for node in graph.values() if node["class_type"] == class_type)
    return node["inputs"]


@cache
def plain_text_edit(seed: int) -> np.ndarray:
    """The workflow's picture as `tokenopt_core` computes it in plain Python: 8-bit pixels (H, W, 3)."""
    graph = text_edit(seed)
    tokenizer, clip = to.load_tokenizer("mini"), to.load_clip("mini")
    sample = ROOT / "tokenopt_core" / "mini" / "samples" / f"{inputs_of(graph, 'TokenOptSample')['name']}.png"
    picture = torch.from_numpy(np.array(Image.open(sample).convert("RGB"), dtype=np.float32) / 255)
    regularizer = to.TokenRegularizer(**inputs_of(graph, "TokenOptRegularizer"))
    noise = to.NoiseSchedule(**inputs_of(graph, "TokenOptNoise"))
    loss = to.ClipLoss(clip, **settings(graph, "TokenOptCLIPLoss", without=("weight",)))
    config = to.OptimizeConfig(**settings(graph, "TokenOptOptimize", without=("trajectory_every",)), noise=noise)
    with torch.no_grad():
        features = tokenizer.encode(picture.permute(2, 0, 1)[None])
    result = to.optimize(tokenizer, features, loss, config, [regularizer])
    last = settings(graph, "TokenOptRefine")
    refined = to.refine_tokens(tokenizer, result.features, loss, **last, regularizers=[regularizer], seed=features)
    return (refined.images[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)  # cut off, as Save Image does


def settings(graph: Graph, class_type: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A node's widgets, as arguments."""
    return {k: v for k, v in inputs_of(graph, class_type).items() if not isinstance(v, list) and k not in without}


@pytest.fixture
def client(comfy_server: ComfyServer) -> Iterator[ComfyClient]:
    """A connection to the live server."""
    with ComfyClient(comfy_server.url) as connection:
        yield connection


@pytest.fixture
def graph() -> Callable[..., Graph]:
    """Makes the workflow with a seed and a number of iterations."""
    return text_edit


@pytest.fixture
def node() -> Callable[[Graph, str], dict[str, Any]]:
    """Gives the inputs of a graph's node of a class."""
    return inputs_of


@pytest.fixture
def assert_unharmed(comfy_server: ComfyServer, client: ComfyClient) -> Callable[[], None]:
    """Checks that the server still computes exactly what plain Python does."""

    def check() -> None:
        assert comfy_server.alive
        seed = next(SEEDS)
        graph = text_edit(seed)
        (png,) = client.run(graph)[find_node(graph, "Edited picture")]
        assert np.array_equal(pixels(png), plain_text_edit(seed))

    return check


def alternating() -> Iterator[int]:
    """0, 1, 0, 1, ...: two prompts in a row differ, so that the later one is computed and not remembered."""
    while True:
        yield from (0, 1)


SEEDS = alternating()


def pixels(png: bytes) -> np.ndarray:
    """A picture file as (H, W, 3)."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture.convert("RGB"))
