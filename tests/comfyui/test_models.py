"""The loaders, and models that do not fit each other."""

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfyui

PUBLISHED = "titok_bl64_vq8k"


@pytest.fixture
def folder(pack) -> Path:
    """models/titok."""
    import folder_paths

    path = Path(folder_paths.get_folder_paths("titok")[0])
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def big_titok(pack, folder, write_tokenizer):
    """A tokenizer of 256 px from TiTok Load, as a user would have put it into models/titok."""
    if not (folder / "random256").exists():
        write_tokenizer(folder / "random256")
    return pack.run("TokenOptTiTokLoad", name="random256")[0]


@pytest.fixture
def widgets(pack) -> Callable[[str], dict[str, Any]]:
    """The values that the frontend fills in for a new node of ours."""

    def defaults(node_id: str) -> dict[str, Any]:
        if node_id not in pack.classes:
            return {}
        inputs = pack.classes[node_id].GET_SCHEMA().inputs
        return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}

    return defaults


def options(pack, node_id: str) -> list[str]:
    """What a loader's list offers right now."""
    return pack.classes[node_id].GET_SCHEMA().inputs[0].options


def test_models_of_the_mini_world_come_first(pack) -> None:
    assert options(pack, "TokenOptTiTokLoad")[0] == "mini"
    assert PUBLISHED in options(pack, "TokenOptTiTokLoad")
    assert options(pack, "TokenOptCLIPLoad")[0] == "mini"


def test_a_tokenizer_put_into_the_folder_is_offered_and_works(pack, folder, big_titok, picture) -> None:
    assert "random256" in options(pack, "TokenOptTiTokLoad")
    features, cropped, _ = pack.run("TokenOptEncode", titok=big_titok, image=picture)
    assert cropped.shape == (1, 256, 256, 3)
    image = pack.run("TokenOptDecode", titok=big_titok, features=features)[0]
    assert image.shape == (1, 256, 256, 3)
    assert str(big_titok.model) == "tokenizer 'random256'"


def test_a_replaced_file_is_loaded_again(pack, folder, big_titok) -> None:
    """ComfyUI asks for the fingerprint to decide whether the cached model is still good."""
    ask = pack.classes["TokenOptTiTokLoad"].fingerprint_inputs
    before = ask("random256", "auto", False)
    assert ask("random256", "auto", False) == before
    os.utime(folder / "random256" / "model.safetensors", (0, 2e9))
    assert ask("random256", "auto", False) != before


def test_mini_clip_does_not_judge_another_tokenizer(pack, big_titok, openclip, picture) -> None:
    features = pack.run("TokenOptEncode", titok=big_titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass")[0]
    with pytest.raises(ValueError, match=r"mini CLIP \(\d+ px\) does not fit tokenizer 'random256' \(256 px\).*Choose"):
        pack.run("TokenOptOptimize", titok=big_titok, features=features, loss=loss, iterations=1)


def test_a_file_that_is_gone_is_named_with_its_place(pack, folder) -> None:
    with pytest.raises(FileNotFoundError) as error:
        pack.run("TokenOptTiTokLoad", name="gone.safetensors")
    assert str(folder / "gone.safetensors") in str(error.value)


def test_a_published_name_is_not_fetched_unasked(pack, folder) -> None:
    with pytest.raises(FileNotFoundError) as error:
        pack.run("TokenOptTiTokLoad", name=PUBLISHED)
    for part in (
        str(folder / PUBLISHED),
        "switch on download",
        f"https://huggingface.co/yucornetto/tokenizer_{PUBLISHED}",
    ):
        assert part in str(error.value)


def test_a_damaged_file_is_refused_by_its_name(pack, folder, write_tokenizer) -> None:
    target = folder / "damaged"
    write_tokenizer(target)
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"model\.safetensors.*damaged"):
        pack.run("TokenOptTiTokLoad", name="damaged")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_is_that_of_the_weights_alone(pack, picture, precision: str) -> None:
    titok = pack.run("TokenOptTiTokLoad", precision=precision)[0]
    openclip = pack.run("TokenOptCLIPLoad", precision=precision)[0]
    assert titok.model.dtype == openclip.model.dtype == getattr(torch, precision)
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass", crops=1)[0]
    inputs = {"titok": titok, "features": features, "loss": loss, "iterations": 2}
    optimized, images, *_ = pack.run("TokenOptOptimize", **inputs)
    assert features.dtype == optimized.dtype == images.dtype == torch.float32
    assert torch.isfinite(optimized).all() and not torch.equal(optimized, features)


