"""The published models to the last digit: keys, shapes, and the numbers of the published implementation."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import tokenopt_core as to
from tests import formula
from tokenopt_core.titok import VARIANTS, TiTokConfig, build, recognise, signature

FIXTURES = Path(__file__).parents[1] / "fixtures" / "titok"
GOLDEN = sorted(path.stem for path in FIXTURES.glob("*.safetensors"))
PUBLISHED = sorted(path.stem for path in FIXTURES.glob("*.json"))
TOLERANCE = 1e-4  # relative norm
UNDECIDED = 1e-5  # of a pixel's error in float32: its sign may be either
TRAJECTORY = 3e-4  # after six steps of Adam, which moves tokens whose gradient is rounding alone by 0.1 all the same


def describe(name: str) -> dict:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert difference < tolerance


def tokens_first(x: Tensor) -> Tensor:  # published (B, C, 1, N) -> (B, N, C)
    return x.squeeze(2).transpose(1, 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_the_published_ones(name) -> None:
    assert signature(name) == {key: tuple(shape) for key, shape in describe(name)["state_dict"].items()}


def test_every_variant_has_its_fixture() -> None:
    assert sorted(VARIANTS) == PUBLISHED


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "maskgit_vqgan"])
def test_the_published_config_gives_the_variant(name) -> None:
    with torch.device("meta"):
        model = build(TiTokConfig.from_dict(describe(name)["config"]))
        assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == signature(name)
        assert type(model) is type(VARIANTS[name].make())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_state_dict_without_config_is_recognised(name) -> None:
    shapes = signature(name)
    assert recognise(shapes) == name
    shapes.pop(next(iter(shapes)))
    with pytest.raises(ValueError, match=rf"may be those of .*{name}.*variant="):
        recognise(shapes)


@dataclass
class Golden:
    """A model with the formula's weights, the numbers of the published code, and the pictures."""

    tokenizer: to.Tokenizer
    numbers: dict[str, Tensor]
    images: Tensor

    def in_either_precision(self, check: Callable[[to.Tokenizer, Tensor], None]) -> None:
        """Runs a check in float32, and if that fails in float64.

        The gradient of an absolute difference is a sign: where float32 leaves one pixel's undecided, the tokens go
        another way although everything is right.
        """
        try:
            check(self.tokenizer, self.images)
        except AssertionError:
            try:
                check(self.tokenizer.double(), self.images.double())
            finally:
                self.tokenizer.float()  # the weights are float32 numbers: nothing is lost


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request) -> Golden:
    with torch.device("meta"):
        model = VARIANTS[request.param].make()
    state = {key: formula.weights(key, shape) for key, shape in signature(request.param).items()}
    model.load_state_dict(state, strict=True, assign=True)
    numbers = load_file(FIXTURES / f"{request.param}.safetensors")
    return Golden(to.Tokenizer(model, request.param), numbers, formula.image(len(numbers["features"])))


@pytest.mark.slow
def test_encoder_quantizer_and_decoder(golden) -> None:
    tokenizer, numbers, images = golden.tokenizer, golden.numbers, golden.images
    z = tokenizer.encode(images)
    assert_near(z, tokens_first(numbers["features"]))
    assert_near(tokenizer.quantize(z), tokens_first(numbers["quantized"]))
    if "indices" in numbers:
        assert torch.equal(tokenizer.indices(z), numbers["indices"][: len(images)])
    with torch.no_grad():
        decoded = tokenizer.decode(tokens_first(numbers["features"]))
    assert_near(F.avg_pool2d(decoded, 16), numbers["decoded_pool16"])
    if len(images) == 2:  # the statistics are those of two pictures
        assert_near(
            torch.stack([decoded.min(), decoded.max(), decoded.mean(), decoded.std()]), numbers["decoded_stats"]
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_loss_and_gradient(golden) -> None:
    numbers, images = golden.numbers, golden.images
    z = tokens_first(numbers["features"]).requires_grad_(True)
    error = golden.tokenizer.decode(z) - images.flip(-1)
    loss = error.abs().mean((1, 2, 3))
    assert_near(loss.detach(), numbers["l1_loss"][: len(images)])

    (gradient,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
    expected = tokens_first(numbers["l1_grad_features"])
    assert_near(gradient + flipped_signs(error, z, expected - gradient), expected)


def flipped_signs(error: Tensor, z: Tensor, missing: Tensor) -> Tensor:
    """What the gradient of the mean absolute error gains where float32 leaves a pixel's sign undecided.

    One pixel of 196,608 with the other sign moves the gradient by 2e-4. Every pixel nearer to zero than rounding may
    have either sign, all or nothing: its share of the `missing` gradient, found by least squares, is rounded to 0 or 1.
    """
    undecided = (error.detach().abs() < UNDECIDED).nonzero()
    assert len(undecided) < 20
    flips = []
    for place in undecided.tolist():
        pixel = error[tuple(place)]
        turned = -2 * pixel.detach().sign() * pixel / error[0].numel()
        flips.append(torch.autograd.grad(turned, z, retain_graph=True)[0])
    if not flips:
        return torch.zeros_like(missing)
    stacked = torch.stack([flip.flatten() for flip in flips], 1)
    shares = torch.linalg.lstsq(stacked, missing.flatten()[:, None]).solution
    return (stacked @ shares.round().clamp(0, 1)).view_as(missing)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("run", "toward", "weight"), [("seed", "seed", 0.02), ("zero", "zero", 0.05), ("post", "seed", 0.02)]
)
def test_six_iterations_of_the_published_loop(golden, run, toward, weight) -> None:
    numbers = golden.numbers
    config = to.OptimizeConfig(iterations=6, quantize=run != "post")

    def check(tokenizer: to.Tokenizer, images: Tensor) -> None:
        def right_side(decoded: Tensor) -> Tensor:
            return ((decoded - images.flip(-1)).abs() * (torch.arange(256) >= 96)).mean((1, 2, 3))

        start = tokens_first(numbers["features"]).to(images)
        result = to.optimize(tokenizer, start, right_side, config, [to.TokenRegularizer(toward, weight)])
        assert_near(result.history["loss"], numbers[f"opt_{run}_loss"][:, : len(images)])
        assert_near(result.features, tokens_first(numbers[f"opt_{run}_ema_tokens"]), TRAJECTORY)
        assert_near(F.avg_pool2d(result.images, 16), numbers[f"opt_{run}_final_pool16"], TRAJECTORY)

    golden.in_either_precision(check)
