"""Batches larger than what goes through a model at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfyui


@pytest.fixture
def many(pack, picture) -> torch.Tensor:
    """More pictures than go through at once, each darker than the one before."""
    count = 2 * pack.part("nodes.batches").AT_ONCE + 3
    return torch.cat([picture * (1 - i / count) for i in range(count)])


@pytest.fixture
def bar(monkeypatch) -> list[int]:
    """What the progress bar showed."""
    import comfy.utils

    values: list[int] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, *_, **__: values.append(value))
    return values


def test_a_large_batch_gives_what_small_ones_give(pack, titok, many, bar) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=many)[0]
    assert bar == [32, 64, 67]
    parts = [pack.run("TokenOptEncode", titok=titok, image=part)[0] for part in many.split(20)]
    torch.testing.assert_close(features, torch.cat(parts), rtol=1e-4, atol=1e-4)
    bar.clear()
    images = pack.run("TokenOptDecode", titok=titok, features=features)[0]
    assert bar == [32, 64, 67] and images.shape == many.shape
    torch.testing.assert_close(images[40:41], pack.run("TokenOptDecode", titok=titok, features=features[40:41])[0])


@pytest.mark.parametrize("node", ["TokenOptEncode", "TokenOptDecode"])
def test_an_interruption_ends_it_between_two_parts(pack, titok, many, monkeypatch, node: str) -> None:
    import comfy.model_management as mm
    import comfy.utils

    inputs: dict[str, Any] = {"titok": titok, "image": many}
    if node == "TokenOptDecode":
        inputs = {"titok": titok, "features": pack.run("TokenOptEncode", **inputs)[0]}
    seen: list[int] = []

    def interrupt(value: int, *_: Any, **__: Any) -> None:
        seen.append(value)
        mm.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        pack.run(node, **inputs)
    assert seen == [32] and not mm.processing_interrupted()


@pytest.mark.parametrize("node", ["TokenOptEncode", "TokenOptDecode"])
def test_memory_that_runs_out_makes_the_parts_smaller(pack, titok, many, monkeypatch, caplog, node: str) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=many)[0]
    inputs = {"image": many} if node == "TokenOptEncode" else {"features": features}
    expected, sizes = pack.run(node, titok=titok, **inputs)[0], []
    method = "encode" if node == "TokenOptEncode" else "decode"
    whole = getattr(titok.model, method)

    def short(batch: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(batch) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return whole(batch, *rest)

    monkeypatch.setattr(titok.model, method, short)
    torch.testing.assert_close(pack.run(node, titok=titok, **inputs)[0], expected, rtol=1e-4, atol=1e-4)
    assert max(sizes) <= 10 and sum(sizes) == len(many)
    assert "it goes on in 4 pieces" in caplog.text
