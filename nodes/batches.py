"""Large batches through a model: some entries at a time, with a bar and a way out between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tokenopt_core.memory import forward_bytes
from ..tokenopt_core.thrift import Thrift
from .models import load, make_room

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

AT_ONCE = 32


def in_batches(
    patcher: ModelPatcher, function: Callable[[Tensor], Tensor], batch: Tensor, what: str, bar: bool = True
) -> Tensor:
    """`function`, which uses the patcher's model, over a batch; inside `gradients()` only. The result is on the CPU.

    what: what is done, for a message about memory that does not suffice. bar: whether the node's bar shows it.
    """
    import comfy.model_management as mm
    from comfy.utils import ProgressBar

    needed = forward_bytes(patcher.model, min(len(batch), AT_ONCE))
    device, thrift = load([patcher], needed), Thrift(lambda: make_room([patcher], needed))
    progress, done = ProgressBar(len(batch)) if bar else None, []
    for part in batch.split(AT_ONCE):
        mm.throw_exception_if_processing_interrupted()
        done.append(thrift.over(function, part.to(device), what).cpu())
        if progress:
            progress.update(len(part))
    return torch.cat(done)
