"""Bad input: a clear word on the right node, the server alive, the next prompt unharmed."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from api_examples.client import ExecutionFailed, Graph, Interrupted, PromptRefused, find_node

pytestmark = pytest.mark.server

PUBLISHED = [("TiTok Load", "titok", "titok_bl64_vq8k"), ("OpenCLIP Load", "open_clip", "ViT-B-32 laion2b")]


@pytest.fixture
def models(comfy_server) -> Path:
    """The server's models folder."""
    return comfy_server.base / "models"


@pytest.fixture
def rejected(client, assert_unharmed) -> Callable[[Graph, str], str]:
    """Runs a prompt that must fail in the node of a title, at the latest when it is its turn; what the user reads."""

    def run(graph: Graph, title: str) -> str:
        node_id = find_node(graph, title)
        with pytest.raises((PromptRefused, ExecutionFailed)) as caught:
            client.run(graph)
        if isinstance(caught.value, PromptRefused):
            assert caught.value.node_errors.keys() == {node_id}
            (error,) = caught.value.node_errors[node_id]["errors"]
            message = f"{error['message']}: {error['details']}"
        else:
            assert caught.value.data["node_id"] == node_id
            message = caught.value.data["exception_message"]
        assert_unharmed()
        return readable(message)

    return run


DEBRIS = ("Traceback", "Error(", "Errno", "tensor(", "<class", " object at 0x", "NoneType", "has no attribute")


def readable(message: str) -> str:
    """The message, if it is a sentence and no debris of a program."""
    message = message.strip()
    assert len(message.split()) >= 5, message
    assert not any(debris in message for debris in DEBRIS), message
    return message


CHOICES = [
    ("TiTok Load", "name"),
    ("TiTok Load", "precision"),
    ("OpenCLIP Load", "name"),
    ("OpenCLIP Load", "precision"),
    ("Sample Picture", "name"),
    ("Regularizer", "toward"),
    ("Noise Schedule", "shape"),
    ("Optimize Tokens", "decay"),
    ("Optimize Tokens", "precision"),
    ("Encode to Features", "fill"),
]


@pytest.mark.parametrize(("title", "name"), CHOICES)
def test_a_choice_that_is_not_offered(graph, rejected, title: str, name: str) -> None:
    """ComfyUI 0.3.75 leaves this check to the node."""
    prompt = graph()
    prompt[find_node(prompt, title)]["inputs"][name] = "no-such-choice"
    assert "no-such-choice" in rejected(prompt, title)


def test_zero_iterations(graph, node, rejected) -> None:
    prompt = graph(iterations=0)
    message = rejected(prompt, "Optimize Tokens")
    assert "iterations" in message and "1" in message


@pytest.mark.parametrize("value", [float("nan"), "nan"])
def test_learning_rate_that_is_no_number(graph, node, rejected, value: Any) -> None:
    prompt = graph()
    node(prompt, "TokenOptOptimize")["learning_rate"] = value
    assert "learning rate must be a finite number" in rejected(prompt, "Optimize Tokens")


def test_weight_that_is_no_number(graph, node, rejected) -> None:
    prompt = graph()
    node(prompt, "TokenOptRegularizer")["weight"] = float("nan")
    assert "weight must be a finite number" in rejected(prompt, "Regularizer")


@pytest.mark.parametrize("title", ["CLIP Loss", "Regularizer"])
def test_negative_weight(graph, rejected, title: str) -> None:
    prompt = graph()
    prompt[find_node(prompt, title)]["inputs"]["weight"] = -1.0
    assert "smaller than min" in rejected(prompt, title)


@pytest.mark.parametrize("text", ["", " \n "])
def test_empty_prompt(graph, node, rejected, text: str) -> None:
    prompt = graph()
    node(prompt, "TokenOptCLIPLoss")["prompt"] = text
    assert rejected(prompt, "CLIP Loss") == "the prompt is empty: say what the picture should show"


def test_words_that_the_mini_clip_does_not_know(graph, node, rejected) -> None:
    prompt = graph()
    node(prompt, "TokenOptCLIPLoss")["prompt"] = "a zebra riding a bicycle"
    message = rejected(prompt, "CLIP Loss")
    assert "a zebra riding a bicycle" in message and "It knows: " in message and "fox" in message


