"""What the soak gives a server: model files of its own, and twenty prompts a round that use everything in turn."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from api_examples.client import Graph
from tests import formula
from tokenopt_core.titok import TiTokConfig, Transformer, build

ROUND = 20
TOKENIZERS = {
    "soak vq": TiTokConfig(256, 16, 8, 1024, Transformer(256, 2, 4), Transformer(256, 2, 4)),
    "soak vae": TiTokConfig(192, 32, 16, None, Transformer(192, 3, 4), Transformer(256, 2, 4)),
    "soak wide": TiTokConfig(128, 8, 12, 4096, Transformer(512, 1, 8), Transformer(512, 1, 8), l2_normalize=True),
}
CLIP, DAMAGED = "soak clip", "damaged.safetensors"
NORMAL = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TOWERS = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
SAMPLES = ("fox on grass by day", "house on snow by day", "penguin on snow at night")
PROMPTS = ("a fox on grass by day:2 | a fox", "a house on snow at night", "a penguin")
ENDLESS = 100_000

Ending = Literal["success", "interrupt", "finish", "refused", "damaged", "misfit"]


@dataclass(frozen=True)
class Scene:
    """One prompt: which models, pictures and losses, and how it is to end."""

    tokenizer: str
    loss: str
    size: tuple[int, int]
    batch: int
    toward: str
    iterations: int
    ending: Ending = "success"
    free: bool = False  # whether ComfyUI is asked for its memory back afterwards
    seed: int = 0


def deck(number: int) -> Iterator[Scene]:
    """The scenes of a round: always the same twenty, in another order and with seeds that never come again."""
    turns = zip(
        itertools.cycle(("mini", "soak vq", "mini", "soak vae", "soak wide")),
        itertools.cycle(("clip", "image", "known", "both")),
        itertools.cycle(((256, 256), (96, 128), (500, 333), (64, 300), (320, 200), (128, 128), (700, 512))),
        itertools.cycle((1, 2, 1, 3)),
        itertools.cycle(("seed", "zero", "")),
        itertools.cycle((2, 6, 4)),
        strict=False,
    )
    scenes = [Scene(*turn) for turn in itertools.islice(turns, ROUND)]
    endings: dict[int, Ending] = {
        2: "interrupt",
        5: "refused",
        8: "damaged",
        11: "finish",
        14: "misfit",
        18: "interrupt",
    }
    for index, ending in endings.items():
        scenes[index] = replace(scenes[index], ending=ending)
    for index in (3, 9, 18):
        scenes[index] = replace(scenes[index], free=True)
    random.Random(number).shuffle(scenes)
    return (replace(scene, seed=number * ROUND + index) for index, scene in enumerate(scenes))


def graph(scene: Scene) -> Graph:
    """The prompt of a scene, in API format."""
    judge = "mini" if scene.tokenizer == "mini" else CLIP
    width, height = scene.size
    image, mask, features = ["fit", 0], ["fit", 1], ["encode", 0]
    loader = {"precision": "float32", "download": False}
    losses = {
        "clip": _node("CLIPLoss", openclip=["judge", 0], prompt=PROMPTS[scene.seed % 3], negative="a car", guidance=1.2,
                      crops=2, crop_scale=0.875, flip=0.5, weight=1.0),
        "image": _node("ImagePromptLoss", openclip=["judge", 0], image=["scale", 0], crops=3, crop_scale=0.5, flip=0.0,
                       weight=1.0),
        "known": _node("MaskedL1Loss", image=image, mask=mask, feather=2.0, weight=1.0),
        "both": _node("CombineLosses", loss_1=["clip", 0], loss_2=["known", 0]),
    }  # fmt: skip
    settings = {"iterations": scene.iterations, "learning_rate": 0.1, "decay": "constant", "ema_decay": 0.9}
    settings |= {"quantize": scene.tokenizer != "soak vae", "precision": "auto", "patience": 0, "tolerance": 0.0}
    nodes = {
        "sample": _node("Sample", name=SAMPLES[scene.seed % len(SAMPLES)]),
        "scale": {"class_type": "ImageScale", "inputs": {"image": ["sample", 0], "upscale_method": "bilinear",
                                                         "width": width, "height": height, "crop": "disabled"}},
        "batch": {"class_type": "RepeatImageBatch", "inputs": {"image": ["scale", 0], "amount": scene.batch}},
        "titok": _node("TiTokLoad", name=scene.tokenizer, **loader),
        "judge": _node("CLIPLoad", name=judge, **loader),
        "fit": _node("Fit", titok=["titok", 0], image=["batch", 0], mask=["sample", 1], mode="mask", context=0.5),
        "encode": _node("Encode", titok=["titok", 0], image=image, mask=mask, fill="blur", feather=2.0),
        **losses,
        "pull": _node("Regularizer", toward=scene.toward or "seed", weight=0.02),
        "noise": _node("Noise", start=0.1, end=0.0, until=0.5, shape="cosine"),
        "reset": _node("Reset", image=image, mask=mask, every=2, feather=2.0),
        "optimize": _node("Optimize", titok=["titok", 0], features=features, loss=[scene.loss, 0], seed=scene.seed,
                          keep_best=scene.batch == 2, trajectory_every=scene.batch % 2, **settings),
        "plot": _node("LossPlot", history=["optimize", 2], width=320, height=200),
        "stitch": _node("Stitch", original=["batch", 0], edited=["optimize", 1], placement=["fit", 2], feather=4),
        "save": {"class_type": "SaveImage", "inputs": {"images": ["stitch", 0], "filename_prefix": "soak"}},
        "save plot": {"class_type": "SaveImage", "inputs": {"images": ["plot", 0], "filename_prefix": "plot"}},
    }  # fmt: skip
    run = nodes["optimize"]["inputs"]
    if scene.toward:
        run.update(regularizer=["pull", 0])
    if scene.loss == "known":
        run.update(reset=["reset", 0], noise=["noise", 0])
    _end(nodes, scene)
    return nodes


def _end(nodes: Graph, scene: Scene) -> None:
    """What makes the prompt end as it shall."""
    settings = {"interrupt": ENDLESS, "finish": ENDLESS, "refused": 0}
    nodes["optimize"]["inputs"]["iterations"] = settings.get(scene.ending, scene.iterations)
    if scene.ending == "damaged":
        nodes["titok"]["inputs"]["name"] = DAMAGED
    if scene.ending == "misfit":  # a picture that is not of the tokenizer's size
        nodes["scale"]["inputs"].update(width=77, height=77)
        nodes["known"]["inputs"].update(image=["scale", 0], mask=["sample", 1])
        nodes["optimize"]["inputs"]["loss"] = ["known", 0]


def _node(name: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": f"TokenOpt{name}", "inputs": inputs}


def write_models(models: Path) -> None:
    """Small tokenizers, a small CLIP and a damaged file, into a server's folder of models."""
    for name, config in TOKENIZERS.items():
        with torch.device("meta"):
            shapes = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
        _write(models / "titok" / name, "config.json", config.to_dict(), "model.safetensors", shapes)
    (models / "titok" / DAMAGED).write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{")

    from open_clip import CLIP as Towers

    with torch.device("meta"):
        towers = Towers(TOWERS["embed_dim"], TOWERS["vision_cfg"], TOWERS["text_cfg"])
    shapes = {key: tuple(value.shape) for key, value in towers.state_dict().items()}
    whole = {"model_cfg": TOWERS, "preprocess_cfg": NORMAL}
    _write(models / "open_clip" / CLIP, "open_clip_config.json", whole, "open_clip_model.safetensors", shapes)


def _write(folder: Path, file: str, config: dict[str, Any], weights: str, shapes: dict[str, tuple[int, ...]]) -> None:
    folder.mkdir(parents=True)
    (folder / file).write_text(json.dumps(config), encoding="utf-8")
    tensors = {key: formula.weights(key, shape) if shape else torch.zeros(()) for key, shape in shapes.items()}
    save_file(tensors, folder / weights)
