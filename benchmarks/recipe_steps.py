"""What a recipe is made of: the settings of a workflow's nodes, without models, pictures and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import tokenopt_core as to
from tokenopt_core.canvas import Mode
from tokenopt_core.masks import Fill
from tokenopt_core.refine import LEAST_GAIN, ROUNDS
from tokenopt_core.tokens import Start


@dataclass(frozen=True)
class ClipTerm:
    """A CLIP loss without its prompt, which every picture brings."""

    negative: str = ""
    guidance: float = 1.0
    crops: int = 8
    crop_scale: float = 0.875
    flip: float = 0.5
    weight: float = 1.0


@dataclass(frozen=True)
class KnownTerm:
    """A masked L1 loss; the mask's feather in px."""

    feather: float = 2.0
    weight: float = 1.0


Term = ClipTerm | KnownTerm


@dataclass(frozen=True)
class ResetTerm:
    """A token reset; the mask's feather in px."""

    every: int = 10
    feather: float = 2.0


@dataclass(frozen=True)
class Optimize:
    """Adam on the features."""

    config: to.OptimizeConfig = field(default_factory=to.OptimizeConfig)
    terms: tuple[Term, ...] = (ClipTerm(),)
    regularizers: tuple[to.TokenRegularizer, ...] = ()
    reset: ResetTerm | None = None


@dataclass(frozen=True)
class Refine:
    """Codes tried out one by one."""

    rounds: int = ROUNDS
    least_gain: float = LEAST_GAIN
    positions: str = ""  # none: all
    anchored: bool = False  # whether its regularizers hold on to the start, and not to what it is given
    terms: tuple[Term, ...] = (ClipTerm(),)
    regularizers: tuple[to.TokenRegularizer, ...] = ()


Stage = Optimize | Refine


@dataclass(frozen=True)
class Encoded:
    """The start is a picture; with a mask, what it marks is painted over first."""

    fill: Fill = "grey"
    feather: float = 2.0
    masked: bool = False


@dataclass(frozen=True)
class Drawn:
    """The start is drawn at random, `batch` times for each picture that is wanted."""

    batch: int = 1
    start: Start = "normal"
    std: float = 0.3


@dataclass(frozen=True)
class Fitting:
    """How the square is cut out of the picture and put back."""

    mode: Mode = "crop"
    context: float = 0.5
    feather: int | None = None  # of Stitch Back; None: the square itself is the result


@dataclass(frozen=True)
class Growing:
    """By how many px the mask is grown, and whether with tapered corners."""

    expand: int = 0
    tapered_corners: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    start: Encoded | Drawn = field(default_factory=Encoded)
    stages: tuple[Stage, ...] = (Optimize(),)
    fitting: Fitting = field(default_factory=Fitting)
    growing: Growing = field(default_factory=Growing)
    quantize: bool = True  # of the final decoding

    @property
    def loop(self) -> Optimize:
        """Its first optimization."""
        return next(stage for stage in self.stages if isinstance(stage, Optimize))

    @property
    def refined(self) -> bool:
        return any(isinstance(stage, Refine) for stage in self.stages)

    def with_loop(self, change: Callable[[Optimize], Optimize]) -> Recipe:
        """The same with its optimizations changed."""
        return replace(self, stages=tuple(change(s) if isinstance(s, Optimize) else s for s in self.stages))

    def settings(self) -> dict[str, Any]:
        """All of it as JSON knows it; without the seed, which every run brings."""
        stages: list[dict[str, Any]] = []
        for stage in self.stages:
            entry = {"stage": type(stage).__name__} | asdict(stage)
            entry["terms"] = [{"term": type(term).__name__} | asdict(term) for term in stage.terms]
            if isinstance(stage, Optimize):
                del entry["config"]["seed"]
            stages.append(entry)
        start = {"start": type(self.start).__name__, "settings": asdict(self.start)}
        rest = {"fitting": asdict(self.fitting), "growing": asdict(self.growing), "quantize": self.quantize}
        return json.loads(json.dumps({"from": start, "stages": stages, **rest}))


def changed(stage: Optimize, **settings: Any) -> Optimize:
    """The same optimization with other settings of the loop."""
    return replace(stage, config=replace(stage.config, **settings))


def with_clip(terms: Sequence[Term], **settings: Any) -> tuple[Term, ...]:
    """The same losses, CLIP's with other settings."""
    return tuple(replace(term, **settings) if isinstance(term, ClipTerm) else term for term in terms)
