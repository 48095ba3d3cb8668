"""Files that mean harm: no code of theirs runs, no network is reached, no memory is taken for what they only claim."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tokenopt_core as to
from tokenopt_core import clip_config
from tokenopt_core.weights import read_config, read_shapes, read_state_dict

from .conftest import TINY
from .hostile import Harm
from .test_loading import save

pytestmark = pytest.mark.usefixtures("marker", "network")


class Call:
    """Unpickled, it calls a function that PyTorch's safe unpickler lets pass."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(path: Path, content: object, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    """A file in PyTorch's format around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for name, record in records.items():
            file.writestr(f"archive/data/{name}", record)
    return path


# pickles


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_harm_hidden_in_a_state_dict_is_not_done(tmp_path, suffix, legacy) -> None:
    path = tmp_path / f"model{suffix}"
    state = OrderedDict(latent_tokens=torch.zeros(3, 8), more=Harm())
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    for read in (read_state_dict, read_shapes, to.load_tokenizer):
        with pytest.raises(ValueError, match=r"could run code: refused.*exec"):
            read(path)


def test_harm_as_an_attribute_of_the_dictionary(tmp_path) -> None:
    """State dicts carry `_metadata`, which is unpickled with them."""
    state = OrderedDict(a=torch.zeros(1))
    state._metadata = Harm()
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="could run code: refused"):
        read_state_dict(tmp_path / "model.bin")


@pytest.mark.parametrize("name", ["DATA.PKL", "other/data.pkl"])
def test_harm_in_a_second_pickle_of_the_archive(tmp_path, name) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.bin")
    with zipfile.ZipFile(tmp_path / "model.bin", "a") as file:
        file.writestr(name, pickle.dumps(Harm(), protocol=2))
    with pytest.raises(ValueError, match="could run code: refused"):
        read_state_dict(tmp_path / "model.bin")


def test_an_archive_of_the_oldest_format(tmp_path, marker) -> None:
    """A tar that begins like a pickled state dict; PyTorch before 2.6 unpacked what it names, wherever that leads."""
    legacy = tmp_path / "legacy.pt"
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    magic = legacy.read_bytes()[:15]
    with tarfile.open(tmp_path / "old.pt", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo(magic.decode("latin-1") + "N." * 4))  # five pickles
        tar.addfile(tarfile.TarInfo(f"../../../../../..{marker}"))
    assert (tmp_path / "old.pt").read_bytes().startswith(magic)
    with pytest.raises(ValueError, match=r"could run code: refused.*it is a tar archive"):
        read_state_dict(tmp_path / "old.pt")
    assert read_state_dict(legacy) == {}


def test_plain_state_dicts_of_every_kind_are_read(tmp_path) -> None:
    tied = torch.arange(6.0)
    state = OrderedDict(a=tied, b=tied.view(2, 3), c=torch.tensor(3), d=torch.zeros(2, dtype=torch.bfloat16))
    state["e"] = torch.nn.Parameter(torch.ones(2, 2).T)
    state["f"] = torch.zeros(0, 4, dtype=torch.bool)
    state._metadata = {"": {"version": 1}}
    for legacy in (False, True):
        torch.save(state, tmp_path / "model.bin", _use_new_zipfile_serialization=not legacy)
        found = read_state_dict(tmp_path / "model.bin")
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(found[key], value.detach()) and found[key].dtype == value.dtype
            assert not found[key].requires_grad
        assert read_shapes(tmp_path / "model.bin") == {key: tuple(value.shape) for key, value in state.items()}


def test_a_training_runs_checkpoint_is_read(tmp_path) -> None:
    torch.save({"epoch": 3, "name": "run", "state_dict": {"a": torch.ones(2)}}, tmp_path / "epoch_3.pt")
    assert torch.equal(read_state_dict(tmp_path / "epoch_3.pt")["a"], torch.ones(2))


