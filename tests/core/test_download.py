"""Downloads from a hub on this machine: whole, cut off, interrupted, refused, with a full disk."""

import errno
import os
import shutil
from collections import namedtuple

import huggingface_hub.constants
import pytest

from tests.hub import Hub
from tokenopt_core import download
from tokenopt_core.download import Source, fetch

CONTENT = os.urandom(24_000_000)  # the library reads 10 MB at a time
REPOSITORY = "owner/model"


@pytest.fixture
def hub(monkeypatch):
    with Hub({f"{REPOSITORY}/model.safetensors": CONTENT, f"{REPOSITORY}/config.json": b"{}"}) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def test_a_file_arrives_whole_and_reports_its_way(hub, tmp_path) -> None:
    reports: list[tuple[int, int]] = []
    path = fetch(REPOSITORY, "model.safetensors", tmp_path / "new", lambda here, total: reports.append((here, total)))
    assert path == tmp_path / "new" / "model.safetensors"
    assert path.read_bytes() == CONTENT
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert [here for here, _ in reports] == sorted(here for here, _ in reports)
    assert os.listdir(path.parent) == ["model.safetensors"]  # no temporary file is left


def test_all_files_of_a_source_and_nothing_twice(hub, tmp_path) -> None:
    source = Source(REPOSITORY, ("config.json", "model.safetensors"))
    source.fetch(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    asked = len(hub.requests)
    source.fetch(tmp_path)
    assert len(hub.requests) == asked


class Stop(Exception):
    pass


def test_an_interrupted_download_goes_on_where_it_was(hub, tmp_path) -> None:
    def stop_half_way(here: int, total: int) -> None:
        if here > total / 2:
            raise Stop

    with pytest.raises(Stop):
        fetch(REPOSITORY, "model.safetensors", tmp_path, stop_half_way)
    (part,) = tmp_path.iterdir()
    half = part.stat().st_size
    assert part.suffix == ".part"
    assert len(CONTENT) / 2 < half < len(CONTENT)

    assert fetch(REPOSITORY, "model.safetensors", tmp_path).read_bytes() == CONTENT
    assert hub.requests[-1] == ("GET", "/owner/model/resolve/main/model.safetensors", f"bytes={half}-")
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_connection_that_breaks_leaves_nothing_under_the_final_name(hub, tmp_path) -> None:
    hub.cut_after = 1_000_000
    try:
        fetch(REPOSITORY, "model.safetensors", tmp_path)  # the library may try again by itself
    except FileNotFoundError as error:
        assert "could not be downloaded" in str(error)
        assert not (tmp_path / "model.safetensors").exists()
    assert fetch(REPOSITORY, "model.safetensors", tmp_path).read_bytes() == CONTENT


def test_another_version_does_not_continue_the_old_half(hub, tmp_path) -> None:
    def stop(here: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        fetch(REPOSITORY, "model.safetensors", tmp_path, stop)
    hub.files[f"{REPOSITORY}/model.safetensors"] = newer = os.urandom(2_000_000)
    assert fetch(REPOSITORY, "model.safetensors", tmp_path).read_bytes() == newer


def test_what_the_hub_does_not_have(hub, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"https://huggingface.co/owner/gone/tree/main and put it at .*x\.bin"):
        fetch("owner/gone", "x.bin", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.bin of owner/model could not be downloaded"):
        fetch(REPOSITORY, "absent.bin", tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_network(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    )
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded.*To do it by hand"):
        fetch(REPOSITORY, "model.safetensors", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_store_behind_the_hub_does_not_get_the_users_token(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(REPOSITORY, "config.json", tmp_path)
    assert set(hub.tokens) == {"Bearer hf_secret"}
    with Hub(hub.files) as store:
        hub.store = store.url
        assert fetch(REPOSITORY, "model.safetensors", tmp_path).read_bytes() == CONTENT
        assert [method for method, _, _ in store.requests] == ["GET"]
        assert store.tokens == [""]


def test_more_than_was_announced_is_not_written(hub, tmp_path) -> None:
    name = f"{REPOSITORY}/model.safetensors"
    with Hub({name: CONTENT + os.urandom(20_000_000)}) as store:
        hub.store = store.url
        with pytest.raises(FileNotFoundError, match="could not be downloaded"):
            fetch(REPOSITORY, "model.safetensors", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= len(CONTENT) + 10_000_000


def test_a_name_that_leads_out_of_the_folder_is_refused(hub, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        fetch("../../etc", "passwd", tmp_path)


def test_a_disk_too_small_is_said_before_anything_is_written(hub, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="the disk is full") as info:
        fetch(REPOSITORY, "model.safetensors", tmp_path)
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_half_way_leaves_nothing(hub, tmp_path, monkeypatch) -> None:
    """The temporary file is a link to /dev/full: every write to it fails as on a full disk."""
    real = download._ReportingFile.__init__

    def on_a_full_device(self, path, report) -> None:
        path.symlink_to("/dev/full")
        real(self, path, report)

    monkeypatch.setattr(download._ReportingFile, "__init__", on_a_full_device)
    with pytest.raises(OSError, match="the disk is full"):
        fetch(REPOSITORY, "model.safetensors", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.iterdir())
