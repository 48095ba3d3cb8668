"""The example's edits, read by a judge that is not the guiding CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tokenopt_core as to
from api_examples.client import Graph, find_node
from devtools.paths import WORKFLOWS
from training.judge import Judge, Verdict

from .conftest import inputs_of, pixels

pytestmark = [pytest.mark.server, pytest.mark.slow]

EDITS = {
    "a fox on grass at night": {"subject": "fox", "ground": "grass", "lighting": "night"},
    "a fox on sand by day": {"subject": "fox", "ground": "sand", "lighting": "day"},
    "a penguin on grass by day": {"subject": "penguin", "ground": "grass", "lighting": "day"},
}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def read(judge: Judge, png: bytes) -> Verdict:
    return judge(torch.from_numpy(pixels(png).astype(np.float32) / 255).permute(2, 0, 1)[None])[0]


@pytest.mark.parametrize("prompt", EDITS)
def test_lighting_ground_and_subject_edits_show_what_was_asked(client, judge, prompt) -> None:
    text = (WORKFLOWS / "text_edit.api.json").read_text(encoding="utf-8")
    graph: Graph = json.loads(text)
    inputs_of(graph, "TokenOptCLIPLoss")["prompt"] = prompt
    pictures = client.run(graph)
    (edited,), (original,) = (pictures[find_node(graph, title)] for title in ("Edited picture", "Original"))
    assert read(judge, edited).agrees(**EDITS[prompt]), read(judge, edited)
    assert read(judge, original).clean
    assert not read(judge, original).agrees(**EDITS[prompt])


def test_random_tokens_do_not_pass(judge) -> None:
    tokenizer = to.load_tokenizer("mini")
    indices = torch.randint(
        tokenizer.codebook_size, (64, tokenizer.num_tokens), generator=torch.Generator().manual_seed(0)
    )
    verdicts = judge(tokenizer.decode(tokenizer.lookup(indices), quantize=False))
    assert not any(v.agrees(**wanted) for v in verdicts for wanted in EDITS.values())
