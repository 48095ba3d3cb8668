"""Optimising through the nodes: the same numbers as in plain Python, under whatever ComfyUI does around it."""

import copy
from typing import Any

import pytest
import torch

import tokenopt_core as to

pytestmark = pytest.mark.comfyui

PROMPT = "a fox on grass at night"
ITERATIONS = 6
SETTINGS = {"iterations": ITERATIONS, "learning_rate": 0.2, "decay": "cosine", "ema_decay": 0.5, "seed": 3}
CROPS = 2


@pytest.fixture
def features(pack, titok, picture) -> torch.Tensor:
    """The sample picture's features."""
    return pack.run("TokenOptEncode", titok=titok, image=picture)[0]


@pytest.fixture
def loss(pack, openclip) -> Any:
    """What CLIP Loss gives."""
    return pack.run("TokenOptCLIPLoss", openclip=openclip, prompt=PROMPT, crops=CROPS)[0]


@pytest.fixture
def plain(plain_tokenizer, plain_clip):
    """The same optimization called from Python, on ComfyUI's device and in its dtype."""

    def run(picture: torch.Tensor, config: to.OptimizeConfig, **more: Any) -> to.Result:
        import comfy.model_management as mm

        device = mm.get_torch_device()
        tokenizer, clip = copy.deepcopy(plain_tokenizer).to(device), copy.deepcopy(plain_clip).to(device)
        with torch.no_grad():
            features = tokenizer.encode(picture.permute(0, 3, 1, 2).to(device))
        return to.optimize(tokenizer, features, to.ClipLoss(clip, PROMPT, crops=CROPS), config, **more)

    return run


def test_result_is_that_of_plain_python(pack, titok, features, loss, picture, plain, assert_same) -> None:
    optimized, images, history, _ = pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **SETTINGS)
    expected = plain(picture, to.OptimizeConfig(**SETTINGS))
    assert_same(optimized, expected.features)
    assert_same(images, expected.images.permute(0, 2, 3, 1))
    assert history.keys() == {"loss", "clip"}
    assert_same(history["loss"], expected.history["loss"])
    assert not torch.equal(optimized, features)


def test_batch_with_noise_and_two_regularizers_is_that_of_plain_python(
    pack, titok, loss, picture, plain, assert_same
) -> None:
    pictures = torch.cat([picture, picture.flip(2), picture * 0.5])
    features = pack.run("TokenOptEncode", titok=titok, image=pictures)[0]
    noise = {"start": 0.6, "end": 0.1, "until": 0.5, "shape": "cosine"}
    chain = pack.run("TokenOptRegularizer", toward="seed", weight=0.05)[0]
    inputs = {
        "regularizer": pack.run("TokenOptRegularizer", toward="zero", weight=0.01, chain=chain)[0],
        "noise": pack.run("TokenOptNoise", **noise)[0],
    }
    got = pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **inputs, **SETTINGS)
    regularizers = [to.TokenRegularizer("seed", 0.05), to.TokenRegularizer("zero", 0.01)]
    config = to.OptimizeConfig(**SETTINGS, noise=to.NoiseSchedule(**noise))
    expected = plain(pictures, config, regularizers=regularizers)
    assert_same(got[0], expected.features)
    assert_same(got[1], expected.images.permute(0, 2, 3, 1))
    assert got[2].keys() == {"loss", "clip", "toward seed", "toward zero"}
    assert all(curve.shape == (ITERATIONS, 3) for curve in got[2].values())


def test_decoding_the_result_gives_its_picture(pack, titok, features, loss, assert_same) -> None:
    optimized, images, *_ = pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **SETTINGS)
    assert_same(pack.run("TokenOptDecode", titok=titok, features=optimized)[0], images)


def test_gradients_survive_unloading(pack, titok, features, loss, assert_same) -> None:
    """ComfyUI unloads models under inference mode, after which a plain module would refuse a gradient."""
    import comfy.model_management as mm

    inputs = {"titok": titok, "features": features, "loss": loss, **SETTINGS}
    first = pack.run("TokenOptOptimize", **inputs)[0]
    with torch.inference_mode():
        mm.unload_all_models()
    assert_same(pack.run("TokenOptOptimize", **inputs)[0], first)


