"""What a loss is, and what it may offer beside: whoever calls one asks for it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Loss(Protocol):
    """Anything that is called like this is a loss; smaller is better."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


@runtime_checkable
class RandomLoss(Protocol):
    """A loss that draws random numbers, and can be told where from."""

    def with_generators(self, generators: Sequence[torch.Generator]) -> Loss:
        """The same loss, drawing for picture i of the batch from `generators[i]` (on the CPU)."""
        ...


@runtime_checkable
class DivisibleLoss(Protocol):
    """A loss that can do with less memory by doing one thing after the other."""

    def in_pieces(self, pieces: int) -> Loss:
        """The same loss in so many pieces: the same numbers up to rounding, slower."""
        ...


@runtime_checkable
class CroppedLoss(Protocol):
    """A loss of random crops that can look at the whole picture instead: for decisions, not for gradients."""

    def uncropped(self) -> Loss:
        """The same loss of whole pictures."""
        ...


@runtime_checkable
class PairedLoss(Protocol):
    """A loss that has something of its own for each picture of a batch, and can be had for one of them."""

    def of_picture(self, picture: int, count: int) -> Loss:
        """The loss of one picture of a batch of `count`, for as many pictures as are tried in its place."""
        ...


@runtime_checkable
class NamedLosses(Protocol):
    """A loss that is a sum, and can say what of."""

    def terms(self, images: Tensor) -> dict[str, Tensor]:
        """Each part's weighted values (B,) by name; their sum is the loss."""
        ...


def with_generators(loss: Loss, generators: Sequence[torch.Generator]) -> Loss:
    """`loss` drawing from these generators, one a picture; a loss without random numbers comes back as it is."""
    return loss.with_generators(generators) if isinstance(loss, RandomLoss) else loss


def in_pieces(loss: Loss, pieces: int) -> Loss:
    """`loss` in so many pieces; one that knows no pieces comes back as it is."""
    return loss.in_pieces(pieces) if isinstance(loss, DivisibleLoss) else loss


def uncropped(loss: Loss) -> Loss:
    """`loss` of whole pictures; one that knows no crops comes back as it is."""
    return loss.uncropped() if isinstance(loss, CroppedLoss) else loss


def of_picture(loss: Loss, picture: int, count: int) -> Loss:
    """`loss` of one picture of a batch of `count`; one that treats all alike comes back as it is."""
    return loss.of_picture(picture, count) if isinstance(loss, PairedLoss) else loss
