"""What a run shows, what it costs, and finishing it early."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import torch

from tokenopt_core import Step

pytestmark = pytest.mark.comfyui

SETTINGS = {"iterations": 40, "ema_decay": 0.5, "seed": 3}


@pytest.fixture
def inputs(pack, titok, openclip, picture) -> dict[str, Any]:
    """Everything that Optimize Tokens needs."""
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass at night", crops=1)[0]
    return {"titok": titok, "features": features, "loss": loss, **SETTINGS}


@pytest.fixture
def hook(monkeypatch):
    """Sets what is called with (value, total, preview) at each update of ComfyUI's progress bar."""
    import comfy.utils

    def use(function: Any) -> None:
        monkeypatch.setattr(
            comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: function(value, preview)
        )

    return use


def step(iteration: int) -> Step:
    return Step(iteration, torch.zeros(1, 16, 12), torch.full((1, 3, 64, 64), 0.5), {"loss": torch.tensor([-0.25])})


def test_finishing_passes_on_what_is_there_so_far(pack, inputs, hook, assert_same) -> None:
    finish = pack.part("nodes.finish").finish
    asked: list[list[str]] = []
    hook(lambda value, _: asked.append(finish()) if value == 7 else None)
    features, images, history, _ = pack.run("TokenOptOptimize", **inputs)
    assert asked == [["None"]]  # outside of a workflow the node has no id
    assert len(history["loss"]) == 7
    hook(lambda *_: None)
    whole = pack.run("TokenOptOptimize", **{**inputs, "iterations": 7})
    assert_same(features, whole[0])
    assert_same(images, whole[1])
    assert finish() == [], "the run is over, but was still taken for running"


def test_a_node_is_found_by_its_id_and_inside_subgraphs_too(pack) -> None:
    module = pack.part("nodes.finish")
    with module.finishable("7:3") as first, module.finishable("12") as second:
        assert module.finish("9") == []
        assert module.finish("3") == ["7:3"] and first() and not second()
        assert module.finish("12") == ["12"] and second()
        assert sorted(module.finish()) == ["12", "7:3"]


def test_an_interruption_leaves_no_run_behind(pack, inputs, hook) -> None:
    import comfy.model_management as mm

    hook(lambda value, _: mm.interrupt_current_processing() if value == 2 else None)
    with pytest.raises(mm.InterruptProcessingException):
        pack.run("TokenOptOptimize", **inputs)
    assert pack.part("nodes.finish").finish() == []


def test_pictures_take_a_small_share_of_the_run_however_slow_they_are(pack, hook) -> None:
    spent, pictures = [0.0], [0]

    def slow(_: int, preview: Any) -> None:
        if preview:
            start = time.monotonic()
            time.sleep(0.01)
            spent[0] += time.monotonic() - start
            pictures[0] += 1

    hook(slow)
    progress, start = pack.part("nodes.progress").Progress(10**6), time.monotonic()
    iteration = 0
    while time.monotonic() - start < 4:
        progress(step(iteration))
        iteration += 1
        time.sleep(0.001)
    assert 3 <= pictures[0] <= 4 / 0.3 + 1
    # the first picture is not yet paid for
    assert spent[0] * (pictures[0] - 1) / pictures[0] < 0.02 * 4


def test_a_line_in_the_console_now_and_then(pack, hook, caplog, monkeypatch) -> None:
    module = pack.part("nodes.progress")
    monkeypatch.setattr(module, "LINE_SECONDS", 0.2)
    hook(lambda *_: None)
    with caplog.at_level(logging.INFO):
        progress, start, iteration = module.Progress(1000), time.monotonic(), 0
        while time.monotonic() - start < 0.5:
            progress(step(iteration))
            iteration += 1
            time.sleep(0.01)
    lines = [record.message for record in caplog.records if record.message.startswith("TokenOpt: iteration")]
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith(f"TokenOpt: iteration {lines[0].split()[2]} of 1000, ") and "loss -0.25" in lines[0]


class Server:
    """Stands for ComfyUI's server, which this process does not run: keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def send_progress_text(self, text: str, node_id: str) -> None:
        self.sent.append((text, node_id))


def test_notes_appear_on_the_node_and_go_with_the_next_run(pack, monkeypatch) -> None:
    module, server = pack.part("nodes.progress"), Server()
    monkeypatch.setattr(module, "prompt_server", lambda: server)
    module.tell("5", [])
    assert server.sent == []
    module.tell("5", ["memory ran short", "picture 1 was skipped"])
    module.tell("5", [])
    module.tell("5", [])
    assert server.sent == [("memory ran short\npicture 1 was skipped", "5"), ("", "5")]
