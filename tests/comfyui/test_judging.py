"""Judge / Best-Of: which results are kept, and what is said of the others."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfyui

Outcome = tuple[torch.Tensor, torch.Tensor | None, list[dict[str, str]], str]


@pytest.fixture
def samples(pack) -> torch.Tensor:
    return pack.run("TokenOptSample", name="all")[0]


@pytest.fixture
def prompt(pack) -> str:
    """What the third sample shows."""
    return pack.part("nodes.samples").sample_names()[2]


@pytest.fixture
def other(pack) -> Any:
    """A CLIP that sees the opposite in everything."""
    model = pack.run("TokenOptCLIPLoad")[0]
    model.model.model.visual.proj.data *= -1
    return model


@pytest.fixture
def judge(pack) -> Callable[..., Outcome]:
    """Runs the node."""

    def run(**inputs: Any) -> Outcome:
        best, features, table, notes = pack.run("TokenOptBestOf", **inputs)
        return best, features, list(csv.DictReader(io.StringIO(table))), notes

    return run


def scores(plain_clip, images: torch.Tensor, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return plain_clip.embed_image(images.permute(0, 3, 1, 2)) @ plain_clip.embed_text([prompt])[0]


def test_the_best_are_kept_in_order_with_their_features(judge, openclip, samples, prompt, plain_clip) -> None:
    expected = scores(plain_clip, samples, prompt)
    order = expected.argsort(descending=True)
    features = torch.arange(len(samples)).view(-1, 1, 1).expand(-1, 4, 2).float()
    best, kept, table, notes = judge(images=samples, prompt=prompt, judge=openclip, keep=3, features=features)
    assert order[0] == 2 and notes == ""
    assert torch.equal(best, samples[order[:3]]) and torch.equal(kept, features[order[:3]])
    assert [int(row["result"]) - 1 for row in table] == order.tolist()
    assert [row["kept"] for row in table] == ["yes"] * 3 + ["no"] * (len(samples) - 3)
    assert [float(row["CLIP score"]) for row in table] == pytest.approx(expected[order].tolist(), abs=1e-3)
    assert list(table[0]) == ["rank", "result", "kept", "CLIP score"]


def test_one_picture(judge, openclip, picture) -> None:
    best, features, table, _ = judge(images=picture, prompt="a fox", judge=openclip)
    assert torch.equal(best, picture) and features is None and len(table) == 1


def test_alpha_stays(judge, openclip, samples) -> None:
    images = torch.cat([samples, torch.rand_like(samples[..., :1])], -1)
    assert judge(images=images, prompt="a fox", judge=openclip)[0].shape[-1] == 4


def test_results_that_please_the_guide_alone_are_named(judge, openclip, other, samples, prompt) -> None:
    """To the opposite CLIP what became like the prompt became unlike it."""
    before = samples[[0, 2, 0]]
    after = samples[[2, 0, 0]]  # rose, fell, stayed
    inputs = {"images": after, "prompt": prompt, "judge": other, "guide": openclip, "before": before}
    _, _, table, notes = judge(**inputs)
    assert "1 of 3 results may fool the guiding CLIP (number 1): it rose from" in notes
    marked = {row["result"]: row["adversarial"] for row in table}
    assert marked == {"1": "yes", "2": "no", "3": "no"}
    row = next(row for row in table if row["result"] == "1")
    assert float(row["guide"]) > float(row["guide before"])
    assert float(row["CLIP score"]) < float(row["before"])


def test_results_that_please_both_are_not(judge, openclip, pack, samples, prompt) -> None:
    twin = pack.run("TokenOptCLIPLoad")[0]
    twin.model.model.visual.proj.data[:, :64] *= 0.5  # another model, of much the same opinion
    inputs = {"images": samples[[2]], "prompt": prompt, "judge": twin, "guide": openclip, "before": samples[[0]]}
    _, _, (row,), notes = judge(**inputs)
    assert (row["adversarial"], notes) == ("no", "")


def test_a_single_picture_before_stands_for_all(judge, openclip, other, samples, prompt) -> None:
    inputs = {"images": samples[[2, 2]], "prompt": prompt, "judge": other, "guide": openclip, "before": samples[:1]}
    assert "2 of 2 results may fool the guiding CLIP (number 1, 2)" in judge(**inputs)[3]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_judge_that_is_the_guide_is_named(judge, pack, openclip, samples, precision: str) -> None:
    again = pack.run("TokenOptCLIPLoad", precision=precision)[0]
    for same in (openclip, again):
        notes = judge(images=samples, prompt="a fox", judge=same, guide=openclip)[3]
        assert notes == "the judge is the guiding model itself, which likes whatever it led to: take another one"


def test_a_judge_of_the_package_is_taken_by_its_name(judge, pack, openclip, samples, monkeypatch) -> None:
    def brightness(images: torch.Tensor, prompt: str) -> torch.Tensor:
        assert prompt == "a fox"
        return images.mean((1, 2, 3))

    brightness.name = "brightness"  # type: ignore[attr-defined]
    monkeypatch.setitem(pack.part("tokenopt_core.judging").JUDGES, "light", lambda: brightness)
    best, _, table, _ = judge(images=samples, prompt="a fox", judge_name="light", guide=openclip, before=samples)
    brightest = samples.mean((1, 2, 3)).argmax()
    assert torch.equal(best[0], samples[brightest])
    assert float(table[0]["brightness"]) == pytest.approx(float(samples[brightest].mean()), abs=1e-3)


def test_the_judge_that_ships_needs_no_clip(judge, samples, prompt) -> None:
    best, _, table, notes = judge(images=samples, prompt=prompt, judge_name="mini")
    assert torch.equal(best[0], samples[2]) and notes == ""
    assert float(table[0]["mini judge"]) > -0.5 and float(table[1]["mini judge"]) < -1
    with pytest.raises(ValueError, match="the mini judge finds nothing it could look for in the prompt 'a zebra'"):
        judge(images=samples, prompt="a zebra", judge_name="mini")


def test_a_siglip_gives_its_own_score(judge, pack, openclip, samples) -> None:
    openclip.model.model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0), requires_grad=False)
    openclip.model.model.logit_scale.data.fill_(3.0)
    _, _, table, _ = judge(images=samples[:1], prompt="a fox", judge=openclip)
    plain = pack.run("TokenOptCLIPLoad")[0]
    _, _, similar, _ = judge(images=samples[:1], prompt="a fox", judge=plain)
    expected = float(similar[0]["CLIP score"]) * 20.0855 - 10
    assert float(table[0]["SigLIP score"]) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 7}, "the best 7 of 6 pictures are to be kept: expected at most 6"),
        ({"judge": None}, "there is no judge: connect another CLIP to judge"),
        ({"judge_name": "nobody"}, "unknown judge 'nobody'"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a zebra"}, "the mini CLIP knows nothing"),
        ({"before": torch.zeros(2, 8, 8, 3)}, "before must be one picture, or one for each of the 6 results, got 2"),
        ({"features": torch.zeros(5, 4, 2)}, "the features must be those of the 6 results, got features of 5"),
    ],
)
def test_what_cannot_be_judged(judge, openclip, samples, change: dict[str, Any], message: str) -> None:
    good = {"images": torch.cat([samples, samples])[:6], "prompt": "a fox", "judge": openclip}
    with pytest.raises(ValueError, match=message):
        judge(**good | change)


def test_scores_that_are_no_numbers(judge, openclip, samples) -> None:
    openclip.model.model.visual.proj.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="score of picture 1: load the judge in float32"):
        judge(images=samples, prompt="a fox", judge=openclip)
