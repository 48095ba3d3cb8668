"""A node that times Optimize Tokens against the bare loop; overhead.py copies it beside the pack into a ComfyUI."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


class Overhead:
    """Runs both in turns, inside the executor of a real server, and gives the seconds of each run as text.

    And once the node alone, to say how much of its thread's time is the loop's, the callback's and around the loop.
    """

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "benchmarks", "run", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {"default": 1, "min": 1, "max": 100_000})
        sockets = {"titok": ("TITOK",), "features": ("TITOK_FEATURES",), "loss": ("TOKEN_LOSS",)}
        return {"required": {**sockets, "iterations": number, "rounds": number}}

    def run(self, titok: Any, features: torch.Tensor, loss: Any, iterations: int, rounds: int) -> dict[str, Any]:
        ways = self._ways(titok, features, loss, iterations)
        for way in ways.values():
            way(2)
        found: list[dict[str, list[float]]] = []
        for number in range(rounds):
            order = list(ways) if number % 2 else list(reversed(ways))  # none always comes after the same other
            found.append({name: _timed(ways[name], iterations) for name in order})
        return {"ui": {"text": [json.dumps({"rounds": found, "parts": _parts(ways["as it comes"], iterations)})]}}

    def _ways(
        self, titok: Any, features: torch.Tensor, loss: Any, iterations: int
    ) -> dict[str, Callable[[int], object]]:
        import comfy.utils
        from comfy_api.internal import make_locked_method_func

        node = _node()
        core = sys.modules[node.__module__.rsplit(".", 2)[0] + ".tokenopt_core"]
        widgets = {
            item.id: item.default for item in node.GET_SCHEMA().inputs if getattr(item, "default", None) is not None
        }

        def bare(count: int) -> None:
            with torch.inference_mode(False), torch.enable_grad():
                config = core.OptimizeConfig(iterations=count)
                core.optimize(titok.model, features.clone(), core.WeightedSum(loss.terms), config)

        def whole(count: int, **changed: Any) -> None:
            inputs = {**widgets, "titok": titok, "features": features, "loss": loss, "iterations": count, **changed}
            make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE(None))(**inputs)

        def silent(count: int) -> None:
            hook, comfy.utils.PROGRESS_BAR_HOOK = comfy.utils.PROGRESS_BAR_HOOK, None
            try:
                whole(count, trajectory_every=0)
            finally:
                comfy.utils.PROGRESS_BAR_HOOK = hook

        return {
            "bare": bare,
            "as it comes": whole,
            "without a trajectory": lambda count: whole(count, trajectory_every=0),
            "without trajectory, bar and previews": silent,
        }


def _node() -> Any:
    return sys.modules["nodes"].NODE_CLASS_MAPPINGS["TokenOptOptimize"]


def _parts(way: Callable[[int], object], iterations: int) -> dict[str, float]:
    """Seconds of the executor's thread in one run of the node: in the loop, in its callback, and around it."""
    module: Any = sys.modules[_node().__module__]
    loop, spent = module.optimize, {"loop": 0.0, "callback": 0.0, "around": 0.0}

    def timed(*given: Any, **named: Any) -> Any:
        bound = inspect.signature(loop).bind(*given, **named)
        callback = bound.arguments["callback"]

        def watched(step: Any) -> Any:
            started = time.thread_time()
            try:
                return callback(step)
            finally:
                spent["callback"] += time.thread_time() - started

        bound.arguments["callback"] = watched
        started = time.thread_time()
        result = loop(*bound.args, **bound.kwargs)
        spent["loop"] += time.thread_time() - started - spent["callback"]
        return result

    module.optimize = timed
    started = time.thread_time()
    try:
        way(iterations)
    finally:
        module.optimize = loop
    spent["around"] = time.thread_time() - started - spent["loop"] - spent["callback"]
    return spent


def _timed(way: Callable[[int], object], iterations: int) -> list[float]:
    """Seconds by the clock, and those that this process computed in all its threads."""
    clock, computed = time.perf_counter(), time.process_time()
    way(iterations)
    return [time.perf_counter() - clock, time.process_time() - computed]


NODE_CLASS_MAPPINGS = {"BenchmarkOverhead": Overhead}
