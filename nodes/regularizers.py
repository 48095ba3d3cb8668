"""Regularizer and Noise Schedule."""

from __future__ import annotations

from comfy_api.latest import io

from ..tokenopt_core import NoiseSchedule, TokenRegularizer
from ..tokenopt_core.regularizers import TOWARD, Toward
from ..tokenopt_core.schedules import SHAPES, Shape
from .inputs import checked
from .sockets import CATEGORY, Noise, Regularizers


class Regularizer(io.ComfyNode):
    """A pull on the features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptRegularizer",
            display_name="Regularizer",
            category=CATEGORY,
            description="Holds the tokens near where they started, or near zero. Chain several.",
            inputs=[
                io.Combo.Input(
                    "toward",
                    options=list(TOWARD),
                    default=TokenRegularizer.toward,
                    tooltip="seed: the features that the run starts from, for edits. zero: for runs without a seed.",
                ),
                io.Float.Input(
                    "weight",
                    default=TokenRegularizer.weight,
                    min=0.0,
                    max=100.0,
                    step=0.005,
                    tooltip="How strongly; 0.02 to 0.05 are usual. 0 switches it off.",
                ),
                Regularizers.Input("chain", optional=True, tooltip="Regularizers to add this one to."),
            ],
            outputs=[Regularizers.Output("regularizer", display_name="REGULARIZER")],
        )

    @classmethod
    @checked
    def execute(cls, toward: Toward, weight: float, chain: tuple[TokenRegularizer, ...] = ()) -> io.NodeOutput:
        return io.NodeOutput((*chain, TokenRegularizer(toward, weight)))


class NoiseNode(io.ComfyNode):
    """Noise over the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptNoise",
            display_name="Noise Schedule",
            category=CATEGORY,
            description="Noise that is added to the features each iteration, so that the search does not settle early.",
            inputs=[
                io.Float.Input(
                    "start",
                    default=NoiseSchedule.start,
                    min=0.0,
                    max=100.0,
                    step=0.0001,
                    tooltip="Standard deviation at the first iteration, in units of the features. 0: none.",
                ),
                io.Float.Input(
                    "end",
                    default=NoiseSchedule.end,
                    min=0.0,
                    max=100.0,
                    step=0.0001,
                    tooltip="Standard deviation at the end. 0: the run ends without noise.",
                ),
                io.Float.Input(
                    "until",
                    default=round(NoiseSchedule.until, 4),
                    min=0.0001,
                    max=1.0,
                    step=0.0001,
                    tooltip="The share of the run after which the end is reached. Near 0: at once.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default=NoiseSchedule.shape,
                    tooltip="How it gets from start to end; constant stays at start and then drops.",
                ),
            ],
            outputs=[Noise.Output("noise", display_name="NOISE")],
        )

    @classmethod
    @checked
    def execute(cls, start: float, end: float, until: float, shape: Shape) -> io.NodeOutput:
        return io.NodeOutput(NoiseSchedule(start, end, until, shape))


NODES = [Regularizer, NoiseNode]
