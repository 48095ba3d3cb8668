"""ComfyUI started with each of its memory flags, on a GPU: the picture is right, and no weight stays behind.

They exclude --cpu; without a GPU, tests/comfyui/test_memory.py does the same on an emulated one.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from api_examples.client import ComfyClient, find_node
from devtools.server import ComfyServer

from .conftest import plain_text_edit

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: these flags exclude --cpu"),
]


@pytest.mark.parametrize("flag", ["--lowvram", "--novram", "--gpu-only", "--highvram", "--normalvram"])
def test_the_picture_is_right_with(flag: str, graph) -> None:
    prompt = graph(seed=0)
    for settings in prompt.values():
        if "precision" in settings["inputs"]:
            settings["inputs"]["precision"] = "float32"
    with ComfyServer(env={"HF_HUB_OFFLINE": "1"}, flags=(flag,)) as server, ComfyClient(server.url) as client:
        (png,) = client.run(prompt)[find_node(prompt, "Edited picture")]
        assert "loaded partially" not in server.tail(1000)
    with Image.open(io.BytesIO(png)) as image:
        difference = np.abs(np.array(image.convert("RGB"), dtype=float) - plain_text_edit(0))
    assert difference.mean() < 4, "of 255: a GPU rounds otherwise, which may flip a code or two"
