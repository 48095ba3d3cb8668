"""Finish now, over the route that the button on the node uses."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from api_examples.client import find_node

pytestmark = pytest.mark.server

ENDLESS = 50_000


def test_a_run_that_is_finished_gives_its_picture_and_the_workflow_goes_on(client, graph, assert_unharmed) -> None:
    prompt = graph(seed=5, iterations=ENDLESS)
    optimize, edited = find_node(prompt, "Optimize Tokens"), find_node(prompt, "Edited picture")
    counted: list[int] = []
    prompt_id = client.queue(prompt)
    for event in client.follow(prompt_id):  # raises unless the prompt succeeds
        if event.type == "progress" and event.data["node"] == optimize:
            counted.append(event.data["value"])
            if len(counted) == 5:
                assert client.finish() == [optimize]
    assert 5 <= counted[-1] < 500
    assert client.images(prompt_id)[edited]
    assert_unharmed()


def test_only_the_node_that_is_named_is_finished(client, graph) -> None:
    prompt = graph(seed=6, iterations=ENDLESS)
    optimize = find_node(prompt, "Optimize Tokens")
    answers = []

    def ask() -> None:
        time.sleep(0.5)
        answers.append(client.finish("no such node"))
        answers.append(client.finish(optimize))

    prompt_id, asking = client.queue(prompt), None
    for event in client.follow(prompt_id):
        if asking is None and event.type == "progress" and event.data["node"] == optimize:
            asking = threading.Thread(target=ask)
            asking.start()
    assert asking is not None
    asking.join()
    assert answers == [[], [optimize]]


def test_nothing_runs(client) -> None:
    assert client.finish() == []


@pytest.mark.parametrize("nonsense", [b"{", b"[1]", b"\xff", b"[" * 100_000], ids=["half", "list", "bytes", "deep"])
def test_nonsense_is_answered(comfy_server, nonsense: bytes) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{comfy_server.url}/tokenopt/finish", nonsense, method="POST")
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        opener.open(request, timeout=30)
    assert "node" in json.load(caught.value)["error"]
