"""What the benchmarks draw and write of what they measured."""

from __future__ import annotations

import pytest

from benchmarks import cost, overhead
from benchmarks.panels import Panel, draw
from devtools.paths import ROOT
from tokenopt_core.plot import COLOURS

STEEP = Panel("Batch", "pictures", "ms", [(1, 10.0), (2, 18.0), (4, 34.0), (8, 33.0)])


def test_the_line_fits_all_points_but_the_last() -> None:
    assert [STEEP.line(x) for x in (0, 1, 2, 4, 8)] == pytest.approx([2.0, 10.0, 18.0, 34.0, 66.0])
    assert STEEP.against_line == pytest.approx(0.5)
    bent = Panel("Batch", "pictures", "ms", [(1, 1.0), (2, 1.0), (3, 4.0), (4, 10.0)])
    assert bent.line(4) == pytest.approx(5.0) and bent.against_line == pytest.approx(2.0), "no point lies on it"


def test_points_lie_where_their_numbers_say_on_axes_from_zero() -> None:
    panels = [STEEP, Panel("Crops", "crops", "ms", [(1, 1.0), (3, 2.0), (4, 9.0)])]
    picture = draw(panels, 420, 320)
    assert picture.size == (840, 320)
    left, right, top, bottom = 56, 420 - 22, 56, 320 - 46
    for x, y in STEEP.points:
        across = left + x / (8 * 1.04) * (right - left)
        up = bottom - y / (66 * 1.08) * (bottom - top)  # the line's end is the highest
        red, green, blue = picture.getpixel((round(across), round(up)))
        assert (red, green, blue) == tuple(int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)), (x, y)


def test_cost_measures_every_size_and_writes_between_its_marks(tmp_path, monkeypatch, capsys) -> None:
    found = cost.measure(cost.sizes((1, 2, 3), (1, 2, 3), (1, 2, 3)), rounds=1)
    assert [[x for x, _ in panel.points] for panel in found] == [[1, 2, 3]] * 3
    assert all(y > 0 for panel in found for _, y in panel.points)
    monkeypatch.setattr(cost, "PICTURE", tmp_path / "cost.png")
    monkeypatch.setattr(cost, "PAGE", tmp_path / "speed.md")
    monkeypatch.setattr(cost, "ROOT", tmp_path)
    cost.PAGE.write_text(f"before\n\n{cost.START}old\n{cost.END}after\n", encoding="utf-8")
    cost.record([STEEP], 1)
    page = cost.PAGE.read_text(encoding="utf-8")
    assert page.startswith(f"before\n\n{cost.START}") and page.endswith(f"{cost.END}after\n") and "old" not in page
    assert "| Batch, ms | 8 | 33 | 66 | 0.50 |" in page and cost.PICTURE.stat().st_size > 1000


def test_the_page_on_speed_has_the_marks_and_shows_the_plot() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert page.count(cost.START) == page.count(cost.END) == 1 and page.index(cost.START) < page.index(cost.END)
    assert "(cost.png)" in page and (ROOT / "docs" / "cost.png").is_file()


def test_overhead_is_the_median_of_the_ratios_within_a_round() -> None:
    rounds = [
        {"bare": [2.0, 1.0], "as it comes": [2.2, 1.5]},
        {"as it comes": [4.0, 1.2], "bare": [1.0, 1.0]},  # a slow moment disturbs one round, not the verdict
        {"bare": [4.0, 2.0], "as it comes": [4.0, 2.6]},
    ]
    assert overhead.ratios(rounds) == {"as it comes": (pytest.approx(1.1), pytest.approx(1.3))}
