"""Token Importance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core.canvas import fit
from ..tokenopt_core.heatmap import draw_heatmap
from ..tokenopt_core.importance import Finding, Partition, Survey, parse_partitions
from ..tokenopt_core.memory import forward_bytes
from ..tokenopt_core.pictures import read_picture
from ..tokenopt_core.thrift import Thrift
from . import widgets
from .batches import AT_ONCE
from .convert import from_pil, gradients, to_bchw
from .input_folder import pictures_in, stamp
from .inputs import checked
from .models import check_fit, load, make_room
from .progress import tell
from .sockets import CATEGORY, OpenClip, TiTok
from .tables import MOST_NOTES, csv_table, printable, tell_few, unknown_words

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

CAPTION = (
    "Shades and numbers: shares of the row's greatest variance, which stands at its end. Framed: the top positions."
)


class Importance(io.ComfyNode):
    """Pictures and classes -> which tokens tell the classes apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptImportance",
            display_name="Token Importance",
            category=CATEGORY,
            description="Shows which token positions carry an attribute: those whose tokens differ most between "
            "classes of pictures that prompts describe.",
            inputs=[
                TiTok.Input("titok", tooltip="The tokenizer to look into."),
                OpenClip.Input("openclip", tooltip="Decides which class each picture is in."),
                io.String.Input(
                    "partitions",
                    multiline=True,
                    default="lighting: daytime scene | nighttime scene",
                    tooltip="One attribute a line: a name, a colon, then a prompt for each of its classes, separated "
                    "by |. The name may be left out.",
                ),
                io.Int.Input(
                    "top", default=1, min=1, max=256, tooltip="How many positions are framed and given as POSITIONS."
                ),
                io.String.Input(
                    "positions_of",
                    default="",
                    tooltip="The name of the partition whose top positions are given. Empty: the first.",
                ),
                widgets.folder(),
                io.Image.Input("images", optional=True, tooltip="Pictures, instead of a folder or beside it."),
            ],
            outputs=[
                io.Image.Output("heatmap", display_name="HEATMAP", tooltip="Partitions by positions."),
                io.String.Output("positions", display_name="POSITIONS", tooltip="For Token Copy-Paste."),
                io.String.Output("table", display_name="TABLE", tooltip="All numbers, as CSV."),
                io.String.Output("notes", display_name="NOTES", tooltip="Classes without pictures, skipped files."),
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
        titok: ModelPatcher,
        openclip: ModelPatcher,
        partitions: str,
        top: int,
        positions_of: str,
        folder: str,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        asked = parse_partitions(partitions)
        chosen = _choose(asked, positions_of)
        files, outside = _files(folder) if folder.strip() else ([], [])
        if images is None and not files:
            raise ValueError("there are no pictures: connect some to images, or name a folder that holds some")
        check_fit(titok.model, [openclip.model])
        notes = unknown_words(openclip.model, [c for each in asked for c in each.classes]) + outside
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        with gradients(), torch.no_grad():
            found, more = _survey(titok, openclip, asked, images, files)
        notes += [f"{finding.partition.name}: {note}" for finding in found for note in finding.notes] + more
        tell_few(node_id, notes)
        positions = ", ".join(map(str, sorted(found[chosen].top(top))))
        return io.NodeOutput(_heatmap(found, top), positions, _table(found), "\n".join(notes))


def _choose(asked: Sequence[Partition], name: str) -> int:
    """The number of the partition that is meant."""
    names = [partition.name for partition in asked]
    if name.strip() and name.strip() not in names:
        raise ValueError(f"there is no partition {name.strip()[:60]!r}: expected one of {', '.join(names)[:300]}")
    return names.index(name.strip()) if name.strip() else 0


def _files(folder: str) -> tuple[list[Path], list[str]]:
    """The pictures in a folder, and a note on links that are not followed."""
    found = pictures_in(folder)
    links = f"{len(found.outside)} links that lead out of the input folder were left out"
    return found.files, [links] if found.outside else []


def _survey(
    titok: ModelPatcher, openclip: ModelPatcher, asked: Sequence[Partition], images: Tensor | None, files: list[Path]
) -> tuple[list[Finding], list[str]]:
    """What was found, and notes on what went wrong on the way; inside `gradients()` only."""
    import comfy.model_management as mm
    from comfy.utils import ProgressBar

    tokenizer, clip = titok.model, openclip.model
    needed = max(forward_bytes(tokenizer, AT_ONCE), forward_bytes(clip, AT_ONCE))
    device, thrift = load([titok, openclip], needed), Thrift(lambda: make_room([titok, openclip], needed))
    bar = ProgressBar(len(files) + (0 if images is None else len(images)))
    survey, skipped = Survey(clip, asked), list[str]()
    for pictures, looked_at in _pictures(images, files, tokenizer.image_size, skipped):
        mm.throw_exception_if_processing_interrupted()
        if len(pictures):
            there = pictures.to(device)
            tokens = thrift.over(lambda part: tokenizer.quantize(tokenizer.encode(part)), there, "encoding")
            survey.add(tokens, thrift.over(clip.embed_image, there, "the comparison with the prompts"))
        bar.update(looked_at)
    if skipped:
        skipped.insert(0, f"{len(skipped)} of {len(files)} files could not be read and were skipped:")
    if files and len(skipped) == len(files) + 1 and images is None:
        raise ValueError("\n".join(skipped[: MOST_NOTES + 1]))
    return survey.findings(), thrift.notes + skipped


def _pictures(images: Tensor | None, files: list[Path], size: int, skipped: list[str]) -> Iterator[tuple[Tensor, int]]:
    """Squares (B, 3, size, size), some at a time; and how many were looked at for them, with those in `skipped`."""
    for part in () if images is None else images.split(AT_ONCE):
        yield fit(to_bchw(part), None, size)[0], len(part)
    for start in range(0, len(files), AT_ONCE):
        squares, part = [torch.empty(0, 3, size, size)], files[start : start + AT_ONCE]
        for path in part:
            try:
                squares.append(fit(read_picture(path)[None], None, size)[0])
            except ValueError as error:
                skipped.append(f"{printable(path.name)}: {printable(str(error))}")
        yield torch.cat(squares), len(part)


def _positions(found: Sequence[Finding]) -> int:
    """How many token positions there are."""
    return next(len(finding.importance) for finding in found if finding.importance is not None)


def _heatmap(found: Sequence[Finding], top: int) -> Tensor:
    width = _positions(found)
    blank = torch.full((width,), torch.nan, dtype=torch.float64)
    values = torch.stack([blank if f.importance is None else f.importance for f in found])
    return from_pil(draw_heatmap([f.partition.name for f in found], values, [f.top(top) for f in found], CAPTION))


def _table(found: Sequence[Finding]) -> str:
    """CSV: a line a partition, its importance by position."""
    width = _positions(found)
    rows = []
    for finding in found:
        classes = zip(finding.partition.classes, finding.counts, strict=True)
        pictures = " | ".join(f"{name}: {count}" for name, count in classes)
        values = [""] * width if finding.importance is None else [f"{v:.6g}" for v in finding.importance.tolist()]
        rows.append([finding.partition.name, pictures, "; ".join(finding.notes), *values])
    return csv_table(["partition", "pictures", "notes", *map(str, range(width))], rows)


NODES = [Importance]
