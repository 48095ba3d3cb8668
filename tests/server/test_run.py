"""The text edit over ComfyUI's API: progress, previews, result, cache, interruption."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from api_examples.client import Interrupted, find_node
from devtools.paths import ROOT

pytestmark = pytest.mark.server


def test_all_nodes_are_offered(client) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    declared = set(re.findall(r'node_id="(\w+)"', sources))
    offered = {name: info for name, info in client.object_info().items() if name.startswith("TokenOpt")}
    assert declared and offered.keys() == declared
    assert all(info["display_name"] and info["description"] and info["output_name"] for info in offered.values())


def test_text_edit_shows_its_progress_and_gives_the_picture_of_plain_python(client, graph, assert_unharmed) -> None:
    iterations = 150
    prompt = graph(seed=7, iterations=iterations)
    optimize = find_node(prompt, "Optimize Tokens")
    prompt_id = client.queue(prompt)
    events = list(client.follow(prompt_id))

    steps = [e.data for e in events if e.type == "progress" and e.data["node"] == optimize]
    counted = [step["value"] for step in steps]
    assert counted == sorted(set(counted)) and counted[0] <= 2 and counted[-1] == iterations
    assert {step["max"] for step in steps} == {iterations}

    previews = [Image.open(io.BytesIO(e.image)) for e in events if e.type == "preview"]
    assert len(previews) >= 2
    assert {picture.size for picture in previews} == {(256, 256)}
    first, *others = (np.asarray(picture.convert("RGB"), dtype=int) for picture in previews)
    changes = [np.abs(picture - first).max() for picture in others]
    assert max(changes) > 20, "the picture did not change while it was watched"

    assert client.images(prompt_id).keys() == {find_node(prompt, "Original"), find_node(prompt, "Edited picture")}
    assert_unharmed()


def test_the_same_prompt_again_is_not_computed_again(client, graph) -> None:
    prompt = graph()
    first = client.run(prompt)
    prompt_id = client.queue(prompt)
    events = list(client.follow(prompt_id))
    remembered = [node for e in events if e.type == "execution_cached" for node in e.data["nodes"]]
    assert find_node(prompt, "Optimize Tokens") in remembered
    assert not [e for e in events if e.type == "progress"]
    assert client.images(prompt_id) == first


def test_another_prompt_reuses_the_loaded_models(client, graph, node) -> None:
    client.run(graph(seed=0))
    prompt = graph(seed=1)
    node(prompt, "TokenOptCLIPLoss")["prompt"] = "a fox on snow by day"
    remembered = [
        n for e in client.follow(client.queue(prompt)) if e.type == "execution_cached" for n in e.data["nodes"]
    ]
    assert {find_node(prompt, name) for name in ("TiTok Load", "OpenCLIP Load", "Encode to Features")} <= set(
        remembered
    )


def test_interruption_stops_the_run_at_once_and_harms_nothing(client, graph, assert_unharmed) -> None:
    iterations = 50_000
    prompt_id = client.queue(graph(seed=5, iterations=iterations))
    counted = []
    with pytest.raises(Interrupted, match="Optimize"):
        for event in client.follow(prompt_id):
            if event.type == "progress":
                counted.append(event.data["value"])
                if len(counted) == 3:
                    client.interrupt(prompt_id)
    assert 3 <= len(counted) < 500
    status = client.history(prompt_id)["status"]
    assert status["status_str"] == "error" and "execution_interrupted" in dict(status["messages"])
    assert_unharmed()
