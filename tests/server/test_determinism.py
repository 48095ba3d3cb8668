"""The same prompt gives the same picture, bit for bit: after others, after its models are freed, on another server."""

from __future__ import annotations

import io
import json
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from api_examples.client import ComfyClient, Graph, find_node
from devtools.server import ComfyServer

pytestmark = pytest.mark.server


def picture(client: ComfyClient, prompt: Graph) -> np.ndarray:
    """What a prompt's picture is, (H, W, 3)."""
    (png,) = client.run(prompt)[find_node(prompt, "Edited picture")]
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGB"))


def free(server: ComfyServer) -> None:
    """What the button "Free model and node cache" does."""
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    request = urllib.request.Request(f"{server.url}/free", body, {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()


def run_anew(server: ComfyServer, client: ComfyClient, prompt: Graph) -> np.ndarray:
    """The picture with everything freed before; it is freed a moment after it was asked for, so that takes a while."""
    loader = find_node(prompt, "TiTok Load")
    for _ in range(20):
        free(server)
        time.sleep(0.5)
        events = list(client.follow(client.queue(prompt)))
        remembered = [node for e in events if e.type == "execution_cached" for node in e.data["nodes"]]
        if loader not in remembered:
            return picture(client, prompt)
    raise AssertionError("the tokenizer is still in ComfyUI's cache")


def test_the_same_prompt_gives_the_same_picture(comfy_server, client, graph, node) -> None:
    prompt, other = graph(seed=3), graph(seed=4)
    first = picture(client, prompt)
    node(other, "TokenOptCLIPLoss")["prompt"] = "a fox on snow by day"
    assert not np.array_equal(picture(client, other), first)
    assert np.array_equal(run_anew(comfy_server, client, prompt), first)
    with ComfyServer(env={"HF_HUB_OFFLINE": "1"}) as restarted, ComfyClient(restarted.url) as newcomer:
        assert np.array_equal(picture(newcomer, prompt), first)
