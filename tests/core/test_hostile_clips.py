"""Folders of a CLIP that mean harm: no code of theirs runs, no network is reached, no memory is taken on their word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tokenopt_core as to
from tokenopt_core import clip_config

from .hostile import Harm

pytestmark = pytest.mark.usefixtures("marker", "network")

CLIP = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture(scope="module")
def towers() -> dict[str, torch.Tensor]:
    """Weights for the config above."""
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(**CLIP["model_cfg"]).state_dict()


@pytest.fixture
def folder(tmp_path, towers) -> Callable[..., Path]:
    """Makes a folder of a small CLIP, with changes to its config: place (such as "text_cfg.width") -> value."""

    def make(weights: str = "open_clip_model.safetensors", /, **changes: Any) -> Path:
        config = json.loads(json.dumps(CLIP))
        for place, value in changes.items():
            *parts, last = place.split(".")
            inner = config if parts == ["preprocess_cfg"] else config["model_cfg"]
            for part in parts:
                inner = inner[part]
            inner[last] = value
        path = tmp_path / "a clip"
        path.mkdir(exist_ok=True)
        (path / clip_config.NAME).write_text(json.dumps(config))
        save_file(towers, path / weights) if weights.endswith("s") else torch.save(towers, path / weights)
        return path

    return make


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "my.bin", "model.pth"])
def test_a_folder_that_means_no_harm(folder, weights) -> None:
    clip = to.load_clip(folder(weights))
    assert clip.image_size == 32 and clip.mean.flatten().tolist() == [0.5] * 3
    similarity = clip.embed_text(["a fox"]) @ clip.embed_image(torch.rand(1, 3, 32, 32)).T
    assert torch.isfinite(similarity).all()


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "my.pth"])
def test_harm_in_the_weights_of_a_folder(folder, towers, name) -> None:
    path = folder()
    (path / "open_clip_model.safetensors").unlink()
    torch.save({**towers, "more": Harm()}, path / name)
    with pytest.raises(ValueError, match="could run code: refused"):
        to.load_clip(path)


def test_harm_in_a_file_beside_an_architecture(tmp_path) -> None:
    torch.save({"logit_scale": Harm()}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="could run code: refused"):
        to.load_clip("ViT-S-32-alt", tmp_path / "clip.pt")


def test_no_weights_are_never_random_ones(folder) -> None:
    """open_clip looks for neither of these endings, and would go on without."""
    path = folder()
    (path / "open_clip_model.safetensors").rename(path / "open_clip_model.pt")
    (path / "flax.msgpack").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="has no weight file"):
        to.load_clip(path)


@pytest.mark.parametrize(
    "name", ["", "hf-hub:nobody/none", "hf_hub:nobody/none", "local-dir:/etc", "nobody/none", "../x", 3]
)
def test_a_picture_tower_from_elsewhere(folder, name) -> None:
    with pytest.raises(ValueError, match="timm_model_name must be the name of one of timm's models"):
        to.load_clip(folder(**{"vision_cfg.timm_model_name": name}))


def test_a_picture_tower_with_weights_to_download(folder) -> None:
    changes = {"vision_cfg.timm_model_name": "test_vit", "vision_cfg.timm_model_pretrained": True}
    with pytest.raises(ValueError, match="could not be loaded"):  # the weights are another tower's
        to.load_clip(folder(**changes, **{"vision_cfg.image_size": 160}))


@pytest.mark.parametrize("name", ["nobody/none", "roberta-base", "/etc", "../x"])
def test_a_text_tower_from_elsewhere(folder, name) -> None:
    with pytest.raises(ValueError, match="would be fetched from the network, which a folder must not ask for"):
        to.load_clip(folder(**{"text_cfg.hf_model_name": name, "text_cfg.hf_model_pretrained": True}))


CODE = "import os, pathlib\npathlib.Path(os.environ['HARM']).touch()\nclass Words: pass\n"


def with_code(path: Path, reference: str) -> Path:
    (path / "words.py").write_text(CODE)
    auto_map = {"AutoTokenizer": [reference, None], "AutoConfig": reference}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Words", "auto_map": auto_map}))
    (path / "config.json").write_text(json.dumps({"model_type": "words", "auto_map": auto_map}))
    return path


@pytest.mark.parametrize("reference", ["words.Words", "nobody/none--words.Words"])
def test_words_that_bring_code(folder, reference, monkeypatch) -> None:
    """transformers runs a tokenizer's own code if it is told to, or if somebody answers its question with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    path = with_code(folder(**{"text_cfg.hf_tokenizer_name": "nobody/none"}), reference)
    with pytest.raises(ValueError, match="could not be loaded"):
        to.load_clip(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("trust_remote_code", True), ("cache_dir", "/tmp"), ("bpe_path", "/etc/passwd"), ("code_revision", "")],
)
def test_arguments_smuggled_in_for_the_words(folder, key, value) -> None:
    """The first of them used to run code that lies in the folder."""
    path = folder(**{"text_cfg.hf_tokenizer_name": "nobody/none", "text_cfg.tokenizer_kwargs": {key: value}})
    with pytest.raises(ValueError, match=f"tokenizer_kwargs may not hold '{key}'"):
        to.load_clip(with_code(path, "words.Words"))


