"""One iteration's losses and their gradient, in as many pieces as memory demands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from .graphs import Replay
from .loss_protocols import Loss, NamedLosses, in_pieces, with_generators
from .regularizers import TokenRegularizer
from .thrift import Thrift
from .thrift import in_pieces as over
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Evaluated:
    """What one iteration found; everything is detached."""

    images: Tensor  # (B, 3, S, S), not clamped
    losses: dict[str, Tensor]  # (B,) each: "loss", and its terms by their names
    penalties: dict[str, Tensor]  # (B,) each: the regularizers' by theirs
    gradient: Tensor  # (B, N, D), of the scaled objectives

    @property
    def objectives(self) -> Tensor:
        """What is minimised, (B,)."""
        return torch.stack([self.losses["loss"], *self.penalties.values()]).sum(0)


class Objective:
    """Loss and regularizers as a function of the features; its random numbers come from one generator a picture."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        loss: Loss,
        regularizers: Sequence[TokenRegularizer],
        seed: Tensor,
        quantize: bool,
        generators: Sequence[torch.Generator],
        context: Callable[[], AbstractContextManager[object]],
        thrift: Thrift,
        replay: Replay,
    ) -> None:
        self._tokenizer, self._quantize, self._context, self._thrift = tokenizer, quantize, context, thrift
        self._replay, self._generators, self._loss = replay, generators, with_generators(loss, generators)
        self._regularizers, self._seed = regularizers, seed
        # smaller pieces than one crop of one picture there are not
        self._most = max(2, len(seed) * max(1, getattr(loss, "crops", 1)))

    def __call__(self, z: Tensor, scale: Tensor) -> Evaluated:
        """Losses and gradient at z (B, N, D), the objectives multiplied by `scale` (B,) before they are derived."""
        states = [generator.get_state() for generator in self._generators]

        def attempt(pieces: int) -> Evaluated:
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)  # a repetition draws what was drawn before
            self._replay.suspended |= pieces > 1  # graphs take more memory, and one shape
            with self._replay.iteration():
                return self._at_once(z, scale) if pieces == 1 else self._in_pieces(z, scale, pieces)

        return self._thrift(attempt, self._most, "an iteration")

    def decode(self, z: Tensor) -> Tensor:
        """Features (B, N, D) -> pictures (B, 3, S, S), not clamped."""
        with self._context():
            return self._tokenizer.decode(z, quantize=self._quantize)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) -> the features (B, N, D) that a run goes on from."""
        with self._context():
            features = self._tokenizer.encode(images)
            return features if self._quantize else self._tokenizer.quantize(features)

    def _at_once(self, z: Tensor, scale: Tensor) -> Evaluated:
        images = self.decode(z)
        with self._context():
            losses = _evaluate(self._loss, images)
        penalties = self._penalties(z)
        objectives = torch.stack([losses["loss"], *penalties.values()]).sum(0)
        gradient = _gradient((objectives * scale).sum(), z)
        return Evaluated(images.detach(), _detached(losses), _detached(penalties), gradient)

    def _in_pieces(self, z: Tensor, scale: Tensor, pieces: int) -> Evaluated:
        """The same, the pictures decoded twice so that the decoder's activations are never kept beside the loss's."""
        with torch.no_grad():
            images = over(self.decode, z, pieces)
        images.requires_grad_(True)
        with self._context():
            losses = _evaluate(in_pieces(self._loss, pieces), images)
        upstream = _gradient((losses["loss"] * scale).sum(), images)
        parts = zip(z.detach().chunk(pieces), upstream.chunk(pieces), strict=True)
        gradient = torch.cat([self._pull(*part) for part in parts])
        penalties = self._penalties(z)
        if penalties:
            total = torch.stack(list(penalties.values())).sum(0)
            gradient = gradient + _gradient((total * scale).sum(), z)
        return Evaluated(images.detach(), _detached(losses), _detached(penalties), gradient)

    def _pull(self, z: Tensor, upstream: Tensor) -> Tensor:
        """The gradient at features whose pictures have the gradient `upstream`."""
        z.requires_grad_(True)
        return _gradient(self.decode(z), z, upstream)

    def _penalties(self, z: Tensor) -> dict[str, Tensor]:
        """The regularizers' values (B,) by name; two of the same name add up."""
        penalties: dict[str, Tensor] = {}
        for regularizer in self._regularizers:
            value = regularizer(z, self._seed)
            penalties[regularizer.name] = penalties.get(regularizer.name, torch.zeros_like(value)) + value
        return penalties


def _gradient(value: Tensor, leaf: Tensor, upstream: Tensor | None = None) -> Tensor:
    """Of `value` with respect to a leaf; not `autograd.grad`, which tools that count operations cannot follow."""
    leaf.grad = None
    torch.autograd.backward(value, upstream, inputs=[leaf])
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    return gradient


def _evaluate(loss: Loss, images: Tensor) -> dict[str, Tensor]:
    """The loss (B,) under "loss", and its terms under their names."""
    terms = loss.terms(images) if isinstance(loss, NamedLosses) else {}
    value = torch.stack(list(terms.values())).sum(0) if terms else loss(images)
    if not isinstance(value, Tensor) or value.shape != (len(images),):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"a loss must give one number a picture, shape ({len(images)},), got {got}")
    return {"loss": value, **terms}


def _detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}
