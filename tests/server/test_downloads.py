"""Published tokenizers through a live ComfyUI: from a hub on this machine, from a user's own model folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from api_examples.client import ComfyClient, ExecutionFailed, Graph, Interrupted
from devtools.server import ComfyServer
from tests.hub import Hub
from tokenopt_core.titok import VARIANTS, signature

pytestmark = [pytest.mark.server, pytest.mark.slow]

NAME = "titok_s128"  # the smallest published TiTok
SOURCE = VARIANTS[NAME].source


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """The published files of one tokenizer, with weights of zero."""
    config = Path(__file__).parents[1] / "fixtures" / "titok" / f"{NAME}.json"

    published = json.dumps(json.loads(config.read_text())["config"]).encode()
    weights = save({key: torch.zeros(shape, dtype=torch.float16) for key, shape in signature(NAME).items()})
    with Hub({f"{SOURCE.repository}/config.json": published, f"{SOURCE.repository}/model.safetensors": weights}) as hub:
        yield hub


@pytest.fixture(scope="module")
def server(hub: Hub, tmp_path_factory) -> Iterator[ComfyServer]:
    """A ComfyUI for which that hub is the Hugging Face hub, and whose user keeps models elsewhere, too."""
    own = tmp_path_factory.mktemp("own models")
    yaml = own / "paths.yaml"
    yaml.write_text(f"mine:\n  base_path: {own}\n  titok: tokenizers\n")
    (own / "tokenizers").mkdir()
    flags = ("--extra-model-paths-config", str(yaml))
    with ComfyServer(env={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}, flags=flags) as server:
        server.own = own / "tokenizers"  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def client(server: ComfyServer) -> Iterator[ComfyClient]:
    with ComfyClient(server.url) as client:
        yield client


def reconstruct(name: str, download: bool) -> Graph:
    return {
        "1": {"class_type": "TokenOptSample", "inputs": {"name": "fox on grass by day"}},
        "2": {"class_type": "TokenOptTiTokLoad", "inputs": {"name": name, "precision": "auto", "download": download}},
        "3": {
            "class_type": "TokenOptEncode",
            "inputs": {"titok": ["2", 0], "image": ["1", 0], "fill": "grey", "feather": 0.0},
        },
        "4": {
            "class_type": "TokenOptDecode",
            "inputs": {"titok": ["2", 0], "features": ["3", 0], "quantize": True},
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }


def test_a_published_tokenizer_comes_when_it_is_asked_for(server, client, hub) -> None:
    folder = server.own / NAME  # the user's own folder comes before ComfyUI's
    hub.requests.clear()
    with pytest.raises(
        ExecutionFailed, match=f"switch on download, or put config.json and model.safetensors of {SOURCE.page}"
    ):
        client.run(reconstruct(NAME, download=False))
    assert not hub.requests
    assert not folder.exists()

    hub.pause = 0.3
    prompt_id = client.queue(reconstruct(NAME, download=True))
    with pytest.raises(Interrupted):
        for event in client.follow(prompt_id):
            if event.type == "progress" and event.data["node"] == "2" and event.data["value"] >= 10**7:
                client.interrupt()
    (part,) = folder.glob("*.part")
    assert not (folder / "model.safetensors").exists()

    hub.pause = 0.0
    size = part.stat().st_size
    pictures = client.run(reconstruct(NAME, download=True))
    assert len(pictures["5"]) == 1
    assert hub.requests[-1][2] == f"bytes={size}-"
    assert (folder / "model.safetensors").read_bytes() == hub.files[f"{SOURCE.repository}/model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]

    asked = len(hub.requests)
    client.run(reconstruct(NAME, download=False))
    assert len(hub.requests) == asked


def test_files_and_folders_of_the_user_are_listed_and_load(server, client, write_tokenizer, hub) -> None:
    write_tokenizer(server.own / "my folder")
    weights = hub.files[f"{SOURCE.repository}/model.safetensors"]
    (server.base / "models" / "titok").mkdir(exist_ok=True)
    (server.base / "models" / "titok" / "lone file.safetensors").write_bytes(weights)
    names = client.object_info("TokenOptTiTokLoad")["TokenOptTiTokLoad"]["input"]["required"]["name"]
    options = names[1]["options"] if isinstance(names[0], str) else names[0]
    assert {"mini", "my folder", "lone file.safetensors", "titok_l32", "maskgit_vqgan"} <= set(options)
    for name in ("my folder", "lone file.safetensors"):
        assert len(client.run(reconstruct(name, download=False))["5"]) == 1


def test_a_file_that_cannot_be_used_is_an_error_and_no_more(server, client) -> None:
    for name, content, message in (
        ("page.safetensors", b"<!doctype html>", "is a web page"),
        ("short.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{", "is damaged"),
        ("other.safetensors", save({"a": torch.zeros(1)}), "of no published tokenizer"),
    ):
        (server.own / name).write_bytes(content)
        with pytest.raises(ExecutionFailed, match=message) as failure:
            client.run(reconstruct(name, download=False))
        assert failure.value.data["node_id"] == "2"
    assert server.alive
