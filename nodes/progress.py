"""What a running optimization shows: the bar, a picture, a line in the console; and the ways out of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..tokenopt_core import Step
from .convert import to_bhwc, to_pil
from .finish import prompt_server

PREVIEW_SECONDS = 0.3
PREVIEW_SHARE = 0.015  # of the run's time that pictures may take at most
PREVIEW_SIZE = 256  # px that a smaller picture is enlarged to, or it would be a stamp on the node
LINE_SECONDS = 10.0


class Progress:
    """The callback of a run: True ends it, for the user asked to finish; an interruption is raised.

    frames: every `keep_every`-th picture, those of a batch side by side: (H, B * W, 3) each, on the CPU.
    """

    def __init__(self, iterations: int, finish: Callable[[], bool] = lambda: False, keep_every: int = 0) -> None:
        import comfy.model_management as mm
        from comfy.utils import ProgressBar

        self._check_interrupted = mm.throw_exception_if_processing_interrupted
        self._iterations, self._finish, self._keep_every = iterations, finish, keep_every
        self._bar = ProgressBar(iterations)
        self._start = time.monotonic()
        self._next_preview, self._next_line = self._start, self._start + LINE_SECONDS
        self.done, self.frames = 0, list[Tensor]()

    def __call__(self, step: Step) -> bool:
        self._check_interrupted()
        if self._keep_every and step.iteration % self._keep_every == 0:
            self.frames.append(strip(step.image))
        self.done = step.iteration + 1
        self._show(step)
        if time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self._log(step)
        return self._finish()

    def _show(self, step: Step) -> None:
        """The bar; and the picture, as seldom as its cost demands."""
        start = time.monotonic()
        if start < self._next_preview:
            self._bar.update_absolute(self.done)
            return
        picture = to_pil(step.image[0])
        self._bar.update_absolute(self.done, preview=("JPEG", picture, max(*picture.size, PREVIEW_SIZE)))
        cost = time.monotonic() - start
        self._next_preview = start + max(PREVIEW_SECONDS, cost / PREVIEW_SHARE)

    def _log(self, step: Step) -> None:
        losses = ", ".join(f"{name} {value.nanmean():.4g}" for name, value in step.losses.items())
        each = (time.monotonic() - self._start) / self.done
        logging.info(
            "TokenOpt: iteration %d of %d, %.3g s each, %s", self.done, self._iterations, each, losses
        )  # fmt: skip


def strip(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> one picture (H, B * W, 3) on the CPU."""
    return torch.cat([*to_bhwc(images)], 1)


def tell(node_id: str, notes: list[str]) -> None:
    """Writes notes on a node, where the server and its frontend can; nothing to say wipes what stood there."""
    send = getattr(prompt_server(), "send_progress_text", None)
    if send is not None and (notes or node_id in _told):
        send("\n".join(notes), node_id)
        (_told.add if notes else _told.discard)(node_id)


_told: set[str] = set()  # ids of the nodes on which notes stand
