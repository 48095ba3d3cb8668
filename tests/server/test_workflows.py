"""The other example workflows over ComfyUI's API: what they promise, checked on the saved pictures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from api_examples.client import Graph, find_node
from devtools.paths import WORKFLOWS
from tokenopt_core.loading import MINI
from training.judge import Judge, Verdict

from .conftest import pixels

pytestmark = [pytest.mark.server, pytest.mark.slow]

ITERATIONS = 20  # where the check does not depend on a good result


def workflow(name: str) -> Graph:
    """An example workflow, as it ships."""
    graph: Graph = json.loads((WORKFLOWS / f"{name}.api.json").read_text(encoding="utf-8"))
    return graph


def widgets(graph: Graph, title: str) -> dict[str, Any]:
    """The inputs of the node of this title."""
    inputs: dict[str, Any] = graph[find_node(graph, title)]["inputs"]
    return inputs


def run(client, graph: Graph, title: str) -> list[np.ndarray]:
    """The pictures that the node of this title saves or shows, (H, W, 3) in 8 bits."""
    return [pixels(png) for png in client.run(graph)[find_node(graph, title)]]


def show_original(graph: Graph) -> Graph:
    """The workflow with the sample picture saved in place of the result."""
    samples = [number for number, node in graph.items() if node["class_type"] == "TokenOptSample"]
    (saves,) = (node for node in graph.values() if node["class_type"] == "SaveImage")
    changed: Graph = json.loads(json.dumps(graph))
    (number,) = (n for n, node in graph.items() if node is saves)
    changed[number]["inputs"]["images"] = [samples[0], 0]
    return {n: changed[n] for n in (samples[0], number)}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def read(judge: Judge, picture: np.ndarray) -> Verdict:
    return judge(torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None])[0]


def test_inpaint_invents_the_hidden_half_and_nothing_else(client, judge) -> None:
    graph = workflow("inpaint")
    (result,) = run(client, graph, "Inpainted picture")
    (original,) = run(client, show_original(graph), "Inpainted picture")
    known = result.shape[1] // 2
    assert result.shape == original.shape
    assert np.array_equal(result[:, :known], original[:, :known])
    assert np.abs(result[:, known:].astype(int) - original[:, known:]).max() > 20
    assert read(judge, result).agrees(subject="house", ground="snow", lighting="day"), read(judge, result)


def test_inpaint_does_not_look_behind_the_mask(client) -> None:
    """Where the mask is, the encoded picture has nothing of the original."""
    graph = workflow("inpaint")
    widgets(graph, "Optimize Tokens")["iterations"] = 1
    (filled,) = run(client, graph, "What is known")
    (original,) = run(client, show_original(graph), "Inpainted picture")
    half, edge = filled.shape[1] // 2, 4  # the mask's edge is soft
    assert np.array_equal(filled[:, : half - edge], original[:, : half - edge])
    difference = np.abs(filled[:, half + edge :].astype(int) - original[:, half + edge :])
    assert difference.mean() > 20


def test_inpaint_with_prompt_puts_what_was_asked_into_the_hole(client, judge) -> None:
    graph = workflow("inpaint_with_prompt")
    (result,) = run(client, graph, "Inpainted picture")
    (original,) = run(client, show_original(graph), "Inpainted picture")
    name, grown = widgets(graph, "Sample Picture")["name"], widgets(graph, "Grow Mask")["expand"]
    mask = torch.from_numpy(pixels((MINI / "samples" / f"{name}.mask.png").read_bytes())[..., 0].astype(np.float32))
    hole = torch.nn.functional.max_pool2d(mask[None], 2 * grown + 1, 1, grown)[0].numpy() > 0
    assert 0.1 < hole.mean() < 0.9
    assert np.array_equal(result[~hole], original[~hole])
    subject = widgets(graph, "CLIP Loss")["prompt"].split()[1]
    assert read(judge, original).scene.subject != subject
    assert read(judge, result).agrees(subject=subject), read(judge, result)


def test_generate_follows_its_seed(client) -> None:
    def generate(seed: int) -> list[np.ndarray]:
        graph = workflow("generate")
        widgets(graph, "Optimize Tokens")["iterations"] = ITERATIONS
        widgets(graph, "Random Features")["seed"] = seed
        return run(client, graph, "Generated pictures")

    first, other, again = generate(0), generate(4), generate(0)  # ComfyUI remembers one run: the third is a new one
    assert len(first) == len(other) == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not np.array_equal(a, b) for i, a in enumerate(first) for b in first[:i] + other)


def test_generate_shows_what_the_prompt_says(client, judge) -> None:
    graph = workflow("generate")
    verdicts = [read(judge, picture).scene for picture in run(client, graph, "Generated pictures")]
    hits = [(v.subject, v.ground, v.lighting) == ("tree", "grass", "sunset") for v in verdicts]
    assert sum(hits) >= 3, verdicts


def test_copy_paste_brings_the_lighting_and_leaves_the_subject(client, judge) -> None:
    graph = workflow("copy_paste")
    (result,) = run(client, graph, "Target with the pasted token")
    assert read(judge, result).agrees(subject="fox", ground="grass", lighting="sunset"), read(judge, result)


def test_copy_paste_of_strength_0_is_the_plain_reconstruction(client, judge) -> None:
    graph = workflow("copy_paste")
    title = "Target with the pasted token"
    widgets(graph, "Token Copy-Paste")["strength"] = 0
    (result,) = run(client, graph, title)
    widgets(graph, "Decode")["features"] = [find_node(graph, "Encode Target"), 0]
    (reconstruction,) = run(client, graph, title)
    assert np.array_equal(result, reconstruction)
    assert read(judge, result).agrees(subject="fox", ground="grass", lighting="day")


def test_any_size_edit_changes_the_square_and_not_a_bit_beside_it(client) -> None:
    graph = workflow("any_size_edit")
    widgets(graph, "Optimize Tokens")["iterations"] = ITERATIONS
    pictures = client.run(graph)
    (result,), (original,) = (
        [pixels(p) for p in pictures[find_node(graph, t)]] for t in ("Edited picture", "Original")
    )
    height, width = original.shape[:2]
    assert result.shape == original.shape and width != height
    left = (width - height) // 2
    inside = np.zeros((height, width), dtype=bool)
    inside[:, left : left + height] = True
    assert np.array_equal(result[~inside], original[~inside])
    assert np.abs(result[inside].astype(int) - original[inside]).mean() > 3
