"""A device beside the CPU where there is none: what is on it is told apart, and what meets across devices is an error.

Its tensors wrap CPU tensors, so its arithmetic is the CPU's. "lazy" is a device type of PyTorch's that autograd serves
from the CPU's queue and nothing here uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy", 0)
_ACROSS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class _There(Tensor):
    """A tensor on the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _There:
        there = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        there.inner = inner
        return there

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()


class SecondDevice(TorchDispatchMode):
    """Inside, tensors can be made on and moved to `DEVICE`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func.overloadpacket is torch.ops.aten.to:  # inference mode hands it over whole
        with SecondDevice():
            return func.decompose(*args, **kwargs)
    if func is torch.ops.aten._has_compatible_shallow_copy_type.default:
        return isinstance(args[0], _There) == isinstance(args[1], _There)
    if func is torch.ops.aten._fused_sdp_choice.default:
        return 0  # the plain formula: the fused kernels belong to the devices they were made for
    tensors = [*_tensors((*args, *kwargs.values()))]
    there = [isinstance(x, _There) for x in tensors]
    if func not in _ACROSS and any(there) and not all(t or not x.ndim for x, t in zip(tensors, there, strict=True)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some on the CPU")
    goes_there = any(there)
    if func is torch.ops.aten.copy_.default:
        goes_there = there[0]
    elif kwargs.get("device") is not None:
        goes_there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*_inner(args), **{name: _inner(value) for name, value in kwargs.items()})
    if args and isinstance(args[0], _There) and out is args[0].inner:
        return args[0]  # changed in place
    return _there(out) if goes_there else out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def _there(inner: Any) -> Any:
    if isinstance(inner, (list, tuple)):
        return type(inner)(map(_there, inner))
    if not isinstance(inner, Tensor):
        return inner
    # what inference mode makes is an inference tensor; a view of something older is not
    with torch.inference_mode(inner.is_inference()):
        return _There(inner)


def _inner(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(map(_inner, x))
    return x.inner if isinstance(x, _There) else x


class Autocast(torch.autocast):
    """`torch.autocast` knows no such device; what runs on it is the CPU's arithmetic."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)
