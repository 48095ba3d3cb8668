"""Seed Picker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import Clip
from ..tokenopt_core.canvas import fit
from ..tokenopt_core.embeddings import EmbeddingCache, embed_files
from ..tokenopt_core.identity import fingerprint
from ..tokenopt_core.memory import forward_bytes
from ..tokenopt_core.pictures import one_size, read_picture
from ..tokenopt_core.seeds import PICKS, Pick, embed_prompt, pick_seeds
from ..tokenopt_core.thrift import Thrift
from . import widgets
from .batches import AT_ONCE
from .convert import gradients, to_bchw, to_bhwc
from .input_folder import input_folder, pictures_in, stamp
from .inputs import checked
from .models import load, make_room
from .progress import tell
from .sockets import CATEGORY, OpenClip
from .tables import csv_table, printable, tell_few, unknown_in_prompt

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class SeedPicker(io.ComfyNode):
    """Many pictures and a prompt -> the ones to start from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptSeedPicker",
            display_name="Seed Picker",
            category=CATEGORY,
            description="Picks, out of many pictures, those to start from: the ones that a CLIP finds nearest to a "
            "prompt, some of the nearest, or any.",
            inputs=[
                OpenClip.Input("openclip", tooltip="Compares the pictures with the prompt."),
                widgets.prompt("What the result is to show."),
                widgets.folder(" What the CLIP sees in them is kept on the disk."),
                io.Combo.Input(
                    "mode",
                    options=list(PICKS),
                    default="most similar",
                    tooltip="most similar: the best quality, always the same. top percent: any of the most similar, "
                    "for more variety; 1 percent is the paper's. random: any, for comparison.",
                ),
                io.Float.Input(
                    "percent",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="With top percent: out of how many of the most similar pictures is drawn, but out of count "
                    "at least. 0: out of no more than that.",
                ),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many pictures to pick, none twice."),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Side of the middle squares that are given, in pixels. 0: the pictures as they are; if "
                    "they differ in size, the middle squares at the side of the smallest.",
                ),
                widgets.seed("Of what is drawn. With most similar it makes no difference."),
                io.Image.Input("images", optional=True, tooltip="Pictures, instead of a folder or beside it."),
            ],
            outputs=[
                io.Image.Output("seeds", display_name="IMAGE", tooltip="The most similar of the picked ones first."),
                io.String.Output("table", display_name="TABLE", tooltip="Which they are and how similar, as CSV."),
                io.String.Output("notes", display_name="NOTES", tooltip="Files that were skipped, and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = "", **_: Any) -> str | float:
        """Changes when the folder's files do."""
        return stamp(folder)

    @classmethod
    @checked
    def execute(
        cls,
        openclip: ModelPatcher,
        prompt: str,
        folder: str,
        mode: Pick,
        percent: float,
        count: int,
        size: int,
        seed: int,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        notes = unknown_in_prompt(openclip.model, prompt)
        there = _Folder.of(folder)
        if images is None and not there.files:
            raise ValueError("there are no pictures: connect some to images, or name a folder that holds some")
        with gradients(), torch.no_grad():
            pool = _embed(openclip, images, there)
            notes += pool.notes
            if not pool.sources:
                raise ValueError("\n".join(pool.notes[:4]))
            similarities = pool.embeddings @ embed_prompt(openclip.model, prompt).cpu()
            picked = pick_seeds(similarities, count, mode, percent, torch.Generator().manual_seed(seed)).tolist()
            pictures = [_picture(pool.sources[i], images) for i in picked]
        if openclip.model.name == "mini" and any(min(p.shape[1:]) != openclip.model.image_size for p in pictures):
            notes.append("the mini CLIP knows only pictures of the mini world: for others take a published CLIP")
        tell_few(node_id, notes)
        rows = [(n, there.name(pool.sources[i]), float(similarities[i])) for n, i in enumerate(picked, 1)]
        return io.NodeOutput(
            to_bhwc(one_size(pictures, size)), csv_table(["rank", "picture", "similarity"], rows), "\n".join(notes)
        )


Source = int | Path  # the place in IMAGE, or a file


@dataclass(frozen=True)
class _Folder:
    """The picture files in a folder."""

    path: Path
    files: list[Path]
    outside: list[Path]  # links that lead out of where pictures may come from

    @classmethod
    def of(cls, name: str) -> _Folder:
        """By its name; one without a name is empty."""
        if not name.strip():
            return cls(Path(), [], [])
        return cls(input_folder(name), *pictures_in(name))

    def name(self, source: Source) -> str:
        """How a table calls a picture."""
        return f"image {source + 1}" if isinstance(source, int) else printable(source.relative_to(self.path).as_posix())

    def skipped(self, broken: list[tuple[Path, str]]) -> list[str]:
        """Notes on what could not be used."""
        left_out = broken + [(path, "it is a link that leads out of ComfyUI's input folder") for path in self.outside]
        lines = [f"{self.name(path)}: {printable(reason)}" for path, reason in sorted(left_out)]
        count = len(self.files) + len(self.outside)
        return [f"{len(lines)} of {count} files were skipped:", *lines] if lines else []


@dataclass(frozen=True)
class _Pool:
    """What can be picked from."""

    sources: list[Source]
    embeddings: Tensor  # (sources, E)
    notes: list[str]


def _embed(openclip: ModelPatcher, images: Tensor | None, folder: _Folder) -> _Pool:
    """What the CLIP sees in all pictures; inside `gradients()` only."""
    import comfy.model_management as mm
    from comfy.utils import ProgressBar

    clip, needed = openclip.model, forward_bytes(openclip.model, AT_ONCE)
    device, thrift = load([openclip], needed), Thrift(lambda: make_room([openclip], needed))
    given = 0 if images is None else len(images)
    bar = ProgressBar(given + len(folder.files))

    def embed(pictures: Tensor) -> Tensor:
        return thrift.over(clip.embed_image, pictures.to(device), "the comparison with the prompt").float().cpu()

    def report(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        if done % AT_ONCE == 0 or done == total:
            bar.update_absolute(given + done)

    embedded = []
    for part in () if images is None else images.split(AT_ONCE):
        mm.throw_exception_if_processing_interrupted()
        embedded.append(embed(fit(to_bchw(part), None, clip.image_size)[0]))
        bar.update(len(part))
    cache = EmbeddingCache(_cache_file(folder.path, clip), fingerprint(clip)) if folder.files else None
    found = embed_files(folder.files, embed, clip.image_size, cache, report)
    parts = [part for part in (*embedded, found.embeddings) if len(part)]
    sources = [*range(given), *found.files]
    return _Pool(sources, torch.cat(parts or [torch.zeros(0)]), thrift.notes + folder.skipped(found.broken))


def _cache_file(folder: Path, clip: Clip) -> Path:
    """One a folder and model; a model whose weights changed takes the place of what it was."""
    import folder_paths

    key = repr((str(folder), clip.name, clip.dtype)).encode("utf-8", "backslashreplace")
    name = f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.safetensors"
    return Path(folder_paths.get_system_user_directory("tokenopt"), "embeddings", name)


def _picture(source: Source, images: Tensor | None) -> Tensor:
    """(3, H, W)"""
    if isinstance(source, int) and images is not None:
        return to_bchw(images[source : source + 1])[0]
    try:
        return read_picture(Path(str(source)))
    except ValueError as error:  # the file was there when it was looked at
        raise ValueError(f"{printable(Path(str(source)).name)} was picked, and has changed since: {error}") from error


NODES = [SeedPicker]
