"""What `python dev.py bench-gpu` runs, the rows of its table, and its checks of correctness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

import tokenopt_core as to
from benchmarks import cases, plain
from benchmarks.cases import Case
from tokenopt_core.loading import MINI

Verdict = Literal["met", "missed", "failed", ""]
EXACT, HALF = 1e-4, 0.01  # how far fast may be from plain, and half precision from float32


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    goal: str = ""
    verdict: Verdict = ""  # "" where nothing was demanded of this run
    value: float | None = None  # what `measured` says, in its unit
    correctness: bool = False


@dataclass(frozen=True)
class Setting:
    """What is run: on a GPU the goals' runs, quick ones anywhere."""

    device: str = "cuda"
    model: str = "titok_l32"
    quick: bool = False

    @property
    def iterations(self) -> int:
        if self.quick:
            return 4 if self.device == "cpu" else 60  # enough for CUDA graphs
        return 300

    @property
    def batch(self) -> int:
        return 2 if self.quick else 16

    @property
    def crops(self) -> int:
        return 2 if self.quick else 8

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    @property
    def halves(self) -> tuple[str, ...]:
        """Half precisions to look at, the one that the product picks first."""
        if self.device == "cpu":
            return ("bfloat16",)  # float16 is ten times slower there
        return ("bfloat16", "float16") if torch.cuda.is_bf16_supported() else ("float16",)

    def verdict(self, good: bool) -> Verdict:
        """Of a goal; those of speed are for one model on a GPU."""
        demanded = self.device == "cuda" and self.model == "titok_l32" and not self.quick
        return "" if not demanded else "met" if good else "missed"

    def case(self, batch: int = 1, weights: str | None = None, **settings: object) -> Case:
        """As the nodes run it: weights and arithmetic in half precision."""
        half = self.halves[0]
        config = to.OptimizeConfig(**{"iterations": self.iterations, "precision": half, **settings})  # type: ignore
        return cases.make(self.model, self.device, batch, self.crops, config, weights or half)


def exactness(s: Setting) -> Iterator[Row]:
    """Ten iterations in float32, fast against plain."""
    for model in dict.fromkeys(("mini", s.model)):
        config = to.OptimizeConfig(iterations=10, precision="float32")
        fast = cases.make(model, s.device, 2, s.crops, config)
        truth: list[torch.Tensor] = []
        published = cases.as_plain(fast)
        with _no_tf32():
            plain.optimize(
                published.tokenizer, published.features, published.clip, published.prompt, config, s.crops, truth.append
            )
        del published
        for name in ("", ", replayed as CUDA graphs") if s.device == "cuda" else ("",):
            if name:
                with _no_tf32():
                    fast.run(100)  # long enough to be captured, which then serves shorter runs, too
            error = _distance(fast, truth)
            yield Row(
                f"float32, {model}, {config.iterations} iterations{name}: fast against plain", f"{error:.1e}",
                f"at most {EXACT:g}", "met" if error <= EXACT else "failed", error, correctness=True,
            )  # fmt: skip


def _distance(case: Case, truth: list[torch.Tensor]) -> float:
    """The largest relative distance of the averaged tokens from the true ones, watched and unwatched."""
    loss, seen = to.ClipLoss(case.clip, case.prompt, crops=case.crops), list[torch.Tensor]()

    def see(step: to.Step) -> None:
        seen.append(step.features.clone())

    with _no_tf32():
        to.optimize(case.tokenizer, case.features, loss, case.config, callback=see)
        unwatched = to.optimize(case.tokenizer, case.features, loss, case.config)
    pairs = zip([*seen, unwatched.features], [*truth, truth[-1]], strict=True)
    return max(float((got - wanted).norm() / wanted.norm()) for got, wanted in pairs)


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Convolutions in full float32, which PyTorch shortens by default on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def half_precision(s: Setting) -> Iterator[Row]:
    """The loss that runs of the mini model end with, as a mean over pictures.

    A single run is chaotic, in float32 as well: a last bit decides between two codes, and the run goes on elsewhere.
    Only the mean over many runs can agree; without the quantizer ("without VQ") it does so sooner.
    """
    iterations = 10 if s.quick else 100
    count = 6 if s.quick else 4096 if s.device == "cuda" else 24
    granted = 5 if s.quick else 2  # standard errors; of few pictures they are uncertain themselves
    start = to.load_tokenizer("mini").encode(_samples())[torch.arange(count) % 8].to(s.device)
    for quantize in (False, True):
        truth = _final_losses("float32", s, start, iterations, quantize)
        for half in s.halves:
            found = _final_losses(half, s, start, iterations, quantize)
            difference = float((found.mean() - truth.mean()) / truth.mean().abs())
            chance = float((found - truth).std() / count**0.5 / truth.mean().abs())
            good = abs(difference) <= HALF + granted * chance
            model = f"mini{'' if quantize else ' without VQ'}"
            yield Row(
                f"{half}, {model}, {iterations} iterations, {count} pictures: final loss against float32's",
                f"{100 * difference:+.2f} %, standard error {100 * chance:.2f} %",
                f"within {100 * HALF:g} % and {granted} standard errors",
                "met" if good else "failed", difference, correctness=True,
            )  # fmt: skip


def _final_losses(precision: str, s: Setting, start: torch.Tensor, iterations: int, quantize: bool) -> torch.Tensor:
    """The mean loss of the last tenth of the iterations, one a picture."""
    tokenizer, clip = cases.load("mini", s.device, precision)
    loss, ends = to.ClipLoss(clip, cases.PROMPT, crops=min(4, s.crops)), []
    for first in range(0, len(start), 512):
        config = to.OptimizeConfig(iterations=iterations, precision=precision, seed=first, quantize=quantize)  # type: ignore
        with _no_tf32():
            history = to.optimize(tokenizer, start[first : first + 512], loss, config).history["loss"]
        ends.append(history[-max(1, iterations // 10) :].mean(0))
    return torch.cat(ends).double()


def _samples() -> torch.Tensor:
    """The pictures that come with the mini model, (8, 3, 128, 128)."""
    files = [file for file in sorted((MINI / "samples").glob("*.png")) if not file.stem.endswith(".mask")]
    pictures = [np.array(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def reason(error: BaseException) -> str:
    """The error in one line that fits into a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200].replace("|", "/")
