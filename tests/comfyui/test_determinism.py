"""The same inputs and seed give the same picture, bit for bit, and no node touches anyone else's random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from .conftest import Pack, defaults
from .test_inputs import good, kind  # noqa: F401

pytestmark = pytest.mark.comfyui

WIDGETS = {"prompt": "a fox on grass", "iterations": 3, "seed": 5, "start": 0.5}


def random_states() -> tuple[Any, ...]:
    """Where the global generators are."""
    on_cuda = [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    kind_, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), on_cuda, random.getstate(), (kind_, keys.tolist(), *rest)  # type: ignore[union-attr]


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@pytest.fixture
def run_node(pack: Pack, good: dict[str, Any]) -> Callable[[str], tuple[Any, ...]]:  # noqa: F811
    """Runs a node with good inputs, every optional one connected."""

    def run(name: str) -> tuple[Any, ...]:
        cls = pack.classes[name]
        items = {item.id: item for item in cls.GET_SCHEMA().inputs}
        values = defaults(cls) | {key: good[kind(item)] for key, item in items.items() if kind(item) in good}
        numbers = {key: value for key, value in WIDGETS.items() if key in items and kind(items[key]) != "COMBO"}
        if "partitions" in items:  # which need pictures of two classes, by day and by night
            values["images"] = torch.cat([good["IMAGE"], good["IMAGE"] * 0.15])
        return pack.run(name, **values | numbers)

    return run


def test_no_node_touches_the_global_random_numbers_or_depends_on_them(pack: Pack, run_node: Any) -> None:
    for name in pack.classes:
        outputs = []
        for seed in (1, 2):
            seed_everything(seed)
            before = random_states()
            outputs.append(run_node(name))
            assert random_states() == before, f"{name} draws from a global generator, or seeds it"
        for first, second in zip(*outputs, strict=True):
            assert_equal(first, second, name)


def assert_equal(first: Any, second: Any, name: str) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), f"{name} depends on a global seed"
    elif isinstance(first, dict):
        for key in first:
            assert_equal(first[key], second[key], name)


def optimised(pack: Pack, picture: torch.Tensor, seed: int = 0, titok: Any = None, openclip: Any = None) -> Any:
    """Pictures of a run with all that draws random numbers: crops, mirroring, noise."""
    titok = titok or pack.run("TokenOptTiTokLoad")[0]
    openclip = openclip or pack.run("TokenOptCLIPLoad")[0]
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass at night", crops=2)[0]
    noise = pack.run("TokenOptNoise", start=0.5)[0]
    inputs = {"titok": titok, "features": features, "loss": loss, "noise": noise, "seed": seed, "iterations": 8}
    return pack.run("TokenOptOptimize", **inputs)[1]


def test_the_picture_is_the_same_after_other_runs_and_freed_models(pack: Pack, picture, titok, openclip) -> None:
    import comfy.model_management as mm

    first = optimised(pack, picture, 0, titok, openclip)
    other = optimised(pack, picture, 1, titok, openclip)
    optimised(pack, torch.cat([picture, picture.flip(2)]), 2, titok, openclip)
    assert torch.equal(optimised(pack, picture, 0, titok, openclip), first)
    with torch.inference_mode():
        mm.unload_all_models()
    mm.soft_empty_cache()
    assert torch.equal(optimised(pack, picture, 0, titok, openclip), first)
    assert torch.equal(optimised(pack, picture, 0), first), "models loaded anew give another picture"
    assert not torch.equal(first, other), "the seed does nothing"


def test_pytorchs_strict_mode_refuses_nothing_and_changes_nothing(pack: Pack, picture) -> None:
    """On a CPU; what it refuses on a GPU is in docs/determinism.md."""
    import comfy.model_management as mm

    if mm.get_torch_device().type != "cpu":
        pytest.skip("on a GPU resized crops are refused")
    first = optimised(pack, picture)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(optimised(pack, picture), first)
    finally:
        torch.use_deterministic_algorithms(False)
