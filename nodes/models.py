"""TiTok Load and OpenCLIP Load; models under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..tokenopt_core import Clip, Tokenizer, clip, graphs, load_clip, load_tokenizer, memory
from ..tokenopt_core.loss_protocols import Loss
from ..tokenopt_core.optimize import PRECISIONS
from ..tokenopt_core.titok import VARIANTS
from . import folders
from .convert import gradients
from .inputs import checked
from .sockets import CATEGORY, OpenClip, TiTok

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TOKENIZERS = {name: variant.source for name, variant in VARIANTS.items()}
CLIPS = {name: published.source for name, published in clip.PUBLISHED.items()}

KEEP_GRAPHS = 0.5  # share of a GPU's memory that must be free for graphs to stay


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of a model's weights; "auto" is half precision where the device computes in it."""
    import comfy.model_management as mm

    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
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
    from comfy.patcher_extension import CallbacksMP

    patcher = ModelPatcher(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    patcher.add_callback(CallbacksMP.ON_DETACH, lambda unloaded, _: graphs.release(unloaded.model))
    return patcher


def load(patchers: Sequence[ModelPatcher], activations: int = 0) -> torch.device:
    """Brings models to their device, all in one call so that none evicts another; inside `gradients()` only.

    activations: bytes needed beside the weights, for which ComfyUI evicts other models; more than there are is no
        error here.
    """
    import comfy.model_management as mm

    unique = list({id(patcher): patcher for patcher in patchers}.values())
    # in full: back-propagation through weights that are cast on the fly can be silently wrong
    mm.load_models_gpu(unique, memory_required=activations, force_full_load=True)
    for patcher in unique:
        patcher.model.to(patcher.load_device)  # started with --novram, ComfyUI leaves them where they are all the same
        _heal(patcher.model)
    return unique[0].load_device


def make_room(patchers: Sequence[ModelPatcher], activations: int) -> None:
    """When memory ran short: has ComfyUI empty its caches, and evict all models but these for twice the estimate."""
    import comfy.model_management as mm

    mm.soft_empty_cache()
    load(patchers, 2 * activations)


def settle(device: torch.device) -> None:
    """After a run: captured graphs stay for the next one only where memory is plentiful.

    Theirs lies in pools of their own, which ComfyUI takes for free when it makes room for other models.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if free < total * KEEP_GRAPHS:
            graphs.release()


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


def activation_bytes(tokenizer: Tokenizer, losses: Iterable[Loss], batch: int, precision: str) -> int:
    """What an optimization of `batch` pictures takes beside the weights, see `tokenopt_core.memory`."""
    return memory.optimize_bytes(tokenizer, memory.views(losses), batch, weight_dtype(precision))


def check_fit(tokenizer: Tokenizer, clips: Sequence[Clip]) -> None:
    """ValueError if the mini CLIP is to judge pictures of another tokenizer: it knows only the mini world's."""
    for judge in clips:
        if judge.name == "mini" and judge.image_size != tokenizer.image_size:
            raise ValueError(
                f"the mini CLIP ({judge.image_size} px) does not fit {tokenizer} ({tokenizer.image_size} px): it knows "
                "only pictures of the mini world. Choose a published CLIP, such as ViT-B-32, in OpenCLIP Load, or "
                "mini in TiTok Load"
            )


def _precision() -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        default="auto",
        tooltip="Of the weights. auto: half precision on a GPU that computes in it, float32 elsewhere.",
    )


def _download(kind: str) -> io.Boolean.Input:
    return io.Boolean.Input(
        "download",
        default=False,
        tooltip=f"Whether a published model that is not in models/{kind} may be downloaded there when this node runs.",
    )


class TiTokLoad(io.ComfyNode):
    """Loads a tokenizer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptTiTokLoad",
            display_name="TiTok Load",
            category=CATEGORY,
            description="Loads the tokenizer that turns pictures into tokens and back.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(dict.fromkeys(["mini", *folders.installed("titok"), *TOKENIZERS])),
                    default="mini",
                    tooltip="mini: the small tokenizer shipped with the pack, for pictures of its own small world. The "
                    "others are files in models/titok, and published TiTok models for any photograph (256 px).",
                ),
                _precision(),
                _download("titok"),
            ],
            outputs=[TiTok.Output("titok", display_name="TITOK")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, precision: str, download: bool) -> str:
        return f"{folders.fingerprint('titok', name)} {precision}"

    @classmethod
    @checked
    def execute(cls, name: str, precision: str, download: bool) -> io.NodeOutput:
        with gradients():
            source = "mini" if name == "mini" else folders.find("titok", name, TOKENIZERS, download)
            tokenizer = load_tokenizer(source, dtype=weight_dtype(precision))
            tokenizer.name = name
            return io.NodeOutput(wrap(tokenizer))


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
                    options=list(dict.fromkeys(["mini", *folders.installed("open_clip"), *CLIPS])),
                    default="mini",
                    tooltip="mini goes with the mini tokenizer. The others are folders in models/open_clip, and "
                    "published CLIP and SigLIP models; ViT-B-32 is the paper's.",
                ),
                _precision(),
                _download("open_clip"),
            ],
            outputs=[OpenClip.Output("openclip", display_name="OPENCLIP")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, precision: str, download: bool) -> str:
        return f"{folders.fingerprint('open_clip', name)} {precision}"

    @classmethod
    @checked
    def execute(cls, name: str, precision: str, download: bool) -> io.NodeOutput:
        with gradients():
            source = "mini" if name == "mini" else folders.find("open_clip", name, CLIPS, download)
            if isinstance(source, Path) and source.is_file():
                model = load_clip(clip.PUBLISHED[source.stem].architecture or "", source, weight_dtype(precision))
            else:
                model = load_clip(source, dtype=weight_dtype(precision))
            return io.NodeOutput(wrap(model))


NODES = [TiTokLoad, OpenClipLoad]
