"""ComfyUI in this process, with the pack loaded and its nodes run the way ComfyUI does it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import tokenopt_core as to
from devtools import comfyui
from devtools.paths import ROOT


class Pack:
    """The nodes of the pack as ComfyUI knows them."""

    def __init__(self, module: ModuleType, classes: dict[str, Any]) -> None:
        self.module, self.classes = module, classes

    def part(self, name: str) -> ModuleType:
        """One of the pack's own modules, such as "nodes.models"; not the copy that a test imports from the checkout."""
        return sys.modules[f"{self.module.__name__}.{name}"]

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """The outputs of one node, executed as ComfyUI's executor does it; widgets that are left out keep defaults."""
        from comfy_api.internal import make_locked_method_func

        cls = self.classes[node_id]
        inputs = {**defaults(cls), **inputs}
        with torch.inference_mode():
            cls.VALIDATE_CLASS()
            run = make_locked_method_func(cls, cls.FUNCTION, cls.PREPARE_CLASS_CLONE(None))
            return run(**inputs).result


def defaults(cls: Any) -> dict[str, Any]:
    """The values that the frontend fills in for a new node."""
    values = {}
    for item in cls.GET_SCHEMA().inputs:
        default = getattr(item, "default", None)
        if default is None and getattr(item, "options", None):
            default = item.options[0]
        if default is not None:
            values[item.id] = default
    return values


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The pack inside a ComfyUI whose folders are empty; on the CPU where there is no CUDA."""
    sys.path.insert(
        0, str(comfyui.find())
    )  # first: the checkout's own folder nodes/ has the name of a module of ComfyUI
    from comfy.cli_args import args

    args.base_directory = str(tmp_path_factory.mktemp("comfyui"))
    args.cpu = not torch.cuda.is_available()
    import nodes

    known = set(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(ROOT))), "ComfyUI could not load the pack: see the log"
    added = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name not in known}
    return Pack(sys.modules[str(ROOT).replace(".", "_x_")], added)


@pytest.fixture
def titok(pack: Pack) -> Any:
    """The mini tokenizer from TiTok Load."""
    return pack.run("TokenOptTiTokLoad")[0]


@pytest.fixture
def openclip(pack: Pack) -> Any:
    """The mini CLIP from OpenCLIP Load."""
    return pack.run("TokenOptCLIPLoad")[0]


@pytest.fixture
def picture(pack: Pack) -> torch.Tensor:
    """A sample picture, (1, H, W, 3)."""
    return pack.run("TokenOptSample")[0]


@pytest.fixture(scope="session")
def plain_tokenizer() -> to.Tokenizer:
    """The mini tokenizer as a Python program loads it."""
    return to.load_tokenizer("mini")


@pytest.fixture(scope="session")
def plain_clip() -> to.Clip:
    """The mini CLIP as a Python program loads it."""
    return to.load_clip("mini")


@pytest.fixture
def assert_same(pack: Pack) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Equality bit for bit on the CPU; a GPU may add in another order."""
    import comfy.model_management as mm

    tolerance = 0.0 if mm.get_torch_device().type == "cpu" else 1e-2

    def check(got: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(got, expected.cpu(), rtol=0, atol=tolerance)

    return check
