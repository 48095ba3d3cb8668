"""What the benchmarks measure, and the instruments that they share."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks import plain  # noqa: E402
from benchmarks.loading import peak_bytes, write_weights  # noqa: E402
from devtools import results  # noqa: E402

PROMPT = "a fox on grass at night"
MODELS = ("mini", "titok_l32", "titok_b64", "titok_s128", "titok_bl64_vq8k", "titok_bl128_vq8k", "titok_sl256_vq8k")


@dataclass
class Case:
    """An optimization of text-guided editing, the product's ("fast") or the published one ("plain")."""

    tokenizer: to.Tokenizer
    clip: to.Clip
    features: torch.Tensor
    config: to.OptimizeConfig
    crops: int
    mode: str = "fast"
    prompt: str = PROMPT

    def run(self, iterations: int | None = None) -> float:
        """Seconds of a run, of the config's iterations if not told otherwise; the prompt's embedding is part of it."""
        config = replace(self.config, iterations=iterations or self.config.iterations)
        synchronize(self.features.device)
        start = time.perf_counter()
        if self.mode == "plain":
            plain.optimize(self.tokenizer, self.features, self.clip, self.prompt, config, self.crops)
        else:
            to.optimize(self.tokenizer, self.features, to.ClipLoss(self.clip, self.prompt, crops=self.crops), config)
        synchronize(self.features.device)
        return time.perf_counter() - start


def make(model: str, device: str, batch: int, crops: int, config: to.OptimizeConfig, weights: str = "float32") -> Case:
    """The product's optimization of random features."""
    tokenizer, clip = load(model, device, weights)
    features = to.random_features(tokenizer, batch, 0.3, torch.Generator().manual_seed(0)).to(device)
    return Case(tokenizer, clip, features, config, crops)


def as_plain(case: Case) -> Case:
    """The published loop with the same settings, on copies of the models."""
    return replace(case, tokenizer=plain.plain_model(case.tokenizer), clip=plain.plain_model(case.clip), mode="plain")  # type: ignore[arg-type]


def load(model: str, device: str, weights: str = "float32") -> tuple[to.Tokenizer, to.Clip]:
    """Tokenizer and CLIP, the weights in this precision; big ones with derived or fresh weights: nothing is fetched."""
    dtype = getattr(torch, weights)
    if model == "mini":
        return to.load_tokenizer("mini", dtype=dtype).to(device), to.load_clip("mini", dtype=dtype).to(device)
    import open_clip

    folder = ROOT / ".cache" / "benchmarks" / model
    if not (folder / "model.safetensors").is_file():
        print(f"writing {folder.relative_to(ROOT)} ...", flush=True)
        write_weights(model, folder)
    logging.disable(logging.WARNING)  # that the weights are fresh ones is meant
    tower = open_clip.create_model("ViT-B-32").to(dtype)
    logging.disable(logging.NOTSET)
    clip = to.Clip(
        tower, open_clip.get_tokenizer("ViT-B-32"), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, 224,
        "ViT-B-32",
    )  # fmt: skip
    return to.load_tokenizer(folder, dtype=dtype).to(device), clip.to(device)


def synchronize(device: torch.device) -> None:
    """Waits for what a GPU still does."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceiling(device: torch.device, precision: str) -> float:
    """Operations a second of large matrix products, the best of five."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    times = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        _ = a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times[1:])


def _linear_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


FORMULAS = {torch.ops.mkldnn._linear_pointwise: _linear_flops}  # what the counter does not know


def flops(case: Case) -> float:
    """Operations of one iteration, counted; the plain loop's gradients of weights among them."""
    counted = replace(case, config=replace(case.config, capture=False))  # a replay shows none
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as once:
        counted.run(1)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as twice:
        counted.run(2)  # the difference leaves out what a run does once
    return float(twice.get_total_flops() - once.get_total_flops())


def alternate(cases: Sequence[Case], rounds: int) -> list[list[float]]:
    """Seconds an iteration of each case's runs, the cases in turn: it holds on a machine whose speed drifts."""
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, taken in zip(cases, seconds, strict=True):
            taken.append(case.run() / case.config.iterations)
    return seconds


def peak_memory(device: torch.device) -> int:
    """Of this process so far: on a GPU what PyTorch took there, on a CPU what was resident."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes()


def machine(device: torch.device) -> str:
    """The GPU's name, or processor, cores and memory."""
    return torch.cuda.get_device_name() if device.type == "cuda" else results.machine()
