"""The node that times Optimize Tokens against the bare loop (benchmarks/overhead_node.py)."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.overhead_node import Overhead

pytestmark = pytest.mark.comfyui


def test_every_way_runs_and_is_timed_in_every_round(pack, titok, openclip, picture) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="a fox on grass", crops=2)[0]
    with torch.inference_mode():  # as the executor runs it
        shown = Overhead().run(titok, features, loss, iterations=3, rounds=2)
    found = json.loads(shown["ui"]["text"][0])
    rounds, parts = found["rounds"], found["parts"]
    ways = {"bare", "as it comes", "without a trajectory", "without trajectory, bar and previews"}
    assert len(rounds) == 2 and all(set(found) == ways for found in rounds)
    assert list(rounds[0]) == list(reversed(rounds[1])), "none always comes after the same other"
    assert all(clock > 0 and computed > 0 for found in rounds for clock, computed in found.values())
    assert set(parts) == {"loop", "callback", "around"} and all(seconds >= 0 for seconds in parts.values())
    assert parts["loop"] > parts["callback"] > 0
    assert pack.part("nodes.optimize").optimize is pack.part("tokenopt_core.optimize").optimize, "it is put back"
