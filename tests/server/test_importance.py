"""Importance -> copy-paste over ComfyUI's API: the positions travel on a wire; what is wrong stops at its node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenopt_core as to
from api_examples.client import ExecutionFailed, Graph, find_node
from devtools.paths import WORKFLOWS
from tokenopt_core.loading import MINI

from .conftest import pixels

pytestmark = pytest.mark.server

RESULT = "Target with the pasted token"


@pytest.fixture
def graph() -> Graph:
    """The example workflow."""
    content: Graph = json.loads((WORKFLOWS / "importance.api.json").read_text(encoding="utf-8"))
    return content


def inputs(graph: Graph, title: str) -> dict[str, Any]:
    """The inputs of the node of this title."""
    found: dict[str, Any] = graph[find_node(graph, title)]["inputs"]
    return found


def sample(name: str) -> torch.Tensor:
    picture = np.array(Image.open(MINI / "samples" / f"{name}.png").convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


@pytest.fixture
def folder(comfy_server) -> Path:
    """A folder in the server's input folder, with pictures and files that are none."""
    root: Path = comfy_server.base / "input" / "importance test"
    root.mkdir(parents=True, exist_ok=True)
    for path in (MINI / "samples").glob("*.png"):
        (root / path.name).write_bytes(path.read_bytes())
    (root / "broken.png").write_bytes(b"no picture")
    return root


def test_the_workflow_is_what_plain_python_computes(client, graph) -> None:
    (png,) = client.run(graph)[find_node(graph, RESULT)]
    tokenizer, clip = to.load_tokenizer("mini"), to.load_clip("mini")
    names = [path.stem for path in sorted((MINI / "samples").glob("*.png")) if not path.stem.endswith(".mask")]
    pictures = torch.cat([sample(name) for name in names])
    asked = inputs(graph, "Token Importance")
    with torch.no_grad():
        survey = to.Survey(clip, to.parse_partitions(asked["partitions"]))
        survey.add(tokenizer.quantize(tokenizer.encode(pictures)), clip.embed_image(pictures))
        found = {finding.partition.name: finding.top(asked["top"]) for finding in survey.findings()}
        target, reference = (tokenizer.encode(sample(inputs(graph, who)["name"])) for who in ("Target", "Reference"))
        pasted = tokenizer.decode(to.copy_paste(target, reference, found[asked["positions_of"]])).clamp(0, 1)
        before = tokenizer.decode(target).clamp(0, 1)
    assert np.array_equal(pixels(png), (pasted[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    assert (pasted - before).abs().mean() > 0.05


def test_a_folder_with_a_broken_file(client, graph, folder) -> None:
    del inputs(graph, "Token Importance")["images"]
    inputs(graph, "Token Importance").update(folder=folder.name, partitions="in daylight | at night", positions_of="")
    assert client.run(graph)[find_node(graph, RESULT)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partitions": "a fox"}, "has 1 class: expected 2 to 100"),
        ({"partitions": " \n"}, "no partition is given"),
        ({"partitions": "a fox | "}, "has a class without text"),
        ({"folder": "../../etc"}, "must be a path inside ComfyUI's input folder"),
        ({"folder": "nowhere"}, "there is no folder 'nowhere'"),
        ({"positions_of": "mood"}, "there is no partition 'mood': expected one of lighting, ground"),
        ({"images": ["6", 0]}, "the only picture is of the class"),
    ],
)
def test_what_is_wrong_is_said_on_the_node(client, graph, comfy_server, change: dict[str, Any], message: str) -> None:
    inputs(graph, "Token Importance").update(change)
    with pytest.raises(ExecutionFailed) as caught:
        client.run(graph)
    assert caught.value.data["node_id"] == find_node(graph, "Token Importance")
    assert message in caught.value.data["exception_message"] and comfy_server.alive


def test_an_attribute_that_the_tokenizer_does_not_have(client, graph) -> None:
    inputs(graph, "Token Copy-Paste").update(titok=["1", 0], positions="no such attribute")
    with pytest.raises(ExecutionFailed, match="knows no attribute 'no such attribute': it has"):
        client.run(graph)
    inputs(graph, "Token Copy-Paste").update(positions=next(iter(to.load_tokenizer("mini").presets)))
    assert client.run(graph)[find_node(graph, RESULT)]
