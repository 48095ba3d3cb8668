"""Refine Tokens as a node: the core's exchanges, its picture and the table; with a tokenizer of few codes."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
import torch

import tokenopt_core as to
from tests.core.conftest import TINY, tiny_tokenizer
from tokenopt_core.titok import TiTokConfig

pytestmark = pytest.mark.comfyui


@pytest.fixture
def plain() -> to.Tokenizer:
    """Three tokens of five codes, as a Python program has it."""
    return tiny_tokenizer()


@pytest.fixture
def tiny(pack, plain) -> Any:
    """The same from a loader."""
    return wrapped(pack, plain, TINY)


def wrapped(pack, plain: to.Tokenizer, config: TiTokConfig) -> Any:
    """A tokenizer as the pack's own class under ComfyUI's memory management."""
    part = pack.part("tokenopt_core.titok")
    with torch.inference_mode(False):
        model = part.build(part.TiTokConfig(**vars(config)))
        model.load_state_dict(plain.model.state_dict())
        return pack.part("nodes.models").wrap(pack.part("tokenopt_core").Tokenizer(model, "tiny", None, {"sky": (1,)}))


@pytest.fixture
def inputs(pack, tiny, plain) -> dict[str, Any]:
    """Two pictures, and a loss that compares each with its own target."""
    features = plain.lookup(torch.tensor([[0, 1, 2], [3, 3, 3]])) * 1.01
    with torch.no_grad():
        targets = plain.decode(plain.lookup(torch.tensor([[0, 4, 1], [2, 3, 3]]))).clamp(0, 1)
    image = targets.permute(0, 2, 3, 1).contiguous()
    loss = pack.run("TokenOptMaskedL1Loss", image=image, mask=torch.zeros(1, 8, 8), feather=0.0, weight=2.0)[0]
    return {"titok": tiny, "features": features, "loss": loss, "targets": targets}


def run(pack, inputs: dict[str, Any], **more: Any) -> tuple[Any, ...]:
    return pack.run("TokenOptRefine", **{k: v for k, v in inputs.items() if k != "targets"}, **more)


def core(plain: to.Tokenizer, inputs: dict[str, Any], **more: Any) -> to.Refined:
    mask = torch.zeros(1, 1, 8, 8)
    loss = to.WeightedSum([("known pixels", 2.0, to.MaskedL1Loss(inputs["targets"], mask))])
    return to.refine_tokens(plain, inputs["features"], loss, **more)


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def test_it_is_the_cores(pack, inputs, plain) -> None:
    features, images, table = run(pack, inputs)
    expected = core(plain, inputs)
    assert len(expected.exchanges) >= 3 and {e.picture for e in expected.exchanges} == {0, 1}
    assert torch.equal(features, expected.features) and not features.is_inference()
    torch.testing.assert_close(images, expected.images.permute(0, 2, 3, 1), rtol=0, atol=1e-5)
    listed = rows(table)
    assert list(listed[0]) == ["picture", "position", "code before", "code after", "gain"]
    numbers = [[int(row[k]) for k in list(row)[:4]] for row in listed]
    assert numbers == [[e.picture + 1, e.position, e.before, e.after] for e in expected.exchanges]
    assert [float(row["gain"]) for row in listed] == pytest.approx([e.gain for e in expected.exchanges], rel=1e-4)
    shown = pack.run("TokenOptDecode", titok=inputs["titok"], features=features)[0]
    torch.testing.assert_close(images, shown, rtol=0, atol=1e-5)


def test_settings_arrive(pack, inputs, plain) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"rounds": 1}, {"rounds": 1}),
        ({"positions": "0, 2"}, {"positions": [0, 2]}),
        ({"positions": " SKY "}, {"positions": [1]}),
        ({"positions": " "}, {}),
        ({"least_gain": 0.0015}, {"least_gain": 0.0015}),
    ]
    default = core(plain, inputs).features
    assert not any(torch.equal(core(plain, inputs, **meant).features, default) for _, meant in cases if meant)
    for given, meant in cases:
        features, _, table = run(pack, inputs, **given)
        expected = core(plain, inputs, **meant)
        assert torch.equal(features, expected.features), given
        assert len(rows(table)) == len(expected.exchanges)


def test_a_regularizer_and_its_seed_arrive(pack, inputs, plain) -> None:
    held = pack.run("TokenOptRegularizer", weight=50.0)[0]
    features, _, table = run(pack, inputs, regularizer=held)
    assert torch.equal(features, inputs["features"]) and table.count("\n") == 1
    seed = plain.lookup(torch.tensor([[4, 4, 0]]))
    features, _, _ = run(pack, inputs, regularizer=held, seed_features=seed)
    assert plain.indices(features).tolist() == [[4, 4, 0]] * 2


def test_a_clip_judges_whole_pictures(pack, titok, openclip, picture, plain_tokenizer, plain_clip) -> None:
    """The embedded models, at one position."""
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="at night", crops=3)[0]
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    refined, images, table = pack.run(
        "TokenOptRefine", titok=titok, features=features, loss=loss, positions="0", rounds=1
    )
    whole = to.ClipLoss(plain_clip, "at night", crops=0)
    codes, scores = to.search_token(plain_tokenizer, features, 0, to.Wanted(whole))
    own = plain_tokenizer.indices(features)[0]
    (row,) = rows(table)
    assert (int(row["code before"]), int(row["code after"])) == (int(own[0]), int(codes[0])) and own[0] != codes[0]
    assert float(row["gain"]) == pytest.approx(float(scores[0] - scores[codes == own[0]]), abs=1e-4)
    assert plain_tokenizer.indices(refined)[0].tolist() == [int(codes[0]), *own[1:].tolist()]
    assert torch.equal(refined[:, 1:], features[:, 1:])
    assert images.shape == (1, plain_tokenizer.image_size, plain_tokenizer.image_size, 3)


def test_the_bar_counts_tries_and_the_node_says_how_many(pack, inputs, plain, monkeypatch) -> None:
    import comfy.utils

    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    part, told = pack.part("nodes.refine"), list[list[str]]()
    monkeypatch.setattr(part, "tell", lambda node_id, notes: told.append(notes))
    run(pack, inputs)
    expected = core(plain, inputs)
    assert shown[0] == (5, 2 * 2 * 6 * 5) and shown[-1] == (expected.tries, expected.tries)
    assert told == [[], [f"tokens exchanged: {len(expected.exchanges)}; tries: {expected.tries}"]]
    monkeypatch.setattr(part, "MANY", 100)
    run(pack, inputs)
    assert told[3] == ["this may take 120 tries; fewer positions and rounds take less"] and len(told) == 5


def test_an_interruption_ends_it(pack, inputs, monkeypatch) -> None:
    import comfy.model_management as mm
    import comfy.utils

    seen: list[int] = []

    def interrupt(value: int, *_, **__) -> None:
        seen.append(value)
        mm.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        run(pack, inputs)
    assert seen == [5] and not mm.processing_interrupted()


def test_memory_is_asked_for_whole_pictures(pack, titok, openclip, picture, monkeypatch) -> None:
    """Not for the crops of the loss, and for all models in one call."""
    import comfy.model_management as mm

    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="at night", crops=64)[0]
    part, memory = pack.part("nodes.refine"), pack.part("tokenopt_core.memory")
    needed = part._bytes(titok.model, [term for _, _, term in loss.terms])
    assert needed == max(memory.forward_bytes(model.model, 32) for model in (titok, openclip))
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    calls: list[tuple[list[Any], int]] = []
    whole = mm.load_models_gpu

    def spy(models: Any, memory_required: int = 0, **settings: Any) -> None:
        calls.append((list(models), memory_required))
        whole(models, memory_required=memory_required, **settings)

    monkeypatch.setattr(mm, "load_models_gpu", spy)
    monkeypatch.setattr(
        part, "refine_tokens", lambda tokenizer, z, *_: to.Refined(z, z.new_zeros(1, 3, 8, 8), z, [], 0)
    )
    pack.run("TokenOptRefine", titok=titok, features=features, loss=loss)
    assert calls == [([titok, openclip], needed)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"positions": "3"}, "there is no token position 3: this tokenizer has 0 to 2"),
        ({"positions": "sea"}, "this tokenizer knows no attribute 'sea': it has sky"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"least_gain": -1.0}, "least gain must be at least 0, got -1"),
        ({"features": torch.zeros(1, 4, 2)}, "they come from another tokenizer"),
        ({"seed_features": torch.zeros(3, 3, 2)}, "one picture's, or 2 pictures', got 3"),
        ({"features": torch.zeros(3, 3, 2)}, "compares with 2 pictures, but there are 3"),
    ],
)
def test_what_cannot_be_refined_is_explained(pack, inputs, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(pack, inputs | {key: value for key, value in wrong.items() if key == "features"},
            **{key: value for key, value in wrong.items() if key != "features"})  # fmt: skip


def test_a_vae_has_no_codes(pack, inputs) -> None:
    config = TiTokConfig(**{**vars(TINY), "codebook_size": None})
    vae = wrapped(pack, tiny_tokenizer(config), config)
    with pytest.raises(ValueError, match="tokenizer 'tiny' is a VAE: its tokens are continuous"):
        run(pack, inputs | {"titok": vae, "features": torch.zeros(2, 3, 4)})
