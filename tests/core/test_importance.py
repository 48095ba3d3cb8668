"""Token importance: Eq. 1 by hand and on planted data, streamed and at once; partitions; the heat map."""

import numpy as np
import pytest
import torch

import tokenopt_core as to
from tokenopt_core.heatmap import draw_heatmap
from tokenopt_core.importance import ClassMeans, Finding, Partition, Survey, parse_partitions


def test_by_hand() -> None:
    features = torch.tensor([[[0.0, 2.0], [1.0, 1.0]], [[2.0, 4.0], [1.0, 1.0]], [[5.0, 3.0], [1.0, 5.0]]])
    labels = torch.tensor([4, 4, 9])
    # position 0: means (1, 3) and (5, 3), variances 8 and 0; position 1: means (1, 1) and (1, 5), variances 0 and 8
    assert to.token_importance(features, labels).tolist() == [4.0, 4.0]


def planted(pictures: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of unit variance over 12 positions; positions 3 and 8 hold the class's own mean, 8 more strongly."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (pictures,), generator=generator)
    features = torch.randn(pictures, 12, 5, generator=generator, dtype=dtype)
    means = torch.randn(4, 5, generator=generator, dtype=dtype)
    features[:, 3] += means[labels]
    features[:, 8] += 3 * means[labels]
    return features, labels


def test_planted_positions_are_found() -> None:
    importance = to.token_importance(*planted(4000))
    assert importance.argsort(descending=True)[:2].tolist() == [8, 3]
    assert importance[3] > 20 * importance[[i for i in range(12) if i not in (3, 8)]].max()
    assert importance[8] / importance[3] == pytest.approx(9, rel=0.2)


def test_it_is_numpys_variance_of_the_class_means() -> None:
    features, labels = planted(100)
    means = np.stack([features[labels == c].mean(0).numpy() for c in range(4)])
    expected = means.var(0, ddof=1).mean(1)
    np.testing.assert_allclose(to.token_importance(features, labels).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_streamed_is_at_once(batch: int) -> None:
    features, labels = planted(1000)
    features = features + 1000  # where sums of squares would lose their digits
    statistics = ClassMeans(6)  # two classes stay without a picture
    for part, numbers in zip(features.split(batch), labels.split(batch), strict=True):
        statistics.add(part, numbers)
    assert statistics.counts.tolist() == [*torch.bincount(labels).tolist(), 0, 0]
    torch.testing.assert_close(statistics.importance(), to.token_importance(features, labels), rtol=0, atol=1e-10)


def test_what_is_kept_does_not_grow() -> None:
    statistics = ClassMeans(3)
    sizes = set()
    for seed in range(5):
        features, labels = planted(200, seed)
        statistics.add(features, labels % 3)
        sizes.add(sum(t.numel() for t in vars(statistics).values() if isinstance(t, torch.Tensor)))
    assert sizes == {3 + 3 * 12 * 5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_dtypes(dtype: torch.dtype, kind: torch.dtype) -> None:
    features, labels = planted(50, dtype=dtype)
    importance = to.token_importance(features, labels.to(kind))
    assert importance.dtype is dtype
    torch.testing.assert_close(importance.double(), to.token_importance(features.double(), labels), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), r"expected tokens of shape .*, got \(3, 4\)"),
        (torch.zeros(0, 4, 2), torch.zeros(0, dtype=torch.int64), "expected tokens of shape"),
        (torch.zeros(3, 4, 2), torch.zeros(2, dtype=torch.int64), r"a label for each of the 3 pictures, got \(2,\)"),
        (torch.zeros(3, 4, 2), torch.zeros(3), "labels must be whole numbers, got torch.float32"),
        (torch.zeros(3, 4, 2), torch.ones(3, dtype=torch.int64), "all pictures are of 1 class: at least two"),
    ],
)
def test_bad_input_is_explained(features, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to.token_importance(features, labels)


def test_partitions() -> None:
    text = (
        " lighting: daytime scene | nighttime scene \n\n a dog|a cat | a horse\nclock: at 10:30 | at night\n10:30|11:30"
    )
    assert parse_partitions(text) == [
        Partition("lighting", ("daytime scene", "nighttime scene")),
        Partition("a dog / a cat / a horse", ("a dog", "a cat", "a horse")),
        Partition("clock", ("at 10:30", "at night")),
        Partition("10:30 / 11:30", ("10:30", "11:30")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n ", "no partition is given: write classes separated by |"),
        ("a dog", "the partition 'a dog' has 1 class: expected 2 to 100"),
        ("pets: a dog", "has 1 class: expected"),
        ("a dog | ", "has a class without text"),
        ("pets: | a dog", "has a class without text"),
        ("pets:", "has a class without text"),
        ("a dog | a dog", "names the same class twice"),
        ("x: a | b\nx: c | d", "two partitions are called 'x'"),
        ("|".join(map(str, range(101))), "has 101 classes: expected 2 to 100"),
        ("a | b\n" * 101, "101 partitions"),
        ("x" * 61 + ": a | b", "name has 61 characters"),
        ("a | " + "b" * 20_001, "more than 20000 characters"),
    ],
)
def test_bad_partitions_are_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_partitions(text)


POINTS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, 1.0), "down": (0.0, -1.0), "here": (9.0, 9.0)}


