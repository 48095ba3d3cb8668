"""Replayed passes: the same run, whatever the graphs overwrite. On a GPU with real graphs, elsewhere with stand-ins
that overwrite their results in the same places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import tokenopt_core as to
from tokenopt_core import graphs

CONFIG = to.OptimizeConfig(iterations=12, precision="float32", seed=3)


class StaticBuffers:
    """What a pair of CUDA graphs does to memory: input, result and gradient lie in fixed places and are overwritten."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.function, self.calls = function, 0
        self.x = x.detach().clone().requires_grad_(True)
        self.out = function(self.x)
        self.result, self.gradient = self.out.detach().clone(), torch.zeros_like(x)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            self.x.copy_(x)
        self.out = self.function(self.x)
        self.result.copy_(self.out.detach())
        return self.result

    def backward(self, upstream: Tensor) -> Tensor:
        self.gradient.copy_(torch.autograd.grad(self.out, self.x, upstream)[0])
        return self.gradient

    def __call__(self, x: Tensor) -> Tensor:
        return _Apply.apply(self, x)  # type: ignore[no-any-return]


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, buffers, x):  # type: ignore[no-untyped-def]
        ctx.buffers = buffers
        with torch.enable_grad():
            return buffers.forward(x).detach()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        with torch.enable_grad():
            return None, ctx.buffers.backward(upstream).detach()


class Capturing:
    """Counts what is captured."""

    def __init__(self, real: bool) -> None:
        self.real, self.captured = real, list[Callable[[Tensor], Tensor]]()

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        self.captured.append((graphs.capture_cuda if self.real else StaticBuffers)(function, x))
        return self.captured[-1]


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def capturing(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capturing]:
    capturing = Capturing(device == "cuda")
    monkeypatch.setattr(graphs, "CAPTURE", {"cpu": capturing, "cuda": capturing})
    monkeypatch.setattr(graphs, "CAPTURE_FROM", CONFIG.iterations)
    yield capturing
    graphs.release()


@pytest.fixture
def tokenizer(device: str) -> to.Tokenizer:
    return to.load_tokenizer("mini").to(device)


@pytest.fixture
def clip(device: str) -> to.Clip:
    return to.load_clip("mini").to(device)


def start(tokenizer: to.Tokenizer, batch: int = 2) -> Tensor:
    features = to.random_features(tokenizer, batch, 0.5, torch.Generator().manual_seed(1))
    return features.to(next(tokenizer.parameters()).device)


def both(tokenizer: to.Tokenizer, loss: to.Loss, **changes: object) -> tuple[to.Result, to.Result]:
    """The run as usual and replayed."""
    settings = vars(CONFIG) | changes
    plain = to.optimize(tokenizer, start(tokenizer), loss, to.OptimizeConfig(**settings | {"capture": False}))
    return plain, to.optimize(tokenizer, start(tokenizer), loss, to.OptimizeConfig(**settings))


def agree(plain: to.Result, replayed: to.Result) -> None:
    for name, values in plain.history.items():
        torch.testing.assert_close(replayed.history[name][:10], values[:10], rtol=1e-4, atol=1e-5)
    if not replayed.features.is_cuda:  # the same kernels: the whole run is the same, bit by bit
        torch.testing.assert_close(replayed.features, plain.features, rtol=0, atol=0)