# sizes that are only claimed


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_larger_than_its_file(tmp_path, legacy, little_memory) -> None:
    """One number, spread out over a trillion places without taking room."""
    torch.save(
        {"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(ValueError, match=r"a is no plain tensor, or larger than the file: refused"):
        read_state_dict(tmp_path / "a.bin")


def test_many_tensors_of_the_same_numbers(tmp_path, little_memory) -> None:
    numbers = torch.zeros(10**6)
    torch.save({str(i): numbers for i in range(2000)}, tmp_path / "many.bin")
    with pytest.raises(ValueError, match="speaks of tensors of 8,000,000,000 bytes: refused"):
        read_state_dict(tmp_path / "many.bin")


def test_a_packed_archive(tmp_path, little_memory) -> None:
    path = archive(tmp_path / "bomb.bin", {}, zipfile.ZIP_DEFLATED, **{"0": bytes(400_000_000)})
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"would unpack to 400,\d+,\d+ bytes, and weight files are not compressed"):
        read_state_dict(path)


@pytest.mark.parametrize("call", [Call(bytearray, 2**40), Call(torch.FloatTensor, 2**38)])
def test_a_pickle_that_asks_for_memory(tmp_path, call, little_memory) -> None:
    """PyTorch's own safe unpickler calls both of them."""
    path = archive(tmp_path / "greedy.pt", {"a": call})
    with pytest.raises(ValueError, match=r"more than plain tensors.*it names (__builtin__|builtins|torch)\.\w+"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized", "number", "key"])
def test_what_is_no_plain_tensor(tmp_path, kind) -> None:
    value: Any = {
        "sparse": lambda: torch.sparse_coo_tensor([[0]], [1.0], (10**9,)),
        "meta": lambda: torch.empty(10**12, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        "number": lambda: 3,
        "key": lambda: torch.zeros(1),
    }[kind]()
    torch.save({7 if kind == "key" else "a": value}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"more than plain tensors|no plain tensor|holds no state dict"):
        read_state_dict(tmp_path / "odd.pt")


def header(length: int, content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + content + data


def entry(shape: list[int], end: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        header(2**63, b"{}"),
        header(10**9, b"{}"),
        header(len(entry([2**40], 2**42)), entry([2**40], 2**42)),
        header(len(entry([2**31, 2**31, 4], 16)), entry([2**31, 2**31, 4], 16), bytes(16)),
        header(len(entry([-4], 16)), entry([-4], 16), bytes(16)),
        header(len(entry([4], 16)), entry([4], 16), bytes(8)),
        header(2, b"[]"),
        b"",
    ],
)
def test_safetensors_that_claim_what_is_not_there(tmp_path, content, little_memory) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    for read in (read_state_dict, read_shapes):
        with pytest.raises(ValueError, match="is damaged or no safetensors file"):
            read(tmp_path / "a.safetensors")


def test_a_large_file_that_does_not_fit_is_not_read(tokenizer, tmp_path, little_memory) -> None:
    """Four gigabytes that take no room on the disk: the header is honest, and alone decides."""
    path = save(tokenizer, tmp_path) / "model.safetensors"
    content = entry([2**30], 2**32)
    with path.open("wb") as file:
        file.write(header(len(content), content))
        file.truncate(8 + len(content) + 2**32)
    with pytest.raises(ValueError, match="do not fit the model"):
        to.load_tokenizer(tmp_path)


def test_numbers_of_the_wrong_kind(tokenizer, tmp_path) -> None:
    path = save(tokenizer, tmp_path) / "model.safetensors"
    save_file({key: value.long() for key, value in tokenizer.model.state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"do not fit the model: \S+ holds torch\.int64 numbers"):
        to.load_tokenizer(tmp_path)


# configs


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"3", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000, b'{"a": NaN}',
        b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": ' + b"9" * 10_000 + b"}", b" " * 2_000_000 + b"{}",
    ],
)  # fmt: skip
def test_a_config_that_is_none(tokenizer, tmp_path, content) -> None:
    save(tokenizer, tmp_path)
    for name, load in (("config.json", to.load_tokenizer), (clip_config.NAME, to.load_clip)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}"):
            load(tmp_path)
        with pytest.raises(ValueError, match=rf"{name}"):
            read_config(tmp_path / name)


@pytest.mark.parametrize(
    "value", [None, [], {}, "x", "12", True, 1.5, -1, 0, 1e300, 10**40, [1] * 10**4, {"width": "a"}]
)
@pytest.mark.parametrize(
    "key", ["num_latent_tokens", "vit_enc_patch_size", "vit_dec_model_size", "codebook_size", "token_size"]
)
def test_entries_of_a_tokenizer_of_the_wrong_type(tokenizer, tmp_path, key, value) -> None:
    save(tokenizer, tmp_path)
    config = TINY.to_dict()
    config["model"]["vq_model"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        to.load_tokenizer(tmp_path)
    assert not any(word in str(error.value) for word in ("Error", "object", "literal", "NoneType", "indices"))
    assert len(str(error.value)) < 500


def test_a_picture_of_a_hub_is_not_asked_for(tmp_path) -> None:
    """What looks like a path or a web address is no repository."""
    for name in ("../../etc/no-such", "https://example.com/x", "owner/..", "owner/name/../../x", "hf-hub:owner/name"):
        with pytest.raises((FileNotFoundError, ValueError), match="unknown tokenizer"):
            to.load_tokenizer(name)
        with pytest.raises((FileNotFoundError, ValueError), match="unknown CLIP"):
            to.load_clip(name, "tag")


def test_a_pickle_in_disguise(tmp_path) -> None:
    """The ending says how a file is read, whatever it is."""
    torch.save({"a": Harm()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        read_state_dict(tmp_path / "model.safetensors")
    buffer = io.BytesIO()
    torch.save({"a": Harm()}, buffer)
    (tmp_path / "model.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="is no weight file"):
        to.load_clip("mini", tmp_path / "model.pkl")
