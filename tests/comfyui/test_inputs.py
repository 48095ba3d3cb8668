"""What nodes say to inputs that ComfyUI lets through, and what happens to names that lead elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from devtools.paths import CACHE

from .conftest import Pack, defaults

set_hypothesis_home_dir(CACHE / "hypothesis")

pytestmark = pytest.mark.comfyui

DEBRIS = ("Error", "NoneType", "object", "attribute", "operand", "unhashable", "iterable", "subscriptable", "<class")
NONSENSE = (None, 3.5, math.nan, "x" * 5000, "\ud800", {"a": 1}, [1], object())


@pytest.fixture
def good(pack: Pack, titok: Any, openclip: Any, picture: torch.Tensor) -> dict[str, Any]:
    """A value for every kind of socket."""
    mask = torch.zeros(picture.shape[:3])
    mask[:, :20] = 1
    square, _, placement = pack.run("TokenOptFit", titok=titok, image=picture)
    features = pack.run("TokenOptEncode", titok=titok, image=picture)[0]
    loss = pack.run("TokenOptMaskedL1Loss", image=square, mask=mask)[0]
    history = pack.run("TokenOptOptimize", titok=titok, features=features, loss=loss, iterations=1)[2]
    return {
        "TITOK": titok,
        "OPENCLIP": openclip,
        "IMAGE": picture,
        "MASK": mask,
        "TITOK_FEATURES": features,
        "TOKEN_LOSS": loss,
        "TITOK_PLACEMENT": placement,
        "TOKEN_HISTORY": history,
        "TOKEN_REGULARIZER": pack.run("TokenOptRegularizer")[0],
        "TOKEN_NOISE": pack.run("TokenOptNoise")[0],
        "TOKEN_RESET": pack.run("TokenOptReset", image=square, mask=mask)[0],
    }


def kind(item: Any) -> str:
    return str(item.get_io_type())


def test_every_input_of_every_node_is_looked_at(pack: Pack, good: dict[str, Any]) -> None:
    """One input at a time is nonsense; all the others are good."""
    widgets = {"prompt": "a fox on grass", "iterations": 1}
    for name, cls in pack.classes.items():
        items = {item.id: item for item in cls.GET_SCHEMA().inputs}
        values = defaults(cls) | {key: good[kind(item)] for key, item in items.items() if kind(item) in good}
        values |= {key: value for key, value in widgets.items() if key in items}
        if "partitions" in items:  # which need pictures of two classes, by day and by night
            values["images"] = torch.cat([good["IMAGE"], good["IMAGE"] * 0.15])
        pack.run(name, **values)
        for key, item in items.items():
            for value in NONSENSE:
                fine = {"BOOLEAN": (), "FLOAT": (3.5,), "STRING": ("x" * 5000,)}.get(kind(item), ())
                if (value is None and item.optional) or value in fine:
                    continue
                with pytest.raises((ValueError, FileNotFoundError)) as error:
                    pack.run(name, **values | {key: value})
                message = str(error.value)
                assert item.id.replace("_", " ") in message or "name" in message, (name, key, value, message)
                assert len(message.split()) >= 5 and len(message) < 1000, message
                assert not any(debris in message for debris in DEBRIS), message
                message.encode()  # a message that cannot be printed ends the thread that runs ComfyUI's prompts


def test_an_optional_input_that_is_nothing_is_left_open(pack: Pack, good: dict[str, Any]) -> None:
    (alone,) = pack.run("TokenOptRegularizer", toward="zero", weight=0.5, chain=None)
    assert len(alone) == 1
    inputs = {"titok": good["TITOK"], "features": good["TITOK_FEATURES"], "loss": good["TOKEN_LOSS"], "iterations": 1}
    nothing = dict.fromkeys(["regularizer", "noise", "reset"])
    assert torch.equal(pack.run("TokenOptOptimize", **inputs, **nothing)[1], pack.run("TokenOptOptimize", **inputs)[1])


@pytest.mark.parametrize(
    ("node", "key", "value", "message"),
    [
        ("TokenOptNoise", "start", -0.5, "start must be at least 0, got -0.5"),
        ("TokenOptNoise", "until", 2, "until must be at most 1, got 2"),
        ("TokenOptNoise", "end", math.inf, "the end must be a finite number from 0.0 to 100.0, got inf"),
        ("TokenOptNoise", "end", None, "the end must be a finite number from 0.0 to 100.0, got nothing"),
        ("TokenOptNoise", "shape", ["linear"], "shape must be one of the choices in its list, got a list"),
        ("TokenOptRegularizer", "chain", "none", "chain takes what Regularizer gives, got the text 'none': connect it"),
        ("TokenOptSample", "name", "\ud800", "name holds half of a character, which is no text: the text '?'"),
        ("TokenOptSample", "name", "a" * 5000, f"got the text '{'a' * 60}' ..."),
    ],
)
def test_messages(pack: Pack, node: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        pack.run(node, **{key: value})
    assert message in str(error.value)


@pytest.mark.parametrize("chained", [False, True])
def test_an_error_that_cannot_be_printed_is_replaced(pack: Pack, chained: bool) -> None:
    """What stands in a file, or its name, can be no text; ComfyUI prints an error with all that led to it."""

    def execute(cls: Any, name: str) -> None:
        try:
            raise OSError(f"{name}: cannot read models/\udcff.bin")
        except OSError as error:
            if chained:
                raise ValueError("the model could not be loaded") from error
            raise

    with pytest.raises(ValueError, match=r"could not be loaded|fox: cannot read models/\\udcff\.bin") as error:
        pack.part("nodes.inputs").checked(execute)(pack.classes["TokenOptSample"], "fox")
    "".join(traceback.format_exception(error.value)).encode()


def test_an_error_that_can_be_printed_stays(pack: Pack) -> None:
    mine = KeyError("mine")

    def execute(cls: Any, name: str) -> None:
        raise mine

    with pytest.raises(KeyError) as error:
        pack.part("nodes.inputs").checked(execute)(pack.classes["TokenOptSample"], "fox")
    assert error.value is mine


names = st.one_of(
    st.text(),
    st.text(alphabet="./\\~:abc\0"),
    st.sampled_from(
        ["..", "../..", "/etc/passwd", "C:\\x", "../secret", "../secret/model.safetensors", "link", "dead"]
    ),
)


@settings(derandomize=True, deadline=None, database=None, max_examples=80,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(name=names | st.none() | st.integers() | st.lists(st.text()) | st.dictionaries(st.text(), st.none()))
def test_no_name_leads_out_of_the_model_folders(pack: Pack, name: Any) -> None:
    import folder_paths

    folders = pack.part("nodes.folders")
    inside = folder_paths.get_folder_paths("titok")[0]
    os.makedirs(inside, exist_ok=True)
    secret = os.path.join(os.path.dirname(inside), "secret")
    os.makedirs(secret, exist_ok=True)
    open(os.path.join(secret, "model.safetensors"), "wb").close()
    if not os.path.lexists(os.path.join(inside, "dead")):
        with contextlib.suppress(OSError):  # links need rights on Windows
            os.symlink(os.path.join(secret, "gone"), os.path.join(inside, "dead"))
        with contextlib.suppress(OSError):  # where names are bytes: one that is no text, and is not offered
            open(os.path.join(os.fsencode(inside), b"\xff.safetensors"), "wb").close()
    assert "\udcff.safetensors" not in folders.installed("titok")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        folders.find("titok", name, {}, True)
    str(error.value).encode()
    assert len(str(error.value)) <= 1000
    assert folders.fingerprint("titok", name) == folders.fingerprint("titok", name)
    assert folders.fingerprint("titok", name) == f"{name!r} []"


def test_the_fingerprint_changes_with_the_files(pack: Pack, write_tokenizer) -> None:
    import folder_paths

    folders = pack.part("nodes.folders")
    folder = write_tokenizer(folders.Path(folder_paths.get_folder_paths("titok")[0]) / "printed")
    seen = [folders.fingerprint("titok", "printed")]
    assert folders.fingerprint("titok", "printed") == seen[0]

    def changed() -> None:
        seen.append(folders.fingerprint("titok", "printed"))
        assert len(set(seen)) == len(seen)

    (folder / "feature_statistics.safetensors").write_bytes(b"1")
    changed()
    (folder / "feature_statistics.safetensors").write_bytes(b"22")
    changed()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    changed()
    (folder / "dead").symlink_to(folder / "gone")  # nothing to load, and nothing to fail on
    assert "gone" not in folders.fingerprint("titok", "printed")
