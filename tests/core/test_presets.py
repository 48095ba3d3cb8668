"""Attributes by name: the paper's, those beside a tokenizer's weights, and in the text of positions."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import tokenopt_core as to
from devtools.paths import ROOT
from tokenopt_core.loading import MINI
from tokenopt_core.presets import FILE, read_presets
from tokenopt_core.titok import VARIANTS, TiTokConfig, variant_of
from tokenopt_core.tokens import parse_positions

PRESETS = {"lighting": (1, 5), "background blur": (3,)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lighting", [1, 5]),
        ("Lighting, 3, 7-9", [1, 3, 5, 7, 8, 9]),
        ("background  blur; lighting", [1, 3, 5]),
        ("2\nLIGHTING", [1, 2, 5]),
    ],
)
def test_names_stand_beside_numbers(text: str, expected: list[int]) -> None:
    assert parse_positions(text, 16, PRESETS) == expected


def test_unknown_names_are_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="knows no attribute 'pose': it has lighting, background blur"):
        parse_positions("3, pose", 16, PRESETS)
    with pytest.raises(ValueError, match="it has none: give numbers and ranges"):
        parse_positions("pose", 16, {})
    with pytest.raises(ValueError, match="only where the tokenizer is given, too: connect it"):
        parse_positions("lighting", 16)
    with pytest.raises(ValueError, match="no token position 5: this tokenizer has 0 to 4"):
        parse_positions("lighting", 5, PRESETS)


def test_copy_paste_by_name() -> None:
    target, reference = torch.zeros(1, 6, 1), torch.ones(1, 6, 1)
    assert to.copy_paste(target, reference, "lighting", presets=PRESETS).flatten().tolist() == [0, 1, 0, 0, 0, 1]


def test_the_papers_positions_belong_to_l32_alone() -> None:
    expected = {"background blur": (18,), "lighting": (31,), "sharpening": (12,), "pose": (21,)}
    assert VARIANTS["titok_l32"].presets == {**expected, "colourisation": (12, 24, 27)}
    assert not any(variant.presets for name, variant in VARIANTS.items() if name != "titok_l32")


@pytest.mark.parametrize("name", ["titok_l32", "titok_b64", "titok_sl256_vq8k", "titok_ll32_vae_c16"])
def test_a_published_tokenizer_is_known_by_its_config(name: str) -> None:
    config = json.loads((ROOT / "tests" / "fixtures" / "titok" / f"{name}.json").read_text())["config"]
    assert variant_of(TiTokConfig.from_dict(config)) == name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """mini in a folder of its own, without its presets."""
    copied = Path(shutil.copytree(MINI / "tokenizer", tmp_path / "mini"))
    (copied / FILE).unlink(missing_ok=True)
    return copied


def test_they_come_from_the_file_beside_the_weights(folder: Path) -> None:
    assert to.load_tokenizer(folder).presets == {}
    entries = {"Lighting": {"positions": [2, 0, 2], "measured": 0.9}, "depth of field": {"positions": [1]}}
    (folder / FILE).write_text(json.dumps({"made by": "hand", "attributes": entries}))
    assert to.load_tokenizer(folder).presets == {"lighting": (0, 2), "depth of field": (1,)}


def test_minis_own_name_something() -> None:
    tokenizer = to.load_tokenizer("mini")
    assert tokenizer.presets == read_presets(MINI / "tokenizer" / FILE, tokenizer.num_tokens) != {}
    for name, positions in tokenizer.presets.items():
        assert parse_positions(name, tokenizer.num_tokens, tokenizer.presets) == list(positions)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"attributes": [0]}', '{"attributes": {"a": [0]}}', '{"attributes": {"a": {}}}'] + [
        json.dumps({"attributes": {"a": {"positions": positions}}})
        for positions in ([], [16], [-1], [0.0], [True], "0", None, {"0": 0})
    ] + [
        json.dumps({"attributes": {name: {"positions": [0]}}})
        for name in ("", " ", "3", "3-5", "a, b", "a\nb", "a;", "x" * 61, " a", "\ud800", "\x00a")
    ] + ['{"attributes": {"a b": {"positions": [0]}, "A  B": {"positions": [1]}}}'],
)  # fmt: skip
def test_files_that_make_no_sense(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(FILE)) as caught:
        read_presets(tmp_path / FILE, 16)
    assert len(str(caught.value)) < 400
