"""The evidence: cases that follow from a seed, recipes that are the workflows', counts by hand, runs that go on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenopt_core as to
from benchmarks import evidence, recipes
from benchmarks.casebook import EDITS, HOLES, MOST_HIDDEN, NAMED, Case, Hole, draw, hole_masks, mixed, pool
from benchmarks.evidence_failures import failures, worst
from benchmarks.evidence_goals import reached
from benchmarks.evidence_lab import Judged, Lab, chunks, right
from benchmarks.evidence_published import iterations, published, verdict, without
from benchmarks.evidence_rates import Rate, compare, compare_numbers, mcnemar, mean, shown
from benchmarks.evidence_report import counted, report
from benchmarks.evidence_sheets import Tile
from benchmarks.evidence_sheets import draw as draw_sheet
from benchmarks.evidence_store import FILE, Result, Store, key, weights_hash
from benchmarks.evidence_tables import Pixels, from_random, steps
from benchmarks.recipe_steps import ClipTerm, Drawn, Growing, Optimize, Recipe, Refine, changed
from tokenopt_core.titok import GridConfig, MaskgitVQGAN, TiTokConfig, Transformer, build
from training.world import Album, Scene, World

FOX = Scene("fox", "grass", "day", "large", "middle", "sharp")


@dataclass(frozen=True)
class Seen:
    """A stand-in for what the judges say."""

    scene: Scene
    clean: bool = True
    psnr: float = 30.0

    @property
    def nearest(self) -> Seen:
        return self

    def shows(self, name: str) -> str | None:
        return getattr(self.scene, name) or None

    def agrees(self, **attributes: str) -> bool:
        return self.clean and all(self.shows(name) == value for name, value in attributes.items())


def masks(scenes: Sequence[Scene]) -> torch.Tensor:
    return WORLD.render(list(scenes))[1]


WORLD = World(32)


# cases


def test_cases_follow_from_their_seed() -> None:
    for kind in (*EDITS, "generate", *HOLES):
        cases = draw(kind, 1000, 12, masks)
        assert cases == draw(kind, 1000, 12, masks) and cases[:5] == draw(kind, 1000, 5, masks)
        assert cases != draw(kind, 1001, 12, masks)
        assert [case.seed for case in cases] == list(range(1_000_000, 1_000_012))


def test_scenes_that_settings_are_tuned_on_are_in_no_report() -> None:
    tuned, reported = set(pool(report=False)), set(pool(report=True))
    assert not tuned & reported and len(tuned) == len(reported) == 2304
    for kind in (*EDITS, *HOLES):
        assert {case.source for case in draw(kind, 999, 40, masks)} <= tuned
        assert {case.source for case in draw(kind, 1000, 40, masks)} <= reported


def test_an_edit_changes_as_many_named_attributes_as_its_kind_says() -> None:
    for kind, count in EDITS.items():
        for case in draw(kind, 1000, 30):
            changed_names = [name for name in NAMED if case.wanted[name] != getattr(case.source, name)]
            assert len(changed_names) == count and (kind not in NAMED or changed_names == [kind])
            assert set(case.wanted) == set(NAMED)
    case = Case("ground", 0, 0, {"subject": "fox", "ground": "sand", "lighting": "night"}, "", FOX)
    assert case.target == replace(FOX, ground="sand", lighting="night")


def test_prompts_name_what_is_wanted_and_nothing_else() -> None:
    (case,) = draw("three", 1000, 1)
    from training.captions import Caption

    assert case.prompt == Caption(**case.wanted).text()
    assert not any(word in case.prompt for word in ("small", "large", "left", "right", "focus"))


def test_mixed_edits_are_the_first_of_each_kind() -> None:
    cases = mixed(1000, 12)
    assert [case.kind for case in cases] == ["lighting"] * 3 + ["ground"] * 3 + ["subject"] * 2 + ["two"] * 2 + [
        "three"
    ] * 2
    assert cases[3:6] == draw("ground", 1000, 3)


def test_holes_hide_what_they_say() -> None:
    cases = {kind: draw(kind, 1000, 20, masks) for kind in HOLES}
    for case, mask in zip(cases["half"], hole_masks(cases["half"], masks)[:, 0], strict=True):
        solid = masks([case.source])[0, 0] > 0.5
        left, right_side = (int(n) for n in (solid.any(0).nonzero()[0], solid.any(0).nonzero()[-1] + 1))
        columns = mask.any(0).nonzero().flatten()
        expected = (
            (left, (left + right_side) // 2) if case.hole.kind == "left" else ((left + right_side) // 2, right_side)
        )
        assert (int(columns[0]), int(columns[-1]) + 1) == expected and not mask[~solid].any()
    background = hole_masks(cases["background"], masks)
    assert torch.equal(background, (masks([case.source for case in cases["background"]]) <= 0.5).float())
    for case, mask in zip(cases["box"], hole_masks(cases["box"], masks)[:, 0], strict=True):
        subject = masks([case.source])[0, 0]
        assert (subject * mask).sum() <= MOST_HIDDEN * subject.sum()
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns and 7 <= rows <= 17 and 7 <= columns <= 17
    whole = hole_masks(cases["hidden"], masks)
    assert ((masks([case.source for case in cases["hidden"]]) > 0).float() == whole).all()
    with pytest.raises(ValueError, match="unknown kind of case 'sideways'"):
        draw("sideways", 1000, 1)


# counts


def test_wilson_by_hand() -> None:
    # 9 of 10: (0.9 + 3.8415/20 -+ 1.96 sqrt(0.9 0.1 / 10 + 3.8415 / 400)) / (1 + 3.8415/10)
    assert Rate(9, 10).interval == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert Rate(0, 10).interval == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-4)
    assert Rate(10, 10).interval == pytest.approx((10 / 13.8415, 1.0), abs=1e-4)
    assert Rate(0, 0).to_json() == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    assert shown(Rate(9, 10).to_json()) == "0.90 (0.60 to 0.98)" and shown(Rate(0, 0).to_json()) == "-"


def test_means_by_hand() -> None:
    # 1, 2, 3: standard deviation 1, of the mean 1 / sqrt(3)
    half = 1.959964 / math.sqrt(3)
    assert mean([1, 2, 3]) == {"value": 2, "low": round(2 - half, 4), "high": round(2 + half, 4), "n": 3}
    assert mean([])["value"] is None


def test_paired_comparisons_by_hand() -> None:
    a = [True] * 10 + [False] * 6
    b = [True] * 10 + [True] * 6
    assert mcnemar(a, b) == 2 * 0.5**6  # six cases, all in one direction
    assert compare("more", a, b) == {"claim": "more", "difference": 0.375, "p": 0.0312, "n": 16, "verdict": "holds"}
    assert compare("more", b, a)["verdict"] == "reversed"
    assert compare("more", a[:12], b[:12])["verdict"] == "not decided"  # two cases decide nothing
    assert mcnemar([True, False, True], [False, True, True]) == 1.0
    assert compare_numbers("higher", [0.0] * 6, [0.5] * 6) == {
        "claim": "higher", "difference": 0.5, "p": 0.0312, "n": 6, "verdict": "holds",
    }  # fmt: skip


# judgement


def case(kind: str = "ground", number: int = 0, **wanted: str) -> Case:
    named = {"subject": "fox", "ground": "sand", "lighting": "day"} | wanted
    return Case(kind, number, number, named, "a fox on sand by day", FOX)


def judged(scene: Scene, asked: Case | None = None, clean: bool = True, psnr: float = 30.0, **measures: Any) -> Judged:
    opinion = Seen(scene, clean, psnr)
    facts = {"similarity": 0.5, "seconds": 2.0, "iterations": 10, "tries": 0, "commit": "abc"} | measures
    return Judged(asked or case(), torch.rand(3, 8, 8), opinion, facts, (right(asked or case(), opinion),))


def test_an_edit_is_right_if_all_three_are_and_keeps_what_was_not_named() -> None:
    good = judged(replace(FOX, ground="sand"))
    assert good.right and good.kept == {"size": True, "place": True, "focus": True} and good.faults == []
    other = judged(replace(FOX, lighting="fog", size="small"), clean=False)
    assert not other.right and other.kept["size"] is False
    assert other.faults == ["not clean", "ground", "lighting"]


def test_a_hidden_background_may_be_any_that_the_judges_agree_on() -> None:
    asked = Case("background", 0, 0, {"subject": "fox"}, "", FOX, Hole("background"))
    assert right(asked, Seen(Scene("fox", "water", "night")))
    assert not right(asked, Seen(Scene("fox", "", "night")))
    assert not right(asked, Seen(Scene("panda", "water", "night")))
    assert judged(Scene("fox", "", "night"), asked).faults == ["ground"]


def test_what_failures_have_in_common() -> None:
    good = [judged(replace(FOX, ground="sand"), case(number=i)) for i in range(20)]
    bad = [judged(replace(FOX, ground="snow"), case("subject", i, subject="lemon"), psnr=20 + i) for i in range(6)]
    found = failures(good + bad)
    assert found["failed"]["n"] == 26 and found["failed"]["value"] == pytest.approx(6 / 26, abs=1e-4)
    assert found["faults"] == {"subject and ground": 6}
    assert "asked subject: lemon" in found["stand_out"] and "asked ground: sand" not in found["stand_out"]
    assert found["groups"]["asked subject: lemon"]["value"] == 1
    assert [j.opinion.psnr for j in worst(good + bad)] == [20, 21, 22, 23, 24, 25]


# going on


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    store, result = (
        Store(tmp_path),
        Result(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8), {"similarities": [0.5, 1]}),
    )
    store.add("one", case().to_json(), result)
    for again in (store, Store(tmp_path)):
        taken = again.get("one")
        assert torch.equal(taken.pictures, result.pictures) and taken.measures == result.measures
    assert Store(tmp_path).get("two") is None and Store(tmp_path, fresh=True).get("one") is None
    with (tmp_path / FILE).open("a") as file:
        file.write('{"key": "two", "ca')  # where a run was ended
    store = Store(tmp_path)
    store.add("two", case().to_json(), result)
    assert Store(tmp_path).get("two") is not None and Store(tmp_path).get("one") is not None
    (tmp_path / "one.png").write_bytes(b"")
    assert Store(tmp_path).get("one") is None


def test_keys_change_with_models_settings_and_case(tokenizer: to.Tokenizer) -> None:
    recipe, weights = Recipe(), weights_hash(tokenizer)

    def name(models: str, used: Recipe, asked: Case) -> str:
        return key(models=models, settings=used.settings(), case=asked.to_json())

    names = {
        name(weights, recipe, case()),
        name(weights, recipe, case(number=1)),
        name(weights, recipe.with_loop(lambda s: changed(s, iterations=9)), case()),
    }
    assert len(names) == 3 and name(weights, Recipe(), case()) in names
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1)
    assert weights_hash(tokenizer) != weights


def test_batches_follow_each_others_seeds() -> None:
    entries = [(replace(case(), seed=seed), str(seed)) for seed in (1, 2, 3, 5, 6, 9)]
    assert [[name for _, name in chunk] for chunk in chunks(entries, 2)] == [["1", "2"], ["3"], ["5", "6"], ["9"]]


# settings held against each other


def test_published_settings_and_what_is_left_out() -> None:
    ours = recipes.read("text_edit")
    theirs = published(ours, 50)
    assert theirs.start == ours.start and iterations(theirs) == 50 and iterations(published(ours)) == 300
    assert theirs.loop.config.learning_rate == 0.1 and theirs.loop.config.decay == "constant"
    assert theirs.loop.terms == (ClipTerm(),) and not theirs.refined
    assert without(theirs) == {}
    changes = {**without(replace(ours, stages=(*ours.stages, Refine())))}
    assert "refinement" in changes and not changes["refinement"].refined
    for name, recipe in changes.items():
        assert recipe != ours or name == "refinement"
        assert iterations(recipe) == iterations(ours)


def test_the_verdict_on_the_published_settings() -> None:
    def rows(**values: float) -> dict[str, Any]:
        return {name.replace("_", ", "): {"success": {"value": value}} for name, value in values.items()}

    ahead = verdict(rows(ours=0.9, published_100=0.7, published_300=0.95), 100)
    assert ahead["better"] and ahead["met"] and not ahead["as_good_in_half"] and ahead["ahead"] == 0.2
    as_good = verdict(rows(ours=0.9, published_100=0.85, published_300=0.9), 100)
    assert not as_good["better"] and as_good["as_good_in_half"] and as_good["met"]
    assert not verdict(rows(ours=0.9, published_300=0.9, published_600=0.95), 300)["met"]
    assert not verdict(rows(ours=0.0, published_100=0.0, published_300=0.0), 100)["met"]  # as bad is not as good


def test_tables_add_one_thing_a_row() -> None:
    rows = steps()
    settings = [recipe.loop for recipe in rows.values()]
    assert settings[0].config.ema_decay == 0 and settings[0].terms == (ClipTerm(crops=0),)
    assert settings[1] == replace(settings[0], terms=(ClipTerm(),))
    assert settings[2] == changed(settings[1], ema_decay=0.98)
    assert settings[3].config.noise.start > 0 and settings[4].regularizers and not settings[3].regularizers
    drawn = from_random(rows["+ token regularizer"], 400)
    assert isinstance(drawn.start, Drawn) and drawn.start.batch == 1 and iterations(drawn) == 400
    assert {r.toward for r in drawn.loop.regularizers} == {"zero"}


# the whole of it


@pytest.fixture(scope="module")
def album() -> Album:
    return Album(8)


@pytest.fixture
def lab(tokenizer: to.Tokenizer, clip: to.Clip, album: Album, tmp_path: Path) -> Lab:
    """A tiny tokenizer and CLIP, and a judge that looks up what it is shown."""

    def judges(images: torch.Tensor) -> list[Seen]:
        flat = album.bytes.flatten(1).float() / 255
        nearest = torch.cdist(images.flatten(1), flat).argmin(1).tolist()
        return [Seen(album.scenes[i]) for i in nearest]

    tokenizer.statistics = torch.zeros(3, 2), torch.ones(3, 2)
    return Lab(
        album,
        judges,
        clip,
        {"mini": tokenizer, "pixels": Pixels(8)},
        Store(tmp_path / "store"),
        8,
        "abc",
        lambda _: None,
    )


def short(recipe: Recipe) -> Recipe:
    """The recipe with few iterations, and for pictures of 8 px."""
    return replace(recipe, growing=Growing()).with_loop(
        lambda stage: changed(stage, iterations=min(2, stage.config.iterations))
    )


def test_a_run_goes_on_where_it_was(lab: Lab) -> None:
    recipe, computed = short(recipes.read("text_edit")), []
    compute = lab._compute
    lab._compute = lambda cases, *rest: computed.extend(cases) or compute(cases, *rest)  # type: ignore[method-assign]
    first = lab.run("edits", draw("two", 1000, 3), recipe)
    again = lab.run("edits", draw("two", 1000, 5), recipe)
    assert [case.number for case in computed] == [0, 1, 2, 3, 4] and lab.commits == {"abc"}
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(first, again[:3], strict=True))
    other = lab.run("edits", draw("two", 1000, 1), recipe.with_loop(lambda stage: changed(stage, learning_rate=0.3)))
    assert len(computed) == 6 and other[0].case == first[0].case


def test_the_best_of_several_starts_counts(lab: Lab) -> None:
    (found, *_) = lab.run(
        "generate", draw("generate", 1000, 2), short(replace(recipes.read("generate"), start=Drawn(3)))
    )
    assert len(found.starts) == 3 and len(found.measures["similarities"]) == 3
    assert found.measures["similarity"] == max(found.measures["similarities"])


def other_shapes() -> dict[str, to.Tokenizer]:
    """Untrained ones of 8 px: eight tokens, four, continuous ones, and a grid of four."""
    small = Transformer(32, 1, 2)
    config = TiTokConfig(8, 8, 4, 16, small, small, patch_size=4, l2_normalize=True)
    configs = {"eight": config, "four": replace(config, num_tokens=4)}
    configs["continuous"] = replace(config, codebook_size=None, l2_normalize=False)
    torch.manual_seed(0)
    found = {name: to.Tokenizer(build(config), name) for name, config in configs.items()}
    return found | {"grid": to.Tokenizer(MaskgitVQGAN(GridConfig(8, (32, 32, 32), 4, 16, True)), "grid")}


def test_the_whole_report(lab: Lab, tmp_path: Path, monkeypatch, capsys) -> None:
    real = recipes.read
    for module in ("parts", "published", "tables", "variants"):
        monkeypatch.setattr(f"benchmarks.evidence_{module}.read", lambda name: short(real(name)))
    monkeypatch.setattr("benchmarks.evidence_published.PUBLISHED", Optimize(to.OptimizeConfig(iterations=3)))
    monkeypatch.setattr("benchmarks.evidence_tables.steps", lambda: {n: short(r) for n, r in steps().items()})
    monkeypatch.setattr("benchmarks.evidence_variants.steps", lambda: {n: short(r) for n, r in steps().items()})
    monkeypatch.setattr("benchmarks.evidence_tables.from_random", lambda recipe, _: from_random(recipe, 2))
    lab.variants = replace(lab, tokenizers=other_shapes())
    out = tmp_path / "out"
    typed = ["--only", ",".join(evidence.PARTS), "--n", "3", "--out", str(out), "--tokenizer", "free=/some/where/free"]
    options_tokenizers = {**lab.tokenizers, "free": lab.tokenizers["mini"]}
    lab.tokenizers = options_tokenizers
    assert evidence.main(typed, lambda options: lab) == 0
    rates = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(rates) == ["light", "ground", "subject", "kept", "generate", "inpaint", "reconstruction_psnr",
                           "floor_unedited", "ceiling_reconstruction"]  # fmt: skip
    assert all(isinstance(value, float) for value in rates.values()) and rates["floor_unedited"] == 0
    data = json.loads((out / "evidence.json").read_text())
    assert data["rates"] == rates and set(data["parts"]) == {*evidence.PARTS, "failures"}
    assert (
        data["about"]["command"]
        == f"python benchmarks/evidence.py {typed[0]} {typed[1]} --n 3 --out out --tokenizer free=free"
    )
    assert all(entry["exact"]["value"] == 1 for entry in data["parts"]["inpaint"]["kinds"].values())
    page = (out / "README.md").read_text()
    for name in ("edits", "generate", "inpaint", "published", "failures"):
        assert (out / f"{name}.jpg").is_file() and f"({name}.jpg)" in page
    assert str(tmp_path) not in page + (out / "evidence.json").read_text()
    assert all(f"### Table {i}" in page for i in range(1, 6))
    assert list(data["parts"]["tables"]["beside"]) == ["free"] and page.count("### Table 1") == 2
    assert "## The same tables with the tokenizer free\n" in page
    trends = {t["claim"] for t in data["parts"]["variants"]["tables"]["table 3"]["trends"]}
    assert {"eight beats continuous", "four beats grid", "grid: the quantizer makes for more success"} <= trends
    assert sum(file.stat().st_size for file in out.iterdir()) < evidence.MOST_BYTES


def test_a_part_alone_and_the_rates_that_were_not_measured(lab: Lab, tmp_path: Path, monkeypatch, capsys) -> None:
    real = recipes.read
    monkeypatch.setattr("benchmarks.evidence_parts.read", lambda name: short(real(name)))
    evidence.main(
        ["--only", "generate", "--seed", "5", "--n", "2", "--out", str(tmp_path / "out")], lambda options: lab
    )
    lines = capsys.readouterr().out.splitlines()
    assert "settings may be tuned on these cases" in lines[0]
    rates = json.loads(lines[-1])
    assert rates["generate"] is not None and rates["light"] is None and rates["inpaint"] is None
    assert "MAY BE TUNED" in (tmp_path / "out" / "README.md").read_text()


def test_what_the_options_choose(capsys) -> None:
    whole = evidence.parse([])
    there = [name for name in evidence.PARTS if name != "variants" or evidence.found_in(whole.variants)]
    assert (whole.n, whole.seed, whole.only) == (60, 1000, there) and whole.out.parts[-2:] == (
        "docs",
        "evidence",
    )
    check = evidence.parse(["--seed", "4711", "--n", "20"])
    assert check.only == ["edits", "generate", "inpaint"] and check.out.parts[-2:] == ("results", "evidence")
    assert evidence.parse(["--quick"]).n == 8 and evidence.parse(["--quick"]).out == check.out
    for wrong in (["--only", "magic"], ["--n", "0"], ["--tokenizer", "free"]):
        with pytest.raises(SystemExit):
            evidence.parse(wrong)
    capsys.readouterr()


def entry(hits: int, n: int) -> dict[str, Any]:
    return Rate(hits, n).to_json()


def test_goals_are_judged_by_their_numbers() -> None:
    kinds = {"lighting": {"success": entry(57, 60)}, "three": {"success": entry(50, 60)}}
    found = {goal["goal"]: goal["met"] for goal in reached({"edits": {"kinds": kinds, "kept": entry(9, 10)}})}
    assert found == {"edit of the lighting": True, "three attributes at once": False, "unnamed attributes kept": True}


def test_the_report_says_what_the_numbers_say() -> None:
    worth = [compare("refinement", [False] * 8, [True] * 8), compare("averaging", [True] * 8, [True] * 8)]
    row = {
        "success": entry(8, 8),
        "kept": entry(8, 8),
        "similarity": mean([0.5]),
        "iterations": 100,
        "tries": 5,
        "seconds": 1.5,
    }
    about = {"command": "c", "date": "d", "commit": "e", "commits": ["e"], "machine": "m", "torch": "t", "seed": 1000}
    data = {
        "about": about | {"n": 8},
        "goals": [
            {"goal": "g", "least": 0.95, **entry(8, 8), "met": True},
            {"goal": "h", "least": 0.9, **entry(1, 8), "met": False},
        ],
        "parts": {
            "published": {
                "rows": {"ours": row}, "comparisons": [], "settings": {},
                "left_out": {"ours": {"rows": {"ours": row}, "worth": worth}},
                "verdict": {"iterations": 100, "ahead": 0.25, "as_good_in_half": False, "met": True},
            },
            "failures": {"failed": entry(0, 8), "faults": {}, "stand_out": [], "groups": {}},
        },
    }  # fmt: skip
    page = report(data)
    assert (
        "| g | 0.95 | 1.00 (0.68 to 1.00) | 8 | met |" in page
        and "| h | 0.90 | 0.12 (0.02 to 0.47) | 8 | **not met** |" in page
    )
    assert "+25 points" in page and "Left out of ours, these cost success: refinement." in page
    assert "Nothing they have in common is more frequent than chance explains." in page
    assert "failures.jpg" not in page
    said = counted([compare("a", [False] * 8, [True] * 8), compare("b", [True], [True]), compare("c", [True], [True])])
    assert said == "Of the paper's 3 trends 1 hold here, 2 are not decided by these cases.\n"


def test_a_sheet_frames_what_is_wrong() -> None:
    picture = torch.full((3, 8, 8), 0.5)
    sheet = draw_sheet([[Tile(picture, "a"), Tile(picture, "b", False)], [Tile(picture, "c\nd", True)]])
    assert sheet.size == (6 + 2 * 102, 6 + 2 * (96 + 6 + 28 + 6))
    assert sheet.getpixel((6, 6)) == (128, 128, 128)
    assert sheet.getpixel((6 + 102, 6)) == (192, 57, 43) and sheet.getpixel((6, 6 + 136)) == (46, 139, 87)
