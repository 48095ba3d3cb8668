"""TiTok Load and OpenCLIP Load; models under ComfyUI's memory management."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..tokenopt_core import Clip, Tokenizer, load_clip, load_tokenizer
from ..tokenopt_core.loading import download, page
from ..tokenopt_core.optimize import PRECISIONS
from ..tokenopt_core.titok import VARIANTS
from ..tokenopt_core.weights import SUFFIXES
from .convert import gradients
from .sockets import CATEGORY, OpenClip, TiTok

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

CLIPS = {
    "mini": ("mini", None),
    "ViT-B-32 laion2b": ("ViT-B-32", "laion2b_s34b_b79k"),
    "ViT-B-16 laion2b": ("ViT-B-16", "laion2b_s34b_b88k"),
    "ViT-L-14 laion2b": ("ViT-L-14", "laion2b_s32b_b82k"),
    "ViT-B-16-SigLIP webli": ("ViT-B-16-SigLIP", "webli"),
}
FOLDERS = {"titok": "TiTok tokenizers", "open_clip": "OpenCLIP models"}


def register_folders() -> None:
    """Tells ComfyUI of models/titok and models/open_clip; folders of the user's extra_model_paths.yaml come first."""
    import folder_paths

    for key in FOLDERS:
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key))
        folder_paths.folder_names_and_paths[key][1].update(SUFFIXES)


def installed(key: str) -> dict[str, Path]:
    """Weight files, and folders with a config.json, below the model folders of one kind, by name."""
    import folder_paths

    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(key)):
        for config in sorted(root.glob("*/config.json")):
            found.setdefault(config.parent.name, config.parent)
        for file in sorted(root.glob("*")):
            if file.suffix in SUFFIXES:
                found.setdefault(file.name, file)
    return found


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of a model's weights; "auto" is half precision where the device computes in it."""
    import comfy.model_management as mm

    if precision != "auto":
        return getattr(torch, precision)
    device = mm.get_torch_device()
    if mm.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if mm.should_use_fp16(device) else torch.float32


def wrap(model: torch.nn.Module) -> ModelPatcher:
    """A model that ComfyUI loads, counts and evicts like its own."""
    import comfy.model_management as mm
    from comfy.model_patcher import ModelPatcher  # not CoreModelPatcher, which ignores force_full_load

    return ModelPatcher(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def load(patchers: Sequence[ModelPatcher], activations: int = 0) -> torch.device:
    """Brings models to their device, all in one call so that none evicts another; inside `gradients()` only.

    activations: bytes that autograd will keep, which ComfyUI cannot know.
    """
    import comfy.model_management as mm

    unique = list({id(patcher): patcher for patcher in patchers}.values())
    # in full: back-propagation through weights that are cast on the fly can be silently wrong
    mm.load_models_gpu(unique, memory_required=activations, force_full_load=True)
    for patcher in unique:
        _heal(patcher.model)
    return unique[0].load_device


def _heal(model: torch.nn.Module) -> None:
    """Replaces tensors that were moved under inference mode, and would refuse a gradient, by clones."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and _tainted(parameter):
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and _tainted(buffer):
                module._buffers[name] = buffer.detach().clone()


def _tainted(tensor: torch.Tensor) -> bool:
    try:
        return tensor.is_inference() or tensor._version < 0
    except RuntimeError:  # "Inference tensors do not track version counter"
        return True


def activation_bytes(tokenizer: Tokenizer, batch: int, crops: int) -> int:
    """A rough upper estimate of what autograd keeps for one iteration."""
    pixels = tokenizer.image_size**2
    return batch * pixels * (3000 + 600 * crops)


class TiTokLoad(io.ComfyNode):
    """Loads a tokenizer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = list(dict.fromkeys(["mini", *installed("titok"), *VARIANTS]))
        return io.Schema(
            node_id="TokenOptTiTokLoad",
            display_name="TiTok Load",
            category=CATEGORY,
            description="Loads the tokenizer that turns pictures into tokens and back.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=names,
                    default="mini",
                    tooltip="mini: the small tokenizer shipped with the pack, for pictures of its own small world. The "
                    "others are files in models/titok, and published TiTok models for any photograph (256 px).",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Of the weights. auto: half precision on a GPU that computes in it, float32 elsewhere.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Whether a published tokenizer that is not in models/titok may be downloaded there.",
                ),
            ],
            outputs=[TiTok.Output("titok", display_name="TITOK")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, precision: str, download: bool) -> str:
        path = installed("titok").get(name)
        return f"{name} {precision} {path and max(f.stat().st_mtime for f in [path, *path.glob('*')])}"

    @classmethod
    def execute(cls, name: str, precision: str, download: bool) -> io.NodeOutput:
        with gradients():
            tokenizer = load_tokenizer(find_tokenizer(name, download), dtype=weight_dtype(precision))
            tokenizer.name = name
            return io.NodeOutput(wrap(tokenizer))


def find_tokenizer(name: str, allow_download: bool) -> str | Path:
    """What `load_tokenizer` takes for a name of TiTok Load's list; downloads only if that is allowed."""
    import folder_paths

    if name == "mini":
        return name
    path = installed("titok").get(name)
    if path is not None:
        return path
    target = Path(folder_paths.get_folder_paths("titok")[0]) / name
    if name not in VARIANTS:
        raise FileNotFoundError(f"the tokenizer {name!r} is no longer there: it was looked for as {target}")
    if not allow_download:
        raise FileNotFoundError(
            f"{name} is not in {target}: switch on download, or put {' and '.join(VARIANTS[name].files)} of "
            f"{page(name)} there"
        )
    logging.info("TokenOpt: downloading %s to %s", page(name), target)
    return download(name, target)


class OpenClipLoad(io.ComfyNode):
    """Loads a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptCLIPLoad",
            display_name="OpenCLIP Load",
            category=CATEGORY,
            description="Loads the model that compares pictures with a prompt. ComfyUI's own CLIP cannot be "
            "differentiated, so this pack brings its own.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(CLIPS),
                    default="mini",
                    tooltip="mini goes with the mini tokenizer. The others are published CLIP and SigLIP models; "
                    "ViT-B-32 is the paper's.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Of the weights. auto: half precision on a GPU that computes in it, float32 elsewhere.",
                ),
            ],
            outputs=[OpenClip.Output("openclip", display_name="OPENCLIP")],
        )

    @classmethod
    def execute(cls, name: str, precision: str) -> io.NodeOutput:
        import folder_paths

        model, weights = CLIPS[name]
        with gradients():
            clip = load_clip(model, weights, weight_dtype(precision), folder_paths.get_folder_paths("open_clip")[0])
            return io.NodeOutput(wrap(clip))


def check_fit(tokenizer: Tokenizer, clips: Sequence[Clip]) -> None:
    """ValueError if the mini CLIP is to judge pictures of another tokenizer: it knows only the mini world's."""
    for clip in clips:
        if clip.name == "mini" and clip.image_size != tokenizer.image_size:
            raise ValueError(
                f"the mini CLIP ({clip.image_size} px) does not fit {tokenizer} ({tokenizer.image_size} px): it knows "
                "only pictures of the mini world. Choose a published CLIP, such as ViT-B-32, in OpenCLIP Load, or "
                "mini in TiTok Load"
            )


NODES = [TiTokLoad, OpenClipLoad]
