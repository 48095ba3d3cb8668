"""Finish now, over the route that the button on the node uses."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from api_examples.client import find_node

pytestmark = pytest.mark.server

ENDLESS = 50_000


@pytest.fixture
def finish(comfy_server):
    """Asks the server to finish; gives its answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(body: bytes) -> dict[str, Any]:
        request = urllib.request.Request(f"{comfy_server.url}/tokenopt/finish", body, method="POST")
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)

    return ask


def test_a_run_that_is_finished_gives_its_picture_and_the_workflow_goes_on(
    client, graph, finish, assert_unharmed
) -> None:
    prompt = graph(seed=5, iterations=ENDLESS)
    optimize, edited = find_node(prompt, "Optimize Tokens"), find_node(prompt, "Edited picture")
    counted: list[int] = []
    prompt_id = client.queue(prompt)
    for event in client.follow(prompt_id):  # raises unless the prompt succeeds
        if event.type == "progress" and event.data["node"] == optimize:
            counted.append(event.data["value"])
            if len(counted) == 5:
                assert finish(b"") == {"finishing": [optimize]}
    assert 5 <= counted[-1] < 500
    assert client.images(prompt_id)[edited]
    assert_unharmed()


def test_only_the_node_that_is_named_is_finished(client, graph, finish) -> None:
    prompt = graph(seed=6, iterations=ENDLESS)
    optimize = find_node(prompt, "Optimize Tokens")
    answers = []

    def ask() -> None:
        time.sleep(0.5)
        answers.append(finish(b'{"node": "no such node"}'))
        answers.append(finish(json.dumps({"node": optimize}).encode()))

    prompt_id, asking = client.queue(prompt), None
    for event in client.follow(prompt_id):
        if asking is None and event.type == "progress" and event.data["node"] == optimize:
            asking = threading.Thread(target=ask)
            asking.start()
    assert asking is not None
    asking.join()
    assert answers == [{"finishing": []}, {"finishing": [optimize]}]


def test_nothing_runs_and_nonsense(finish) -> None:
    assert finish(b"") == {"finishing": []}
    for nonsense in (b"{", b"[1]", b"\xff"):
        with pytest.raises(urllib.error.HTTPError, match="400") as caught:
            finish(nonsense)
        assert "node" in json.load(caught.value)["error"]
