"""Refine Tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import Clip, Exchange, Tokenizer, TokenRegularizer, WeightedSum, memory, refine_tokens
from ..tokenopt_core.loss_protocols import Loss, uncropped
from ..tokenopt_core.refine import LEAST_GAIN, ROUNDS
from ..tokenopt_core.thrift import Thrift
from .batches import AT_ONCE
from .convert import gradients, to_bhwc
from .inputs import checked
from .models import check_fit, load, make_room
from .progress import tell
from .sockets import CATEGORY, Features, LossTerms, Regularizers, TiTok, TokenLoss
from .tables import csv_table

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

MANY = 20_000  # tries that take long enough to be announced


class Refine(io.ComfyNode):
    """Tokens exchanged for better codes, one at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptRefine",
            display_name="Refine Tokens",
            category=CATEGORY,
            description="Exchanges single tokens for the codes that the loss likes better, by trying every code; after "
            "Optimize Tokens, or in its place. For tokenizers with few codes, such as mini.",
            inputs=[
                TiTok.Input(
                    "titok",
                    tooltip="The tokenizer that the features come from. All its codes are tried again and again: with "
                    "few, as mini has, that is quick; with thousands it takes very long.",
                ),
                Features.Input("features", tooltip="What to refine; each picture of a batch on its own."),
                TokenLoss.Input("loss", tooltip="What to make small. CLIP losses look at whole pictures here."),
                io.Int.Input(
                    "rounds",
                    default=ROUNDS,
                    min=1,
                    max=1000,
                    tooltip="How often each token may be exchanged. It ends by itself when no exchange gains.",
                ),
                io.Float.Input(
                    "least_gain",
                    default=LEAST_GAIN,
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    tooltip="What an exchange must gain at least, in units of the loss. 0: any gain counts.",
                ),
                io.String.Input(
                    "positions",
                    default="",
                    optional=True,
                    tooltip="Which tokens may be exchanged, counted from 0: numbers and ranges, such as 3, 7, 12-15, "
                    "or attributes that the tokenizer knows by name. Empty: all.",
                ),
                Regularizers.Input(
                    "regularizer",
                    optional=True,
                    tooltip="Lets an exchange happen only if it gains more than its distance from the seed costs.",
                ),
                Features.Input(
                    "seed_features",
                    optional=True,
                    tooltip="What the regularizer holds on to: those that Optimize Tokens started from, for instance; "
                    "of one picture, or of as many. Open: the features themselves.",
                ),
            ],
            outputs=[
                Features.Output("refined", display_name="FEATURES", tooltip="With the exchanges."),
                io.Image.Output("images", display_name="IMAGE", tooltip="Decoded from them."),
                io.String.Output("table", display_name="TABLE", tooltip="The exchanges and what each gained, as CSV."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        titok: ModelPatcher,
        features: Tensor,
        loss: LossTerms,
        rounds: int,
        least_gain: float,
        positions: str = "",
        regularizer: tuple[TokenRegularizer, ...] = (),
        seed_features: Tensor | None = None,
    ) -> io.NodeOutput:
        tokenizer, models = titok.model, [titok, *loss.models]
        check_fit(tokenizer, [model.model for model in models if isinstance(model.model, Clip)])
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        with gradients():
            needed = _bytes(tokenizer, [term for _, _, term in loss.terms])
            device, thrift = load(models, needed), Thrift(lambda: make_room(models, needed))
            seed = None if seed_features is None else seed_features.clone().to(device)
            result = refine_tokens(
                tokenizer, features.clone().to(device), WeightedSum(loss.terms), rounds, least_gain,
                positions if positions.strip() else None, regularizer, seed, _Progress(node_id), AT_ONCE, thrift,
            )  # fmt: skip
            tell(node_id, [f"tokens exchanged: {len(result.exchanges)}; tries: {result.tries:,}", *thrift.notes])
            return io.NodeOutput(result.features.cpu(), to_bhwc(result.images), _table(result.exchanges))


class _Progress:
    """The bar, and a way out after each batch; what takes long is announced on the node."""

    def __init__(self, node_id: str) -> None:
        from comfy.utils import ProgressBar

        self._node_id, self._bar, self._announced = node_id, ProgressBar(1), False

    def __call__(self, done: int, most: int) -> None:
        import comfy.model_management as mm

        mm.throw_exception_if_processing_interrupted()
        if most > MANY and not self._announced:
            self._announced = True
            tell(self._node_id, [f"this may take {most:,} tries; fewer positions and rounds take less"])
        self._bar.update_absolute(done, most)


def _bytes(tokenizer: Tokenizer, losses: Sequence[Loss]) -> int:
    """What a batch takes beside the weights: the tokenizer's part, or that of a CLIP that looks at its pictures."""
    watching = memory.views([uncropped(loss) for loss in losses])
    parts = [memory.forward_bytes(clip, AT_ONCE * crops) for clip, crops in watching]
    return max([memory.forward_bytes(tokenizer, AT_ONCE), *parts])


def _table(exchanges: Sequence[Exchange]) -> str:
    """CSV: a line an exchange."""
    rows = [(e.picture + 1, e.position, e.before, e.after, f"{e.gain:.6g}") for e in exchanges]
    return csv_table(("picture", "position", "code before", "code after", "gain"), rows)


NODES = [Refine]
