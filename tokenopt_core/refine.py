"""Single tokens exchanged for other codes where a loss gains, by trying every code: what gradients leave undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .loss_protocols import Loss, of_picture, uncropped
from .regularizers import TokenRegularizer
from .search import AT_ONCE, Criterion, Wanted, search_token
from .thrift import Thrift
from .titok.quantizer import VectorQuantizer
from .tokenizer import Tokenizer
from .tokens import parse_positions

ROUNDS = 2
LEAST_GAIN = 0.0
ROUNDING = 1e-6  # of a loss: by so much it may differ for one and the same picture, depending on what is beside it
NO_LENGTH = 1e-6  # a feature vector shorter than this has no length that a code could be given

Callback = Callable[[int, int], bool | None]


@dataclass(frozen=True)
class Exchange:
    """A token that became another code."""

    picture: int  # of the batch, from 0
    position: int
    before: int  # the code's number
    after: int
    gain: float  # what the loss and the regularizers fell by, together


@dataclass(frozen=True)
class Refined:
    """What the exchanges leave: tensors are detached."""

    features: Tensor  # (B, N, D)
    images: Tensor  # (B, 3, S, S) in [0, 1], decoded from `features`
    losses: Tensor  # (B,), of whole pictures and without the regularizers
    exchanges: list[Exchange]  # picture after picture, in the order in which they were made
    tries: int  # pictures that were decoded for a decision


@torch.no_grad()
def refine_tokens(
    tokenizer: Tokenizer,
    features: Tensor,
    loss: Loss,
    rounds: int = ROUNDS,
    least_gain: float = LEAST_GAIN,
    positions: Sequence[int] | str | None = None,
    regularizers: Sequence[TokenRegularizer] = (),
    seed: Tensor | None = None,
    callback: Callback | None = None,
    batch: int = AT_ONCE,
    thrift: Thrift | None = None,
) -> Refined:
    """Exchanges tokens of the features (B, N, D) for the codes that `loss` likes best, each picture on its own.

    A round tries every code at every position, makes the one exchange that gains most, and looks again at the
    positions that it has not exchanged yet, until none gains; a round without an exchange is the last. Of equal gains
    the earlier position and the smaller code wins. A loss that offers `uncropped()` compares whole pictures, any other
    random loss the same crops of every picture; one with targets of its own for each picture offers `of_picture()`.

    least_gain: in units of the loss, what an exchange must gain at least. positions: which may be exchanged, such as
        "3, 7, 12-15", the tokenizer's attributes by name, or ints; None is all.
    regularizers: what they say of the codes, against those of `seed` (1 or B, N, D), counts with the loss; without a
        seed it is `features`.
    callback: called after each batch with the pictures tried and the most there can be; returning True ends it all.
    batch: pictures decoded at once; less when memory runs short.

    Tokens that are not exchanged keep their features bit for bit; of an exchanged one they become the code, as long as
    they were before where the tokenizer ignores length. Made for few codes: a round takes up to N (N + 1) / 2 times
    their number. Raises ValueError for a VAE, which has no codes, for features of another tokenizer or not finite, and
    for settings out of range; FloatingPointError if no picture has a finite loss.
    """
    chosen = _check(tokenizer, features, rounds, least_gain, positions)
    seed = _codes(tokenizer, features if seed is None else seed, len(features))
    thrift, whole = thrift or Thrift(), uncropped(loss)
    tally = _Tally(callback, tokenizer.codebook_size or 0, len(features) * rounds * _scans(len(chosen)))
    criteria = [Wanted(of_picture(whole, i, len(features))) for i in range(len(features))]
    refined, exchanges = features.detach().clone(), list[Exchange]()
    with suppress(_Stopped):
        for i, criterion in enumerate(criteria):
            penalty = partial(_penalty, regularizers, seed[i : i + 1])
            picture = _Picture(i, tokenizer, features[i : i + 1], criterion, penalty, tally, batch, thrift)
            for exchange in picture.refine(chosen, rounds, least_gain):
                exchanges.append(exchange)
                refined[i, exchange.position] = _feature(tokenizer, exchange.after, features[i, exchange.position])

    # one at a time, or a batch would differ from its pictures in the last bit
    images = [thrift.over(tokenizer.decode, each, "decoding the result") for each in refined.split(1)]
    scores = [thrift.over(*judged, "the result's loss") for judged in zip(criteria, images, strict=True)]
    losses = -torch.cat(scores).float()
    if not torch.isfinite(losses).any():
        raise FloatingPointError(
            "the loss is not a finite number (NaN or infinity), whatever is tried: a model's file, a picture or a loss "
            "is broken, or needs another precision"
        )
    return Refined(refined, torch.cat(images).clamp(0, 1), losses, exchanges, tally.tries)


def _check(
    tokenizer: Tokenizer, features: Tensor, rounds: int, least_gain: float, positions: Sequence[int] | str | None
) -> list[int]:
    """The positions that may be exchanged."""
    tokenizer.indices(features)  # ValueError for a VAE and for features of another tokenizer
    if not len(features):
        raise ValueError("there is nothing to refine: the batch of features is empty")
    if not torch.isfinite(features).all():
        raise ValueError("the features to refine hold values that are not finite (NaN or infinity)")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if not (math.isfinite(least_gain) and least_gain >= 0):
        raise ValueError(f"the least gain must be a finite number of at least 0, got {least_gain}")
    every = range(tokenizer.num_tokens)
    return parse_positions(every if positions is None else positions, tokenizer.num_tokens, tokenizer.presets)


def _codes(tokenizer: Tokenizer, seed: Tensor, count: int) -> Tensor:
    """The codes (count, N, D) of the features that regularizers hold on to."""
    if len(tokenizer.check(seed)) not in (1, count):
        raise ValueError(f"the seed's features must be one picture's, or {count} pictures', got {len(seed)}")
    return tokenizer.lookup(tokenizer.indices(seed)).expand(count, -1, -1)


def _penalty(regularizers: Sequence[TokenRegularizer], seed: Tensor, tokens: Tensor) -> Tensor:
    """What regularizers say of tokens (K, N, D) against those of the seed (1, N, D): (K,)."""
    return torch.stack([tokens.new_zeros(len(tokens)), *(r(tokens, seed.to(tokens)) for r in regularizers)]).sum(0)


def _feature(tokenizer: Tokenizer, code: int, before: Tensor) -> Tensor:
    """The features (D,) of a token that becomes a code, instead of those it had."""
    after = tokenizer.lookup(torch.tensor([[code]], device=before.device))[0, 0]
    quantizer, length = tokenizer.model.quantize, before.norm()
    if isinstance(quantizer, VectorQuantizer) and quantizer.l2_normalize and length > NO_LENGTH:
        return after * length
    return after


def _scans(positions: int) -> int:
    """How often a round may try every code at some position: once for each that is left, and again after each one."""
    return positions * (positions + 1) // 2


class _Stopped(Exception):
    """The callback has asked for the end."""


class _Tally:
    """Counts the tries, and those that are still to come at most."""

    def __init__(self, callback: Callback | None, codes: int, scans: int) -> None:
        self._callback, self._codes = callback, codes
        self.tries, self._most = 0, codes * scans

    def report(self, before: int, done: int) -> None:
        """So many codes of a position were tried, after `before` other tries."""
        self.tries = before + done
        self._show()

    def spare(self, scans: int) -> None:
        """So many positions need no look."""
        self._most -= scans * self._codes
        if scans:
            self._show()

    def _show(self) -> None:
        if self._callback and self._callback(self.tries, self._most):
            raise _Stopped


class _Picture:
    """One picture, and what all codes would do to it."""

    def __init__(
        self,
        number: int,
        tokenizer: Tokenizer,
        features: Tensor,
        criterion: Criterion,
        penalty: Callable[[Tensor], Tensor],
        tally: _Tally,
        batch: int,
        thrift: Thrift,
    ) -> None:
        self._number, self._tokenizer, self._tally, self._batch, self._thrift = number, tokenizer, tally, batch, thrift
        self._criterion, self._penalty = criterion, penalty
        self._own = tokenizer.indices(features)  # (1, N)
        self._known: dict[int, Tensor] = {}  # by position: every code's objective (K,), the other tokens as they are

    def refine(self, positions: Sequence[int], rounds: int, least_gain: float) -> Iterator[Exchange]:
        """The exchanges, each made before it comes out."""
        for left in reversed(range(rounds)):
            waiting = list(positions)
            while waiting:
                best = max([self._best(position) for position in waiting], key=lambda found: found.gain)
                if best.gain <= 0 or best.gain < least_gain:
                    break
                self._make(best)
                waiting.remove(best.position)
                yield best
            self._tally.spare(_scans(len(waiting) - 1))
            if len(waiting) == len(positions):
                self._tally.spare(left * _scans(len(positions)))
                return

    def _best(self, position: int) -> Exchange:
        """The best code there; without a gain if it is no better than the picture's own."""
        objectives, own = self._objectives(position), int(self._own[0, position])
        best = int(objectives.argmin())
        now, then = float(objectives[own]), float(objectives[best])
        gain = now - then if then < now and now - then > ROUNDING * abs(then) else 0.0
        return Exchange(self._number, position, own, best, gain)

    def _make(self, exchange: Exchange) -> None:
        self._own[0, exchange.position] = exchange.after
        # every other position would now be tried beside another token
        self._known = {exchange.position: self._known[exchange.position]}

    def _objectives(self, position: int) -> Tensor:
        """Loss and regularizers with each code in the place of this token, (K,), in float64 on the CPU."""
        if position in self._known:
            self._tally.spare(1)
            return self._known[position]
        tokens, report = self._tokenizer.lookup(self._own), partial(self._tally.report, self._tally.tries)
        order, scores = search_token(
            self._tokenizer, tokens, position, self._criterion, report, self._batch, self._thrift
        )
        objectives = torch.empty(len(order), dtype=torch.float64)
        objectives[order] = -scores.double()
        codes, penalties = torch.arange(len(order), device=tokens.device), list[Tensor]()
        for part in codes.split(self._batch):
            tried = tokens.expand(len(part), -1, -1).clone()
            tried[:, position] = self._tokenizer.lookup(part[:, None])[:, 0]
            penalties.append(self._penalty(tried))
        self._known[position] = objectives + torch.cat(penalties).cpu().double()
        return self._known[position]
