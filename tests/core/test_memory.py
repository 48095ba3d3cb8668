"""The estimate of a run's memory against what PyTorch takes.

Most models are measured without numbers: PyTorch's fake tensors have shapes, dtypes, storages and a graph, but no
memory, so the largest model takes a second.
"""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tokenopt_core as to
from tokenopt_core.clip import MINI as MINI_CLIP
from tokenopt_core.loading import MINI
from tokenopt_core.losses import random_crops
from tokenopt_core.memory import forward_bytes, optimize_bytes, views
from tokenopt_core.titok import VARIANTS, TiTokConfig, build

BF16 = torch.bfloat16
MOST = 1.6  # x what is taken: on a CPU a CLIP's patches keep no crops, which the estimate counts for a GPU
ATTENTION = {
    torch.float32: lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0],
    BF16: lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0],
}


class Memory(TorchDispatchMode):
    """Counts the bytes of every storage that is made inside, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def freed(_: object) -> None:
            self.now -= size
            del self._alive[key]

        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, freed)
            self.now += size
            self.peak = max(self.peak, self.now)


class Shapes:
    """Models and pictures without numbers, on a device that need not be there."""

    def __init__(self, device: str = "cpu") -> None:
        self.mode, self.device = FakeTensorMode(allow_non_fake_inputs=True), device

    def tokenizer(self, name: str, dtype: torch.dtype = torch.float32) -> to.Tokenizer:
        with torch.device("meta"):
            model = build(mini_config()) if name == "mini" else VARIANTS[name].make()
        return self._emptied(to.Tokenizer(model, name), dtype)

    def clip(self, name: str, dtype: torch.dtype = torch.float32) -> to.Clip:
        import open_clip
        from open_clip.model import CLIP, CustomTextCLIP

        file = MINI_CLIP / "config.json"
        config = json.loads(file.read_text()) if name == "mini" else open_clip.get_model_config(name)
        kind = CustomTextCLIP if config.get("custom_text") else CLIP
        known = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
        with torch.device("meta"):
            model = kind(**{k: v for k, v in config.items() if k in known})
        size = config["vision_cfg"]["image_size"]
        return self._emptied(to.Clip(model, list, (0.5,) * 3, (0.5,) * 3, size, name), dtype)

    def _emptied(self, model: Any, dtype: torch.dtype) -> Any:
        with self.mode:
            for module in model.modules():
                for parts in (module._parameters, module._buffers):
                    for name, tensor in parts.items():
                        if tensor is not None:
                            kind = dtype if tensor.is_floating_point() else tensor.dtype
                            empty = torch.empty(tensor.shape, dtype=kind, device=self.device)
                            parts[name] = empty if parts is module._buffers else nn.Parameter(empty, False)
        return model


def mini_config() -> TiTokConfig:
    return TiTokConfig.from_dict(json.loads((MINI / "tokenizer" / "config.json").read_text()))


def iteration(
    tokenizer: to.Tokenizer, clips: list[to.Clip], batch: int, crops: int, device: str = "cpu"
) -> tuple[Memory, Tensor]:
    """The forward half of an iteration: the memory it takes, and the loss."""
    z = torch.zeros(batch, tokenizer.num_tokens, tokenizer.feature_dim, device=device, requires_grad=True)
    target = torch.zeros(batch, 3, tokenizer.image_size, tokenizer.image_size, device=device)
    memory = Memory()
    with memory:
        images = tokenizer.decode(z)
        loss = (images - target).abs().mean()
        for clip in clips:
            loss = loss + clip.embed_image(random_crops(images, crops, 0.875, 0.5) if crops else images).sum()
    return memory, loss


def peak(*arguments: Any) -> int:
    """The bytes an iteration takes at its peak."""
    memory, loss = iteration(*arguments)
    with memory:
        loss.backward()
    return memory.peak


@pytest.fixture(autouse=True)
def real_random_numbers(monkeypatch) -> None:
    """Where crops lie is drawn for real also among tensors without numbers."""
    draw = torch.rand

    def real(*arguments: Any, **settings: Any) -> Tensor:
        with unset_fake_temporarily():
            return draw(*arguments, **settings)

    monkeypatch.setattr(torch, "rand", real)


@pytest.mark.parametrize(
    ("tokenizer", "clip", "batch", "crops", "dtype"),
    [
        ("mini", "mini", 1, 0, torch.float32),
        ("mini", "mini", 4, 16, torch.float32),
        ("mini", None, 3, 0, torch.float32),
        ("titok_l32", None, 1, 0, torch.float32),
        ("mini", "ViT-B-16", 2, 8, torch.float32),
        ("maskgit_vqgan", None, 2, 0, BF16),
        ("mini", "ViT-B-32", 2, 1, torch.float32),
        ("mini", "ViT-B-32-quickgelu", 1, 8, torch.float32),
        ("mini", "ViT-L-14", 1, 4, torch.float32),
        ("mini", "ViT-B-16-SigLIP", 4, 2, BF16),
    ],
)
def test_an_iteration_takes_what_was_estimated_or_two_fifths_less(tokenizer, clip, batch, crops, dtype) -> None:
    shapes = Shapes()
    model = shapes.tokenizer(tokenizer, dtype)
    clips = [shapes.clip(clip, dtype)] if clip else []
    with shapes.mode:
        measured = peak(model, clips, batch, crops)
    assert measured <= optimize_bytes(model, [(c, max(1, crops)) for c in clips], batch) <= MOST * measured


def test_another_kind_of_tower_is_not_underestimated() -> None:
    shapes = Shapes()
    model, judge = shapes.tokenizer("mini"), shapes.clip("RN50")
    with shapes.mode:
        measured = peak(model, [judge], 1, 4)
    assert measured <= optimize_bytes(model, [(judge, 4)], 1) <= 3 * measured


@pytest.fixture
def cuda_without_a_gpu(monkeypatch) -> Shapes:
    """What PyTorch would do on CUDA, by shapes alone: autocast's choice of dtypes, and the fused attention kernels."""

    @contextlib.contextmanager
    def autocast(_: str, dtype: torch.dtype = BF16, enabled: bool = True) -> Iterator[None]:
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)
        yield
        torch.set_autocast_enabled("cuda", before)

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        kind = BF16 if torch.is_autocast_enabled("cuda") else q.dtype
        return ATTENTION[kind](q.to(kind), k.to(kind), v.to(kind))

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return Shapes("cuda")