def test_missing_link(graph, node, rejected) -> None:
    prompt = graph()
    del node(prompt, "TokenOptOptimize")["features"]
    assert "input is missing: features" in rejected(prompt, "Optimize Tokens")


def test_link_of_the_wrong_type(graph, node, rejected) -> None:
    prompt = graph()
    node(prompt, "TokenOptOptimize")["features"] = [find_node(prompt, "OpenCLIP Load"), 0]
    assert "received_type(OPENCLIP) mismatch input_type(TITOK_FEATURES)" in rejected(prompt, "Optimize Tokens")


@pytest.mark.parametrize(("title", "kind", "name"), PUBLISHED)
def test_published_model_that_is_not_there(graph, rejected, models, title: str, kind: str, name: str) -> None:
    prompt = graph()
    prompt[find_node(prompt, title)]["inputs"]["name"] = name
    message = rejected(prompt, title)
    assert str(models / kind / name) in message and "https://huggingface.co/" in message
    assert "switch on download" in message


@pytest.mark.parametrize(("title", "kind", "name"), PUBLISHED)
def test_download_without_a_network(graph, rejected, models, title: str, kind: str, name: str) -> None:
    prompt = graph()
    prompt[find_node(prompt, title)]["inputs"].update(name=name, download=True)
    message = rejected(prompt, title)
    assert "could not be downloaded" in message and "https://huggingface.co/" in message
    assert str(models / kind / name) in message
    assert not [path for path in models.glob(f"{kind}/{name}/**/*") if path.is_file()], (
        "something half-written was left"
    )


def test_mini_clip_with_another_tokenizer(graph, node, rejected, models, write_tokenizer) -> None:
    write_tokenizer(models / "titok" / "random256")
    prompt = graph()
    node(prompt, "TokenOptTiTokLoad")["name"] = "random256"
    message = rejected(prompt, "Optimize Tokens")
    assert "mini CLIP" in message and "random256" in message and "Choose a published CLIP" in message


def test_tokenizer_that_disappears_before_its_turn(client, graph, node, models, assert_unharmed) -> None:
    file = models / "titok" / "short-lived.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"there when the prompt is queued")
    blocker = client.queue(graph(seed=3, iterations=50_000))
    prompt = graph()
    node(prompt, "TokenOptTiTokLoad")["name"] = file.name
    waiting = client.queue(prompt)
    file.unlink()
    client.interrupt()
    with pytest.raises(Interrupted):
        list(client.follow(blocker))
    with pytest.raises(ExecutionFailed) as caught:
        list(client.follow(waiting))
    assert caught.value.data["node_id"] == find_node(prompt, "TiTok Load")
    message = readable(caught.value.data["exception_message"])
    assert str(file) in message and "no longer there" in message
    assert_unharmed()


def load_image(prompt: Graph, name: str) -> Graph:
    """The workflow with ComfyUI's own Load Image in place of the sample."""
    prompt[find_node(prompt, "Sample Picture")] = {
        "class_type": "LoadImage",
        "inputs": {"image": name},
        "_meta": {"title": "Load Image"},
    }
    return prompt


def test_corrupt_picture(client, graph, rejected) -> None:
    name = client.upload("corrupt.png", b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert "corrupt.png" in rejected(load_image(graph(), name), "Load Image")


def test_picture_that_is_text(client, graph, rejected) -> None:
    name = client.upload("text.png", b"not a picture at all")
    assert "text.png" in rejected(load_image(graph(), name), "Load Image")


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "I;16"])
def test_pictures_of_every_kind_are_taken(client, graph, mode: str) -> None:
    file = io.BytesIO()
    picture = Image.linear_gradient("L").resize((90, 70))
    deep = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    (deep if mode == "I;16" else picture.convert(mode)).save(file, "PNG")
    prompt = load_image(graph(iterations=1), client.upload(f"{mode.replace(';', '')}.png", file.getvalue()))
    assert client.run(prompt)[find_node(prompt, "Edited picture")]
