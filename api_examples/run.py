"""Run a ComfyUI workflow from the command line, with some of its inputs changed, and save its pictures.

    python run.py workflow.api.json --set "CLIP Loss.prompt=a fox on sand by day" --set "Optimize Tokens.seed=3"

Needs `client.py` beside it. Ctrl-C takes the workflow off the server.
"""

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client import ComfyClient, ComfyError, Event, Graph, Progress, find_node, find_nodes, title

YES, NO = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def main() -> int:
    """Run one workflow; returns the exit status."""
    parser = arguments(__doc__)
    parser.add_argument("--previews", action="store_true", help="save the live previews, too")
    options = parser.parse_args()
    graph = load(options.workflow, options.set)
    started = time.monotonic()
    with ComfyClient(options.server) as client, Progress(graph) as progress:
        previews = Previews(options.out) if options.previews else None

        def watch(event: Event) -> None:
            progress(event)
            if previews and event.type == "preview":
                previews.save(event.image)

        pictures = results(client, client.execute(graph, watch))
    for node_id, encoded in pictures.items():
        for picture in encoded:
            print(save(picture, options.out, title(graph, node_id)))
    if previews:
        print(f"{previews.folder}: {previews.count} previews")
    print(f"{'Done' if pictures else 'Done, without a picture'} after {time.monotonic() - started:.1f} s")
    return 0


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A command line with what every script here needs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, help="a workflow in API format: File > Export (API)")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change an input")
    parser.add_argument("--server", default="http://127.0.0.1:8188", metavar="URL", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    return parser


def report_errors(act: Callable[[], int]) -> int:
    """Run a script's main function: an error becomes a line on stderr and an exit status, and so does Ctrl-C."""
    try:
        return act()
    except (ComfyError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return 130


def load(path: Path, changes: list[str]) -> Graph:
    """A workflow in API format, with changes written "Node title.input=value"."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComfyError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise ComfyError(f"{path} is not in API format. Export it from ComfyUI with File > Export (API).")
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ComfyError(f"{change!r} sets nothing: write NODE.INPUT=VALUE.")
        set_input(graph, name, text)
    return graph


def set_input(graph: Graph, name: str, text: str) -> None:
    """Change an input named as `find_input` takes it; the text becomes a value of the kind that it replaces."""
    node_id, key = find_input(graph, name)
    inputs = graph[node_id]["inputs"]
    inputs[key] = typed(text, inputs[key], f"{title(graph, node_id)}.{key}")


def find_input(graph: Graph, name: str) -> tuple[str, str]:
    """The node id and the key of "Node title.input" (or id, or class), or of an input that only one node has."""
    # Both a title and an input's name may contain a point; the longest title that is there is meant.
    splits = [(name[:at], name[at + 1 :]) for at in range(len(name) - 1, -1, -1) if name[at] == "."]
    if not splits:
        return _only_node_with(graph, name), name
    node, key = next((split for split in splits if find_nodes(graph, split[0])), splits[0])
    node_id = find_node(graph, node)
    values = _values(graph, node_id)
    if key not in values:
        linked = key in graph[node_id].get("inputs", {})
        problem = f"{key!r} of {node!r} is a link to another node" if linked else f"{node!r} has no input {key!r}"
        raise ComfyError(f"{problem}. It has: {', '.join(values) or 'none that can be set'}.")
    return node_id, key


def _only_node_with(graph: Graph, key: str) -> str:
    found = [node_id for node_id in graph if key in _values(graph, node_id)]
    if not found:
        names = [f"{title(graph, node_id)}.{other}" for node_id in graph for other in _values(graph, node_id)]
        raise ComfyError(f"No node has an input {key!r}. There are: {', '.join(names)}.")
    if len(found) > 1:
        names = [f"{title(graph, node_id)}.{key}" for node_id in found]
        raise ComfyError(f"{len(found)} nodes have an input {key!r}. Name one: {', '.join(names)}.")
    return found[0]


def _values(graph: Graph, node_id: str) -> dict[str, Any]:
    """A node's inputs that hold a value; a link to another node's output is a list of its id and a number."""
    return {key: value for key, value in graph[node_id].get("inputs", {}).items() if not isinstance(value, list)}


def typed(text: str, old: Any, name: str) -> Any:
    """The text as a value of the kind of `old`."""
    if isinstance(old, bool):
        if text.strip().casefold() not in YES | NO:
            raise ComfyError(f"{name} takes true or false, not {text!r}.")
        return text.strip().casefold() in YES
    if isinstance(old, (int, float)):
        for kind in (int, float):  # workflows write 1 for 1.0, so a whole number may become a fraction
            try:
                return kind(text)
            except ValueError:
                continue
        raise ComfyError(f"{name} takes a number, not {text!r}.")
    return text


def results(client: ComfyClient, prompt_id: str) -> dict[str, list[bytes]]:
    """What the workflow saves; what it shows, if it saves nothing."""
    return client.images(prompt_id, "output") or client.images(prompt_id)


def save(picture: bytes, folder: Path, name: str) -> Path:
    """Write a picture as "name.png", or "name 2.png" and so on if there is one; nothing is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = folder / f"{file_name(name)}{f' {number}' if number > 1 else ''}{suffix(picture)}"
        try:
            with path.open("xb") as file:
                file.write(picture)
            return path
        except FileExistsError:
            continue
    raise AssertionError("never reached")


def file_name(text: str) -> str:
    """The text without what a file name may not contain, and not too long."""
    return re.sub(r"[^\w-]+", " ", text)[:80].strip() or "picture"


def suffix(picture: bytes) -> str:
    """What the name of a picture file ends with."""
    if picture.startswith(b"\xff\xd8"):
        return ".jpg"
    return ".webp" if picture.startswith(b"RIFF") else ".png"


class Previews:
    """A folder of its own for the live previews of one run."""

    def __init__(self, out: Path) -> None:
        self.folder, self.count = out / time.strftime("previews %Y-%m-%d %H.%M.%S"), 0

    def save(self, picture: bytes) -> None:
        """Write the next one."""
        self.count += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.count:04}{suffix(picture)}").write_bytes(picture)


if __name__ == "__main__":
    sys.exit(report_errors(main))
