"""Seeds, edits and the best of them over ComfyUI's API; folders that change between two runs."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenopt_core as to
from api_examples.client import ExecutionFailed, Graph, find_node
from devtools.paths import WORKFLOWS
from tokenopt_core.loading import MINI
from tokenopt_core.pictures import read_picture
from tokenopt_core.seeds import embed_prompt
from training.judge import Judge

from .conftest import pixels

pytestmark = pytest.mark.server

SAMPLES = sorted(path for path in (MINI / "samples").glob("*.png") if ".mask" not in path.name)


@pytest.fixture
def graph() -> Graph:
    content: Graph = json.loads((WORKFLOWS / "seed_picker.api.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def folder(comfy_server) -> Iterator[Path]:
    """A folder of the samples in the server's input folder."""
    path = comfy_server.base / "input" / "photos" / "mine"
    path.mkdir(parents=True)
    for sample in SAMPLES:
        shutil.copy(sample, path)
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture
def texts(client) -> Callable[[Graph], dict[str, str]]:
    """Runs a graph; what its nodes Preview as Text show."""

    def run(graph: Graph) -> dict[str, str]:
        outputs = client.history(client.execute(graph))["outputs"]
        return {key: output["text"][0] for key, output in outputs.items() if "text" in output}

    return run


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def picker(folder: str, **widgets: object) -> Graph:
    """Seed Picker alone, with its table (T), its notes (N) and its pictures (I) shown."""
    clip = {"class_type": "TokenOptCLIPLoad", "inputs": {"name": "mini", "precision": "auto", "download": False}}
    inputs = {"prompt": SAMPLES[2].stem, "folder": folder, "mode": "most similar", "percent": 1.0, "count": 1}
    inputs |= {"size": 0, "seed": 0, "openclip": ["C", 0], **widgets}
    shown: Graph = {
        key: {"class_type": "PreviewAny", "inputs": {"source": ["S", slot]}} for key, slot in (("T", 1), ("N", 2))
    }
    picture = {"class_type": "PreviewImage", "inputs": {"images": ["S", 0]}}
    return {"C": clip, "S": {"class_type": "TokenOptSeedPicker", "inputs": inputs}, "I": picture, **shown}


@pytest.mark.slow
def test_the_example_edits_related_pictures_and_keeps_the_best(client, graph) -> None:
    graph[find_node(graph, "Seed Picker")]["inputs"]["count"] = 2  # two take less time than three
    prompt_id = client.execute(graph)
    pictures, outputs = client.images(prompt_id), client.history(prompt_id)["outputs"]
    prompt = graph[find_node(graph, "Prompt")]["inputs"]["value"]
    wanted = graph[find_node(graph, "Seed Picker")]["inputs"]
    with torch.no_grad():
        clip, samples = to.load_clip("mini"), torch.stack([read_picture(path) for path in SAMPLES])
        similarities = clip.embed_image(samples) @ embed_prompt(clip, prompt)
    pool = (len(SAMPLES) * wanted["percent"] + 99) // 100
    nearest = [pixels(SAMPLES[i].read_bytes()) for i in similarities.argsort(descending=True)[: int(pool)].tolist()]
    seeds, results = (pictures[find_node(graph, title)] for title in ("Picked seeds", "All results"))
    assert len(seeds) == len(results) == wanted["count"]
    assert all(any(np.array_equal(pixels(seed), one) for one in nearest) for seed in seeds)

    table = rows(outputs[find_node(graph, "Scores")]["text"][0])
    scores = [float(row["mini judge"]) for row in table]
    assert scores == sorted(scores, reverse=True) and table[0]["kept"] == "yes"
    (best,) = pictures[find_node(graph, "Best result")]
    assert np.array_equal(pixels(best), pixels(results[int(table[0]["result"]) - 1]))
    judge = Judge()  # knows nothing of CLIP
    verdict = judge(torch.from_numpy(pixels(best).astype(np.float32) / 255).permute(2, 0, 1)[None])[0]
    _, subject, _, ground, *lighting = prompt.split()
    assert verdict.agrees(subject=subject, ground=ground, lighting=lighting[-1]), verdict


def test_a_folder_that_changes_is_looked_at_again(client, texts, folder) -> None:
    target = SAMPLES[2]
    (folder / target.name).unlink()
    graph = picker("photos/mine")
    first = rows(texts(graph)["T"])
    assert Path(first[0]["picture"]).stem != target.stem
    shutil.copy(target, folder / "new one.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    second = texts(graph)
    assert [row["picture"] for row in rows(second["T"])] == ["new one.png"]
    assert second["N"].splitlines()[1:] == ["broken.jpg: it is no picture of a known format"]
    (png,) = client.images(client.execute(picker("photos/mine", seed=1)))["I"]
    assert np.array_equal(pixels(png), pixels(target.read_bytes()))


def test_what_was_seen_is_kept_on_the_disk(comfy_server, texts, folder) -> None:
    texts(picker("photos"))
    kept = list((comfy_server.base / "user" / "__tokenopt" / "embeddings").iterdir())
    assert kept and all(path.suffix == ".safetensors" for path in kept)


@pytest.mark.parametrize("name", ["../output", "/etc", "gone", "photos/empty"])
def test_a_folder_that_is_none(client, folder, assert_unharmed, name: str) -> None:
    (folder.parent / "empty").mkdir()
    with pytest.raises(ExecutionFailed) as caught:
        client.run(picker(name))
    assert caught.value.data["node_id"] == "S"
    message = caught.value.data["exception_message"]
    assert "input folder" in message or "no picture files" in message
    assert_unharmed()


def test_a_judge_that_is_not_connected(client, graph, assert_unharmed) -> None:
    best = find_node(graph, "Judge / Best-Of")
    graph[best]["inputs"]["judge_name"] = "connected model"
    graph[find_node(graph, "Optimize Tokens")]["inputs"]["iterations"] = 1
    with pytest.raises(ExecutionFailed) as caught:
        client.run(graph)
    assert caught.value.data["node_id"] == best
    assert "there is no judge: connect another CLIP" in caught.value.data["exception_message"]
    assert_unharmed()