def test_words_that_are_not_there(folder) -> None:
    with pytest.raises(ValueError, match="could not be loaded"):
        to.load_clip(folder(**{"text_cfg.hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("text_cfg.vocab_size", 10**6),
        ("text_cfg.width", 16_384),
        ("vision_cfg.layers", 200),
        ("vision_cfg.mlp_ratio", 16_000),
        ("vision_cfg.width", 16_384),
        ("vision_cfg.timm_model_name", "eva02_enormous_patch14_clip_224"),
    ],
)
def test_a_model_much_larger_than_its_weights(folder, place, value, little_memory) -> None:
    with pytest.raises(ValueError, match=r"the config describes [\d,]+ numbers, the weight file holds 3,"):
        to.load_clip(folder(**{place: value, "text_cfg.heads": 1}))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("text_cfg.layers", 10**9),
        ("vision_cfg.layers", [1, 1, 1, 10**6]),
        ("vision_cfg.image_size", 10**6),
        ("vision_cfg.image_size", [32] * 1000),
        ("text_cfg.context_length", 10**6),
        ("embed_dim", -(10**30)),
        ("text_cfg", []),
        ("vision_cfg", {}),
        ("vision_cfg.norm_kwargs", {"device": "meta"}),
        ("text_cfg.act_kwargs", {"approximate": {}}),
        ("surplus", {"a": 1}),
        ("preprocess_cfg.mean", [0.5, 0.5]),
        ("preprocess_cfg.mean", "0.5"),
        ("preprocess_cfg.mean", [1e30, 0, 0]),
        ("preprocess_cfg.std", [0, 1, 1]),
        ("preprocess_cfg.std", [True, 1, 1]),
    ],
)
def test_impossible_configs_of_a_clip(folder, place, value) -> None:
    with pytest.raises(ValueError, match=rf"{clip_config.NAME}: "):
        to.load_clip(folder(**{place: value}))


@pytest.mark.parametrize(
    ("place", "value"),
    [("text_cfg.width", "x"), ("embed_dim", None), ("vision_cfg.patch_size", 0), ("surplus", 1), ("text_cfg.heads", 7)],
)
def test_configs_that_open_clip_refuses(folder, place, value) -> None:
    with pytest.raises(ValueError, match=r"the CLIP in .* could not be loaded"):
        to.load_clip(folder(**{place: value}))


@pytest.mark.parametrize(
    ("name", "parameters"), [("ViT-B-32", 151_277_313), ("RN50", 102_007_137), ("coca_ViT-B-32", 253_560_065)]
)
def test_the_size_of_a_published_model_is_known_without_building_it(name, parameters, little_memory) -> None:
    import open_clip

    config = {"model_cfg": open_clip.get_model_config(name)}
    assert clip_config._parameters(config["model_cfg"]) == parameters
    clip_config.check_size(config, {"all": (parameters,)}, name)
    with pytest.raises(ValueError, match=f"describes {parameters:,} numbers, the weight file holds 1,000"):
        clip_config.check_size(config, {"all": (10, 100)}, name)


def test_the_published_configs_are_possible() -> None:
    import open_clip

    checked = 0
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if not config["text_cfg"].get("hf_model_name"):
            clip_config._check({"model_cfg": config})
            checked += 1
    assert checked > 100
