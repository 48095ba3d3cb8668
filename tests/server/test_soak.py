"""The soak's scenes, one of each ending: they still run and end as they say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from devtools import scenes, soak

pytestmark = [pytest.mark.server, pytest.mark.slow]

SCENES = {scene.ending: scene for scene in scenes.deck(0)}


@pytest.fixture(scope="module")
def models(comfy_server) -> Iterator[None]:
    """The soak's own models, for as long as these tests run."""
    folder = comfy_server.base / "models"
    scenes.write_models(folder)
    yield
    for path in [*(folder / "titok").glob("soak *"), folder / "open_clip" / scenes.CLIP]:
        shutil.rmtree(path)
    (folder / "titok" / scenes.DAMAGED).unlink()


@pytest.mark.parametrize("ending", SCENES)
def test_a_scene_ends_as_it_says(models, client, ending: str) -> None:
    assert soak.play(client, SCENES[ending]) == ending
