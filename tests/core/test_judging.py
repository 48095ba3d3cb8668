"""Scores by hand, the best of a batch, the paper's adversarial case, and which model is which."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import tokenopt_core as to
from tokenopt_core import judging
from tokenopt_core.clip import Clip
from tokenopt_core.identity import fingerprint, same_weights
from tokenopt_core.judging import ClipJudge, best_of, is_adversarial, load_judge
from tokenopt_core.loading import MINI
from tokenopt_core.pictures import read_picture


@pytest.fixture(scope="module")
def siglip() -> Clip:
    """A SigLIP of open_clip with few and random weights."""
    from open_clip import CustomTextCLIP

    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    words = {"context_length": 8, "vocab_size": 300, "width": 64, "heads": 1, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CustomTextCLIP(16, vision, words, init_logit_scale=math.log(100), init_logit_bias=-12.5)

    def tokenize(prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[ord(c) for c in prompt.ljust(8)[:8]] for prompt in prompts])

    return Clip(model, tokenize, (0.5,) * 3, (0.5,) * 3, 16, "tiny siglip")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_clip_score_is_the_cosine(clip, images) -> None:
    judge, images = ClipJudge(clip), images[..., :8, :8]  # of its size: nothing is resized
    scores = judge(images, "a fox")
    normalised = (images.mean((2, 3)) - 0.5) / 0.5
    vectors = normalised @ torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]])
    expected = torch.cosine_similarity(vectors, torch.tensor([[5.0, 0.0]]))  # five letters, the first is an a
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert (judge.name, judge.scale, judge.bias) == ("CLIP score", 1.0, 0.0)


def test_siglip_score_is_the_models_own_logit(siglip, images) -> None:
    judge = ClipJudge(siglip)
    scores = judge(images, "a fox")
    similarity = siglip.embed_image(images) @ siglip.embed_text(["a fox"])[0]
    torch.testing.assert_close(scores, 100 * similarity - 12.5, rtol=1e-4, atol=1e-4)
    logits, _ = siglip.model.get_logits((images - 0.5) / 0.5, siglip._tokenize(["a fox"]))
    torch.testing.assert_close(scores, logits[:, 0], rtol=1e-4, atol=1e-4)
    assert judge.name == "SigLIP score"
    assert judge.scale == pytest.approx(100) and judge.bias == -12.5


def test_siglip_score_in_half_precision(siglip, images) -> None:
    half = copy.deepcopy(siglip)
    half.model.half()
    torch.testing.assert_close(ClipJudge(half)(images, "a fox"), ClipJudge(siglip)(images, "a fox"), rtol=0, atol=0.5)


def test_several_prompts_count_by_their_weights(siglip, images) -> None:
    judge = ClipJudge(siglip)
    got = judge(images, "a fox:3 | night")
    torch.testing.assert_close(got, 0.75 * judge(images, "a fox") + 0.25 * judge(images, "night"), rtol=1e-4, atol=1e-4)


def test_the_best_come_first_and_of_equal_ones_the_earlier() -> None:
    scores = torch.tensor([0.2, 0.9, -3.0, 0.9, 0.5])
    assert best_of(scores, 1).tolist() == [1]
    assert best_of(scores, 5).tolist() == [1, 3, 4, 0, 2]
    assert best_of(torch.tensor([7.0])).tolist() == [0]


@pytest.mark.parametrize(
    ("scores", "keep", "message"),
    [
        ([0.1, 0.2], 3, "the best 3 of 2 pictures are to be kept: expected at most as many"),
        ([0.1, 0.2], 0, "the best 0 of 2"),
        ([0.1, math.nan], 1, "got the score of picture 2: load the judge in float32"),
        ([[0.1]], 1, "scores of shape (1, 1)"),
    ],
)
def test_what_cannot_be_ranked(scores: list[float], keep: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        best_of(torch.tensor(scores), keep)
    assert message in str(error.value)


# Table 1 of the paper: how much the CLIP and the SigLIP score rose; the latter's scale is about 117
TABLE_1 = [(0.47, 1.8, True), (0.24, 15.9, False), (0.15, 9.6, False), (0.15, 9.5, False), (0.09, 4.8, False),
           (0.14, 9.5, False)]  # fmt: skip


def test_table_1_of_the_paper() -> None:
    guide, judge, adversarial = (torch.tensor(column) for column in zip(*TABLE_1, strict=True))
    assert is_adversarial(guide, judge, scale=117.0).tolist() == adversarial.tolist()


@pytest.mark.parametrize(
    ("guide", "judge", "expected"),
    [(0.3, -0.1, True), (0.3, 0.0, True), (0.3, 0.01, False), (0.001, -0.5, False), (-0.3, -0.5, False)],
)
def test_without_a_scale_any_rise_counts(guide: float, judge: float, expected: bool) -> None:
    assert is_adversarial(torch.tensor([guide]), torch.tensor([judge])).tolist() == [expected]


def test_a_judge_of_the_package_is_asked_for_by_name(monkeypatch, images) -> None:
    with pytest.raises(ValueError, match="unknown judge 'mine'"):
        load_judge("mine")
    monkeypatch.setitem(judging.JUDGES, "mine", lambda: lambda pictures, prompt: pictures.mean((1, 2, 3)))
    assert torch.equal(load_judge("mine")(images, "a fox"), images.mean((1, 2, 3)))


def test_two_towers_are_a_judge_whatever_they_are(monkeypatch, images) -> None:
    class Towers:
        def embed_text(self, prompts: list[str]) -> torch.Tensor:
            return torch.tensor([[0.0, 0.0, 1.0]] * len(prompts))

        def embed_image(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.mean((2, 3))

    monkeypatch.setitem(judging.JUDGES, "towers", Towers)
    judge = load_judge("towers")
    torch.testing.assert_close(judge(images, "blue"), images[:, 2].mean((1, 2)))


def test_pixels_that_climb_the_guide_are_seen_through() -> None:
    """The real thing: the mini CLIP is talked into seeing another sample; a judge that looks at the pixels is not."""
    start, target = (path for path in sorted((MINI / "samples").glob("*.png"))[:4] if ".mask" not in path.name)
    prompt, guide = target.stem, to.load_clip("mini")
    before, real = read_picture(start)[None], read_picture(target)[None]

    def judge(images: torch.Tensor, prompt: str) -> torch.Tensor:
        return 1 - (images - real).square().mean((1, 2, 3)) / (before - real).square().mean()  # from 0 to 1

    images, loss = before.clone().requires_grad_(), to.ClipLoss(guide, prompt, crops=0)
    for _ in range(5):
        (gradient,) = torch.autograd.grad(loss(images).sum(), images)
        images = (images - 0.01 * gradient.sign()).clamp(0, 1).detach().requires_grad_()
    after = torch.cat([images.detach(), real])
    guide_rise = ClipJudge(guide)(after, prompt) - ClipJudge(guide)(before, prompt)
    assert guide_rise.min() > 0.2
    assert is_adversarial(guide_rise, judge(after, prompt) - judge(before, prompt), scale=1.0).tolist() == [True, False]


def test_which_model_it_is(clip) -> None:
    mini, again = to.load_clip("mini"), to.load_clip("mini")
    assert fingerprint(mini) == fingerprint(again) and same_weights(mini, again)
    half = to.load_clip("mini", dtype=torch.bfloat16)
    assert fingerprint(half) != fingerprint(mini) and same_weights(mini, half) and same_weights(half, mini)
    assert not same_weights(mini, clip)
    bit = again.model.visual.proj.data
    bit[0, 0] = torch.nextafter(bit[0, 0], torch.tensor(9.0))
    assert fingerprint(again) != fingerprint(mini)
    with torch.no_grad():
        again.model.visual.proj.mul_(1.1)
    assert not same_weights(mini, again)


@pytest.mark.parametrize("change", ["name", "image_size", "mean", "activation"])
def test_a_fingerprint_is_of_all_that_makes_an_embedding(change: str) -> None:
    clip = to.load_clip("mini")
    before = fingerprint(clip)
    if change == "name":
        clip.name = "other"
    elif change == "image_size":
        clip.image_size += 8
    elif change == "mean":
        clip.mean += 0.01
    else:
        for block in clip.model.visual.transformer.resblocks:
            block.mlp.gelu = torch.nn.ReLU()
    assert fingerprint(clip) != before
