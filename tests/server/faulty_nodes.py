"""Nodes through which things go wrong: copied beside the pack into a test's ComfyUI, which runs them as it runs any."""

from __future__ import annotations

from typing import Any

import torch


class Faulty:
    """A loss that fails at its calls from `first` on, `times` times, and is `loss` otherwise."""

    def __init__(self, loss: Any, kind: str, calls: list[int], first: int, times: int) -> None:
        self._loss, self._kind, self._calls, self._first, self._times = loss, kind, calls, first, times
        self.crops = getattr(loss, "crops", 1)

    def _as(self, loss: Any) -> Faulty:
        return Faulty(loss, self._kind, self._calls, self._first, self._times)

    def with_generators(self, generators: Any) -> Faulty:
        return self._as(self._loss.with_generators(generators))

    def in_pieces(self, pieces: int) -> Faulty:
        return self._as(self._loss.in_pieces(pieces))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        value = self._loss(images)
        self._calls[0] += 1
        if self._first < self._calls[0] <= self._first + self._times:
            if self._kind == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return value * float("nan")
        return value


class FaultyLoss:
    """TOKEN_LOSS -> the same that fails now and then."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "run", ("TOKEN_LOSS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {"default": 0, "max": 10**9})
        return {
            "required": {"loss": ("TOKEN_LOSS",), "kind": (["memory", "nan"],), "first": number, "times": number},
        }

    def run(self, loss: Any, kind: str, first: int, times: int) -> tuple[Any]:
        terms = tuple((name, weight, Faulty(term, kind, [0], first, times)) for name, weight, term in loss.terms)
        return (type(loss)(terms, loss.models),)


class FaultyDecode:
    """TITOK -> the same, whose next decoding without a gradient runs out of memory."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "run", ("TITOK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"titok": ("TITOK",), "seed": ("INT", {"default": 0})}}

    def run(self, titok: Any, seed: int) -> tuple[Any]:
        model = titok.model
        decode = model.decode

        def short(z: torch.Tensor, quantize: bool = True) -> torch.Tensor:
            if torch.is_grad_enabled():
                return decode(z, quantize)
            del model.decode
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        model.decode = short
        return (titok,)


NODE_CLASS_MAPPINGS = {"FaultyLoss": FaultyLoss, "FaultyDecode": FaultyDecode}
