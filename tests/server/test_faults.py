"""What fails around a run: memory, numbers, interruptions, files. The prompt after it gives the same bits as ever."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from api_examples.client import ComfyClient, ExecutionFailed, Graph, Interrupted, find_node
from devtools.paths import ROOT
from devtools.server import ComfyServer
from tests.hub import Hub
from tokenopt_core.titok import VARIANTS

from .conftest import pixels

pytestmark = pytest.mark.server

ALWAYS = 10**6
MINI = ROOT / "tokenopt_core" / "mini" / "tokenizer"
PUBLISHED = "titok_s128"
STAGES = ("TiTok Load", "OpenCLIP Load", "Encode to Features", "CLIP Loss", "Optimize Tokens", "Decode")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with one published file, of which only the size matters."""
    repository = VARIANTS[PUBLISHED].source.repository
    with Hub({f"{repository}/config.json": b"{}" * 50, f"{repository}/model.safetensors": bytes(30_000_000)}) as hub:
        yield hub


@pytest.fixture(scope="module")
def comfy_server(hub: Hub, tmp_path_factory) -> Iterator[ComfyServer]:
    """A ComfyUI of its own, with nodes that fail beside the pack's."""
    base = tmp_path_factory.mktemp("faults")
    (base / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("faulty_nodes.py"), base / "custom_nodes")
    with ComfyServer(base=base, env={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}) as server:
        yield server


@pytest.fixture
def copied(comfy_server: ComfyServer) -> Iterator[Path]:
    """The mini tokenizer as a user's own file."""
    folder = comfy_server.base / "models" / "titok" / "copied"
    shutil.copytree(MINI, folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def picture(client: ComfyClient) -> Callable[[Graph], np.ndarray]:
    """Runs a prompt and gives its edited picture, (H, W, 3)."""
    return lambda prompt: pixels(client.run(prompt)[find_node(prompt, "Edited picture")][0])


def with_faults(prompt: Graph, kind: str, first: int, times: int) -> Graph:
    """The prompt with a failing node before the loss."""
    inputs = prompt[find_node(prompt, "Optimize Tokens")]["inputs"]
    wrapped = {"loss": inputs["loss"], "kind": kind, "first": first, "times": times}
    inputs["loss"] = ["faulty", 0]
    return prompt | {"faulty": {"class_type": "FaultyLoss", "inputs": wrapped}}


def short_decode(prompt: Graph) -> Graph:
    """The prompt with a tokenizer whose decoding of the result runs out of memory."""
    inputs = prompt[find_node(prompt, "Optimize Tokens")]["inputs"]
    wrapped = {"titok": inputs["titok"], "seed": inputs["seed"]}
    inputs["titok"] = ["faulty", 0]
    return prompt | {"faulty": {"class_type": "FaultyDecode", "inputs": wrapped}}


@pytest.mark.parametrize("first", [0, 9], ids=["at the start", "in the middle"])
def test_memory_that_runs_out_once(graph, picture, comfy_server, assert_unharmed, first: int) -> None:
    expected = picture(graph(seed=20))
    got = picture(with_faults(graph(seed=20), "memory", first, 1))
    assert np.abs(got.astype(int) - expected).mean() < 0.5
    assert "memory ran short in an iteration: it goes on in 2 pieces, slower" in comfy_server.tail(30)
    assert_unharmed()


def test_memory_that_runs_out_while_the_result_is_decoded(graph, picture, comfy_server, assert_unharmed) -> None:
    expected = picture(graph(seed=21))
    assert np.array_equal(picture(short_decode(graph(seed=21))), expected)
    assert "memory ran short in decoding the result: it was repeated with what could be freed" in comfy_server.tail(30)
    assert_unharmed()


def test_memory_that_never_suffices(client, graph, assert_unharmed) -> None:
    prompt = with_faults(graph(seed=22), "memory", 3, ALWAYS)
    with pytest.raises(ExecutionFailed, match=r"not enough memory for an iteration even in 2 pieces.*20.00 MiB"):
        client.run(prompt)
    assert_unharmed()


def test_numbers_that_are_not_finite(client, graph, picture, comfy_server, assert_unharmed) -> None:
    assert picture(with_faults(graph(seed=23), "nan", 4, 2)).std() > 10
    assert "picture 1: the loss or its gradient was not finite in 2 iterations" in comfy_server.tail(30)
    assert picture(with_faults(graph(seed=23), "nan", 4, ALWAYS)).std() > 10
    assert "it keeps the last good tokens" in comfy_server.tail(30)
    with pytest.raises(ExecutionFailed, match="clip was never a finite number"):
        client.run(with_faults(graph(seed=23), "nan", 0, ALWAYS))
    assert_unharmed()


@pytest.mark.parametrize("stage", STAGES)
def test_interruption_at_every_stage(client, graph, node, assert_unharmed, stage: str) -> None:
    prompt = graph(seed=STAGES.index(stage) + 30)
    for loader in ("TokenOptTiTokLoad", "TokenOptCLIPLoad"):
        node(prompt, loader)["precision"] = "float32"  # other than in the prompt before, so that nothing is remembered
    wanted, prompt_id = find_node(prompt, stage), client.queue(prompt)
    asked = False
    with pytest.raises(Interrupted):
        for event in client.follow(prompt_id):
            if not asked and event.type == "executing" and event.data.get("node") == wanted:
                client.interrupt(prompt_id)
                asked = True
    assert asked, "the stage was never reached"
    assert_unharmed()


def test_a_model_file_that_changes_and_disappears_between_prompts(graph, node, client, picture, copied) -> None:
    def prompt(seed: int) -> Graph:
        made = graph(seed=seed)
        node(made, "TokenOptTiTokLoad")["name"] = "copied"
        return made

    weights = copied / "model.safetensors"
    whole, expected = weights.read_bytes(), picture(graph(seed=40))
    assert np.array_equal(picture(prompt(40)), expected)
    for broken in (whole[: len(whole) // 2], whole[:7], b"", b"<html>not found</html>" * 50):
        weights.write_bytes(broken)
        with pytest.raises(ExecutionFailed, match=r"copied.*model\.safetensors"):
            client.run(prompt(40))
    weights.unlink()
    with pytest.raises(ExecutionFailed, match="copied"):
        client.run(prompt(40))
    assert np.array_equal(picture(graph(seed=40)), expected)
    weights.write_bytes(whole)
    assert np.array_equal(picture(prompt(41)), picture(graph(seed=41)))


def test_a_full_disk(client, graph, node, hub, comfy_server, assert_unharmed) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("a disk that is always full is Linux's own")
    prompt = graph(seed=50)
    node(prompt, "TokenOptTiTokLoad").update(name=PUBLISHED, download=True)
    folder = comfy_server.base / "models" / "titok" / PUBLISHED
    folder.mkdir(parents=True)
    part = folder / f"model.safetensors.{hub.version('model.safetensors')}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(ExecutionFailed, match=r"the disk is full: model\.safetensors of .* does not fit into"):
        client.run(prompt)
    assert not part.is_symlink() and not (folder / "model.safetensors").exists()
    assert_unharmed()
    shutil.rmtree(folder)
