"""Loading by name, folder and file, and what is said of files that cannot be used."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tokenopt_core as to
from tokenopt_core import loading
from tokenopt_core.download import Source
from tokenopt_core.titok import TiTokConfig, build
from tokenopt_core.titok.variants import Variant
from tokenopt_core.weights import read_state_dict

from .conftest import TINY, tiny_tokenizer


def save(tokenizer: to.Tokenizer, folder: Path, config: TiTokConfig = TINY) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(tokenizer.model.state_dict(), folder / "model.safetensors")
    return folder


def same(a: to.Tokenizer, b: to.Tokenizer) -> bool:
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.equal(a.decode(a.encode(images)), b.decode(b.encode(images)))


def test_a_folder_round_trip(tokenizer, tmp_path) -> None:
    loaded = to.load_tokenizer(save(tokenizer, tmp_path / "my titok"))
    assert same(loaded, tokenizer)
    assert loaded.name == "my titok"
    assert not any(p.requires_grad for p in loaded.parameters())


KINDS = {
    "vq": TINY,
    "vae": replace(TINY, codebook_size=None),
    "two stages": replace(TINY, image_size=32, patch_size=16, l2_normalize=True, two_stage=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_survives_saving_and_loading(kind, tmp_path) -> None:
    config = KINDS[kind]
    assert TiTokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    original = tiny_tokenizer(config)
    loaded = to.load_tokenizer(save(original, tmp_path / kind, config))
    assert type(loaded.model) is type(original.model)
    images = torch.rand(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = loaded.encode(images)
        assert torch.equal(features, original.encode(images))
        decoded = loaded.decode(features)
        assert decoded.shape == images.shape
        assert torch.equal(decoded, original.decode(features))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth"])
def test_lone_files_are_recognised_or_named(tokenizer, tmp_path, monkeypatch, suffix) -> None:
    monkeypatch.setitem(loading.VARIANTS, "tiny", Variant(partial(build, TINY), Source("nobody/tiny", ())))
    path = tmp_path / f"weights{suffix}"
    state = tokenizer.model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(to.load_tokenizer(path, variant="tiny"), tokenizer)
    assert same(to.load_tokenizer(path), tokenizer)  # recognised by its tensors
    with pytest.raises(ValueError, match=r"unknown variant 'small': expected one of titok_l32"):
        to.load_tokenizer(path, variant="small")
    monkeypatch.delitem(loading.VARIANTS, "tiny")
    with pytest.raises(ValueError, match=rf"{path.name}: its tensors are those of no published tokenizer"):
        to.load_tokenizer(path)


def test_half_precision_on_request(tokenizer, tmp_path) -> None:
    assert to.load_tokenizer(save(tokenizer, tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_draws_no_random_numbers(tokenizer, tmp_path) -> None:
    save(tokenizer, tmp_path)
    state = torch.get_rng_state()
    to.load_tokenizer(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_names_and_missing_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unknown tokenizer 'titok_xl'.*expected mini"):
        to.load_tokenizer("titok_xl")
    for name in ("../secret/model", "/etc", "./a", "owner/../x", "a/b/c"):
        with pytest.raises((FileNotFoundError, ValueError), match=r"unknown tokenizer|has no config"):
            to.load_tokenizer(name)
    with pytest.raises(FileNotFoundError, match=r"there is no weight file .*gone\.safetensors"):
        to.load_tokenizer(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        to.load_tokenizer(tmp_path)


def test_weights_that_do_not_fit(tokenizer, tmp_path) -> None:
    save(tokenizer, tmp_path)
    state = tokenizer.model.state_dict()
    state["latent_tokens"] = state["latent_tokens"][:2].clone()
    state["surplus"] = torch.zeros(1)
    del state["decoder.mask_token"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing decoder\.mask_token; unexpected surplus; latent_tokens is \[2, 8\]"):
        to.load_tokenizer(tmp_path)


def test_a_truncated_file(tokenizer, tmp_path) -> None:
    path = save(tokenizer, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        to.load_tokenizer(tmp_path)


def test_a_web_page_instead_of_weights(tokenizer, tmp_path) -> None:
    path = save(tokenizer, tmp_path) / "model.safetensors"
    path.write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(ValueError, match="is a web page"):
        to.load_tokenizer(tmp_path)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harm-was-done"),))


def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"latent_tokens": Harm()}, tmp_path / "evil.bin")
    with pytest.raises(ValueError, match="could run code: refused"):
        read_state_dict(tmp_path / "evil.bin")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"latent_tokens": Harm()}))
    with pytest.raises(ValueError, match=r"evil|plain"):
        read_state_dict(tmp_path / "plain.pt")
    assert not (tmp_path / "harm-was-done").exists()


def test_a_config_of_another_kind(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json: not a TiTok config"):
        to.load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        to.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "vq_model", "num_latent_tokens"), 0),
        (("model", "vq_model", "num_latent_tokens"), 10**9),
        (("model", "vq_model", "codebook_size"), -1),
        (("model", "vq_model", "vit_enc_patch_size"), 0),
        (("model", "vq_model", "vit_enc_model_size"), "huge"),
        (("model", "vq_model", "quantize_mode"), "fsq"),
        (("dataset", "preprocessing", "crop_size"), 10**9),
        (("dataset", "preprocessing", "crop_size"), "big"),
    ],
)
def test_an_impossible_config_is_refused_before_anything_is_built(tokenizer, tmp_path, place, value) -> None:
    save(tokenizer, tmp_path)
    config = TINY.to_dict()
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: "):
        to.load_tokenizer(tmp_path)


def test_unknown_clips_are_explained(tmp_path) -> None:
    with pytest.raises(ValueError, match="did you mean ViT-B-32"):
        to.load_clip("ViT-B32", "laion2b_s34b_b79k")
    with pytest.raises(
        FileNotFoundError, match=r"neither a weight file nor one of ViT-B-32's tags: .*laion2b_s34b_b79k"
    ):
        to.load_clip("ViT-B-32", "laion99")
    with pytest.raises(ValueError, match="needs weights"):
        to.load_clip("ViT-B-32")
    with pytest.raises(FileNotFoundError, match="no weight file"):
        to.load_clip("mini", tmp_path / "gone.safetensors")
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="do not fit the model: missing"):
        to.load_clip("mini", tmp_path / "small.safetensors")


@pytest.mark.slow
def test_an_open_clip_model_from_a_local_file(tmp_path) -> None:
    """The smallest published architecture with weights we make: text and picture vectors as open_clip gives them."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    clip = to.load_clip("ViT-S-32-alt", tmp_path / "clip.pt")
    images = torch.rand(1, 3, clip.image_size, clip.image_size, requires_grad=True)
    normalized = (images - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    ).view(3, 1, 1)
    model.eval()
    torch.testing.assert_close(clip.embed_image(images), model.encode_image(normalized, normalize=True))
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(["a dog"])
    torch.testing.assert_close(clip.embed_text(["a dog"]), model.encode_text(tokens, normalize=True))
    clip.embed_image(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_siglip_folder(tmp_path, monkeypatch) -> None:
    """The layout of a published SigLIP: a timm picture tower, a text tower that sees both ways, its own words."""
    import open_clip
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Words(WordLevel({"<pad>": 1, "<unk>": 0, "a": 2, "fox": 3, "at": 4, "night": 5}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<pad>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kind))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    picture = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    text = {
        "context_length": 8,
        "vocab_size": 6,
        "hf_tokenizer_name": "timm/tiny",
        "width": 64,
        "heads": 2,
        "layers": 1,
    }
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True}
    text |= {"pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    config = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "vision_cfg": picture, "text_cfg": text}
    usual = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    whole = {"model_cfg": config, "preprocess_cfg": usual}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(whole))
    torch.manual_seed(0)
    original = open_clip.create_model(f"local-dir:{tmp_path}", require_pretrained=False)
    save_file(original.state_dict(), tmp_path / "open_clip_model.safetensors")

    clip = to.load_clip(tmp_path)
    assert clip.image_size == 160 and clip.mean.flatten().tolist() == [0.5] * 3
    texts = clip.embed_text(["A fox, at night!", "a fox at night", "a night"])
    torch.testing.assert_close(texts[0], texts[1])  # case and punctuation are cleaned as SigLIP's words were
    assert (texts[0] - texts[2]).norm() > 1e-3
    images = torch.rand(2, 3, 160, 160)
    expected = original.eval().encode_image((images - 0.5) / 0.5, normalize=True)
    torch.testing.assert_close(clip.embed_image(images), expected)
    loss = to.ClipLoss(clip, "a fox at night", crops=2)
    images.requires_grad_(True)
    loss(images).sum().backward()
    assert images.grad.abs().sum() > 0
