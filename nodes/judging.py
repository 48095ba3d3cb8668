"""Judge / Best-Of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core.identity import same_weights
from ..tokenopt_core.judging import JUDGES, ClipJudge, best_of, is_adversarial, load_judge
from ..tokenopt_core.prompts import parse_prompts
from . import widgets
from .batches import AT_ONCE, in_batches
from .convert import gradients, to_bchw
from .inputs import checked
from .models import load
from .progress import tell
from .sockets import CATEGORY, Features, OpenClip
from .tables import csv_table, tell_few, unknown_in_prompt

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

CONNECTED = "connected model"


class BestOf(io.ComfyNode):
    """Results and a judge -> the best of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptBestOf",
            display_name="Judge / Best-Of",
            category=CATEGORY,
            description="Has results judged by another model than the one that guided them, and keeps the best. What "
            "only pleases the guiding model is said.",
            inputs=[
                io.Image.Input("images", tooltip="The results, such as those of Optimize Tokens."),
                widgets.prompt("What they are to show."),
                io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many to keep, the best first."),
                io.Combo.Input(
                    "judge_name",
                    options=[CONNECTED, *JUDGES],
                    default=CONNECTED,
                    tooltip="Who judges. connected model: what is connected to judge. mini: a small network that comes "
                    "with the pack and reads pictures of the mini world; it is no relative of the mini CLIP.",
                ),
                OpenClip.Input(
                    "judge",
                    optional=True,
                    tooltip="Another CLIP than the one that the loss was made with; best a SigLIP.",
                ),
                OpenClip.Input(
                    "guide",
                    optional=True,
                    tooltip="The CLIP that the loss was made with: its similarity stands beside the score.",
                ),
                io.Image.Input(
                    "before",
                    optional=True,
                    tooltip="The pictures that the results were made from, one for all or one for each. With guide: "
                    "results that rose in its eyes and not in the judge's are named.",
                ),
                Features.Input("features", optional=True, tooltip="Of the results, if those of the best are wanted."),
            ],
            outputs=[
                io.Image.Output("best", display_name="IMAGE", tooltip="The best first."),
                Features.Output(
                    "best_features", display_name="FEATURES", tooltip="Of the best, if features are connected."
                ),
                io.String.Output("table", display_name="TABLE", tooltip="All scores, as CSV, the best first."),
                io.String.Output("notes", display_name="NOTES", tooltip="What is said on the node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        images: Tensor,
        prompt: str,
        keep: int,
        judge_name: str,
        judge: ModelPatcher | None = None,
        guide: ModelPatcher | None = None,
        before: Tensor | None = None,
        features: Tensor | None = None,
    ) -> io.NodeOutput:
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        pictures, earlier = to_bchw(images), None if before is None else to_bchw(before)
        _check_counts(len(pictures), keep, earlier, features)
        parse_prompts(prompt)
        asked = [model.model for model in (judge, guide) if model is not None]
        notes = list(dict.fromkeys(note for clip in asked for note in unknown_in_prompt(clip, prompt)))
        with gradients(), torch.no_grad():
            judging = _judge(judge_name, judge)
            scores = _Scores.of(judging, pictures, earlier, prompt)
            guided = None if guide is None else _Scores.of(_of_clip(guide), pictures, earlier, prompt)
            order = best_of(scores.after, len(pictures))
        if guide is not None and judge is not None and judging.clip and same_weights(judge.model, guide.model):
            notes.append("the judge is the guiding model itself, which likes whatever it led to: take another one")
        fooled = _adversarial(scores, guided, judging.scale)
        notes += _warning(fooled, scores, guided)
        tell_few(node_id, notes)
        best = order[:keep]
        table = _table(order, keep, judging.name, scores, guided, fooled)
        return io.NodeOutput(images[best], None if features is None else features[best], table, "\n".join(notes))


@dataclass(frozen=True)
class _Judge:
    """How pictures on the CPU are scored, (B, 3, H, W) and a prompt -> (B,)."""

    name: str
    scale: float
    score: Callable[[Tensor, str], Tensor]
    clip: bool = False


@dataclass(frozen=True)
class _Scores:
    """What somebody says to the results, and to what they were made from."""

    after: Tensor  # (B,)
    before: Tensor | None

    @classmethod
    def of(cls, judge: _Judge, pictures: Tensor, earlier: Tensor | None, prompt: str) -> _Scores:
        after = judge.score(pictures, prompt)
        return cls(after, None if earlier is None else judge.score(earlier, prompt).expand(len(after)))


def _check_counts(count: int, keep: int, earlier: Tensor | None, features: Tensor | None) -> None:
    if keep > count:
        raise ValueError(f"the best {keep} of {count} pictures are to be kept: expected at most {count}")
    if earlier is not None and len(earlier) not in (1, count):
        raise ValueError(f"before must be one picture, or one for each of the {count} results, got {len(earlier)}")
    if features is not None and len(features) != count:
        raise ValueError(f"the features must be those of the {count} results, got features of {len(features)} pictures")


def _judge(name: str, connected: ModelPatcher | None) -> _Judge:
    """Who was asked for; inside `gradients()` only."""
    import comfy.model_management as mm

    if name == CONNECTED:
        if connected is None:
            raise ValueError(
                "there is no judge: connect another CLIP to judge, best a SigLIP of OpenCLIP Load, or set judge_name "
                "to mini for pictures of the mini world"
            )
        return _of_clip(connected)
    own = load_judge(name)

    def score(pictures: Tensor, prompt: str) -> Tensor:
        done = []
        for part in pictures.split(AT_ONCE):
            mm.throw_exception_if_processing_interrupted()
            done.append(own(part, prompt).detach().float())
        return torch.cat(done)

    return _Judge(getattr(own, "name", name), getattr(own, "scale", 0.0), score)


def _of_clip(model: ModelPatcher) -> _Judge:
    """A CLIP or SigLIP, wherever ComfyUI has it; inside `gradients()` only."""
    load([model])
    judge = ClipJudge(model.model)

    def score(pictures: Tensor, prompt: str) -> Tensor:
        return in_batches(model, lambda part: judge(part, prompt), pictures, "the judging")

    return _Judge(judge.name, judge.scale, score, clip=True)


def _adversarial(scores: _Scores, guided: _Scores | None, scale: float) -> Tensor | None:
    """Which results, (B,), please the guide alone; None where that cannot be told."""
    if guided is None or guided.before is None or scores.before is None:
        return None
    return is_adversarial(guided.after - guided.before, scores.after - scores.before, scale)


def _warning(fooled: Tensor | None, scores: _Scores, guided: _Scores | None) -> list[str]:
    if fooled is None or guided is None or guided.before is None or scores.before is None or not fooled.any():
        return []
    which = ", ".join(str(i + 1) for i in fooled.nonzero().flatten().tolist()[:10])
    means = [float(values[fooled].mean()) for values in (guided.before, guided.after, scores.before, scores.after)]
    return [
        f"{int(fooled.sum())} of {len(fooled)} results may fool the guiding CLIP (number {which}): it rose from "
        "{:.3f} to {:.3f}, the judge did not follow ({:.3f} to {:.3f}). Nearer seeds, more crops or a regularizer "
        "help".format(*means)
    ]


def _table(order: Tensor, keep: int, name: str, scores: _Scores, guided: _Scores | None, fooled: Tensor | None) -> str:
    columns: dict[str, Tensor] = {name: scores.after}
    if scores.before is not None:
        columns["before"] = scores.before
    if guided is not None:
        columns["guide"] = guided.after
        if guided.before is not None:
            columns["guide before"] = guided.before
    head = ["rank", "result", "kept", *columns, *(["adversarial"] if fooled is not None else [])]
    rows = [
        [rank, i + 1, "yes" if rank <= keep else "no", *(float(column[i]) for column in columns.values())]
        + ([] if fooled is None else ["yes" if fooled[i] else "no"])
        for rank, i in enumerate(order.tolist(), 1)
    ]
    return csv_table(head, rows)


NODES = [BestOf]