def test_gradients_survive_a_load_under_inference_mode(pack, titok, features, loss, assert_same) -> None:
    """Another node pack may hand our models to ComfyUI outside of our gradient context."""
    import comfy.model_management as mm

    inputs = {"titok": titok, "features": features, "loss": loss, **SETTINGS}
    first = pack.run("TokenOptOptimize", **inputs)[0]
    with torch.inference_mode():
        mm.unload_all_models()
        for patcher in (titok, *loss.models):
            for parameter in patcher.model.parameters():  # what moving to a device under inference mode leaves
                parameter.data = parameter.data.clone()
            for module in patcher.model.modules():
                module._buffers.update({k: v.clone() for k, v in module._buffers.items() if v is not None})
        mm.load_models_gpu([titok, *loss.models])
    assert_same(pack.run("TokenOptOptimize", **inputs)[0], first)


def test_inputs_are_left_as_they_were(pack, titok, features, loss, picture, assert_same) -> None:
    """ComfyUI keeps outputs for the next run: a node that writes into them spoils it."""
    regularizer = pack.run("TokenOptRegularizer")[0]
    longer = pack.run("TokenOptRegularizer", chain=regularizer)[0]
    noise = pack.run("TokenOptNoise", start=0.5)[0]
    text = loss.terms[0][2].text.clone()
    weights = {k: v.clone() for m in (titok, *loss.models) for k, v in m.model.state_dict().items()}
    before = [features.clone(), picture.clone()]

    pack.run("TokenOptEncode", titok=titok, image=picture)
    pack.run("TokenOptDecode", titok=titok, features=features)
    inputs = {"titok": titok, "features": features, "loss": loss, "regularizer": longer, "noise": noise, **SETTINGS}
    first = pack.run("TokenOptOptimize", **inputs)[0]

    assert torch.equal(features, before[0]) and torch.equal(picture, before[1])
    assert (len(regularizer), len(longer), len(loss.terms)) == (1, 2, 1)
    assert torch.equal(loss.terms[0][2].text, text)
    after = {k: v for m in (titok, *loss.models) for k, v in m.model.state_dict().items()}
    assert all(torch.equal(after[name], weight.to(after[name].device)) for name, weight in weights.items())
    assert_same(pack.run("TokenOptOptimize", **inputs)[0], first)


def test_what_leaves_a_node_is_free_of_the_graph(pack, titok, features, loss) -> None:
    optimized, images, history, _ = pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **SETTINGS)
    for tensor in (features, optimized, images, *history.values()):
        assert not tensor.requires_grad and tensor.device.type == "cpu" and tensor.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


@pytest.fixture
def progress():
    """Every call of ComfyUI's progress bar, as (value, total, preview)."""
    import comfy.utils

    calls: list[tuple[int, int, Any]] = []
    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: calls.append((value, total, preview)))
    yield calls
    comfy.utils.set_progress_bar_global_hook(before)


def test_progress_counts_every_iteration_and_shows_the_picture(pack, titok, features, loss, picture, progress) -> None:
    pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **SETTINGS)
    assert [value for value, _, _ in progress] == list(range(1, ITERATIONS + 1))
    assert {total for _, total, _ in progress} == {ITERATIONS}
    kind, shown, size = progress[0][2]
    assert (kind, shown.size, size) == ("JPEG", picture.shape[1:3], max(256, picture.shape[1]))


def test_interruption_ends_the_run_and_leaves_the_next_one_whole(
    pack, titok, features, loss, progress, assert_same
) -> None:
    import comfy.model_management as mm

    inputs = {"titok": titok, "features": features, "loss": loss, **SETTINGS}
    expected = pack.run("TokenOptOptimize", **inputs)[0]
    progress.clear()
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        pack.run("TokenOptOptimize", **inputs)
    assert not progress, "the run went on after the interruption"
    assert_same(pack.run("TokenOptOptimize", **inputs)[0], expected)


def test_interruption_in_the_middle(pack, titok, features, loss, progress, monkeypatch) -> None:
    import comfy.model_management as mm
    import comfy.utils

    def stop_at_two(value: int, *_: Any, **__: Any) -> None:
        if value == 2:
            mm.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop_at_two)
    with pytest.raises(mm.InterruptProcessingException):
        pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **SETTINGS)
    assert not mm.processing_interrupted()


def test_features_of_another_tokenizer_are_refused(pack, titok, loss) -> None:
    count, width = titok.model.num_tokens, titok.model.token_dim
    foreign = torch.zeros(1, 2 * count, width)
    message = rf"mini.*\(batch, {count}, {width}\), got \(1, {2 * count}, {width}\).*another tokenizer"
    for node, more in (("TokenOptOptimize", {"loss": loss, **SETTINGS}), ("TokenOptDecode", {})):
        with pytest.raises(ValueError, match=message):
            pack.run(node, titok=titok, features=foreign, **more)


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("learning_rate", float("nan"))])
def test_impossible_settings_are_refused(pack, titok, features, loss, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name.replace("_", " ")):
        pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, **{**SETTINGS, name: value})
