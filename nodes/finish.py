"""Finish now: a running optimization ends at its next iteration, and what it has so far goes on through the workflow.

The button on the node (web/finish.js) and programs call the same route: `POST /tokenopt/finish`, optionally with
`{"node": "<id>"}`; without it, whatever runs is finished. The answer, `{"finishing": ["<id>", ...]}`, names what was.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

ROUTE = "/tokenopt/finish"

_running: dict[str, threading.Event] = {}  # node id -> whether it was asked to finish; only while it runs


@contextmanager
def finishable(node_id: str) -> Iterator[Callable[[], bool]]:
    """While a node runs: tells whether it has been asked to finish."""
    asked = threading.Event()
    _running[node_id] = asked
    try:
        yield asked.is_set
    finally:
        del _running[node_id]


def finish(node_id: str | None = None) -> list[str]:
    """Asks a running node, or all that run, to finish; returns which were asked.

    Inside a subgraph a node's id is the end of a path, "7:3": its own id is enough.
    """
    asked = [key for key in list(_running) if node_id is None or node_id in (key, key.rsplit(":", 1)[-1])]
    for key in asked:
        if key in _running:
            _running[key].set()
    return asked


def prompt_server() -> Any:
    """ComfyUI's server, or None where its nodes run without one; looked up, since importing it starts half of it."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def register() -> None:
    """Adds the route to ComfyUI's server, where there is one."""
    server = prompt_server()
    if server is not None:
        server.routes.post(ROUTE)(_answer)


async def _answer(request: web.Request) -> web.Response:
    from aiohttp import web

    try:
        wanted = json.loads(await request.text() or "{}")
        node_id = wanted.get("node")
    except (ValueError, AttributeError, LookupError, RecursionError):
        return web.json_response({"error": 'expected nothing, or JSON such as {"node": "5"}'}, status=400)
    return web.json_response({"finishing": finish(None if node_id is None else str(node_id))})