@pytest.mark.parametrize(
    ("tokenizer", "clip", "crops", "weights"),
    [
        ("titok_l32", "ViT-B-32", 8, BF16),
        ("mini", "ViT-B-32", 2, torch.float32),
        ("mini", "ViT-B-16-SigLIP", 2, BF16),
    ],
)
def test_half_precision_on_cuda_keeps_norms_and_cast_weights_too(
    cuda_without_a_gpu, tokenizer, clip, crops, weights
) -> None:
    shapes = cuda_without_a_gpu
    model, judge = shapes.tokenizer(tokenizer, weights), shapes.clip(clip, weights)
    with shapes.mode, torch.autocast("cuda"):
        memory, _ = iteration(model, [judge], 1, crops, "cuda")
    assert memory.peak <= optimize_bytes(model, [(judge, crops)], 1, BF16) <= 1.5 * memory.peak


def test_measuring_by_shapes_gives_what_numbers_give() -> None:
    shapes = Shapes()
    tokenizer, clip = shapes.tokenizer("mini"), shapes.clip("mini")
    with shapes.mode:
        measured = peak(tokenizer, [clip], 2, 3)
    assert measured == peak(to.load_tokenizer("mini"), [to.load_clip("mini")], 2, 3)


def test_a_whole_run_takes_what_was_estimated() -> None:
    tokenizer, clip = to.load_tokenizer("mini"), to.load_clip("mini")
    losses = [to.ClipLoss(clip, "a fox on grass", crops=5), to.ImagePromptLoss(clip, torch.rand(1, 3, 64, 64), crops=0)]
    terms = to.WeightedSum([(str(i), 1.0, loss) for i, loss in enumerate(losses)])
    start = torch.zeros(2, tokenizer.num_tokens, tokenizer.token_dim)
    with Memory() as memory:
        to.optimize(tokenizer, start, terms, to.OptimizeConfig(iterations=3))
    assert views([*losses, to.MaskedL1Loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))]) == [(clip, 5), (clip, 1)]
    estimated = optimize_bytes(tokenizer, views(losses), 2)
    assert memory.peak <= estimated <= MOST * memory.peak


@pytest.mark.parametrize("name", ["mini", "titok_l32", "maskgit_vqgan", "ViT-B-32"])
def test_without_gradients_only_a_layer_counts(name) -> None:
    shapes = Shapes()
    if name in VARIANTS or name == "mini":
        model: Any = shapes.tokenizer(name)
        ways: list[tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = [
            (model.encode, (3, model.image_size, model.image_size)),
            (model.decode, (model.num_tokens, model.feature_dim)),
        ]
    else:
        model = shapes.clip(name)
        ways = [(model.embed_image, (3, 256, 256))]
    measured = 0
    with shapes.mode, torch.no_grad():
        for way, shape in ways:
            start = torch.zeros(2, *shape)
            with Memory() as memory:
                way(start)
            measured = max(measured, memory.peak)
    assert measured <= forward_bytes(model, 2) <= 1.6 * measured


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("weights", [torch.float32, BF16])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_cuda_takes_what_was_estimated(weights, compute) -> None:
    import open_clip

    tokenizer = to.Tokenizer(VARIANTS["titok_l32"].make().to(weights)).cuda()
    tower = open_clip.create_model("ViT-B-32").to(weights)
    clip = to.Clip(tower, open_clip.get_tokenizer("ViT-B-32"), (0.5,) * 3, (0.5,) * 3, 224, "random").cuda()
    loss, start = to.ClipLoss(clip, "a fox", crops=8), torch.zeros(4, 32, 12, device="cuda")
    config = to.OptimizeConfig(iterations=3, precision=compute)
    to.optimize(tokenizer, start, loss, config)  # the libraries' work space is made once
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    to.optimize(tokenizer, start, loss, config)
    measured = torch.cuda.max_memory_allocated() - before
    assert measured <= optimize_bytes(tokenizer, views([loss]), 4, getattr(torch, compute)) <= 1.5 * measured
