"""Linear layers through oneDNN: the same product, the same gradient, and the usual way wherever that does not suit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenopt_core import linear as module
from tokenopt_core.linear import Linear, available, linear


@pytest.fixture
def layer() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(1024, 512).requires_grad_(False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The products that oneDNN computed, as on a processor where that pays."""
    made: list[torch.Size] = []
    real = module.product

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(x.shape)
        return real(x, weight, bias)

    monkeypatch.setattr(module, "product", counted)
    monkeypatch.setattr(module, "pays", lambda: True)
    return made


def picture_of_tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradient_are_the_same(layer, calls, bias) -> None:
    x = picture_of_tokens(2, 7, 1024)
    results = []
    for function in (F.linear, linear):
        leaf = x.clone().requires_grad_(True)
        out = function(leaf.transpose(0, 1), layer.weight, layer.bias if bias else None)  # strided, too
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert len(calls) == 2  # forward and backward
    with torch.no_grad():
        torch.testing.assert_close(linear(x, layer.weight, None), F.linear(x, layer.weight), rtol=1e-4, atol=1e-4)
    assert len(calls) == 3


def test_what_does_not_suit_goes_the_usual_way(layer, calls, monkeypatch) -> None:
    x = picture_of_tokens(2, 1024)
    trained = nn.Linear(1024, 512)
    assert linear(x, trained.weight, trained.bias).requires_grad
    linear(x.double(), layer.weight.double(), None)
    linear(x.bfloat16(), layer.weight.bfloat16(), None)
    linear(x[:, :64].contiguous(), layer.weight[:, :64].contiguous(), None)  # too small to gain
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, layer.weight, layer.bias).dtype is torch.bfloat16
    for needed in ("available", "pays"):
        with monkeypatch.context() as without:
            without.setattr(module, needed, lambda: False)
            torch.testing.assert_close(linear(x, layer.weight, layer.bias), F.linear(x, layer.weight, layer.bias))
    assert not calls


@pytest.mark.parametrize(
    ("mkl", "processor", "expected"),
    [
        (True, "processor: 0\nvendor_id: GenuineIntel\n", False),
        (True, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", False),
        (True, "processor: 0\nvendor_id: AuthenticAMD\n", True),
        (False, "vendor_id: GenuineIntel", True),  # another BLAS
        (False, "arm", True),
    ],
)
def test_mkl_keeps_the_layers_on_its_makers_processors(monkeypatch, mkl, processor, expected) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(module, "_processor", lambda: processor)
    assert module.pays.__wrapped__() is expected


def test_a_layer_keeps_its_weights(layer) -> None:
    copy = Linear(layer)
    assert copy.weight.data_ptr() == layer.weight.data_ptr()
    assert copy.state_dict().keys() == layer.state_dict().keys()
    assert not copy.weight.requires_grad