def test_a_replayed_run_is_the_run(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    agree(*both(tokenizer, to.ClipLoss(clip, "a fox on snow", crops=2)))
    assert len(capturing.captured) == 2  # the decoder and CLIP, once each


def test_two_losses_on_one_clip_do_not_overwrite_each_other(
    tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing
) -> None:
    prompts = to.ClipLoss(clip, "a fox on snow", crops=2), to.ClipLoss(clip, "at night", crops=2)
    agree(*both(tokenizer, to.WeightedSum([("what", 1.0, prompts[0]), ("when", 0.7, prompts[1])])))
    assert len(capturing.captured) == 3


def test_a_loss_may_keep_what_it_was_given(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    text = clip.embed_text(["a fox on snow"])

    class Moving:
        """Compares with the iteration before as well: whatever is kept must not change afterwards."""

        def __init__(self) -> None:
            self.before: Tensor | None = None

        def __call__(self, images: Tensor) -> Tensor:
            embedded = clip.embed_image(images)
            against = embedded if self.before is None else self.before
            self.before = embedded.detach()
            return -(embedded @ text.T).squeeze(1) - 0.5 * (embedded * against.detach()).sum(1)

    settings = vars(CONFIG)
    plain = to.optimize(tokenizer, start(tokenizer), Moving(), to.OptimizeConfig(**settings | {"capture": False}))
    assert not capturing.captured
    agree(plain, to.optimize(tokenizer, start(tokenizer), Moving(), CONFIG))
    assert len(capturing.captured) == 2  # it was replayed: only then could what was kept be overwritten


def test_callbacks_keep_their_pictures(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    kept: dict[bool, list[Tensor]] = {True: [], False: []}
    for capture, frames in kept.items():
        config = to.OptimizeConfig(**vars(CONFIG) | {"capture": capture})
        loss = to.ClipLoss(clip, "a fox", crops=1)
        to.optimize(tokenizer, start(tokenizer), loss, config, callback=lambda s, f=frames: f.append(s.image))
    for replayed, plain in zip(kept[True][:5], kept[False][:5], strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-3, atol=1e-4)
    assert not torch.equal(kept[True][0], kept[True][-1])


def test_graphs_outlive_the_run_and_serve_short_ones(
    tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing
) -> None:
    loss = to.ClipLoss(clip, "a fox", crops=1)
    to.optimize(tokenizer, start(tokenizer), loss, to.OptimizeConfig(iterations=5))
    assert not capturing.captured  # too short to pay
    to.optimize(tokenizer, start(tokenizer), loss, CONFIG)
    again = to.ClipLoss(clip, "a frog", crops=1)
    to.optimize(tokenizer, start(tokenizer), again, to.OptimizeConfig(iterations=5))
    assert len(capturing.captured) == 2


def test_changed_weights_are_captured_anew(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    loss = to.ClipLoss(clip, "a fox", crops=1)
    agree(*both(tokenizer, loss))
    with torch.no_grad():
        next(tokenizer.model.decoder.parameters()).mul_(1.01)
    agree(*both(tokenizer, loss))
    assert len(capturing.captured) == 3  # the decoder again, CLIP not
    tokenizer.to(torch.float64).to(torch.float32)
    agree(*both(tokenizer, loss))
    assert len(capturing.captured) == 4


def test_what_cannot_be_captured_runs_as_usual(
    tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:  # type: ignore[no-untyped-def]
    tries = []

    def broken(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        tries.append(x.shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "CAPTURE", {"cpu": broken, "cuda": broken})
    agree(*both(tokenizer, to.ClipLoss(clip, "a fox", crops=1)))
    assert len(tries) == 2  # each once: what failed is not tried again in every iteration
    assert "goes on without a CUDA graph" in caplog.text


def test_a_wrong_capture_is_found_out(
    tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:  # type: ignore[no-untyped-def]
    def wrong(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda y: function(y) * 1.2

    monkeypatch.setattr(graphs, "CAPTURE", {"cpu": wrong, "cuda": wrong})
    agree(*both(tokenizer, to.ClipLoss(clip, "a fox", crops=1)))
    assert "off by" in caplog.text


def test_memory_that_runs_short_frees_the_graphs(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    held: list[int] = []

    class Short:
        """Runs out of memory once, in the middle of the run."""

        calls = 0

        def __call__(self, images: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 6:
                held.append(len(graphs._captures))
                raise torch.cuda.OutOfMemoryError("out of memory")
            return -(clip.embed_image(images) @ clip.embed_text(["a fox"]).T).squeeze(1)

    result = to.optimize(
        tokenizer, start(tokenizer), Short(), CONFIG, make_room=lambda: held.append(len(graphs._captures))
    )
    assert held == [2, 0]
    assert "memory ran short" in result.notes[0]


def test_a_copy_of_a_model_has_no_graphs(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    to.optimize(tokenizer, start(tokenizer), to.ClipLoss(clip, "a fox", crops=1), CONFIG)
    twin = copy.deepcopy(tokenizer)
    assert tokenizer in graphs._captures
    assert twin not in graphs._captures
    graphs.release(tokenizer)
    assert tokenizer not in graphs._captures


def test_only_so_many_shapes_are_kept(tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing) -> None:
    for crops in range(1, graphs.SHAPES + 3):
        to.optimize(tokenizer, start(tokenizer), to.ClipLoss(clip, "a fox", crops=crops), CONFIG)
    assert len(graphs._captures[clip].functions) == graphs.SHAPES


def test_more_losses_than_captures_are_not_captured_over_and_over(
    tokenizer: to.Tokenizer, clip: to.Clip, capturing: Capturing
) -> None:
    terms = [(str(i), 1.0, to.ClipLoss(clip, "a fox", crops=1)) for i in range(graphs.SHAPES + 2)]
    agree(*both(tokenizer, to.WeightedSum(terms)))
    assert len(capturing.captured) == 1 + graphs.SHAPES  # the others run as usual
