"""Model files that mean harm, in a live server's folders: an error on the loader, and nothing of theirs has run."""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from api_examples.client import ExecutionFailed, find_node

pytestmark = pytest.mark.server


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({str(self.mark)!r}).touch()",)


@pytest.fixture
def mark(comfy_server) -> Iterator[Path]:
    """What must not be there after a test."""
    path = comfy_server.base / "harm-was-done"
    yield path
    assert not path.exists()


@pytest.fixture
def refused(client, graph, assert_unharmed, mark):
    """Loads a model by its name; what the user reads."""

    def load(title: str, name: str) -> str:
        prompt = graph(iterations=1)
        node_id = find_node(prompt, title)
        prompt[node_id]["inputs"]["name"] = name
        with pytest.raises(ExecutionFailed) as caught:
            client.run(prompt)
        assert caught.value.data["node_id"] == node_id
        assert_unharmed()
        return caught.value.data["exception_message"]

    return load


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_a_tokenizer_that_would_run_code(comfy_server, mark, refused, suffix: str) -> None:
    path = comfy_server.base / "models" / "titok" / f"hostile{suffix}"
    path.parent.mkdir(exist_ok=True)
    torch.save(OrderedDict(latent_tokens=torch.zeros(1), more=Harm(mark)), path)
    assert "could run code: refused" in refused("TiTok Load", path.name)


def clip_folder(base: Path, name: str, mark: Path, **text: object) -> str:
    """A CLIP whose folder brings a tokenizer with code of its own."""
    folder = base / "models" / "open_clip" / name
    folder.mkdir(parents=True)
    model = {"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"hf_tokenizer_name": "x/y", **text}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    words = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["words.Words", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "config.json").write_text(json.dumps({"model_type": "words"}))
    (folder / "words.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Words: pass\n")
    torch.save({"logit_scale": Harm(mark)}, folder / "open_clip_pytorch_model.bin")
    return name


def test_a_clip_that_would_run_code(comfy_server, mark, refused) -> None:
    name = clip_folder(comfy_server.base, "with a pickle", mark)
    assert "could run code: refused" in refused("OpenCLIP Load", name)
    name = clip_folder(comfy_server.base, "with words", mark, tokenizer_kwargs={"trust_remote_code": True})
    assert "tokenizer_kwargs may not hold 'trust_remote_code'" in refused("OpenCLIP Load", name)


def test_a_clip_that_would_fetch_a_part(comfy_server, mark, refused) -> None:
    name = clip_folder(comfy_server.base, "from elsewhere", mark, hf_model_name="nobody/none")
    assert "would be fetched from the network" in refused("OpenCLIP Load", name)


def test_half_a_character_in_an_error(comfy_server, mark, refused) -> None:
    """ComfyUI prints errors with all that led to them; what cannot be printed ends its thread that runs prompts."""
    name = clip_folder(comfy_server.base, "unprintable", mark, hf_tokenizer_name="", **{"\ud800": 1})
    torch.save(
        {"logit_scale": torch.zeros(1)}, comfy_server.base / f"models/open_clip/{name}/open_clip_pytorch_model.bin"
    )
    assert r"unexpected keyword argument '\ud800'" in refused("OpenCLIP Load", name)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names of files are text there")
def test_half_a_character_in_a_files_name(comfy_server, refused) -> None:
    folder = comfy_server.base / "models" / "titok" / "a folder"
    folder.mkdir(parents=True)
    (folder / "\udcff.bin").write_bytes(b"nonsense")
    assert r"a folder/\udcff.bin is damaged" in refused("TiTok Load", "a folder")
