"""Our models under ComfyUI's memory management: room is made for them, they make room, and gradients stay right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tokenopt_core as to
from tests.comfyui.second_device import DEVICE, Autocast, SecondDevice

pytestmark = pytest.mark.comfyui

PROMPT = "a fox on grass at night"
SETTINGS = {"iterations": 2, "learning_rate": 0.2, "ema_decay": 0.5, "seed": 3}
MB = 1 << 20
STATES = ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM")  # --lowvram, --novram; --highvram and --gpu-only


class Device:
    """A second device of so many bytes, under ComfyUI's real bookkeeping."""

    def __init__(self, patch: pytest.MonkeyPatch, capacity: int) -> None:
        import comfy.model_management as mm

        self.capacity = capacity
        self.others: list[Any] = []
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(mm, "get_torch_device", lambda: DEVICE)
        patch.setattr(mm, "get_free_memory", self.free)
        patch.setattr(mm, "extra_reserved_memory", lambda: 0)
        patch.setattr(mm, "minimum_inference_memory", lambda *_, **__: 0)

    def free(self, dev: torch.device | None = None, torch_free_too: bool = False) -> Any:
        """What weights leave over."""
        import comfy.model_management as mm

        models = [entry.model.model for entry in mm.current_loaded_models if entry.model is not None]
        bytes_free = self.capacity - sum(p.nbytes for m in models for p in m.parameters() if p.device == DEVICE)
        return (bytes_free, 0) if torch_free_too else bytes_free

    def other_model(self, megabytes: int) -> Any:
        """Another node's model, as ComfyUI holds them, loaded."""
        import comfy.model_management as mm
        from comfy.model_patcher import ModelPatcher

        weights = nn.Sequential(nn.Linear(MB // 4, megabytes, bias=False))
        model = ModelPatcher(weights, DEVICE, torch.device("cpu"))
        with torch.inference_mode():
            mm.load_models_gpu([model], force_full_load=True)
        return model


@pytest.fixture
def device(pack, monkeypatch) -> Iterator[Device]:
    """A second device with room enough; nothing of ours stays on it."""
    import comfy.model_management as mm

    with SecondDevice():
        yield Device(monkeypatch, 1000 * MB)
        mm.unload_all_models()
    mm.current_loaded_models.clear()


@pytest.fixture
def vram_state(monkeypatch) -> Callable[[str], None]:
    """Sets what a start with --lowvram and the like sets."""
    import comfy.model_management as mm

    def choose(name: str) -> None:
        state = mm.VRAMState[name]
        monkeypatch.setattr(mm, "vram_state", state)
        monkeypatch.setattr(mm, "set_vram_to", state)

    return choose


class Run:
    """Loaders, features and loss as a workflow has them; each call optimises and gives the features."""

    def __init__(self, pack: Any, picture: torch.Tensor, crops: int = 1) -> None:
        self._pack = pack
        self.titok = pack.run("TokenOptTiTokLoad", precision="float32")[0]
        self.openclip = pack.run("TokenOptCLIPLoad", precision="float32")[0]
        self.features = pack.run("TokenOptEncode", titok=self.titok, image=picture)[0]
        self.loss = pack.run("TokenOptCLIPLoss", openclip=self.openclip, prompt=PROMPT, crops=crops)[0]

    def __call__(self) -> torch.Tensor:
        inputs = {"titok": self.titok, "features": self.features, "loss": self.loss, "precision": "float32"}
        return self._pack.run("TokenOptOptimize", **inputs, **SETTINGS)[0]

    @property
    def patchers(self) -> tuple[Any, Any]:
        return self.titok, self.openclip

    def devices(self) -> set[str]:
        """Where the weights and buffers are."""
        return {tensor.device.type for tensor in self.tensors()}

    def tensors(self) -> list[torch.Tensor]:
        return [t for patcher in self.patchers for t in (*patcher.model.parameters(), *patcher.model.buffers())]


def plain(picture: torch.Tensor, tokenizer: to.Tokenizer, clip: to.Clip, where: torch.device) -> torch.Tensor:
    """The same in plain Python on a device."""
    tokenizer, clip = copy.deepcopy(tokenizer).to(where), copy.deepcopy(clip).to(where)
    with torch.no_grad():
        features = tokenizer.encode(picture.permute(0, 3, 1, 2).contiguous().to(where))
    loss = to.ClipLoss(clip, PROMPT, crops=1)
    return to.optimize(tokenizer, features, loss, to.OptimizeConfig(**SETTINGS, precision="float32")).features.cpu()


@pytest.mark.parametrize("state", STATES)
def test_result_is_right_however_comfyui_was_started(
    pack, device, vram_state, picture, plain_tokenizer, plain_clip, state
) -> None:
    vram_state(state)
    run = Run(pack, picture)
    assert torch.equal(run(), plain(picture, plain_tokenizer, plain_clip, DEVICE))
    assert run.devices() == {DEVICE.type}, "weights were left behind, or are copied for each use"
    modules = [m for patcher in run.patchers for m in patcher.model.modules()]
    assert not any(getattr(m, "comfy_cast_weights", False) for m in modules)


def where(patcher: Any) -> set[str]:
    return {p.device.type for p in patcher.model.parameters()}


def evicted_by_another(run: Run, device: Device) -> None:
    device.capacity = 57 * MB
    device.others.append(device.other_model(52))
    assert run.devices() == {"cpu"}


def partly_evicted(run: Run, device: Device) -> None:
    import comfy.model_management as mm

    device.capacity = 30 * MB
    with torch.inference_mode():
        mm.free_memory(8 * MB, DEVICE)
    assert run.devices() == {"cpu", DEVICE.type}


def unloaded(run: Run, device: Device) -> None:
    import comfy.model_management as mm

    with torch.inference_mode():
        mm.unload_all_models()
    assert run.devices() == {"cpu"}


def detached(run: Run, device: Device) -> None:
    with torch.inference_mode():
        for patcher in run.patchers:
            patcher.detach()


def loaded_by_another_pack(run: Run, device: Device) -> None:
    import comfy.model_management as mm

    with torch.inference_mode():
        mm.unload_all_models()
        mm.load_models_gpu([*run.patchers])
    assert any(t.is_inference() for t in run.tensors())


def cache_emptied(run: Run, device: Device) -> None:
    import comfy.model_management as mm

    mm.soft_empty_cache(True)


@pytest.mark.parametrize(
    "happens",
    [evicted_by_another, partly_evicted, unloaded, detached, loaded_by_another_pack, cache_emptied],
    ids=lambda happens: happens.__name__,
)
def test_result_stays_right_after(device, pack, picture, happens) -> None:
    run = Run(pack, picture)
    first = run()
    happens(run, device)
    assert torch.equal(run(), first)
    assert run.devices() == {DEVICE.type}
    assert not device.others or where(device.others[0]) == {"cpu"}, "the other model was not evicted in turn"


@pytest.mark.parametrize("happens", [partly_evicted, unloaded], ids=lambda happens: happens.__name__)
def test_result_stays_right_with_novram_after(device, vram_state, pack, picture, happens) -> None:
    vram_state("NO_VRAM")
    run = Run(pack, picture)
    first = run()
    happens(run, device)
    assert torch.equal(run(), first)
    assert run.devices() == {DEVICE.type}


def test_pictures_on_the_device_go_with_masks_on_the_cpu(device, vram_state, pack, picture) -> None:
    """Started with --gpu-only, ComfyUI's VAE hands its pictures over where it made them."""
    vram_state("HIGH_VRAM")
    titok = pack.run("TokenOptTiTokLoad", precision="float32")[0]
    mask = torch.zeros(1, *picture.shape[1:3])
    mask[:, 20:40, 20:40] = 1
    here = pack.run("TokenOptEncode", titok=titok, image=picture, mask=mask)
    there = pack.run("TokenOptEncode", titok=titok, image=picture.to(DEVICE), mask=mask)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def loads(monkeypatch) -> list[dict[str, Any]]:
    """What ComfyUI is asked to load, call by call; it is loaded."""
    import comfy.model_management as mm

    calls: list[dict[str, Any]] = []
    load = mm.load_models_gpu

    def spy(models: Any, **settings: Any) -> None:
        calls.append({"models": list(models), **settings})
        load(models, **settings)

    monkeypatch.setattr(mm, "load_models_gpu", spy)
    return calls


def test_a_node_loads_its_models_in_one_call_with_what_it_needs(pack, picture, loads) -> None:
    run = Run(pack, picture.repeat(3, 1, 1, 1), crops=5)
    other = pack.run("TokenOptCLIPLoad")[0]
    more = pack.run("TokenOptImagePromptLoss", openclip=other, image=picture, crops=0)[0]
    run.loss = pack.run("TokenOptCombineLosses", loss_1=run.loss, loss_2=more)[0]
    loads.clear()
    run()
    (call,) = loads
    assert call["models"] == [run.titok, run.openclip, other] and call["force_full_load"]
    watching = [(run.openclip.model, 5), (other.model, 1)]
    part = pack.part("tokenopt_core.memory")
    assert call["memory_required"] == part.optimize_bytes(run.titok.model, watching, 3)


def test_encoding_and_decoding_say_what_they_take(pack, titok, picture, loads) -> None:
    pictures = picture.repeat(4, 1, 1, 1)
    features = pack.run("TokenOptEncode", titok=titok, image=pictures)[0]
    pack.run("TokenOptDecode", titok=titok, features=features)
    expected = pack.part("tokenopt_core.memory").forward_bytes(titok.model, 4)
    assert len(loads) >= 2 and {call["memory_required"] for call in loads} == {expected} and expected > 0


def test_a_batch_that_fits_nowhere_evicts_others_and_is_tried(device, pack, picture) -> None:
    """An estimate may be wrong: whether there is memory enough, the device says."""
    other = device.other_model(20)
    run = Run(pack, picture.repeat(4, 1, 1, 1), crops=8)
    device.capacity = 50 * MB  # weights of 25, and 40 beside them
    assert run().shape[0] == 4
    assert run.devices() == {DEVICE.type} and where(other) == {"cpu"}


def test_graphs_leave_with_their_model(pack, titok, openclip, picture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU captured of a model holds memory: it goes when ComfyUI unloads the model, and stays between runs."""
    import comfy.model_management as mm

    graphs = pack.part("tokenopt_core.graphs")
    monkeypatch.setattr(graphs, "CAPTURE", {"cpu": lambda function, x: function})  # a stand-in for the GPU's
    monkeypatch.setattr(graphs, "CAPTURE_FROM", 2)
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt=PROMPT, crops=1)[0]
    pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **SETTINGS)
    assert {titok.model, openclip.model} == set(graphs._captures)
    mm.unload_all_models()
    assert not graphs._captures
