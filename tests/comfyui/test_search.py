"""Token Search as a node: the core's best code, its picture, the sheet and the table."""

from __future__ import annotations

import csv
import io

import pytest
import torch

import tokenopt_core as to

pytestmark = pytest.mark.comfyui


@pytest.fixture
def features(pack, titok, picture) -> torch.Tensor:
    return pack.run("TokenOptEncode", titok=titok, image=picture)[0]


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def test_it_is_the_cores_search(pack, titok, features, plain_tokenizer) -> None:
    found, picture, sheet, table = pack.run("TokenOptSearch", titok=titok, features=features, position=3, top_k=4)
    codes, scores = to.search_token(plain_tokenizer, features, 3)
    listed = rows(table)
    assert [int(row["code"]) for row in listed] == codes[:4].tolist()
    assert [float(row["score"]) for row in listed] == pytest.approx(scores[:4].tolist(), rel=1e-3)
    own = plain_tokenizer.indices(features)[0]
    assert {row["own code"] for row in listed} == {str(int(own[3]))}
    expected = own.clone()
    expected[3] = codes[0]
    assert torch.equal(plain_tokenizer.indices(found)[0], expected)
    others = [i for i in range(plain_tokenizer.num_tokens) if i != 3]
    assert torch.equal(found[:, others], features[:, others])
    shown = pack.run("TokenOptDecode", titok=titok, features=found)[0]
    torch.testing.assert_close(picture, shown, rtol=0, atol=1e-5)
    assert sheet.shape[0] == 1 and sheet.shape[2] > 3 * picture.shape[2] and sheet.std() > 0.05


def test_a_loss_chooses_the_code(pack, titok, openclip, features, plain_tokenizer, plain_clip) -> None:
    loss = pack.run("TokenOptCLIPLoss", openclip=openclip, prompt="at night", crops=1, weight=2.0)[0]
    _, picture, _, table = pack.run("TokenOptSearch", titok=titok, features=features, loss=loss, top_k=3)
    wanted = to.Wanted(to.WeightedSum([("clip", 2.0, to.ClipLoss(plain_clip, "at night", crops=1))]))
    expected = to.search_token(plain_tokenizer, features, 0, wanted)[1]
    scores = [float(row["score"]) for row in rows(table)]
    assert scores == pytest.approx(expected[:3].tolist(), abs=1e-3) and scores == sorted(scores, reverse=True)
    before = pack.run("TokenOptDecode", titok=titok, features=features)[0]
    with torch.no_grad():
        both = wanted(torch.cat([before, picture]).permute(0, 3, 1, 2).contiguous())
    assert both[1] > both[0] and both[1] == pytest.approx(scores[0], abs=1e-2)  # IMAGE is cut off at 0 and 1


def test_all_positions_one_after_the_other(pack, titok, features, monkeypatch) -> None:
    import comfy.utils

    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    found, _, _, table = pack.run("TokenOptSearch", titok=titok, features=features, position=-1)
    listed = rows(table)
    count, codes = titok.model.num_tokens, titok.model.codebook_size
    assert [int(row["position"]) for row in listed] == list(range(count))
    assert shown == [(codes * i, codes * count) for i in range(1, count + 1)]
    best = max(listed, key=lambda row: float(row["score"]))
    single = pack.run("TokenOptSearch", titok=titok, features=features, position=int(best["position"]), top_k=1)
    assert rows(single[3]) == [best] and torch.equal(single[0], found)


def test_an_interruption_ends_it(pack, titok, features, monkeypatch) -> None:
    import comfy.model_management as mm
    import comfy.utils

    seen: list[int] = []

    def interrupt(value: int, *_, **__) -> None:
        seen.append(value)
        mm.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        pack.run("TokenOptSearch", titok=titok, features=features, position=-1)
    assert seen == [titok.model.codebook_size] and not mm.processing_interrupted()


def test_what_cannot_be_searched_is_explained(pack, titok, features) -> None:
    with pytest.raises(ValueError, match="there is no token position 16000: tokenizer 'mini' has 0 to"):
        pack.run("TokenOptSearch", titok=titok, features=features, position=16000)
    with pytest.raises(ValueError, match="position must be at least -1, got -2"):
        pack.run("TokenOptSearch", titok=titok, features=features, position=-2)
    with pytest.raises(ValueError, match="one picture at a time, got 2"):
        pack.run("TokenOptSearch", titok=titok, features=features.expand(2, -1, -1))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        pack.run("TokenOptSearch", titok=titok, features=features[:, 1:])


def test_a_vae_has_no_codes(pack) -> None:
    from tests.core.conftest import TINY, tiny_tokenizer
    from tokenopt_core.titok import TiTokConfig

    part = pack.part("tokenopt_core.titok")
    with torch.device("meta"):
        model = part.build(part.TiTokConfig(**{**vars(TINY), "codebook_size": None}))
    model.load_state_dict(tiny_tokenizer(TiTokConfig(**{**vars(TINY), "codebook_size": None})).model.state_dict(),
                          assign=True)  # fmt: skip
    vae = pack.part("nodes.models").wrap(pack.part("tokenopt_core").Tokenizer(model, "a vae"))
    with pytest.raises(ValueError, match="tokenizer 'a vae' is a VAE: its tokens are continuous"):
        pack.run("TokenOptSearch", titok=vae, features=torch.zeros(1, 3, 4))