def test_prompt_of_words_the_mini_clip_never_saw(pack, openclip) -> None:
    with pytest.raises(ValueError, match=r"mini CLIP knows nothing.*a zebra riding a bicycle.*fox"):
        pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a zebra riding a bicycle")


def test_one_unknown_word_is_a_warning(pack, openclip, caplog) -> None:
    pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on glimmering grass")
    assert "glimmering" in caplog.text


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt_is_refused(pack, openclip, prompt: str) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        pack.run("TokenOptCLIPLoss", openclip=openclip, prompt=prompt)


def test_models_count_in_comfyuis_memory(pack, titok, openclip, picture) -> None:
    """What ComfyUI does not know of it can neither make room for nor evict."""
    import comfy.model_management as mm

    mm.unload_all_models()
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass")[0]
    pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, iterations=1)
    loaded = [entry.model for entry in mm.current_loaded_models]
    assert titok in loaded and openclip in loaded


class Executor:
    """ComfyUI's own executor, with its caches, in this process; `graph` optimises with a tokenizer."""

    def __init__(self, name: str) -> None:
        import execution

        server = SimpleNamespace(client_id=None, last_node_id=None, last_prompt_id=None, send_sync=lambda *_: None)
        self.run = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0})
        self.graph: dict[str, Any] = {
            "sample": {"class_type": "TokenOptSample", "inputs": {"name": "fox on grass by day"}},
            "titok": {"class_type": "TokenOptTiTokLoad", "inputs": {"name": name}},
            "encode": {"class_type": "TokenOptEncode", "inputs": {"titok": ["titok", 0], "image": ["sample", 0]}},
            "loss": {"class_type": "TokenOptMaskedL1Loss", "inputs": {"image": ["encode", 1], "mask": ["sample", 1]}},
            "optimize": {
                "class_type": "TokenOptOptimize",
                "inputs": {"titok": ["titok", 0], "features": ["encode", 0], "loss": ["loss", 0], "iterations": 1},
            },
            "save": {"class_type": "PreviewImage", "inputs": {"images": ["optimize", 1]}},
        }

    def __call__(self, defaults: Callable[[str], dict[str, Any]]) -> None:
        graph = {
            key: {**node, "inputs": {**defaults(node["class_type"]), **node["inputs"]}}
            for key, node in self.graph.items()
        }
        self.run.execute(graph, "prompt", {}, ["save"])
        assert self.run.success, self.run.status_messages[-1]


@pytest.fixture
def without_the_collector() -> Iterator[None]:
    """What is freed in here is freed at once, because nothing refers to it, not even itself in a circle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_models_are_freed_with_their_outputs(pack, without_the_collector) -> None:
    """A module that something else keeps alive would stay on the GPU for good."""
    titok, openclip = pack.run("TokenOptTiTokLoad")[0], pack.run("TokenOptCLIPLoad")[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass")[0]
    features = torch.zeros(1, titok.model.num_tokens, titok.model.token_dim)
    pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, iterations=1)
    alive = [weakref.ref(x) for x in (titok, openclip, titok.model, openclip.model, loss.terms[0][2])]
    del titok, openclip, loss
    assert [ref() for ref in alive] == [None] * 5


def test_freeing_models_and_cache_frees_everything(pack, big_titok, widgets) -> None:
    """ComfyUI's button of that name unloads all models and forgets all outputs."""
    import comfy.model_management as mm

    execute = Executor("random256")
    execute(widgets)
    (patcher,) = [e.model for e in mm.current_loaded_models if str(e.model.model) == "tokenizer 'random256'"]
    alive = [weakref.ref(patcher), weakref.ref(patcher.model), weakref.ref(next(patcher.model.parameters()))]
    del patcher, big_titok
    mm.unload_all_models()
    execute.run.reset()
    gc.collect()  # as ComfyUI does then: its caches refer to themselves
    assert [ref() for ref in alive] == [None] * 3
    execute(widgets)


def test_a_replaced_file_does_not_double_the_memory(pack, folder, widgets, monkeypatch, without_the_collector) -> None:
    """The model of the old file is gone before that of the new one is read."""
    models, execute = pack.part("nodes.models"), Executor("random256")
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load = models.load_tokenizer

    def watched(*arguments: Any, **settings: Any) -> Any:
        alive.append(sum(ref() is not None for ref in loaded))
        tokenizer = load(*arguments, **settings)
        loaded.append(weakref.ref(tokenizer))
        return tokenizer

    monkeypatch.setattr(models, "load_tokenizer", watched)
    for seconds in (1e9, 2e9, 2.1e9):
        os.utime(folder / "random256" / "model.safetensors", (0, seconds))
        execute(widgets)
        execute(widgets)  # the same file: the model in the cache serves
    assert alive == [0, 0, 0]
