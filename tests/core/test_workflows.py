"""What the example workflows say of downloads is where the core gets the same files."""

import json

import pytest

from devtools.layout import DOWNLOADS
from devtools.paths import WORKFLOWS
from tokenopt_core.clip import PUBLISHED
from tokenopt_core.titok import VARIANTS

SOURCES = {name: variant.source for name, variant in VARIANTS.items()} | {n: p.source for n, p in PUBLISHED.items()}


def test_offered_downloads_are_the_published_files() -> None:
    for models in DOWNLOADS.values():
        for name, url, _ in models:
            source = SOURCES[name.removesuffix(".safetensors")]
            assert url == f"{source.page}/resolve/main/{source.files[-1]}"


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*[!i].json")), ids=lambda path: path.stem)
def test_loaders_of_a_workflow_carry_them(path) -> None:
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    loaders = [node for node in nodes if node["type"] in DOWNLOADS]
    assert loaders
    for node in loaders:
        offered = [(m["name"], m["url"], m["directory"]) for m in node["properties"]["models"]]
        assert offered == [tuple(entry) for entry in DOWNLOADS[node["type"]]]
