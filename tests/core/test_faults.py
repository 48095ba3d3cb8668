"""What goes wrong during a run: numbers that are not finite, and memory that runs out."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenopt_core as to
from tokenopt_core.thrift import Thrift, is_out_of_memory

ITERATIONS = 8
PLAIN = to.OptimizeConfig(iterations=ITERATIONS, ema_decay=0.0, seed=2)


def brightness(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


class Broken:
    """Brightness, times `factor` for one picture of the batch at some of its calls."""

    def __init__(self, calls: set[int], factor: float = math.nan, picture: int = 0) -> None:
        self._calls, self._factor, self._picture, self.count = calls, factor, picture, 0

    def __call__(self, images: Tensor) -> Tensor:
        factors = torch.ones(len(images))
        if self.count in self._calls:
            factors[self._picture] = self._factor
        self.count += 1
        return brightness(images) * factors


class SteepAt:
    """Brightness whose value is finite always, and whose gradient is not at one call."""

    def __init__(self, call: int) -> None:
        self._call, self._count = call, -1

    def __call__(self, images: Tensor) -> Tensor:
        self._count += 1
        zero = (images - images.detach()).mean((1, 2, 3))
        return brightness(images) + (zero.sqrt() if self._count == self._call else zero)  # sqrt is vertical at 0


def trace(tokenizer, features, loss: Any, config: to.OptimizeConfig = PLAIN) -> tuple[to.Result, list[Tensor]]:
    seen: list[Tensor] = []
    result = to.optimize(tokenizer, features, loss, config, callback=lambda step: seen.append(step.features))
    return result, seen


@pytest.mark.parametrize("loss", [Broken({3}), Broken({3}, math.inf), SteepAt(3)], ids=["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tokenizer, features, loss, caplog) -> None:
    result, seen = trace(tokenizer, features[:1], loss)
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert result.stopped == "finished"
    assert result.skipped.tolist() == [1]
    assert torch.isfinite(result.features).all() and torch.isfinite(result.images).all()
    assert result.notes == ("picture 1: the loss or its gradient was not finite in 1 iteration, which were skipped",)
    assert result.notes[0] in caplog.text


def test_only_the_picture_concerned_is_kept_from_stepping(tokenizer, features) -> None:
    result, _ = trace(tokenizer, features, Broken({1, 2, 5}, picture=1))
    alone, _ = trace(tokenizer, features[:1], brightness)
    torch.testing.assert_close(result.features[:1], alone.features)
    assert result.skipped.tolist() == [0, 3]
    assert torch.isnan(result.history["loss"][:, 1]).tolist() == [False, True, True, False, False, True, False, False]


def test_three_in_a_row_end_a_run_with_the_last_good_tokens(tokenizer, features) -> None:
    result, seen = trace(tokenizer, features[:1], Broken(set(range(2, 99))))
    assert result.stopped == "diverged"
    assert len(seen) == len(result.history["loss"]) == 5
    assert torch.equal(result.features, seen[1])
    assert result.notes[0].endswith("not finite in 3 iterations, which were skipped; it keeps the last good tokens")


def test_a_run_without_one_good_step_is_an_error_that_names_the_loss(tokenizer, features) -> None:
    loss = to.WeightedSum([("dark", 1.0, brightness), ("broken", 1.0, Broken(set(range(99))))])
    with pytest.raises(FloatingPointError, match="the loss broken was never a finite number"):
        to.optimize(tokenizer, features[:1], loss, PLAIN)


def test_float16_scales_the_gradient_and_an_overflow_is_no_fault(tokenizer, features) -> None:
    def run(factor: float, precision: Any) -> to.Result:
        config = to.OptimizeConfig(iterations=4, precision=precision, ema_decay=0.0, learning_rate=0.01)
        return to.optimize(tokenizer, features, lambda images: brightness(images) * factor, config)

    exact = run(1e-6, "float32").features - features
    small, large = run(1e-6, "float16"), run(1e3, "float16")
    assert ((small.features - features) * exact > 0).float().mean() > 0.9  # without a scale most would be zero
    assert large.stopped == "finished" and large.skipped.tolist() == [0, 0] and large.notes == ()


class Short:
    """A loss that runs out of memory while more than `limit` pictures or crops are embedded at once."""

    def __init__(self, loss: to.ClipLoss, clip: to.Clip, limit: int) -> None:
        self._embed, self._clip, self._limit, self.largest = clip.embed_image, clip, limit, 0
        clip.embed_image = self._embed_image  # type: ignore[method-assign]

    def _embed_image(self, images: Tensor) -> Tensor:
        if len(images) > self._limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to embed {len(images)} pictures")
        self.largest = max(self.largest, len(images))
        return self._embed(images)


@pytest.fixture
def everything(tokenizer, features, clip) -> Callable[..., to.Result]:
    """A run with every part that draws or divides: crops, noise, L1, regularizer."""
    start, target, mask = features, torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)

    def run(**more: Any) -> to.Result:
        loss = to.WeightedSum(
            [("clip", 1.0, to.ClipLoss(clip, "abc", crops=4)), ("known", 0.5, to.MaskedL1Loss(target, mask))]
        )
        config = to.OptimizeConfig(iterations=5, seed=3, noise=to.NoiseSchedule(0.1))
        return to.optimize(tokenizer, start, loss, config, [to.TokenRegularizer("seed", 0.1)], **more)

    return run


@pytest.mark.parametrize("limit", [4, 1])
def test_memory_that_runs_out_costs_time_and_nothing_else(everything, clip, limit, monkeypatch, caplog) -> None:
    expected, rooms = everything(), []
    monkeypatch.setattr(clip, "embed_image", clip.embed_image)
    short = Short(None, clip, limit)
    result = everything(make_room=lambda: rooms.append(1))
    assert short.largest == limit
    torch.testing.assert_close(result.features, expected.features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.history, expected.history, atol=1e-5, rtol=1e-4)
    pieces = 8 // limit
    assert len(rooms) == len(result.notes) == math.log2(pieces)
    assert result.notes[-1] == f"memory ran short in an iteration: it goes on in {pieces} pieces, slower"
    assert "Tried to embed 8 pictures" in caplog.text


def test_memory_that_runs_out_in_the_middle(tokenizer, features) -> None:
    class Once(Broken):
        def __call__(self, images: Tensor) -> Tensor:
            if self.count == 3:
                self.count += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(images)

    expected, _ = trace(tokenizer, features, brightness)
    result, _ = trace(tokenizer, features, Once(set()))
    torch.testing.assert_close(result.features, expected.features)
    assert len(result.notes) == 1


def test_memory_that_runs_out_while_decoding_the_result(tokenizer, features, monkeypatch) -> None:
    expected, decode = to.optimize(tokenizer, features, brightness, PLAIN), tokenizer.decode

    def short(z: Tensor, quantize: bool = True) -> Tensor:
        if len(z) > 1 and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(z, quantize)

    monkeypatch.setattr(tokenizer, "decode", short)
    result = to.optimize(tokenizer, features, brightness, PLAIN)
    torch.testing.assert_close(result.images, expected.images)
    assert result.notes == ("memory ran short in decoding the result: it goes on in 2 pieces, slower",)


def test_memory_that_never_suffices_is_an_error_with_the_numbers(everything, clip, monkeypatch) -> None:
    monkeypatch.setattr(clip, "embed_image", clip.embed_image)
    Short(None, clip, 0)
    with pytest.raises(torch.OutOfMemoryError, match=r"an iteration even in 8 pieces.*embed 1 pictures.*fewer"):
        everything()


def test_other_errors_are_not_taken_for_a_shortage() -> None:
    calls = []

    def attempt(pieces: int) -> None:
        calls.append(pieces)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Thrift()(attempt, 8, "a test")
    assert calls == [1]


def test_what_cannot_be_divided_is_repeated_once_after_room_was_made() -> None:
    tries = []

    def attempt(pieces: int) -> str:
        tries.append(pieces)
        if len(tries) != 3:
            raise MemoryError
        return "done"

    thrift = Thrift(lambda: tries.append(-1))
    assert thrift(attempt, 1, "a test") == "done"
    assert tries == [1, -1, 1]
    assert thrift.notes == ["memory ran short in a test: it was repeated with what could be freed"]
    with pytest.raises(MemoryError, match=r"not enough memory for a test \(MemoryError\)"):
        thrift(attempt, 1, "a test")


def test_what_is_a_shortage_and_what_is_not() -> None:
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert not is_out_of_memory(KeyboardInterrupt())


@contextmanager
def kept_for_backward() -> Iterator[list[int]]:
    """The most bytes that autograd held at once, in a list of one."""
    now, most = [0], [0]

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, size = tensor, tensor.nbytes
            now[0] += size
            most[0] = max(most[0], now[0])
            weakref.finalize(self, lambda: now.__setitem__(0, now[0] - size))

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield most


def test_pieces_keep_a_fraction_of_the_activations() -> None:
    tokenizer, clip = to.load_tokenizer("mini"), to.load_clip("mini")
    start = to.random_features(tokenizer, 2, 0.3, torch.Generator().manual_seed(0))
    loss = to.ClipLoss(clip, "a fox", crops=8)

    def most(pieces: int) -> int:
        from tokenopt_core.optimize import Objective, Replay, nullcontext

        thrift, generators = Thrift(), [torch.Generator() for _ in start]
        thrift.pieces = pieces
        replay = Replay(start.device, 1, wanted=False)
        objective = Objective(tokenizer, loss, (), start, True, generators, nullcontext, thrift, replay)
        with kept_for_backward() as kept:
            objective(start.clone().requires_grad_(True), torch.ones(2))
        return kept[0]

    whole = most(1)
    assert most(2) < 0.65 * whole
    assert most(16) < 0.4 * whole
