"""Over a thousand malformed prompts: an error on the right node, in a user's words, and no trace of it afterwards."""

from __future__ import annotations

import os
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pytest

from api_examples.client import ComfyClient, ExecutionFailed, PromptRefused, find_node
from devtools.server import ComfyServer
from tests.mutants import FAMILIES, OURS, Mutant, Schemas, mutants

from .conftest import pixels, text_edit

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

BATCH = 50  # prompts between two looks at the reference
PATIENCE = 60.0  # seconds a single prompt may take; all of them are made to take less than one
ONLY = os.environ.get("TOKENOPT_MUTANT", "")  # the name of a single one, to run it alone

REFUSED: dict[str, int] = {}  # by family

DEBRIS = re.compile(
    r"Traceback|\w+(Error|Exception)\b|Errno|tensor\(|<class|<.* object at 0x|NoneType|has no attribute|unhashable"
    r"|unsupported operand|must match the size|not subscriptable|not iterable|not callable|unexpected keyword|dtype"
    r"|positional argument|not supported|out of range|out of bounds|Expected all tensors|Dimension|invalid literal"
    r"|codec can't|null byte|allocate|0x[0-9a-f]{6}"
)


@pytest.fixture(scope="module")
def schemas(comfy_server: ComfyServer) -> Schemas:
    """What the server knows of all its nodes."""
    return comfy_server.get("/object_info", timeout=60)


@pytest.fixture(scope="module")
def reference(comfy_server: ComfyServer) -> Callable[[], None]:
    """Checks that the server lives and that an example gives the very picture it gave before all this."""

    def pictures() -> Iterator[np.ndarray]:
        with ComfyClient(comfy_server.url) as client:
            for seed in (0, 1):  # two in a row, so that each is computed and not remembered
                graph = text_edit(seed, iterations=3)
                (png,) = client.run(graph)[find_node(graph, "Edited picture")]
                yield pixels(png)

    before = list(pictures())

    def check() -> None:
        assert comfy_server.alive, comfy_server.tail(40)
        assert all(np.array_equal(old, new) for old, new in zip(before, pictures(), strict=True))

    return check


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_malformed_prompts(client: ComfyClient, schemas: Schemas, reference, family) -> None:
    cases = (mutant for mutant in mutants(schemas, family) if ONLY in ("", mutant.name))
    complaints: list[str] = []
    refused = 0
    while batch := list(islice(cases, BATCH)):
        outcomes = [hand_in(client, mutant) for mutant in batch]
        for mutant, outcome in zip(batch, outcomes, strict=True):
            outcome = wait(client, mutant, outcome) if isinstance(outcome, str) else outcome
            refused += outcome is not None
            complaint = judge(mutant, outcome)
            complaints += [f"{mutant.name}\n    {complaint}"] if complaint else []
        reference()
    REFUSED[family.__name__] = refused
    assert not complaints, "\n".join(
        [f"{len(complaints)} cases; to run one alone, put its name into TOKENOPT_MUTANT", *complaints]
    )


def test_after_all_of_them(assert_unharmed) -> None:
    assert_unharmed()
    if len(REFUSED) == len(FAMILIES) and not ONLY:
        assert sum(REFUSED.values()) >= 1000, REFUSED  # the rest were still valid, and ran


def hand_in(client: ComfyClient, mutant: Mutant) -> str | Exception:
    """A prompt's id, or how it was refused."""
    try:
        return client.queue(mutant.graph)
    except (PromptRefused, urllib.error.HTTPError) as error:
        return error


def wait(client: ComfyClient, mutant: Mutant, prompt_id: str) -> Exception | None:
    """How a prompt that was queued failed; None if it ran."""
    deadline = time.monotonic() + PATIENCE  # from when the one before it was done
    while not (entry := client.history(prompt_id)):
        if time.monotonic() > deadline:
            client.cancel(prompt_id)
            pytest.fail(f"{mutant.name}\n    is not done after {PATIENCE:.0f} s")
        time.sleep(0.02)
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return ExecutionFailed(mutant.graph, data)
    return None


def judge(mutant: Mutant, outcome: Exception | None) -> str:
    """What is wrong with an answer; nothing if it is as it should be."""
    if isinstance(outcome, PromptRefused):  # ComfyUI's own words
        # ComfyUI follows a circle until Python stops it, wherever that happens to be
        wrong = {key for key, of in outcome.node_errors.items() if "recursion depth" not in of["errors"][0]["details"]}
        wrong -= mutant.blamed
        return f"the error is on the nodes {sorted(wrong)}: {outcome}" if wrong else ""
    if isinstance(outcome, ExecutionFailed):
        data = outcome.data
        message = str(data["exception_message"]).strip()
        if data["node_id"] not in mutant.blamed:
            return f"the error is on node {data['node_id']}: {outcome}"
        if data["node_type"].startswith(OURS) and (DEBRIS.search(message) or len(message.split()) < 5):
            return f"these are no words of a user: {data['node_type']}: {message[:300]}"
        return f"a message of {len(message)} characters" if len(message) > 2000 else ""
    # what is no graph at all fails in ComfyUI's own request handler
    broken = isinstance(outcome, urllib.error.HTTPError) and mutant.name.startswith(("classes", "whole"))
    return f"{outcome!r}" if outcome and not broken else ""
