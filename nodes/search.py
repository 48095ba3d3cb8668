"""Token Search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import Clip, Tokenizer, Wanted, WeightedSum, memory, search_token
from ..tokenopt_core.search import Criterion
from ..tokenopt_core.sheet import contact_sheet
from ..tokenopt_core.thrift import Thrift
from .batches import AT_ONCE
from .convert import from_pil, gradients, to_bhwc
from .inputs import checked
from .models import check_fit, load, make_room
from .progress import tell
from .sockets import CATEGORY, Features, LossTerms, TiTok, TokenLoss
from .tables import csv_table

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

ALL = -1  # positions


class Search(io.ComfyNode):
    """Every code in place of a token."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptSearch",
            display_name="Token Search",
            category=CATEGORY,
            description="Tries every code in place of one token, and keeps the one that changes the picture most, or "
            "that a loss likes best.",
            inputs=[
                TiTok.Input("titok", tooltip="The tokenizer that the features come from; one with codes, no VAE."),
                Features.Input("features", tooltip="One picture."),
                io.Int.Input(
                    "position",
                    default=0,
                    min=ALL,
                    max=16_383,
                    tooltip="Which token, counted from 0. -1: all, one after the other; each with its best code, and "
                    "the best of these is the result.",
                ),
                io.Int.Input(
                    "top_k", default=8, min=1, max=64, tooltip="How many of the best codes SHEET and TABLE show."
                ),
                TokenLoss.Input(
                    "loss",
                    optional=True,
                    tooltip="What the replacement should make small. Open: the picture changes most.",
                ),
            ],
            outputs=[
                Features.Output("found", display_name="FEATURES", tooltip="With the best replacement."),
                io.Image.Output("picture", display_name="IMAGE", tooltip="The picture with the best replacement."),
                io.Image.Output("sheet", display_name="SHEET", tooltip="The original and the best codes, with scores."),
                io.String.Output("table", display_name="TABLE", tooltip="The best codes and their scores, as CSV."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls, titok: ModelPatcher, features: Tensor, position: int, top_k: int, loss: LossTerms | None = None
    ) -> io.NodeOutput:
        tokenizer, models = titok.model, [titok, *(loss.models if loss else ())]
        check_fit(tokenizer, [model.model for model in models if isinstance(model.model, Clip)])
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        with gradients(), torch.no_grad():
            needed = _bytes(tokenizer, loss)
            tokens = tokenizer.check(features.clone()).to(load(models, needed))
            criterion = Wanted(WeightedSum(loss.terms)) if loss else None
            thrift = Thrift(lambda: make_room(models, needed))
            hits = _search(tokenizer, tokens, position, top_k, criterion, thrift)
            pictures = thrift.over(tokenizer.decode, torch.cat([tokens, *(hit.put(tokenizer, tokens) for hit in hits)]),
                                   "decoding").cpu()  # fmt: skip
            best = max(range(len(hits)), key=lambda i: hits[i].score)
            found = hits[best].put(tokenizer, tokens).cpu()
        tell(node_id, thrift.notes)
        sheet = from_pil(contact_sheet(pictures, ["original", *(hit.caption for hit in hits)]))
        return io.NodeOutput(found, to_bhwc(pictures[best + 1 :][:1]), sheet, _table(hits))


@dataclass(frozen=True)
class Hit:
    """A code that was tried."""

    position: int
    was: int  # the picture's own code there
    code: int
    score: float

    @property
    def caption(self) -> str:
        return f"token {self.position}: {self.code}  ({self.score:.4g})"

    def put(self, tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
        """The features (1, N, D) with this code in its place."""
        changed = tokens.clone()
        changed[:, self.position] = tokenizer.lookup(torch.tensor([[self.code]], device=tokens.device))[:, 0]
        return changed


def _search(
    tokenizer: Tokenizer, tokens: Tensor, position: int, top_k: int, criterion: Criterion | None, thrift: Thrift
) -> list[Hit]:
    """The best codes of a position, or the best of each."""
    own, hits = tokenizer.indices(tokens)[0].tolist(), list[Hit]()
    positions = range(tokenizer.num_tokens) if position == ALL else [position]
    progress = _progress(len(positions) * (tokenizer.codebook_size or 0))
    for number, here in enumerate(positions):
        before = number * (tokenizer.codebook_size or 0)
        report = partial(progress, before)
        codes, scores = search_token(tokenizer, tokens, here, criterion, report, AT_ONCE, thrift)
        count = 1 if position == ALL else top_k
        best = zip(codes[:count].tolist(), scores[:count].tolist(), strict=True)
        hits += [Hit(here, own[here], code, score) for code, score in best]
    return hits


def _progress(total: int) -> Callable[[int, int], None]:
    import comfy.model_management as mm
    from comfy.utils import ProgressBar

    bar = ProgressBar(total)

    def show(before: int, done: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(before + done)

    return show


def _bytes(tokenizer: Tokenizer, loss: LossTerms | None) -> int:
    """What a batch takes beside the weights: the tokenizer's part, or that of a CLIP that looks at its crops."""
    watching = memory.views([term for _, _, term in loss.terms]) if loss else []
    parts = [memory.forward_bytes(clip, AT_ONCE * crops) for clip, crops in watching]
    return max([memory.forward_bytes(tokenizer, AT_ONCE), *parts])


def _table(hits: list[Hit]) -> str:
    """CSV: a line a code."""
    rows = [(hit.position, hit.code, f"{hit.score:.6g}", hit.was) for hit in hits]
    return csv_table(("position", "code", "score", "own code"), rows)


NODES = [Search]