class Words:
    """A CLIP whose texts and pictures are points of the plane."""

    def embed_text(self, prompts):
        return torch.tensor([POINTS[prompt] for prompt in prompts])


def test_survey_of_several_partitions() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 2, generator=generator)
    tokens = torch.randn(300, 4, 3, generator=generator)
    tokens[:, 1] += 5 * points[:, :1].sign()  # position 1 tells left from right, position 2 up from down
    tokens[:, 2] += 5 * points[:, 1:].sign()
    survey = Survey(Words(), parse_partitions("x: left | right\ny: up | down\nz: here | left"))
    for part in range(0, 300, 77):
        survey.add(tokens[part : part + 77], points[part : part + 77])
    x, y, z = survey.findings()
    assert x.counts == (int((points[:, 0] < 0).sum()), int((points[:, 0] > 0).sum()))
    assert x.top(1) == [1] and y.top(1) == [2] and sum(z.counts) == 300
    torch.testing.assert_close(x.importance, to.token_importance(tokens.double(), (points[:, 0] > 0).long()))


def test_empty_and_tiny_classes_are_said() -> None:
    tokens, points = torch.randn(4, 2, 1), torch.tensor([[-1.0, 0.1], [-1.0, 0.1], [1.0, 0.1], [-1.0, 0.1]])
    survey = Survey(Words(), parse_partitions("x: left | right | here\ny: up | down"))
    with pytest.raises(ValueError, match="not a single picture"):
        survey.findings()
    survey.add(tokens, points)
    x, y = survey.findings()
    assert x.counts == (3, 0, 1) and y.counts == (4, 0)
    assert x.notes == ["the class 'right' has no picture and is left out", "the class 'here' has only one picture"]
    assert y.importance is None and y.top(3) == []
    assert y.notes == ["all 4 pictures are of the class 'up': there is nothing to compare"]


def test_a_single_class_is_an_error() -> None:
    survey = Survey(Words(), parse_partitions("y: up | down"))
    survey.add(torch.randn(1, 2, 1), torch.tensor([[0.0, 1.0]]))
    with pytest.raises(
        ValueError, match=r"the only picture is of the class 'up'.*Give pictures of at least two classes"
    ):
        survey.findings()


def test_top_positions_of_equal_importance_keep_their_order() -> None:
    finding = Finding(Partition("x", ("a", "b")), (1, 1), torch.tensor([0.1, 0.5, 0.5, 0.2]))
    assert finding.top(3) == [1, 2, 3] and finding.top(99) == [1, 2, 3, 0]


@pytest.mark.parametrize("positions", [3, 32, 256])
def test_heat_map_is_darkest_where_the_value_is_greatest(positions: int) -> None:
    values = torch.rand(2, positions, generator=torch.Generator().manual_seed(0))
    values[0, positions - 1], values[1, 1] = 2.0, 3.0
    picture = np.array(draw_heatmap(["a", "a long name, " * 40], values, [[0], []], "caption").convert("RGB")).astype(
        int
    )
    dark = (picture == (8, 48, 107)).all(2)
    assert dark.any() and picture.shape[1] < 4000
    rows = np.flatnonzero(dark.sum(1) >= 8)
    upper, lower = dark[rows[: len(rows) // 2]], dark[rows[len(rows) // 2 :]]
    assert np.flatnonzero(upper.any(0)).mean() > np.flatnonzero(lower.any(0)).mean()
    assert (picture == (214, 39, 40)).all(2).any()  # the frame


def test_heat_map_without_numbers() -> None:
    blank = draw_heatmap(["a", "b"], torch.tensor([[0.0, 0.0], [float("nan")] * 2]))
    assert not (np.array(blank) == (8, 48, 107)).all(2).any()
    with pytest.raises(ValueError, match="a row of values for each of 1 names"):
        draw_heatmap(["a"], torch.zeros(2, 3))
